"""Streaming: a backend that makes its answers in parts, which are handed on while the rest is being made.

    class Words(fastpipe.Streaming):
        def run(self, request):
            for word in request["data"].split():
                yield word

    for chunk in pipe.stream({"data": "one two"}): ...

It is built on ``fastpipe.emit``, which any backend may call that says ``streams = True``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from typing import Any, Protocol

from fastpipe.contract import Backend, Request, raise_failed
from fastpipe.errors import BackendError

__all__ = ["Emitter", "Streaming", "hand_on_by"]


class Emitter(Protocol):
    """Who hands chunks on: the engine, which is further up."""

    def emit(self, request: Request, chunk: Any) -> bool: ...
    def try_emit(self, request: Request, chunk: Any) -> bool: ...
    def wait_for_room(self, requests: Sequence[Request]) -> None: ...
    def cancelled(self, request: Request | None = None) -> bool: ...
    def _finish(self, backend: Backend, request: Request, failed: list[BaseException] | None) -> bool: ...
    def _place_in_batch(self, request: Request) -> tuple[bool, Context | None]:
        """Say whether this thread runs a batch with this very dict, and in which context; None: in the current one."""


_emitter: Emitter | None = None


def hand_on_by(emitter: Emitter) -> None:
    """Say who hands chunks on from now on. Before that, backends are called by hand: nobody reads their streams."""
    global _emitter
    _emitter = emitter


class Streaming(Backend):
    """Work on one request that gives its answer in parts: define ``run`` as a generator function.

    Each part, a *chunk*, is handed on when it is yielded, if somebody reads the request's stream (``pipe.stream``,
    ``pipe.astream``). If the reader is slow, ``yield`` waits. If nobody waits for the request any more, because it was
    cancelled, its time is over, or its reader has left, the generator is closed at its ``yield``: its ``finally``
    blocks run. What it raises fails its request alone, behind the chunks that it has yielded.

    **The whole**, for whoever simply calls the pipe and for the caller's dict at the end of a stream, is the result
    that ``run`` has set under ``"result"``; else what it has returned; else what ``whole`` makes of all chunks.

    Batches of any size are taken: the generators take turns, a chunk each; one whose reader is slow is passed over
    meanwhile, and a request whose generator has ended does not wait for the others. Each runs in the context of its own
    request (``contextvars``).

    A node of such backends runs on its workers only, and a batch that has emitted is never run again.
    """

    streams = True
    retry_alone = False  # each request fails alone anyway

    keeps_chunks: bool = True
    """False: chunks are not kept for ``whole``, for streams that are long or have no end; ``run`` sets the result."""

    def run(self, request: Request) -> Iterator[Any]:
        """Yield the parts of one request's answer; raise to fail it."""
        raise NotImplementedError(f"{type(self).__name__} has no run(request)")  # abstract

    def whole(self, request: Request, chunks: list[Any]) -> Any:
        """Make one result of all chunks; here, the list of them."""
        return chunks

    def forward(self, batch: list[Request]) -> None:
        """Run the generators of all requests, by turns.

        Raises:
            ItemErrors: with what ``run`` raised; of a batch of one, that exception itself.
        """
        if len(batch) == 1:
            _run_alone(_Answer(self, batch[0]))
        else:
            raise_failed(_run_by_turns(self, batch), batch)


_NOTHING = object()
_GOES_ON, _WAITS, _ENDS = "goes on", "waits", "ends"


