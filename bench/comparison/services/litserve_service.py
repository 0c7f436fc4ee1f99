"""LitServe: the model of the comparison.  python litserve_service.py PORT [stream | chat | restart]"""

# No `from __future__ import annotations`: LitServe would take every request for a malformed one (see findings/).
import sys
from collections.abc import Iterator
from typing import Any

import litserve
import served_model
from fastapi.responses import JSONResponse


class Model(litserve.LitAPI):
    """Runs batches."""

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, Any]) -> int:
        return int(request["number"])

    def predict(self, data: Any) -> Any:
        if not isinstance(data, list):
            return served_model.run([data])[0]
        good = iter(served_model.run([number for number in data if number != served_model.REFUSED]))
        return [None if number == served_model.REFUSED else next(good) for number in data]

    def batch(self, inputs: list[int]) -> list[int]:
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        # An HTTPException would be the answer to the whole batch; a response of its own is the way to refuse one.
        return JSONResponse({"error": "refused"}, 422) if output is None else output


class Stream(litserve.LitAPI):
    """Answers in three parts."""

    def setup(self, device: str) -> None:
        pass

    def predict(self, data: Any) -> Iterator[str]:
        import time

        for part in range(3):
            time.sleep(0.2)
            yield f"{part}\n"

    def encode_response(self, output):  # type: ignore[no-untyped-def]  # FastAPI would make a model of what it returns
        yield from output


class Chat(litserve.LitAPI):
    """Answers a chat."""

    def setup(self, device: str) -> None:
        pass

    def predict(self, data: Any) -> Iterator[str]:
        yield "one"


def main() -> None:
    """Serve until a signal."""
    if sys.argv[2:] == ["stream"]:
        api: litserve.LitAPI = Stream(stream=True)
    elif sys.argv[2:] == ["chat"]:
        api = Chat(spec=litserve.OpenAISpec())
    else:
        waiting = {"batch_timeout": served_model.WAIT_MS / 1e3} if served_model.MAX_BATCH > 1 else {}
        api = Model(max_batch_size=served_model.MAX_BATCH, **waiting)
    timeout_s = served_model.TIMEOUT_MS / 1e3 or 30
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=served_model.INSTANCES,
        timeout=timeout_s,
        restart_workers="restart" in sys.argv[2:],
    )
    room = {"limit_concurrency": served_model.ROOM} if served_model.ROOM else {}  # uvicorn's, which run() hands on
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error", **room)


if __name__ == "__main__":
    main()
