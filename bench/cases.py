"""What is compared, under which load, and what fastpipe is to reach: the goals, beside the cases they belong to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import images
import special
from common import Window
from contestants import (
    CHAIN,
    DIAMOND,
    Executor,
    Fastpipe,
    FastpipeGraph,
    InARow,
    Lock,
    Node,
    Omniback,
    OmnibackGraph,
    QueueAndWorkers,
    SleepAlone,
    Trial,
    counted,
)
from work import (
    INSTANCES,
    LARGEST_BATCH,
    ideal_of_batches,
    ideal_of_device,
    ideal_of_instances,
    sleep_3_ms,
    sleep_5_ms,
    sleep_by_size,
    sleep_by_size_on_one_device,
)

__all__ = ["BEFORE", "FIGURES", "OURS", "Case", "Figure", "Goal", "all_cases"]

OURS = "fastpipe"
BEFORE = "fastpipe before"
OMNIBACK = "omniback"
EXECUTOR = "executor"
QUEUE = "queue"
QUEUE_THAT_WAITS = "queue that waits"
LOCK = "lock"
SUBMIT = "fastpipe, submit"
HANDED_OVER = "fastpipe, thread_bound"
SCALED = "fastpipe, scale=auto"
SLEEP_ALONE = "the sleep alone"
OPENCV = "plain OpenCV"
REFERENCE = "rapidocr's own loop"


@dataclass(frozen=True)
class Figure:
    """How a number of a window is called and shown."""

    heading: str
    unit: str = ""
    is_better_if_higher: bool = False


FIGURES = {
    "requests_per_s": Figure("requests/s", is_better_if_higher=True),
    "images_per_s": Figure("images/s", is_better_if_higher=True),
    "pages_per_s": Figure("pages/s", is_better_if_higher=True),
    "share": Figure("share of the ideal", is_better_if_higher=True),
    "p50_us": Figure("p50", "us"),
    "p99_us": Figure("p99", "us"),
    "mean_batch": Figure("mean batch", is_better_if_higher=True),
    "import_ms": Figure("import", "ms"),
    "start_ms": Figure("start", "ms"),
    "optional_libraries": Figure("optional libraries"),
    "bytes_each": Figure("memory each", "B"),
    "growth_kib": Figure("growth of resident memory", "KiB"),
}


@dataclass(frozen=True)
class Goal:
    """What fastpipe is to reach."""

    clients: int
    figure: str
    limit: float
    over: str | None = None
    """The contestant whose figure ours is divided by; None: the figure itself."""
    of: str = OURS
    """Whose figure."""

    @property
    def is_at_least(self) -> bool:
        """Whether the limit is a lower one; otherwise it is an upper one."""
        return FIGURES[self.figure].is_better_if_higher

    def is_reached_by(self, value: float) -> bool:
        """Whether the value is as good as the limit."""
        return value >= self.limit if self.is_at_least else value <= self.limit


@dataclass(frozen=True)
class Case:
    """One question, and everybody who answers it."""

    name: str
    question: str
    clients: tuple[int, ...]
    contestants: Mapping[str, Callable[[], Trial]]
    figures: tuple[str, ...]
    """Those that are shown; the first is plotted."""
    goals: tuple[Goal, ...] = ()
    ideal_per_s: Callable[[int], float] | None = None
    """Requests/s, by clients, if nothing but the work took time: what ``share`` is a share of."""
    is_once_per_process: bool = False
    """Every window needs a new process: memory that was freed would be used again."""
    most_repeats: int | None = None
    """So many windows of each contestant at most: they are long."""
    load: str = "client"
    """What ``clients`` counts."""
    least_window_s: float = 0.0
    """A window is measured at least so long: a request may take a tenth of a second."""
    goals_over_before: tuple[tuple[int, str, float], ...] = ()
    """Clients, figure and limit of goals that are ratios to the build before (commit a4bee9b)."""

    def window(self, wanted: Window) -> Window:
        """Return how long a window of this case is."""
        return replace(wanted, measured_s=max(wanted.measured_s, self.least_window_s))

    def beside_before(self) -> Case:
        """Return the case with another build of fastpipe as a contestant, and the goals that are ratios to that one."""
        if OURS not in self.contestants:
            return self
        contestants = {OURS: self.contestants[OURS], BEFORE: self.contestants[OURS]} | dict(self.contestants)
        goals = [Goal(clients, figure, limit, over=BEFORE) for clients, figure, limit in self.goals_over_before]
        return replace(self, contestants=contestants, goals=(*self.goals, *goals))


# ---- contestants ---------------------------------------------------------------------------------------------------


def _plain(kind: Callable[..., Trial], node: Node, **options: Any) -> Callable[[], Trial]:
    return functools.partial(kind, node, **options)


def _counted(kind: Callable[..., Trial], node: Node, **options: Any) -> Callable[[], Trial]:
    def build() -> Trial:
        with_counter, batches = counted(node)
        return kind(with_counter, batches, **options)

    return build


def _one_by_one(node: Node) -> dict[str, Callable[[], Trial]]:
    kinds = {OURS: Fastpipe, OMNIBACK: Omniback, EXECUTOR: Executor, QUEUE: QueueAndWorkers, LOCK: Lock}
    return {name: _plain(kind, node) for name, kind in kinds.items()}


def _in_batches(node: Node) -> dict[str, Callable[[], Trial]]:
    return {
        OURS: _counted(Fastpipe, node),
        OMNIBACK: _counted(Omniback, node),
        QUEUE: _counted(QueueAndWorkers, node),
        QUEUE_THAT_WAITS: _counted(QueueAndWorkers, node, waits=True),
        EXECUTOR: _counted(Executor, node),
        LOCK: _counted(Lock, node),
    }


def _graphs(graph: dict[str, dict[str, Any]], *, is_diamond: bool) -> dict[str, Callable[[], Trial]]:
    return {
        OURS: functools.partial(FastpipeGraph, graph),
        OMNIBACK: functools.partial(OmnibackGraph, graph),
        EXECUTOR: functools.partial(InARow, Executor, is_diamond=is_diamond),
        QUEUE: functools.partial(InARow, QueueAndWorkers, is_diamond=is_diamond),
        LOCK: functools.partial(InARow, Lock, is_diamond=is_diamond),
    }


def _of_images(
    name: str, folder: Path | None, *, is_beside_busy_thread: bool = False
) -> dict[str, Callable[[], Trial]]:
    makers = {
        OURS: images.in_fastpipe,
        OPENCV: images.in_opencv,
        EXECUTOR: images.in_executor,
        OMNIBACK: images.in_omniback,
    }

    def build(make: Callable[[], images.Convert], *, is_scaled: bool = False) -> Trial:
        return images.Images(
            images.jpeg(name, folder), make(), is_beside_busy_thread=is_beside_busy_thread, is_scaled=is_scaled
        )

    contestants = {who: functools.partial(build, make) for who, make in makers.items()}
    if not is_beside_busy_thread:
        contestants[SCALED] = functools.partial(build, lambda: images.in_fastpipe("auto"), is_scaled=True)
    return contestants


# ---- cases ---------------------------------------------------------------------------------------------------------


def all_cases(image_folder: Path | None = None, page_count: int = 40) -> dict[str, Case]:
    """Return the cases by name.

    Args:
        image_folder: with the JPEG files to convert, instead of those made of scikit-image's.
        page_count: how many pages are read.
    """
    cases = [*_hand_over(), *_batching(), *_instances(), *_graph(), *_images(image_folder), *_busy(image_folder)]
    return {case.name: case for case in [*cases, *_process(), _pages(page_count)]}


def _hand_over() -> list[Case]:
    handed_over = _one_by_one(Node(thread_bound=True))
    del handed_over[LOCK]
    return [
        Case(
            name="echo",
            question="What does a call cost whose backend does nothing?",
            clients=(1, 10, 64),
            contestants=_one_by_one(Node()),
            figures=("requests_per_s", "p50_us", "p99_us"),
            goals=(
                Goal(1, "requests_per_s", 25, over=OMNIBACK),
                Goal(10, "requests_per_s", 30, over=OMNIBACK),
                Goal(64, "requests_per_s", 50, over=OMNIBACK),
            ),
        ),
        Case(
            name="hand-over",
            question="What does it cost if the backend must run on a thread of its own (thread_bound)?",
            clients=(1, 10, 64),
            contestants=handed_over,
            figures=("requests_per_s", "p50_us", "p99_us"),
            goals=(
                Goal(1, "requests_per_s", 2.5, over=OMNIBACK),
                Goal(10, "requests_per_s", 5, over=OMNIBACK),
                Goal(64, "requests_per_s", 30, over=OMNIBACK),
            ),
            goals_over_before=(
                (1, "requests_per_s", 1.0),
                (10, "requests_per_s", 1.0),
                (64, "requests_per_s", 1.6),
                (64, "p99_us", 1.0),
            ),
        ),
    ]


def _batching() -> list[Case]:
    loaded = Node(INSTANCES, LARGEST_BATCH, timeout_ms=2.0, work=sleep_by_size)
    shared = Node(INSTANCES, LARGEST_BATCH, timeout_ms=2.0, work=sleep_by_size_on_one_device)
    in_shared_batches = _in_batches(shared)
    del in_shared_batches[EXECUTOR], in_shared_batches[LOCK]
    one_device = Node(1, LARGEST_BATCH, work=sleep_by_size)
    shares = {1: 0.95, 4: 0.80, 8: 0.85, 16: 0.92, 32: 0.96, 64: 0.96}
    return [
        *(
            Case(
                name=f"woken together, {instances}",
                question=f"How soon are {clients} callers back whom batches of 64, 3 ms each, answer at once?",
                clients=(clients,),
                contestants=_in_batches(Node(instances, 64, timeout_ms=2.0, work=sleep_3_ms)),
                figures=("share", "requests_per_s", "p50_us", "p99_us", "mean_batch"),
                ideal_per_s=functools.partial(ideal_of_batches, instances),
                goals_over_before=((clients, "requests_per_s", 1.4), (clients, "p99_us", 1.0)),
            )
            for instances, clients in ((1, 64), (2, 128))
        ),
        Case(
            name="no needless waiting",
            question="Does a batch of at most 4 wait, up to 10 ms, where waiting for other requests does not pay?",
            clients=(1, 2, 4, 10),
            contestants=_in_batches(Node(max_batch=4, timeout_ms=10.0)),
            figures=("p50_us", "p99_us", "requests_per_s", "mean_batch"),
            goals=(
                *(Goal(clients, "p50_us", limit) for clients, limit in {1: 5, 2: 30, 4: 60, 10: 150}.items()),
                *(Goal(clients, "p99_us", 9_000) for clients in (1, 2, 4, 10)),
            ),
        ),
        Case(
            name="batches under load",
            question="How much of the ideal is reached if a batch of n <= 8 takes 2 ms + 0.25 ms x n, on 2 instances?",
            clients=tuple(shares),
            contestants={**_in_batches(loaded), SLEEP_ALONE: functools.partial(SleepAlone, loaded)},
            figures=("share", "mean_batch", "requests_per_s", "p99_us"),
            goals=tuple(Goal(clients, "share", share) for clients, share in shares.items()),
            ideal_per_s=ideal_of_instances,
        ),
        Case(
            name="one device",
            question="The same, if the two instances share a device: how much of one instance with full batches?",
            clients=(16, 64),
            contestants={**in_shared_batches, SLEEP_ALONE: functools.partial(SleepAlone, one_device)},
            figures=("share", "mean_batch", "requests_per_s", "p99_us"),
            goals=(Goal(16, "share", 0.90), Goal(64, "share", 0.95)),
            ideal_per_s=ideal_of_device,
        ),
    ]


def _instances() -> list[Case]:
    goals = {1: (Goal(32, "p99_us", 176_000),), 16: (Goal(32, "share", 0.96), Goal(32, "p99_us", 12_000))}

    def case(count: int) -> Case:
        node = Node(count, work=sleep_5_ms)
        return Case(
            name=f"{count} sleeping",
            question=f"How busy are {count} instance(s) that take 5 ms, and is everybody served in turn?",
            clients=(32,),
            contestants={**_one_by_one(node), SLEEP_ALONE: functools.partial(SleepAlone, node)},
            figures=("share", "p50_us", "p99_us"),
            goals=goals.get(count, ()),
            ideal_per_s=lambda _: count / 0.005,
        )

    return [case(1), case(4), case(16)]


def _graph() -> list[Case]:
    return [
        Case(
            name="chain",
            question="What do three nodes in a row cost?",
            clients=(1, 10),
            contestants=_graphs(CHAIN, is_diamond=False),
            figures=("p50_us", "requests_per_s"),
            goals=(Goal(1, "p50_us", 12),),
        ),
        Case(
            name="diamond",
            question="What does a fan-out to two nodes and a join cost?",
            clients=(1, 10),
            contestants=_graphs(DIAMOND, is_diamond=True),
            figures=("p50_us", "requests_per_s"),
        ),
    ]


# How many times as fast as the plain loop scaled decoding is to be, by picture.
SCALED_GOALS = {"517x606": 1.2, "1280x720": 1.6, "4000x3000": 3.0}


LARGE_IMAGES = ("4000x3000",)


def _images(folder: Path | None) -> list[Case]:
    def case(name: str) -> Case:
        return Case(
            name=f"jpeg {name}",
            question="How fast is a JPEG decoded, resized to 224 x 224, made RGB and float32 CHW?",
            clients=(1, 2, 4),
            contestants=_of_images(name, folder),
            figures=("images_per_s",),
            least_window_s=1.0 if name in LARGE_IMAGES else 0.0,
            goals=(
                Goal(2, "images_per_s", 1.2 if name == "1280x720" else 1.0, over=OPENCV),
                Goal(2, "images_per_s", SCALED_GOALS.get(name, 1.0), over=OPENCV, of=SCALED),
            ),
        )

    return [case(name) for name in images.names(folder)]


def _busy(folder: Path | None) -> list[Case]:
    name = images.names(folder)[0]
    return [
        Case(
            name="asyncio beside a busy thread",
            question="How fast are 256 tasks of an event loop answered while another thread runs pure Python?",
            clients=(256,),
            contestants={
                OURS: functools.partial(special.asyncio_through_pipe, 64),
                QUEUE: functools.partial(special.asyncio_by_hand, 64),
                EXECUTOR: lambda: special.asyncio_over_threads(Lock(Node())),
                OMNIBACK: lambda: special.asyncio_over_threads(Omniback(Node())),
            },
            figures=("requests_per_s",),
            goals=(Goal(256, "requests_per_s", 8_000),),
            load="task",
        ),
        Case(
            name="jpeg beside a busy thread",
            question=f"The JPEG {name} again, while another thread runs pure Python?",
            clients=(1, 2, 4),
            contestants=_of_images(name, folder, is_beside_busy_thread=True),
            figures=("images_per_s",),
            goals=(Goal(2, "images_per_s", 1.5, over=OPENCV),),
        ),
    ]


def _start(what: str, other: str, who: str, picture: Callable[[], bytes]) -> Case:
    return Case(
        name=f"start {what}",
        question="How long does a new process take from its beginning to its first answer?",
        clients=(1,),
        contestants={
            OURS: functools.partial(special.Start, f"{what} through a pipe", picture),
            who: functools.partial(special.Start, other, picture),
        },
        figures=("start_ms",),
        goals=(Goal(1, "start_ms", 2_000),),
        load="process",
    )


def _process() -> list[Case]:
    return [
        Case(
            name="import",
            question="How long does the import take, and which optional libraries does it load?",
            clients=(1,),
            contestants={name: functools.partial(special.Import, name) for name in (OURS, OMNIBACK)},
            figures=("import_ms", "optional_libraries"),
            goals=(Goal(1, "import_ms", 100), Goal(1, "optional_libraries", 0)),
            load="process",
        ),
        _start("jpeg", "jpeg by hand", OPENCV, functools.partial(images.jpeg, "517x606", None)),
        _start("page", "page by rapidocr", REFERENCE, special.one_line),
        Case(
            name="memory of the queued",
            question="How much memory do 10,000 waiting requests take, each, beyond their dicts?",
            clients=(1,),
            contestants={
                OURS: special.QueuedInMap,
                SUBMIT: special.QueuedInSubmit,
                EXECUTOR: special.QueuedInExecutor,
            },
            figures=("bytes_each",),
            goals=(Goal(1, "bytes_each", 512), Goal(1, "bytes_each", 512, of=SUBMIT)),
            is_once_per_process=True,
            load="process",
        ),
        Case(
            name="growth",
            question="Does memory grow with the number of requests that were answered?",
            clients=(8,),
            contestants={
                OURS: lambda: special.Growth(Fastpipe(Node(INSTANCES))),
                HANDED_OVER: lambda: special.Growth(Fastpipe(Node(INSTANCES, thread_bound=True))),
            },
            figures=("growth_kib",),
            goals=(Goal(8, "growth_kib", 1024), Goal(8, "growth_kib", 1024, of=HANDED_OVER)),
            is_once_per_process=True,
        ),
    ]


def _pages(count: int) -> Case:
    return Case(
        name="pages of text",
        question=f"How fast are {count} pages read by three models, against the loop of the package they come from?",
        clients=(1,),
        contestants={
            OURS: functools.partial(special.PagesThroughPipe, count),
            REFERENCE: functools.partial(special.PagesThroughReference, count),
        },
        figures=("pages_per_s",),
        goals=(Goal(1, "pages_per_s", 2.2, over=REFERENCE),),
        load="loop",
        most_repeats=2,
    )
