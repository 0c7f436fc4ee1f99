"""omniback, torchpipe's engine on the index, asked.  python of_omniback.py [FEATURE ...]

torchpipe itself adds images and TensorRT to it; its wheel compiles a core for minutes where torch is newer than 2.12.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import omniback
from pipe_probes import Forward, Library, interrupted, register
from probes import NEUTRAL, NO, PARTLY, YES, Cell, at_once, documented, main, probe

SOURCE = "https://github.com/torchpipe/torchpipe"
_numbers = itertools.count()


class Omniback(Library):
    """Names of backends and nodes are the process's."""

    def node(self, forward: Forward, max_batch: int, **keys: Any) -> dict[str, Any]:
        class Node:
            def forward(self, batch: Any) -> None:
                for request, result in zip(batch, forward([request["data"] for request in batch]), strict=True):
                    request["result"] = result

            def max(self) -> int:
                return max_batch

        name = f"Node{next(_numbers)}"
        omniback.register(name, Node)
        return {"backend": name, **keys}

    def pipe(self, nodes: dict[str, dict[str, Any]]) -> Callable[[dict[str, Any]], Any]:
        return omniback.pipe(nodes)  # type: ignore[no-any-return]


register(Omniback())


@probe("isolation")
def isolation() -> Cell:
    """A backend that leaves a request without a result says so of this one."""
    library = Omniback()
    node = library.node(lambda numbers: numbers, 4, batching_timeout=300)

    class Leaves:
        def forward(self, batch: Any) -> None:
            time.sleep(0.1)
            for request in batch:
                if request["data"] != 14:
                    request["result"] = request["data"]

        def max(self) -> int:
            return 4

    omniback.register("Leaves", Leaves)
    pipe = library.pipe({"leaves": {**node, "backend": "Leaves"}})
    answers = at_once([lambda number=number: library.ask(pipe, number) for number in (1, 2, 14, 3)])
    assert [answer for answer in answers if not isinstance(answer, BaseException)] == [1, 2, 3]
    return Cell(PARTLY, "only it ends, without a result and without an error")


@probe("misspelt")
def misspelt() -> Cell:
    """instance_nun."""
    library = Omniback()
    try:
        pipe = library.pipe({"misspelt": library.node(lambda numbers: numbers, 4, instance_nun=2)})
    except Exception as error:
        return Cell(YES, type(error).__name__)
    assert library.ask(pipe, 1) == 1
    return Cell(NO, "is ignored")


@probe("loop")
def loop() -> Cell:
    """The key restart, which version 1 has."""
    library = Omniback()

    class Doubles:
        def forward(self, batch: Any) -> None:
            for request in batch:
                request["result"] = request["data"] * 2

        def max(self) -> int:
            return 1

    omniback.register("Doubles", Doubles)
    pipe = library.pipe({"doubles": {"backend": "Doubles", "restart": "doubles"}})
    assert library.ask(pipe, 2) == 4
    return Cell(PARTLY, "a node's restart is ignored; backends may set it in a request")


@probe("ctrl_c")
def ctrl_c() -> Cell:
    """Ctrl-C while the main thread waits for a request of two seconds."""
    code = """
import omniback, sys, time
class Slow:
    def forward(self, batch):
        time.sleep(2)
        for request in batch:
            request["result"] = 1
    def max(self):
        return 1
omniback.register("Slow", Slow)
pipe = omniback.pipe({"slow": {"backend": "Slow"}})
request = {"data": 1}
print("ready", flush=True)
try:
    pipe(request)
    print("answered", flush=True)
except BaseException as error:
    print(type(error).__name__, flush=True)
"""
    return interrupted(code, 2.0)


documented(PARTLY, "MapReduce in version 0; not in this package", SOURCE, "map_reduce")
documented(
    NO, "none", SOURCE, "cancellation", "deadline", "overload", "priority", "state", "swap", "metrics", "timeline"
)
documented(PARTLY, "queues between backends (LLM)", SOURCE, "streaming")
documented(YES, "DecodeTensor of torchpipe (nvJPEG)", SOURCE, "gpu_decode")
documented(NO, "in the caller's process, which ends", SOURCE, "crash")
documented(NO, "threads of one process, which share the GIL", SOURCE, "cores")
documented(NO, "none", SOURCE, "machines")
documented(NEUTRAL, "no server of its own", SOURCE, "sigterm", "protocol", "openai")

if __name__ == "__main__":
    main("omniback")
