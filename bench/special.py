"""What no closed loop shows: asyncio beside a busy thread, memory, the time of an import and a start, pages of text."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.append(EXAMPLES := str(Path(__file__).resolve().parents[1] / "examples"))  # for the pages of text
from common import BusyThread, Numbers, Window, WrongAnswer, rss_bytes
from contestants import Contestant, Fastpipe, Node, Trial

__all__ = [
    "AsyncioCallers",
    "Growth",
    "Import",
    "PagesThroughPipe",
    "PagesThroughReference",
    "QueuedInExecutor",
    "QueuedInMap",
    "QueuedInSubmit",
    "Start",
    "asyncio_by_hand",
    "asyncio_over_threads",
    "asyncio_through_pipe",
]

Ask = Callable[[int], Awaitable[int]]

# ---- asyncio -------------------------------------------------------------------------------------------------------


class AsyncioCallers(Trial):
    """So many tasks on one event loop, each asking again as soon as it has its answer, beside a busy thread."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def verify(self) -> None:
        async def ask_all() -> list[int]:
            return await asyncio.gather(*(self._ask(number) for number in range(300)))

        if asyncio.run(ask_all()) != list(range(300)):
            raise WrongAnswer("somebody got another's answer")

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure requests/s; the busy thread runs all the time."""
        with BusyThread():
            return {"requests_per_s": asyncio.run(self._rate(clients, window))}

    async def _rate(self, callers: int, window: Window) -> float:
        is_wanted = True
        count = 0

        async def caller(number: int) -> None:
            nonlocal count
            while is_wanted:
                if await self._ask(number) != number:
                    raise WrongAnswer(f"caller {number} got another's answer")
                count += 1

        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(caller(number))
            await asyncio.sleep(window.warm_up_s)
            count_before, start_s = count, time.perf_counter()
            await asyncio.sleep(window.measured_s)
            rate = (count - count_before) / (time.perf_counter() - start_s)
            is_wanted = False
        return rate


def asyncio_through_pipe(max_batch: int) -> AsyncioCallers:
    """Return callers of ``Pipe.acall``."""
    pipe = Fastpipe(Node(max_batch=max_batch, timeout_ms=2.0)).pipe

    async def ask(number: int) -> int:
        request: dict[str, Any] = {"data": number}
        await pipe.acall(request)
        result: int = request["result"]
        return result

    return AsyncioCallers(ask)


def asyncio_over_threads(contestant: Contestant) -> AsyncioCallers:
    """Return callers of ``run_in_executor``, with 64 threads: what one does with a library that only blocks."""
    executor = ThreadPoolExecutor(64)

    async def ask(number: int) -> int:
        return await asyncio.get_running_loop().run_in_executor(executor, contestant.answer, number)

    return AsyncioCallers(ask)


def asyncio_by_hand(max_batch: int) -> AsyncioCallers:
    """Return callers of a queue with a worker that takes what is there, and answers once for a batch."""
    items: queue.SimpleQueue[tuple[int, asyncio.Future[int]]] = queue.SimpleQueue()

    def answer_all(batch: list[tuple[int, asyncio.Future[int]]]) -> None:
        for number, future in batch:
            future.set_result(number)

    def serve() -> None:
        while True:
            batch = [items.get()]
            while len(batch) < max_batch and not items.empty():
                batch.append(items.get())
            batch[0][1].get_loop().call_soon_threadsafe(answer_all, batch)

    threading.Thread(target=serve, daemon=True).start()

    async def ask(number: int) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        items.put((number, future))
        return await future

    return AsyncioCallers(ask)


# ---- memory --------------------------------------------------------------------------------------------------------

QUEUED_COUNT = 10_000


class _Queued(Trial):
    """How much memory a waiting request takes beyond its dict.

    Measured once in a process: memory that was freed would be used again.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure 10,000 requests behind a closed gate."""
        requests: list[dict[str, Any]] = [{"data": number} for number in range(QUEUED_COUNT)]
        self.start(requests[:10])  # threads, and what is made once
        gc.collect()
        before_bytes = rss_bytes()
        kept = self.start(requests[10:])
        gc.collect()
        numbers = {"bytes_each": (rss_bytes() - before_bytes) / (QUEUED_COUNT - 10)}
        self.gate.set()
        del kept
        return numbers

    def start(self, requests: list[dict[str, Any]]) -> Any:
        """Queue the requests and return what has to be kept for their answers."""
        raise NotImplementedError

    def wait_at_gate(self, _: int) -> None:
        """Be the work of a batch that does not end."""
        self.gate.wait()


class QueuedInSubmit(_Queued):
    """Requests whose callers hold a concurrent.futures.Future."""

    def __init__(self) -> None:
        super().__init__()
        self._pipe = Fastpipe(Node(work=self.wait_at_gate)).pipe

    def start(self, requests: list[dict[str, Any]]) -> list[Future[dict[str, Any]]]:
        return [self._pipe.submit(request) for request in requests]


class QueuedInMap(_Queued):
    """Requests that ``Pipe.map`` has taken ahead."""

    def __init__(self) -> None:
        super().__init__()
        self._pipe = Fastpipe(Node(work=self.wait_at_gate)).pipe

    def start(self, requests: list[dict[str, Any]]) -> threading.Thread:
        accepted = self._pipe.stats()["requests"]["accepted"] + len(requests)
        answers = self._pipe.map(requests, look_ahead=QUEUED_COUNT * 2)
        thread = threading.Thread(target=lambda: list(itertools.islice(answers, 1)), daemon=True)
        thread.start()
        while self._pipe.stats()["requests"]["accepted"] < accepted:
            time.sleep(0.01)
        return thread


class QueuedInExecutor(_Queued):
    """The same in a ThreadPoolExecutor."""

    def __init__(self) -> None:
        super().__init__()
        self._executor = ThreadPoolExecutor(1)

    def start(self, requests: list[dict[str, Any]]) -> list[Future[bool]]:
        return [self._executor.submit(self._answer, request) for request in requests]

    def _answer(self, request: dict[str, Any]) -> bool:
        self.wait_at_gate(1)
        request["result"] = request["data"]
        return True


class Growth(Trial):
    """How much more memory is resident after so many requests, in 8 threads, than after the first tenth of them."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure 1 M requests; a short window stands for a tenth of them."""
        count = 1_000_000 if window.measured_s >= 1 else 100_000
        self._ask(clients, count // 10)
        gc.collect()
        before_bytes = rss_bytes()
        self._ask(clients, count)
        gc.collect()
        return {"growth_kib": (rss_bytes() - before_bytes) / 1024, "requests": float(count)}

    def _ask(self, clients: int, count: int) -> None:
        def loop() -> None:
            for number in range(count // clients):
                self._contestant.answer(number)

        threads = [threading.Thread(target=loop) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


# ---- import --------------------------------------------------------------------------------------------------------

OPTIONAL_LIBRARIES = (
    "PIL", "cupy", "cv2", "onnx", "onnxruntime", "rich", "simplejpeg", "skimage", "tensorrt", "torch",
)  # fmt: skip

_IMPORT = """
import json, sys, time
start_s = time.perf_counter()
import {module}
took_ms = (time.perf_counter() - start_s) * 1e3
print(json.dumps([took_ms, sorted(set({optional}) & set(sys.modules))]))
"""


class Import(Trial):
    """How long an import takes in a new process, and how many of the optional libraries it loads."""

    def __init__(self, module: str) -> None:
        self._code = _IMPORT.format(module=module, optional=OPTIONAL_LIBRARIES)
        self._import()  # fills the disk cache, and says if the module is missing

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure one import."""
        took_ms, loaded = self._import()
        return {"import_ms": took_ms, "optional_libraries": float(len(loaded))}

    def _import(self) -> tuple[float, list[str]]:
        ran = subprocess.run([sys.executable, "-c", self._code], capture_output=True, text=True, check=False)
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1]
            raise ModuleNotFoundError(last.removeprefix("ModuleNotFoundError: "))
        took_ms, loaded = json.loads(ran.stdout)
        return took_ms, loaded


# ---- start ---------------------------------------------------------------------------------------------------------


# Each reads a picture from its standard input, and writes a line when it has the answer.
STARTS = {
    "jpeg through a pipe": """
import sys, fastpipe
pipe = fastpipe.Pipe(backend="S[DecodeMat,ResizeMat,NormalizeMat]", resize_h=224, resize_w=224, color="rgb")
assert pipe({"data": sys.stdin.buffer.read()})["result"].shape == (3, 224, 224)
""",
    "jpeg by hand": """
import sys, cv2, numpy
image = cv2.imdecode(numpy.frombuffer(sys.stdin.buffer.read(), numpy.uint8), cv2.IMREAD_COLOR)
image = cv2.cvtColor(cv2.resize(image, (224, 224)), cv2.COLOR_BGR2RGB)
numpy.ascontiguousarray(image.transpose(2, 0, 1), dtype=numpy.float32)
""",
    "page through a pipe": f"""
import sys
sys.path.append({EXAMPLES!r})
import fastpipe
from ocr import command, pipeline
assert command.pipe_reader(fastpipe.Pipe(pipeline.configuration()))(sys.stdin.buffer.read())
""",
    "page by rapidocr": f"""
import sys
sys.path.append({EXAMPLES!r})
from ocr import command
assert command.reference_reader()(sys.stdin.buffer.read())
""",
}


class Start(Trial):
    """How long a new process takes until it has its first answer, from the interpreter's beginning on.

    Args:
        name: in ``STARTS``.
        picture: makes the picture that is asked about.
    """

    def __init__(self, name: str, picture: Callable[[], bytes]) -> None:
        self._code = f"{STARTS[name]}\nprint('answered', flush=True)\nimport os\nos._exit(0)"
        self._picture = picture()
        self._start_ms()  # fills the disk cache, and says if something is missing

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure one start."""
        return {"start_ms": self._start_ms()}

    def _start_ms(self) -> float:
        start_s = time.perf_counter()
        command = [sys.executable, "-c", self._code]
        ran = subprocess.run(command, input=self._picture, capture_output=True, check=False)
        took_ms = (time.perf_counter() - start_s) * 1e3
        if ran.returncode or b"answered" not in ran.stdout:
            last = ran.stderr.decode(errors="replace").strip().splitlines()[-1]
            if last.startswith("ModuleNotFoundError: "):
                raise ModuleNotFoundError(last.removeprefix("ModuleNotFoundError: "))
            raise WrongAnswer(last)
        return took_ms


def one_line() -> bytes:
    """Return a page with a line of text, so that each of the models is asked."""
    import cv2
    import numpy as np

    page = np.full((120, 480, 3), 255, np.uint8)
    cv2.putText(page, "The first page", (30, 75), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 0, 0), 3)
    encoded: bytes = cv2.imencode(".png", page)[1].tobytes()
    return encoded


# ---- pages of text -------------------------------------------------------------------------------------------------


class _Pages(Trial):
    """Sample pages are read, all of them in one window."""

    def __init__(self, page_count: int) -> None:
        from ocr import pages

        self._pages = pages.sample_pages(page_count)
        self._read = self.reader()
        self._digest: str | None = None

    def reader(self) -> Callable[[bytes], Any]:
        """Return what reads one page."""
        raise NotImplementedError

    def run(self, clients: int, window: Window) -> Numbers:
        """Read all pages on so many threads."""
        from ocr import command

        cpu_start_s = time.process_time()
        lines_of_pages, latencies_s, wall_s = command.read_all(self._pages, self._read, clients)
        ordered = sorted(latencies_s)
        text = json.dumps([[line.text for line in lines] for lines in lines_of_pages])
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        return {
            "pages_per_s": len(ordered) / wall_s,
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "cpu_ms": (time.process_time() - cpu_start_s) / len(ordered) * 1e3,
        }

    def answers(self) -> str | None:
        return self._digest


class PagesThroughPipe(_Pages):
    """The demo's pipe, called from several threads."""

    callers = 8

    def reader(self) -> Callable[[bytes], Any]:
        from ocr import command, pipeline

        import fastpipe

        self._pipe = fastpipe.Pipe(pipeline.configuration())
        return command.pipe_reader(self._pipe)

    def run(self, clients: int, window: Window) -> Numbers:
        """Read all pages; the pipe has ``callers`` threads for each one that a loop would have."""
        return super().run(clients * self.callers, window)


class PagesThroughReference(_Pages):
    """rapidocr_onnxruntime's own sequential loop."""

    def reader(self) -> Callable[[bytes], Any]:
        from ocr import command

        return command.reference_reader()
