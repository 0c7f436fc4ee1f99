"""What the command does: read pages through the pipe and in a plain loop, then serve a search in what was read."""

from __future__ import annotations

import argparse
import os
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fastpipe import Pipe
from fastpipe.errors import MissingExtra
from ocr import DemoError, pipeline, report
from ocr.neighbours import Neighbours, disturbance
from ocr.pages import PageFile, pages_of_files, sample_pages
from ocr.plain import PlainReader
from ocr.steps import Line, UnreadablePage

__all__ = ["pipe_reader", "read_all", "reference_reader", "run"]

# Each has its own copy of the models; more than this is for servers, not for a demo.
MOST_INSTANCES = 8

CALLERS_PER_INSTANCE = 2

SAMPLE_COUNT = 4

# Of load, for each way and step: enough requests for a 99th percentile, and few enough for half a minute in all.
WINDOW_S = 0.8

# A model's run on one batch takes a second or two on a busy machine.
LONGEST_RUN_S = 20.0

Reader = Callable[[bytes], list[Line]]


def run(options: argparse.Namespace) -> None:
    """Run the demo; see ``__main__`` for the options.

    Raises:
        ImportError: if models or libraries are missing.
        DemoError: if a file is no page, or the ways of reading or of searching do not agree.
        OSError: if a picture cannot be written.
        KeyboardInterrupt: after Ctrl-C; the pipe is closed by then.
    """
    console = Console()
    show_under_load = None if options.paths else _import_of_load()
    options.out.mkdir(parents=True, exist_ok=True)  # before anything is read for it
    pages = pages_of_files(options.paths) if options.paths else sample_pages(SAMPLE_COUNT)
    cpu_count = len(os.sched_getaffinity(0))
    instance_num = options.instances or min(MOST_INSTANCES, cpu_count)
    answers, tables = _read(console, pages, instance_num, options.reference)
    pictures = [report.save_picture(page, lines, options.out) for page, lines in zip(pages, answers, strict=True)]
    shown_count = len(pages) if options.text or options.paths else 1
    for page, lines in list(zip(pages, answers, strict=True))[:shown_count]:
        _show_page(console, page, lines)
    for table in tables:
        console.print(table)
    line_count = sum(len(lines) for lines in answers)
    console.print(
        f"All ways read the same {_counted(line_count, 'line')} on {_counted(len(pages), 'page')}.", highlight=False
    )
    console.print(f"The picture of {pages[0].name}: {pictures[0]}", highlight=False, soft_wrap=True)
    if len(pages) > shown_count:
        console.print("The other pictures are beside it; --text prints all pages.", highlight=False)
    if options.open and not webbrowser.open(pictures[0].resolve().as_uri()):
        console.print("(Nothing here can open it.)")
    if show_under_load:
        texts = [line.text for lines in answers for line in lines]
        console.print()
        show_under_load(console, pages[0], texts, cpu_count, WINDOW_S, options.out / "under-load.png")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _import_of_load() -> Callable[..., None]:
    """Return what shows the service under load; it needs more packages than reading does."""
    try:
        from ocr.under_load.show import show_under_load
    except ModuleNotFoundError as error:
        raise MissingExtra("the search", "demo", error) from error
    return show_under_load


def _read(
    console: Console, pages: Sequence[PageFile], instance_num: int, with_reference: bool
) -> tuple[list[list[Line]], list[RenderableType]]:
    """Read the pages through the pipe, then in a plain loop; return their lines, and tables of how it went."""
    neighbours, before = Neighbours(), list[Any]()
    callers = CALLERS_PER_INSTANCE * instance_num
    with console.status("loading the models"):
        pipe = Pipe(pipeline.configuration(instance_num))
    with _closed_at_once_if_it_fails(pipe), _opencv_without_threads():
        run_of_pipe, answers = _run_shown(
            console,
            f"fastpipe, {callers} callers",
            pages,
            pipe_reader(pipe),
            callers,
            lambda: before.append(pipe.stats()),
        )
        nodes = pipe.stats(since=before[0])["nodes"]
    loops: dict[str, Callable[[], Reader]] = {"plain loop": lambda: PlainReader().read}
    if with_reference:
        loops["rapidocr_onnxruntime"] = reference_reader
    runs = [run_of_pipe]
    differences = []
    for what, make_reader in loops.items():
        with console.status("loading the models"):
            read = make_reader()
        run_of_loop, expected = _run_shown(console, what, pages, read, 1)
        runs.append(run_of_loop)
        names = [p.name for p, a, b in zip(pages, answers, expected, strict=True) if not report.same_lines(a, b)]
        if names:
            differences.append(f"{what}: other lines on {', '.join(names)}")
    if differences:
        raise DemoError("; ".join(differences))
    disturbed = disturbance(neighbours.share())
    return answers, [report.batch_table(nodes), report.time_table(runs), *([disturbed] if disturbed else [])]


