"""Which requests the engine keeps as the slowest, and what it says of them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import fastpipe
from fastpipe._core import Slowest


class Takes(fastpipe.Backend):
    """Ends when it is told to, or fails."""

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for request in batch:
            if request["data"] == "fails":
                raise ValueError("as told")
            if isinstance(request["data"], threading.Event):
                request["data"].wait(20)
            request["result"] = 1


def test_nothing_is_noted_before_somebody_looks() -> None:
    """Nor of requests that were there before."""
    release = threading.Event()
    with fastpipe.Pipe({"a": {"backend": Takes}}) as pipe:
        assert pipe.slowest is None
        early = pipe.submit({"data": release})
        pipe.slowest = Slowest()
        release.set()
        early.result(20)
        pipe({"data": 1})
        assert len(pipe.slowest.take()) == 1
        assert pipe.slowest.take() == []


def test_the_ten_slowest_of_many_are_kept() -> None:
    """Whatever came before and after them; each once."""
    with fastpipe.Pipe({"a": {"backend": "Identity", "next": "b"}, "b": {"backend": Takes}}) as pipe:
        pipe.slowest = Slowest()
        held = []
        for index in range(400):
            if index % 40 == 0:
                release = threading.Event()
                held.append(pipe.submit({"data": release}))
                threading.Timer(0.02, release.set).start()
                held[-1].result(20)
            else:
                pipe({"data": 1})
        kept = pipe.slowest.take()
        assert len(kept) == 10
        took_ns = [took for took, *_ in kept]
        assert took_ns == sorted(took_ns, reverse=True)
        assert took_ns[-1] >= 15e6
        assert len({number for _, number, *_ in kept}) == 10
        for took, _, ended_ns, why, stops in kept:
            assert why is None
            assert [name for name, *_ in stops] == ["a", "b"]
            for _, queued_ns, begun_ns, stop_ended_ns in stops:
                assert ended_ns - took <= queued_ns <= begun_ns <= stop_ended_ns <= ended_ns


def test_a_failed_request_has_its_reason_and_a_cancelled_one_is_not_told() -> None:
    """The caller of a cancelled one waits no more: however long it took, nobody was kept waiting."""
    release = threading.Event()
    with fastpipe.Pipe({"a": {"backend": Takes}}) as pipe:
        pipe.slowest = Slowest()
        with pytest.raises(ValueError, match="as told"):
            pipe({"data": "fails"})
        first = pipe.submit({"data": release})
        late = pipe.submit({"data": 1}, timeout=0.01)
        dropped = pipe.submit({"data": 1})
        assert dropped.cancel()
        with pytest.raises(fastpipe.RequestTimeout):
            late.result(20)
        release.set()
        first.result(20)
        assert sorted(str(why) for _, _, _, why, _ in pipe.slowest.take()) == ["None", "error", "timeout"]


def test_a_request_of_many_stops_has_the_first_hundred() -> None:
    """What is kept of a request is bounded."""
    names = [f"n{index}" for index in range(150)]
    nodes = {"a": {"backend": Takes, "next": names}} | {name: {"backend": "Identity"} for name in names}
    with fastpipe.Pipe(nodes) as pipe:
        pipe.slowest = Slowest()
        pipe({"data": 1})
        ((_, _, _, _, stops),) = pipe.slowest.take()
        assert len(stops) == 100
