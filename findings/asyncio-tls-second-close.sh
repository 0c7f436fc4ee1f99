#!/usr/bin/env bash
# CPython: a second `close()` of asyncio's TLS transport leaves nothing of it: each further method raises AttributeError,
# and `abort()` does nothing, so that a client that says nothing more keeps the connection for the 30 s of
# `ssl_shutdown_timeout`.
#
# The transport without TLS takes any number of `close()`, as the documentation of `close` lets one think. The cause is
# `_SSLProtocolTransport.close`, which drops its protocol if the transport is closed already.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check trustme==1.2.1 cryptography==50.0.2

cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import asyncio
import platform
import ssl

import trustme


async def close_it(closes: int, server_tls, client_tls) -> tuple[str, bool]:
    """Return what a method says after so many `close()`, and whether `abort()` ends the connection within 2 s."""
    loop = asyncio.get_running_loop()
    made, lost = loop.create_future(), asyncio.Event()

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            made.set_result(transport)

        def connection_lost(self, error):
            lost.set()

    server = await loop.create_server(Server, "127.0.0.1", 0, ssl=server_tls)
    port = server.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls)
    writer.transport.pause_reading()  # a client that keeps its connection for later
    transport = await made
    for _ in range(closes):
        transport.close()
    try:
        said = f"{transport.get_write_buffer_size()} bytes to write"
    except AttributeError as error:
        said = repr(error)
    transport.abort()
    try:
        await asyncio.wait_for(lost.wait(), 2)
    except TimeoutError:
        pass
    ended = lost.is_set()
    writer.transport.abort()
    server.close()
    return said, ended


def main() -> None:
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert("localhost").configure_cert(server_tls)
    client_tls = ssl.create_default_context()
    authority.configure_trust(client_tls)
    print(f"CPython {platform.python_version()}")
    seen = {}
    for name, contexts in (("without TLS", (None, None)), ("with TLS", (server_tls, client_tls))):
        client = contexts[1]
        if client is not None:
            client.check_hostname = False
        for closes in (1, 2):
            seen[name, closes] = said, ended = asyncio.run(close_it(closes, *contexts))
            print(f"  {name}, close() {closes} times: {said}; abort() {'ends it' if ended else 'does nothing'}")
    expected = [True, True, True, False]
    if [ended for _, ended in seen.values()] != expected or "AttributeError" not in seen["with TLS", 2][0]:
        raise SystemExit("the behaviour has changed")


main()
PY