def pipe_reader(pipe: Pipe) -> Reader:
    """Return a function that reads one page through the pipe; any number of threads may call it."""

    def read(content: bytes) -> list[Line]:
        request: dict[str, Any] = {"data": content}
        pipe(request)
        lines: list[Line] = request["result"]
        return lines

    return read


def reference_reader() -> Reader:
    """Return a function that reads one page with rapidocr_onnxruntime as it comes.

    Raises:
        MissingExtra: if something that it needs is not installed.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ModuleNotFoundError as error:
        raise MissingExtra("rapidocr_onnxruntime", "dev", error) from error

    engine = RapidOCR()

    def read(content: bytes) -> list[Line]:
        found, _ = engine(content)
        return [Line(text, float(score), np.array(quad, np.float32)) for quad, text, score in found or []]

    return read


def read_all(
    pages: Sequence[PageFile],
    read: Reader,
    callers: int,
    on_page: Callable[[], None] = lambda: None,
    on_start: Callable[[], None] = lambda: None,
) -> tuple[list[list[Line]], list[float], float]:
    """Read the pages on so many threads, or on this one if it is one; ``on_start`` is called once the models are warm.

    Returns:
        each page's lines, each page's seconds from call to answer, and the seconds for all.

    Raises:
        Exception: what the first page that failed has raised; the others are not waited for.
        KeyboardInterrupt: after Ctrl-C; pages that were not begun are not read.
    """

    def read_one(page: PageFile) -> tuple[list[Line], float]:
        start = time.perf_counter()
        try:
            lines = read(page.content)
        except UnreadablePage as error:
            raise UnreadablePage(f"{page.name}: {error}") from error
        return lines, time.perf_counter() - start

    read(pages[0].content)  # the first run of a model is slower
    on_start()
    start = time.perf_counter()
    outcomes = []
    for outcome in map(read_one, pages) if callers == 1 else _mapped(read_one, pages, callers):
        outcomes.append(outcome)
        on_page()
    wall_s = time.perf_counter() - start
    return [lines for lines, _ in outcomes], [latency_s for _, latency_s in outcomes], wall_s


def _mapped(function: Callable[[PageFile], Any], pages: Sequence[PageFile], threads: int) -> Iterator[Any]:
    executor = ThreadPoolExecutor(threads, thread_name_prefix="caller")
    try:
        yield from executor.map(function, pages)
    except BaseException:
        # The executor's own `with` would wait here, after Ctrl-C too, for every page.
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _run_shown(
    console: Console,
    what: str,
    pages: Sequence[PageFile],
    read: Reader,
    callers: int,
    on_start: Callable[[], None] = lambda: None,
) -> tuple[report.Run, list[list[Line]]]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=len(pages))
        answers, latencies_s, wall_s = read_all(pages, read, callers, lambda: progress.advance(task), on_start)
    return report.Run(what, wall_s, latencies_s), answers


def _show_page(console: Console, page: PageFile, lines: Sequence[Line]) -> None:
    text = "\n".join(f"{number:3}  {line.text}" for number, line in enumerate(lines, 1))
    console.print(Panel(Text(text or "(no text found)"), title=Text(page.name), title_align="left"))


@contextmanager
def _opencv_without_threads() -> Iterator[None]:
    """While instances keep all cores busy, OpenCV's own threads only take them away (2 % of the pages/s)."""
    thread_count = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(thread_count)


@contextmanager
def _closed_at_once_if_it_fails(pipe: Pipe) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pipe.close(timeout=0)  # Ctrl-C too: callers that wait inside get PipeClosed, and their threads end
        # A model that is running cannot be stopped, and must not come back to an interpreter that is gone.
        for thread in threading.enumerate():
            if thread.name.startswith("fastpipe"):
                thread.join(LONGEST_RUN_S)
        raise
    pipe.close()
