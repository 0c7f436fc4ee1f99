"""How to write your own backend: this page is the whole contract.

A backend does the work of a node. Subclass :class:`Backend`, take the node's parameters as keywords, fill in
``request["result"]``:

    class Sharpen(fastpipe.Backend):
        '''Sharpen an image.'''
        max_batch = 8

        def __init__(self, *, amount: float = 1.0):
            self.amount = amount

        def forward(self, batch):
            for request in batch:
                request["result"] = unsharp(request["data"], self.amount)

    pipe = fastpipe.Pipe(backend=Sharpen, amount=0.5, instance_num=2)

Where one request has nothing to do with the next, as here, extend :class:`PerRequest` and write ``run(request)``: one
that fails then fails alone. For a function of one item there is a short form, ``@fastpipe.backend``:

    @fastpipe.backend
    def to_gray(data):
        return cv2.cvtColor(data, cv2.COLOR_BGR2GRAY)

Both are accepted wherever a configuration names a backend; so are ``"module:Name"`` and any name given to
``fastpipe.register`` or to an entry point of the group ``fastpipe.backends``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fastpipe.announcing import Announced
from fastpipe.errors import BackendError, ConfigError, ItemErrors
from fastpipe.padding import PaddingCount
from fastpipe.results import checked_parts
from fastpipe.sites import Site, site

__all__ = [
    "Backend",
    "Between",
    "Child",
    "Container",
    "Existing",
    "PaddingCount",
    "PerRequest",
    "Request",
    "Site",
    "SubGraph",
    "raise_failed",
    "run_each",
    "site",
]

Request = dict[str, Any]
"""What travels: input under ``"data"``, output under ``"result"``, anything else under its own key."""


class Backend:
    """Work on a batch of requests. One object is one *instance*; a node has ``instance_num`` of them.

    **Parameters** are the constructor's keywords. A string from a file is converted to the annotated type and a
    name nobody takes is refused before anything starts; ``Annotated[int, Between(1, 9)]`` adds limits.

    **Threads.** At most one batch at a time runs in an instance, so its attributes need no lock. It is not always
    the same thread: often it is the caller's own. With ``thread_bound`` it is one thread for construction, every
    batch and ``close``. Code that waits or computes outside of Python should release the GIL, once per batch.

    Attributes, of the class or set in the constructor; in the source, each has a paragraph:
        max_batch: how many requests ``forward`` takes at once. None: one, or the node's ``max``.
        min_batch: the fewest it takes.
        thread_bound: built, run and closed on one thread of its own.
        retry_alone: if it raises for a batch, run the requests again one by one.
        keeps_input: it changes no value that it was handed, so that none is copied for a second run.
        streams: it may hand on parts of its answers while it makes the rest.
        stateful: it keeps a state for each sequence of requests, under ``request["state"]``.
        place: where the instance is, ``"cuda:1"``. None: everywhere.
        takes_forms: forms of data, made by the step before, that it takes beside what others give.
        offers_forms: forms in which it can give results to the step behind.
        unmet: what it needs of the steps around it and has not found.
        warmed_up: what the constructor has run, for the log.
        announced_inputs: what its requests have, for a server.
        announced_outputs: what they have when they leave it.
        max_padded: the longest length times the requests of a batch, at most, with ``length_of``.
        max_padding: the greatest share of a batch that may be padding.
        padding_counts: how much it has padded.

    Methods that a subclass may define; here they are None:
        bucket(self, request): only requests with equal buckets share a batch.
        weigh(self, request): as how many a request counts.
        length_of(self, request): how long it is, where a batch is padded to its longest.
        place_of(self, request): where its data is, in the words of ``place``.
        is_device_alive(self): asked after an error of its device's library, whether that still answers.
        why_no_result(self, request): which part of it left a request without a result.
        surround(self): the context within which the whole Sequential runs that it is a step of.
        hand_on(self, form, taker): told that the next step takes one of the forms that it offers.
    """

    max_batch: int | None = None
    """How many requests ``forward`` takes at once; the node's ``max`` is then at most this. None: one, or ``max``."""

    min_batch: int = 1
    """The fewest requests ``forward`` takes. More than 1 only inside ``Range`` or ``&``, which compose batches."""

    thread_bound: bool = False
    """True: built, run and closed on one thread of its own. For libraries that tie state to a thread.

    That thread refers to the instance: if the instance refers to its pipe, the pipe has to be closed to be freed.
    """

    retry_alone: bool = True
    """If ``forward`` raises for a batch, run its requests again one by one, so that one bad request fails alone."""

    keeps_input: bool = False
    """True: ``forward`` changes nothing that it was handed; the values in the dicts stay as they were.

    (New values under the dicts' keys are no change of them.) A batch that may be run again then needs no copy of its
    values. Without it they are copied before, which costs a memory copy of each array; and a batch that holds what
    cannot be copied (an array on a GPU, an open file, an object of yours) is not run again: all of its requests fail.
    Not inherited: a subclass, whose code is another one, says it anew.
    """

    streams: bool = False
    """True: ``forward`` may call ``fastpipe.emit``; its node then runs on its workers only. See ``Streaming``."""

    stateful: bool = False
    """True: what ``forward`` leaves under ``request["state"]``, the next request of the sequence finds there.

    A sequence is all requests that have the same value under the key that the node's ``state_of`` names: the chunks of
    one microphone, the pictures of one camera. They run in the order in which they were submitted, one at a time, and
    together with those of other sequences in one batch. ``request["state"]`` is None for the first of them, any object
    afterwards, and never part of an answer. To leave None is to begin anew.

    A request that fails, is cancelled, or ends too late leaves the state as it was. That holds for what you put there;
    an object that you change in place is what you have made of it. (If a batch is run again one by one, each request
    meets a copy of what it met first, see ``keeps_input``.)

    Of a Sequential, one step may be stateful.
    """

    place: Hashable = None
    """Where the instance is, ``"cuda:1"``; set it in the constructor. None: everywhere.

    Where instances of a node are at several places, each place has a queue of its own. A request goes where its data
    is, see ``place_of``; otherwise, and if no instance is there, to the place with the fewest requests for each of
    its instances in service.
    """

    takes_forms: tuple[type, ...] = ()
    """The forms of data that ``forward`` takes beside what it is documented to take: classes of whose objects ``data``
    may be one.

    It is one only within a Sequential, if the step before offers the form and no filter stands between the two. As only
    those two see it, it may be cheaper than what others get: the images of a batch without a tensor for each. Behind
    the step, also if it fails, the Sequential makes ``data`` what it was before the step that made the form.
    Not inherited, as ``keeps_input`` is not.
    """

    warmed_up: str | None = None
    """What the constructor has run, so that the first request is no slower than others: ``"batches of 4 and 1"``.

    For the line of the log that says that the pipe is built. None: nothing.
    """

    offers_forms: tuple[type, ...] = ()
    """The forms in which ``forward`` can give its results, the best first; see ``takes_forms``. Not inherited, either.

    Which of them it has to give, if any, ``hand_on`` is told.
    """

    unmet: str | None = None
    """What an instance needs of the steps around it, in words; the pipe is not built while one says so. None: nothing.

    Set in the constructor, and cleared by ``hand_on``, or by the container that sees to it.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # What a class promises of its code is not promised of a subclass's.
        if "keeps_input" not in cls.__dict__:
            cls.keeps_input = False
        for forms in ("takes_forms", "offers_forms"):
            if forms not in cls.__dict__:
                setattr(cls, forms, ())

    def forward(self, batch: list[Request]) -> None:
        """Run ``batch``, ``min_batch`` to ``max_batch`` requests, filling each one in place.

        The list and its dicts are yours until you return; the order does not matter to anybody. A request left
        without ``"result"`` goes on to the filter of the next step; if it ends so, it fails with ``NoResult``.

        Raise to fail: with one request in the batch, it fails with your exception. With several, each is run again
        alone, and only those that raise again fail; see ``retry_alone``. It then meets what the first run met, its
        dict and the values in it, or is not run: see ``keeps_input``. If you know which ones failed, raise
        ``fastpipe.ItemErrors([(request, exception)])``: the others have succeeded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward(batch)")  # abstract

    def close(self) -> None:
        """Let go of what the instance holds. Called once, after its last batch."""

    announced_inputs: tuple[Announced, ...] | None = None
    """What a request has when it comes here, for a server whose pipe begins with this backend. None: nobody knows.

    Set in the constructor, or of the class. It is told to clients, and no request is held against it here.
    """

    announced_outputs: tuple[Announced, ...] | None = None
    """What a request has when it leaves, for a server whose pipe ends with this backend. None: nobody knows."""

    # Optional; the engine calls them only if a subclass defines them.
    bucket: Callable[[Request], Hashable] | None = None
    """``def bucket(self, request)``: only requests with equal buckets share a batch (image widths, say)."""

    weigh: Callable[[Request], float] | None = None
    """``def weigh(self, request)``: a request counts as so many towards ``max_batch``. Default 1.

    It is then the weight of a batch that is limited: of requests that weigh less than 1, it may hold more.
    """

    length_of: Callable[[Request], int] | None = None
    """``def length_of(self, request)``: how long a request is, at least 1, where a batch is padded to its longest.

    A batch then holds the oldest request, and with it the most of similar length that keep the two bounds below.
    """

    max_padded: int | None = None
    """The longest length times the requests of a batch is at most this. None: it may be anything."""

    max_padding: float = 1.0
    """The greatest share of a batch that may be padding, from 0 to 1: 0.15 keeps 4 of 100 from one of 200."""

    padding_counts: tuple[PaddingCount, ...] = ()
    """Where the instance, and its parts, count what they pad, for ``stats()``; set in the constructor."""

    place_of: Callable[[Request], Hashable] | None = None
    """``def place_of(self, request)``: where a request's data is, in the words of ``place``. None: anywhere.

    Asked, for every request, only of a node whose instances are at several places, and of one of them for all.
    """

    is_device_alive: Callable[[], bool] | None = None
    """``def is_device_alive(self)``: whether the device of the instance works: a small piece of work, awaited.

    Asked after an error of CUDA's after which a process can do nothing any more. False, or an exception: the node is
    lost, as if ``forward`` had raised ``DeviceLost``. Without it, torch or CuPy is asked about ``place``.
    """

    why_no_result: Callable[[Request], str | None] | None = None
    """``def why_no_result(self, request)``: which part of the backend left a request, just run, without a result.

    For ``NoResult``, which names it. "": none, a filter inside let the request go so, which is no error. None: unknown.
    """

    surround: Callable[[], AbstractContextManager[Any]] | None = None
    """``def surround(self)``: a step of a Sequential has all of it run within this context, for every batch."""

    hand_on: Callable[[type, Backend], None] | None = None
    """``def hand_on(self, form, taker)``: told, while a Sequential is built, that the next step, ``taker``, takes this
    one of ``offers_forms``. From then on each result may be an object of that class."""


