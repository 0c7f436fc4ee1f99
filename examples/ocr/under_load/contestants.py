"""Who answers the queries: fastpipe, and the same model behind an executor, a plain loop, and FastAPI's endpoints.

Each is asked by ``submit``, which never waits, and answers by a future. All compute on as many threads as there are
CPUs: those that answer several queries at a time give each run of the model one thread, the plain loop gives it all.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI

from fastpipe import Pipe
from ocr.under_load.search import Hit, Index, Searcher, search_pipe

__all__ = ["FASTAPI", "FASTPIPE", "Answer", "Contestant", "contestants"]

Answer = list[Hit]
FASTPIPE = "fastpipe"
FASTAPI = "FastAPI"


@dataclass(frozen=True)
class Contestant:
    """A way of answering queries.

    Attributes:
        what: that answers.
        inside: what it is called through; nothing: it is called as a function.
        colour: of its line in the chart.
        submit: asks a query, from any thread.
        pipe: the pipe that answers, whose batches are shown; None: there are no batches.
    """

    what: str
    inside: str
    colour: str
    submit: Callable[[str], Future[Answer]]
    pipe: Pipe | None = None

    @property
    def name(self) -> str:
        return f"{self.inside}, {self.what}" if self.inside else self.what


@contextmanager
def contestants(index: Index, cpu_count: int) -> Iterator[list[Contestant]]:
    """Start all of them, fastpipe first; they end with the context, and after an error at once.

    Raises:
        ModelsMissing: if the packages with the model are not installed.
    """
    one_thread, all_threads = Searcher(1), Searcher(cpu_count)
    one_thread.index = all_threads.index = index
    with ExitStack() as stack:
        pipe = stack.enter_context(_closed_at_once_if_it_fails(search_pipe(index, cpu_count)))
        pool, loop = stack.enter_context(_executor(cpu_count)), stack.enter_context(_executor(1))
        of_pipe = stack.enter_context(_served(_asking(pipe)))
        of_threads = stack.enter_context(_served(_computing(one_thread)))
        yield [
            Contestant(FASTPIPE, "", "#0072B2", lambda query: _asked(pipe, query), pipe),
            Contestant("ThreadPoolExecutor", "", "#009E73", lambda query: pool.submit(one_thread.find, query)),
            Contestant("plain loop", "", "#8c8c8c", lambda query: loop.submit(all_threads.find, query)),
            Contestant(FASTPIPE, FASTAPI, "#56B4E9", of_pipe, pipe),
            Contestant("def endpoint", FASTAPI, "#D55E00", of_threads),
        ]


class _Answer(Future[Answer]):
    """A future of somebody else's work: to cancel it is to ask for that, and it has ended when the work has."""

    def __init__(self, give_up: Callable[[], object]) -> None:
        super().__init__()
        self._give_up = give_up

    def cancel(self) -> bool:
        self._give_up()
        return False

    def end(self, work: Future[Any] | asyncio.Task[Any], answer_of: Callable[[Any], Answer]) -> None:
        """Take over what came of the work."""
        if work.cancelled():
            Future.cancel(self)
            self.set_running_or_notify_cancel()
        elif error := work.exception():
            self.set_exception(error)
        else:
            self.set_result(answer_of(work.result()))


def _asked(pipe: Pipe, query: str) -> Future[Answer]:
    work = pipe.submit({"data": query})
    answer = _Answer(work.cancel)
    work.add_done_callback(lambda done: answer.end(done, lambda request: request["result"]))
    return answer


def _asking(pipe: Pipe) -> FastAPI:
    app = FastAPI()

    @app.get("/search")
    async def search(q: str) -> Answer:
        request = await pipe.acall({"data": q})
        answer: Answer = request["result"]
        return answer

    return app


def _computing(searcher: Searcher) -> FastAPI:
    """Return the usual way: FastAPI runs a ``def`` endpoint on one of 40 threads."""
    app = FastAPI()

    @app.get("/search")
    def search(q: str) -> Answer:
        return searcher.find(q)

    return app


@contextmanager
def _executor(threads: int) -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(threads, thread_name_prefix="searcher")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _served(app: FastAPI) -> Iterator[Callable[[str], Future[Answer]]]:
    """Run the application on an event loop of its own, as a server does, but for HTTP on a socket."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="event loop")
    thread.start()

    def submit(query: str) -> Future[Answer]:
        tasks: list[asyncio.Task[Answer]] = []
        answer = _Answer(lambda: loop.call_soon_threadsafe(lambda: tasks[0].cancel()))

        def begin() -> None:
            tasks.append(loop.create_task(_get(app, query)))
            tasks[0].add_done_callback(lambda done: answer.end(done, lambda hits: hits))

        loop.call_soon_threadsafe(begin)
        return answer

    try:
        yield submit
    finally:
        asyncio.run_coroutine_threadsafe(_ended(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _ended() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _get(app: FastAPI, query: str) -> Answer:
    """Ask the application as a server would, by ASGI."""
    text = f"q={quote(query)}".encode()
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
             "path": "/search", "raw_path": b"/search", "query_string": text, "root_path": "", "headers": [],
             "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}  # fmt: skip
    status, parts = 0, []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    content = b"".join(parts)
    if status != 200:
        raise RuntimeError(f"the endpoint answered {status}: {content.decode(errors='replace')}")
    return [(str(line), float(score)) for line, score in json.loads(content)]


@contextmanager
def _closed_at_once_if_it_fails(pipe: Pipe) -> Iterator[Pipe]:
    try:
        yield pipe
    except BaseException:
        pipe.close(timeout=0)
        raise
    pipe.close()
