"""What a type checker sees of the engine. Names with an underscore are for ``pipe.py`` and what it is made of alone."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, Protocol, Self, final, overload
from weakref import ReferenceType

from typing_extensions import disjoint_base

from fastpipe.config.described import PipeConfig
from fastpipe.engine.keeping import ResultCache as ResultCache
from fastpipe.engine.keeping import States as States
from fastpipe.engine.testing import *  # noqa: F403 - what tests alone use
from fastpipe.engine.threads import Latch as Latch
from fastpipe.engine.threads import ThreadLife as ThreadLife
from fastpipe.engine.threads import ThreadStart as ThreadStart

_Request = dict[str, Any]

def configure_process(main_thread_ident: int, spin_ns: int, longest_lease_ns: int) -> None: ...
def configure_futures(future_class: type[Future[_Request]]) -> None: ...
def note_fork_in_child() -> None: ...
def abandon_in_child(pipes: list[Any]) -> None: ...
def know_greenlets(getcurrent: Callable[[], object]) -> None: ...
def cancelled(request: _Request | None = None) -> bool: ...
def context_of(request: _Request) -> Context: ...
def contexts_of_batch() -> list[Context]: ...
def _place_in_batch(request: _Request) -> tuple[bool, Context | None]: ...
def emit(request: _Request, chunk: Any) -> bool: ...
def try_emit(request: _Request, chunk: Any) -> bool: ...
def finish(backend: Any, request: _Request) -> bool: ...
def _finish(backend: Any, request: _Request, failed: list[BaseException] | None) -> bool: ...
def wait_for_room(requests: Sequence[_Request]) -> None: ...

NOT_YET: object
ENDED: object
is_debug_build: bool
has_futex: bool

@final
class Instance:
    backend: Any
    index: int
    def __init__(self, backend: Any, index: int) -> None: ...

@final
class Station:
    name: str
    place: Any
    numbers: tuple[int, ...]
    upstream: tuple[Station, ...]
    instance_count: int
    in_service: int
    max_batch: int
    thread_bound: bool
    position: int
    batches_run: int
    requests_run: int
    requests_failed: int
    run_by_caller: int
    gil_acquires: int
    busy_ns: int
    halved: int
    hung: int
    given_up_after_ns: int
    tallies_bytes: int
    replaced: int
    deaths: int
    no_room: int
    pushed_out: int
    is_noticed: bool
    streams: bool
    cache: ResultCache | None
    states: States | None
    lost: BaseException | None
    def __new__(
        cls,
        name: str,
        instance_count: int,
        max_batch: int,
        thread_bound: bool,
        rule: Any,
        preferred: Sequence[int],
        timeout_ms: float,
        has_buckets: bool,
        max_queue: int = ...,
        max_queue_bytes: int = ...,
        when_full: str = ...,
        hang_timeout_s: float = ...,
        place: Any = ...,
        numbers: tuple[int, ...] | None = ...,
    ) -> Self: ...
    def join(self, others: tuple[Station, ...]) -> None: ...
    @property
    def title(self) -> str: ...
    def set_upstream(self, stations: tuple[Station, ...]) -> None: ...
    def may_stream(self) -> None: ...
    def bound_by(self, backend: Any) -> None: ...
    def open_instance(self, index: int) -> None: ...
    def drain(self) -> None: ...
    def make_room(self, numbers: tuple[int, ...], vacant: tuple[int, ...], max_batch: int) -> tuple[int, ...]: ...
    def numbers_in_service(self) -> list[int]: ...
    def has_left(self, index: int) -> bool: ...
    def is_retired(self, index: int, life: int) -> bool: ...
    def life_of(self, index: int) -> int: ...
    def retire(self, index: int, life: int, timeout_s: float) -> bool | None: ...
    def close(self) -> None: ...
    def add_sharing(self) -> int: ...
    def next_sharing(self, replaces_all: bool) -> int: ...
    def serve(self, worker: int) -> Any: ...
    def lose(self, error: BaseException) -> None: ...
    @property
    def hang_timeout_s(self) -> float: ...
    @property
    def is_closed(self) -> bool: ...
    def recover(self) -> None: ...
    def watch(self, watchdog: Watchdog) -> None: ...
    def fail_queued(self, why: str | None, lost: BaseException | None = ...) -> None: ...
    def give_up(self, index: int) -> None: ...

@final
class Rule:
    def __init__(self, rule: Any, preferred: Sequence[int], timeout_ms: float) -> None: ...

@final
class Switch:
    station: Station
    def __init__(
        self,
        station: Station,
        *,
        opened: tuple[Instance, ...],
        retired: tuple[int, ...],
        backend: Any,
        backend_name: str,
        bucket: Any,
        max_batch: int,
        thread_bound: bool,
        rule: Rule,
        replaces_all: bool,
        asks_again: bool,
    ) -> None: ...

@final
class Node:
    name: str
    index: int
    station: Station | None
    instances: list[Instance | None]
    twins: tuple[Node, ...] | None
    def __init__(
        self,
        name: str,
        index: int,
        station: Station | None,
        instances: list[Instance],
        backend_name: str,
        *,
        filter: Callable[[_Request], Any] | None,
        filter_kind: str,
        bucket: Any,
        weigh: Any,
        length_of: Any,
        subgraph: Any,
        sources: Any,
        parent_count: int,
        restart_limit: int,
    ) -> None: ...
    def set_twins(self, twins: tuple[Node, ...], place_of: Callable[[_Request], Any] | None) -> None: ...
    def ask(self, backend: Any, bucket: str | Callable[[_Request], Any] | None) -> None: ...
    def set_jump(self, entry: Entry) -> None: ...

@final
class Entry:
    node: Node
    def __init__(self, plan: Any, nodes: tuple[Node, ...]) -> None: ...

@final
class Exit:
    def __init__(self, plan: Any, nodes: tuple[Node, ...]) -> None: ...

@final
class Gather: ...

@final
class Terms: ...

@final
class ChunkStream:
    def __new__(cls, limit: int) -> Self: ...

@final
class Mailbox:
    def deliver(self) -> None: ...

@final
class Pause: ...

@final
class Progress: ...

@final
class StreamReader:
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def waiter(self) -> Waiter | None: ...
    def take(self) -> Any: ...
    def listen(self, future: asyncio.Future[None]) -> bool: ...

@final
class EventLog:
    dropped: int
    error_number: int
    requests_track: int
    def __new__(cls, engine: Engine, capacity: int) -> Self: ...
    def queue_track(self, position: int) -> int: ...
    def instance_track(self, position: int, number: int) -> int: ...
    def stream_track(self, number: int) -> int: ...
    def note_stream(self, engine: Engine, number: int, begun_ns: int, ended_ns: int) -> bool: ...
    def serve(
        self,
        descriptor: int,
        describe_track: Callable[[int], bytes],
        describe_instance: Callable[[int, int], bytes],
    ) -> None: ...
    def stop(self) -> None: ...

@final
class Tracer:
    def __new__(cls, spans: _Spans, variable: ContextVar[Any] | None, sample: float) -> Self: ...

@final
class Clock:
    def serve(self) -> None: ...
    def stop(self) -> None: ...

@final
class Watchdog:
    def __new__(cls, stations: list[Station], aborts: bool) -> Self: ...
    def serve(self) -> None: ...
    def stop(self) -> None: ...

def _as_raised(error: BaseException, is_awaited: bool = False) -> BaseException: ...

@final
class Waiter:
    state: int
    def cancel(self) -> bool: ...
    def expire(self) -> None: ...

@final
class Turn: ...

@final
class Visit: ...

@final
class Walk:
    error: BaseException | None
    @property
    def finished(self) -> bool: ...
    def wait(self) -> BaseException | None: ...
    def cancel(self) -> bool: ...
    def cancel_future(self, future: FutureCore) -> bool: ...

@disjoint_base
class FutureCore:
    """To be a base of a class before ``Future``, which makes the condition, and says what a callback has raised."""

    walk: Walk | None
    _condition: threading.Condition
    _state: str
    _result: _Request | None
    _exception: BaseException | None
    _waiters: list[Any]
    _done_callbacks: list[Callable[[Future[_Request]], object]]
    def cancel(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def running(self) -> bool: ...
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> _Request: ...
    def exception(self, timeout: float | None = None) -> BaseException | None: ...
    def add_done_callback(self, fn: Callable[[Future[_Request]], object]) -> None: ...

@final
class Slowest:
    def take(self) -> list[tuple[int, int, int, str | None, list[tuple[str, int, int, int]]]]: ...

@final
class Stepper:
    @property
    def waiting(self) -> list[tuple[str, tuple[int, ...], _Request]]: ...
    @property
    def next(self) -> tuple[str, tuple[int, ...], _Request] | None: ...
    @property
    def finished(self) -> bool: ...
    @property
    def error(self) -> BaseException | None: ...
    @property
    def request(self) -> _Request: ...
    def step(self) -> bool: ...
    def run(self) -> None: ...
    def cancel(self) -> bool: ...

class _Keeper(Protocol):
    """What the engine asks of whoever owns its threads and instances."""

    def start_clock(self, clock: Clock) -> None:
        """Start the thread of a clock that a request with a time limit needs; raise if there can be no more threads."""
    def give_up(self, station: Station, index: int) -> None:
        """The watchdog has seen an instance hang: have ``station.give_up`` called. Its thread must not be kept."""
    def replace(self, station: Station, index: int, instance: Instance, thread: threading.Thread) -> None:
        """An instance was given up, and the thread in it: forget both, and have the instance built again."""
    def note_refusals(self, gate: Station) -> None:
        """A queue, or the pipe as a whole, refuses or sheds requests: the log is to say so. Must not wait for it."""
    def note_loss(self, station: Station, index: int) -> None:
        """A node has lost its device: the log is to say so. Must not wait for it."""

class _Spans(Protocol):
    """What the engine asks of whoever follows requests. What it raises is reported, and fails none."""

    key: str | None
    """Under which the span around a call is in the dict that the Tracer's variable has; None: that is not known."""

    def around(self, context: Context | None) -> Any:
        """The context of the span around a call; ``context``: of contextvars, its caller's, None: this thread's."""
    def begin(self, node: str, context: Context | None, waited_ns: int) -> tuple[Any, Context] | None:
        """A request enters at a node, so long after its call; ``context``: its caller's, None: this thread's.

        Returns what it is to be known by, and the context in which its backends run; None: it is not followed.
        """
    def run(self, node: str, instance: int, size: int, followed: list[tuple[int, Any, int]]) -> Any:
        """A batch of ``size`` begins, on this thread; return what ``ran`` is to be given.

        ``followed``: the place in it, what the request is known by, and nanoseconds in the queue.
        """
    def ran(self, running: Any, error: BaseException | None, batch: list[_Request], requests: list[_Request]) -> None:
        """It has returned, or raised; ``batch`` is the backend's list, ``requests`` what it was."""
    def gave_up(self, running: Any, error: BaseException) -> None:
        """It hangs, and its requests have failed; ``ran`` is told, perhaps at the same time, should it come back."""
    def end(self, span: Any, error: BaseException | None, is_cancelled: bool) -> None:
        """A request has ended."""