class PerRequest(Backend):
    """Work on one request at a time: define ``run``, and each request that raises there fails alone.

    Batches of any size are taken; one costs what its requests cost one after the other. To do something once for a
    batch, extend ``forward`` and call this one's in it.
    """

    retry_alone = False  # each request has been run alone, so that none needs a second run, or a copy for it

    def forward(self, batch: list[Request]) -> None:
        """Call ``run`` for each request.

        Raises:
            ItemErrors: with what ``run`` raised; of a batch of one, that exception itself.
        """
        if len(batch) == 1:
            self.run(batch[0])
        else:
            raise_failed(run_each(batch, self.run), batch)

    def run(self, request: Request) -> None:
        """Fill in one request; raise to fail it."""
        raise NotImplementedError(f"{type(self).__name__} has no run(request)")  # abstract


def run_each(
    batch: list[Request], run: Callable[[Request], Any], failed: dict[int, BaseException] | None = None
) -> dict[int, BaseException]:
    """Call ``run`` for each request of a batch; for a ``forward`` that works on its requests in several passes.

    Args:
        batch: what ``forward`` was given.
        run: what it returns is not looked at.
        failed: what the pass before returned: those requests are left out.

    Returns:
        What requests have failed with, of this pass and the one before, by their index in ``batch``.
    """
    failed = {} if failed is None else failed
    for index, request in enumerate(batch):
        if index in failed:
            continue
        try:
            run(request)
        except Exception as error:  # its own request's, and nobody else's
            failed[index] = error
    return failed


