"""mosec: the echo, of bytes as they are.  python mosec_peer.py --address 127.0.0.1 --port PORT

A file of its own: ``import mosec`` reads the command line.
"""

from __future__ import annotations

import mosec


class Echo(mosec.Worker):
    """Answers with the bytes that came, which nothing parses."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Echo, num=1)
    server.run()