@disjoint_base
class Engine:
    stations: list[Station]
    closing: bool
    in_flight: int
    accepted: int
    done: int
    failed: int
    cancelled: int
    refused: int
    copies: int
    arrivals: int
    looks: int
    nodes: tuple[Node, ...]
    recorder: Any
    slowest: Slowest | None
    _keeper: _Keeper
    _made_of: PipeConfig
    ignored_keys: tuple[str, ...]
    @property
    def failures(self) -> dict[str, int]: ...
    @property
    def tallies_bytes(self) -> int: ...
    def clear_cache(self, node: str | None = ...) -> int: ...
    def drop_state(self, node: str, key: str | bytes | int) -> bool: ...
    @property
    def state_keys(self) -> tuple[str, ...]: ...
    @overload
    def __call__(
        self,
        request: _Request,
        *,
        timeout: float | None = ...,
        priority: float = ...,
        eager: bool = ...,
        entry: str | None = ...,
    ) -> _Request: ...
    @overload
    def __call__(
        self,
        request: Sequence[_Request],
        *,
        timeout: float | None = ...,
        priority: float = ...,
        eager: bool = ...,
        entry: str | None = ...,
    ) -> Sequence[_Request]: ...
    def _obey(self, keys: Sequence[str]) -> None: ...
    def _open(
        self,
        graph: Any,
        nodes: list[Node],
        stations: list[Station],
        root_names: Sequence[str],
        hidden_names: Iterable[str],
    ) -> None: ...
    def _entry_at(self, index: int) -> Entry: ...
    def _check_may_switch(self) -> None: ...
    def _switch(self, switches: tuple[Switch, ...], made_of: PipeConfig) -> None: ...
    def _stepper(self, request: _Request, observer: Any = ..., entry: str | None = ...) -> Stepper: ...
    def _preview(self, node_name: str, request: _Request) -> dict[str, Any]: ...
    def _submit(
        self, request: _Request, timeout: float | None, priority: float, name: str | None = ...
    ) -> Future[_Request]: ...
    def _start_async(
        self,
        request: _Request,
        loop: Any,
        future: Any,
        terms: Terms | None,
        name: str | None = ...,
        given: _Request | None = ...,
        is_patient: bool = ...,
    ) -> Walk | Waiter: ...
    def _start(
        self,
        request: _Request,
        timeout: float | None,
        priority: float,
        name: str | None = ...,
        is_patient: bool = ...,
    ) -> Walk: ...
    def _start_stream(
        self, request: _Request, timeout: float | None, priority: float, name: str | None, limit: int
    ) -> StreamReader: ...
    def _start_astream(
        self,
        request: _Request,
        given: _Request,
        loop: asyncio.AbstractEventLoop,
        task: ReferenceType[asyncio.Task[Any]] | None,
        mailbox: Mailbox,
        terms: Terms | None,
        name: str | None,
        limit: int,
    ) -> StreamReader: ...
    def _leave_streams(self, task: asyncio.Task[Any] | None) -> None: ...
    def _terms(self, timeout: float | None, priority: float) -> Terms | None: ...
    def _set_events(self, log: EventLog) -> None: ...
    def _forget_events(self, log: EventLog) -> None: ...
    def _set_tracer(self, tracer: Tracer) -> None: ...
    def _forget_tracer(self, tracer: Tracer) -> None: ...
    def _let_go(self) -> None: ...
    def _set_timeout(self, seconds: float) -> None: ...
    def _set_gate(self, max_in_flight: int, when_full: str) -> None: ...
    def _remaining_s(self, terms: Terms | None) -> float | None: ...
    def _run_parts(
        self,
        entry: Entry,
        splits: list[list[_Request]],
        keeps_failures: bool,
        requests: list[_Request],
        reasons: list[str | None] | None = ...,
    ) -> list[list[Any]]: ...
    def _refuse_new(self) -> bool: ...
    def _wait_drained(self, timeout_s: float) -> bool: ...
    def _fail_rest(self, why: str) -> None: ...
    def _close_stations(self) -> None: ...
    def _is_inside(self) -> bool: ...
    def _is_forked(self) -> bool: ...
    def _counts(self) -> dict[str, int]: ...
    def _measures(self) -> dict[str, Any]: ...