def raise_failed(failed: dict[int, BaseException], batch: list[Request]) -> None:
    """Raise what ``forward`` has to raise where requests have failed: nothing, an only request's own error, or all.

    Raises:
        ItemErrors: if there are others in the batch.
    """
    if failed and len(batch) == 1:
        raise failed[0]
    if failed:
        raise ItemErrors(failed)


@dataclass(frozen=True)
class Existing:
    """In an annotation of a path: ``Annotated[Path, Existing()]`` is a file or a folder that has to be there already.

    ``fastpipe check`` looks for it. Who opens it says in words, while the pipe is built, that it is missing.
    """


@dataclass(frozen=True)
class Between:
    """Limits of a number, both included: ``Annotated[int, Between(1, 1024)]``."""

    low: float
    high: float


@dataclass(frozen=True)
class Child:
    """A backend inside a container, as the container receives it."""

    name: str
    backend: Backend
    filter: Callable[[Request], Any] | None = None  # as written, e.g. "(or)B"; None: the container's default


class Container(Backend):
    """A backend made of others, as in ``"Mine[A,B]"``: it receives them, built, as its first argument."""

    composes_sizes: bool = False
    """True: it gives each child batches of a size that child takes, so that one may have a ``min_batch`` above 1.

    The node's ``max`` and ``min`` then say what the children take; its own batches are limited by ``max_batch`` alone.
    """

    def __init__(self, children: list[Child]) -> None:
        """Keep the children; the container is where they are, and the first that is somewhere tells where data is.

        Raises:
            ConfigError: if they are at different places, or more than one keeps a state.
        """
        self.children = children
        self.streams = self.streams or any(child.backend.streams for child in children)
        self.padding_counts = tuple([count for child in children for count in child.backend.padding_counts])
        stateful = [child.name for child in children if child.backend.stateful]
        if len(stateful) > 1:
            raise ConfigError(f"{' and '.join(stateful)} each keep a state: make nodes of them")
        self.stateful = self.stateful or bool(stateful)
        if self.is_device_alive is None:
            probes = (child.backend.is_device_alive for child in children)
            self.is_device_alive = next((probe for probe in probes if probe is not None), None)
        placed = [(child.name, child.backend) for child in children if child.backend.place is not None]
        if self.place is not None:  # a subclass has said so already
            placed.insert(0, (type(self).__name__, self))
        if not placed:
            return
        _, first = placed[0]
        if any(other.place != first.place for _, other in placed):
            listed = ", ".join(f"{name} is at {other.place}" for name, other in placed)
            raise ConfigError(f"the parts of an instance must be at one place: {listed}; make nodes of them")
        self.place = first.place
        if self.place_of is None:
            self.place_of = next((other.place_of for _, other in placed if other.place_of is not None), None)

    def close(self) -> None:
        close_all(child.backend for child in self.children)