class _Answer:
    """The answer to one request, while it is being made."""

    def __init__(self, backend: Streaming, request: Request) -> None:
        self.backend = backend
        self.request = request
        self.emitter: Emitter | None = None
        self.context: Context | None = None
        self.chunk: Any = _NOTHING  # the one that has to be handed on next
        self._before = request.get("result", _NOTHING)
        self._chunks: list[Any] | None = [] if backend.keeps_chunks else None
        self._generator: Iterator[Any] | None = None
        if _emitter is not None:
            is_at_hand, self.context = _emitter._place_in_batch(request)
            if is_at_hand:
                self.emitter = _emitter

    def advance(self) -> bool:
        """Have the generator make the next chunk; False: there is none, and the request has its result."""
        if self._generator is None:
            self._generator = self._begun()
        try:
            self.chunk = self._within(next, self._generator)
        except StopIteration as end:
            self._end(end.value)
            return False
        if self._chunks is not None:
            self._chunks.append(self.chunk)
        return True

    def take_turn(self) -> str:
        """Make one chunk and hand it on; or hand that on for which there was no room.

        Returns:
            ``_GOES_ON``; ``_WAITS``: there is no room, it keeps its chunk; ``_ENDS``.
        """
        if self.chunk is _NOTHING and not self.advance():
            return _ENDS
        if self.emitter is not None and not self.emitter.try_emit(self.request, self.chunk):
            if not self.emitter.cancelled(self.request):
                return _WAITS
            self.close()
            return _ENDS
        self.chunk = _NOTHING
        return _GOES_ON

    def finish(self, index: int, kept: list[BaseException] | None, failed: dict[int, BaseException]) -> None:
        """Let the request go, if it need not wait for the others of its batch; else note in ``failed`` what it met.

        Args:
            index: of the request in its batch.
            kept: what it has failed with, alone in a list, so that nobody else holds it; None: it has its result.
            failed: by index.
        """
        if self.emitter is not None and self.emitter._finish(self.backend, self.request, kept):
            return
        if kept:
            failed[index] = kept.pop()

    def close(self) -> None:
        """End the generator where it stands, if it has not come to its end."""
        close = getattr(self._generator, "close", None)
        if close is not None:
            self._within(close)

    def _begun(self) -> Iterator[Any]:
        generator = self._within(self.backend.run, self.request)
        if not isinstance(generator, Iterator):
            name, got = type(self.backend).__name__, type(generator).__name__
            raise BackendError(f"run() of {name} must yield the parts of the answer; it returned {got}")
        return generator

    def _within(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments) if self.context is None else self.context.run(function, *arguments)

    def _end(self, returned: Any) -> None:
        if self.request.get("result", _NOTHING) is not self._before:
            return
        if returned is not None:
            self.request["result"] = returned
        elif self._chunks is not None:
            self.request["result"] = self._within(self.backend.whole, self.request, self._chunks)


def _run_alone(answer: _Answer) -> None:
    try:
        while answer.advance():
            if answer.emitter is not None and not answer.emitter.emit(answer.request, answer.chunk):
                return  # nobody waits for it any more
    finally:
        answer.close()


def _run_by_turns(backend: Streaming, batch: list[Request]) -> dict[int, BaseException]:
    """Run the generators of a batch, a chunk each in turn; return what requests have failed with, by their index."""
    failed: dict[int, BaseException] = {}
    answers = {index: _Answer(backend, request) for index, request in enumerate(batch)}
    try:
        while answers:
            if not _take_turns(answers, failed):
                blocked = [answer.request for answer in answers.values()]
                next(iter(answers.values())).emitter.wait_for_room(blocked)  # type: ignore[union-attr]  # see _take_turns
    finally:
        for answer in answers.values():  # an exception that is no request's: all of them end
            answer.close()
    return failed


def _take_turns(answers: dict[int, _Answer], failed: dict[int, BaseException]) -> bool:
    """Give each generator a turn, and take those out that end; False: the readers of all of them are slow."""
    has_moved = False
    for index, answer in list(answers.items()):
        kept: list[BaseException] | None = None
        try:
            outcome = answer.take_turn()
        except BaseException as error:  # its own, whatever its kind: forward() runs on a worker, where no Ctrl-C comes
            if answer.emitter is None and not isinstance(error, Exception):
                raise  # called by hand
            outcome = _ENDS
            kept = [error]
        if outcome is _WAITS:
            continue
        has_moved = True
        if outcome is _ENDS:
            del answers[index]
            answer.finish(index, kept, failed)
    return has_moved