class SubGraph(Backend):
    """Base for backends whose work is another graph, or another node; ``split`` and ``merge`` are yours to replace.

    As a node, nothing blocks: the engine sends the parts on their way, and whichever thread finishes the last one goes
    on with the whole. As a step of a Sequential, ``forward`` runs the parts and waits for them.

    Thread-safety: both are called from any thread, for several requests at once; keep no state in ``self``.
    """

    retry_alone = False  # a failure is kept with its request anyway
    keeps_failures = False
    """True: ``merge`` receives the exceptions of failed parts. False: the first failed part fails the request."""
    ignored_keys: tuple[str, ...] = ("restart", "request_size")
    """Keys that mean something to the engine, and that the pipe does not obey where they come with a caller's data."""

    runs_there: bool = False
    """True: the parts run in the instances of the node ``jump``, by its backend alone, as a Proxy's do.

    That node's ``filter``, ``map`` and ``next`` are not looked at.
    """

    def __init__(self, *, jump: str) -> None:
        """Keep the name of the node to which the parts go."""
        self.jump = jump
        self._without: dict[int, str | None] = {}  # by id of a request: which step left its parts without a result
        self._run_parts: Callable[[list[list[Request]], bool, list[Request]], list[list[Any]]] | None = None

    @classmethod
    def entry_node(cls, parameters: Mapping[str, Any]) -> Any:
        """Return what an object would have as ``jump``, from the constructor's parameters; None: they do not say."""
        return parameters.get("jump")

    def split(self, request: Request) -> list[Request]:
        """Return one new dict per part, each with ``"data"``; they run through the graph at ``jump``."""
        raise NotImplementedError(f"{type(self).__name__} has no split(request)")  # abstract

    def merge(self, request: Request, answers: Sequence[Request | BaseException]) -> None:
        """Write the parts' answers, in the order of ``split``, into ``request``."""
        raise NotImplementedError(f"{type(self).__name__} has no merge(request, answers)")  # abstract

    def connect(self, run_parts: Callable[[list[list[Request]], bool, list[Request]], list[list[Any]]]) -> None:
        """Called by the pipe once it is built: ``run_parts`` runs each request's parts at ``jump`` and waits.

        Its second argument is ``keeps_failures``: without it, the first failure drops the rest of a request's parts.
        The third has the requests, as many as there are lists of parts.
        """
        self._run_parts = run_parts

    def forward(self, batch: list[Request]) -> None:
        if self._run_parts is None:
            raise BackendError(f"{type(self).__name__} works only inside a pipe")
        parts: dict[int, list[Request]] = {}

        def split(request: Request) -> None:
            parts[id(request)] = checked_parts(self.split(request), f"split() of {type(self).__name__}")

        failed = run_each(batch, split)
        answers = self._run_parts([parts.get(id(request), []) for request in batch], self.keeps_failures, batch)
        reasons = getattr(self._run_parts, "reasons", None) or [None] * len(batch)
        self._without = {id(request): why for request, why in zip(batch, reasons, strict=True)}
        for index, own in enumerate(answers):
            failure = None if self.keeps_failures else _first_failure(own)
            if failure is not None:
                failed[index] = failure
        answer_of = {id(request): own for request, own in zip(batch, answers, strict=True)}
        raise_failed(run_each(batch, lambda request: self.merge(request, answer_of[id(request)]), failed), batch)

    def why_no_result(self, request: Request) -> str | None:
        """Return which part left a request without a result; see ``Backend.why_no_result``."""
        return self._without.get(id(request))


def _first_failure(answers: Sequence[Any]) -> BaseException | None:
    for index, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            answer.add_note(f"fastpipe: part {index}")
            return answer
    return None


def close_all(backends: Iterable[Backend]) -> None:
    """Close every one of them, also if some raise; then raise what they raised."""
    errors: list[Exception] = []
    for each in backends:
        try:
            each.close()
        except Exception as error:
            errors.append(error)
    if len(errors) > 1:
        raise ExceptionGroup("several backends could not be closed", errors)
    if errors:
        raise errors[0]
