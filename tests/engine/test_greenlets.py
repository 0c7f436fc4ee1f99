"""Greenlets, gevent and eventlet: what works, works; what cannot is refused in words.

Whatever patches the standard library does so in a child.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
from helpers import time_stands_still

import fastpipe
from fastpipe import Backend, CallLoop, Pipe, PipeError, Request

HANG_S = 60.0

greenlet = pytest.importorskip("greenlet", reason="greenlet is not installed here")


class Switches(Backend):
    """Hands control to another greenlet in the middle of a batch, as cooperative I/O does."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["switch"]()
            request["result"] = request["data"], fastpipe.cancelled()


def call(pipe: Pipe, data: Any, parent: Any) -> Any:
    """Return a greenlet that calls the pipe, and switches to ``parent`` in the backend."""
    return greenlet.greenlet(lambda: pipe({"data": data, "switch": parent.switch})["result"])


def test_calls_of_two_greenlets_may_leave_their_backends_in_any_order() -> None:
    """Both are in a backend on one thread; each gets its own answer, whichever comes back first."""
    main = greenlet.getcurrent()
    with Pipe(backend=Switches, instance_num=2) as pipe:
        for order in ((0, 1), (1, 0)):
            calls = [call(pipe, number, main) for number in range(2)]
            for each in calls:
                each.switch()
            answers = {number: calls[number].switch() for number in order}
            assert answers == {0: (0, False), 1: (1, False)}
            assert all(each.dead for each in calls)
        assert pipe.stats()["requests"]["done"] == 4


def test_many_greenlets_deep_in_backends_come_back_in_every_order() -> None:
    """More of them than the engine has room for without an allocation; the thread is clean afterwards."""
    main = greenlet.getcurrent()
    with Pipe(backend=Switches, instance_num=9) as pipe:
        calls = [call(pipe, number, main) for number in range(9)]
        for each in calls:
            each.switch()
        order = [4, 0, 8, 1, 7, 2, 6, 3, 5]
        assert [calls[number].switch() for number in order] == [(number, False) for number in order]
        assert pipe({"data": "alone", "switch": int})["result"] == ("alone", False)
        assert not pipe._is_inside()


def test_stacks_that_greenlets_copy_away_hold_nothing_the_engine_reads() -> None:
    """While a backend is switched away, its C stack is overwritten by others, which call pipes, too."""
    main = greenlet.getcurrent()

    def nested(depth: int) -> int:
        return sum(map(nested, [depth - 1] * (depth > 0))) + 1

    with Pipe(backend=Switches, instance_num=2) as pipe, Pipe(backend=Switches) as other:
        away = call(pipe, "away", main)
        away.switch()

        def elsewhere() -> Any:
            assert nested(200) == 201
            return other({"data": nested(50), "switch": lambda: nested(100)})["result"]

        assert [greenlet.greenlet(elsewhere).switch() for _ in range(20)] == [(51, False)] * 20
        assert away.switch() == ("away", False)


def test_cancelled_asks_for_the_greenlet_that_asks() -> None:
    """A backend is told of its own request, not of that of the greenlet which came to a backend last."""
    main = greenlet.getcurrent()
    said: list[bool] = []

    def late() -> Any:
        request = {"data": "late", "switch": lambda: [main.switch(), said.append(fastpipe.cancelled())]}
        return pipe(request, timeout=1.0)

    with time_stands_still(), Pipe(backend=Switches, instance_num=2) as pipe:
        first, second = greenlet.greenlet(late), call(pipe, "in time", main)
        first.switch()
        second.switch()
        fastpipe._core._advance_time(2_000_000_000)
        assert not fastpipe.cancelled()  # nobody's: this greenlet is in no backend
        with pytest.raises(fastpipe.RequestTimeout):
            first.switch()
        assert second.switch() == ("in time", False)
    assert said == [True]


def test_a_greenlet_that_waits_for_another_of_its_thread_is_told_so() -> None:
    """The instance is in a call that cannot go on before this one has waited: an error, and no hang."""
    main = greenlet.getcurrent()
    with Pipe(backend=Switches) as pipe:
        first = call(pipe, 1, main)
        first.switch()
        with pytest.raises(CallLoop, match=r"other greenlets of this thread.*threadpool"):
            pipe({"data": 2, "switch": int})
        assert first.switch() == (1, False)
        assert pipe({"data": 3, "switch": int})["result"] == (3, False)


def test_an_eager_call_beside_another_greenlet_in_a_backend_is_refused() -> None:
    """It takes instances by thread, and the thread has one already."""
    main = greenlet.getcurrent()
    with Pipe(backend=Switches) as pipe:
        first = call(pipe, 1, main)
        first.switch()
        with pytest.raises(PipeError, match="eager call is not possible while another greenlet"):
            pipe({"data": 2, "switch": int}, eager=True)
        assert first.switch() == (1, False)
        assert pipe({"data": 3, "switch": int}, eager=True)["result"] == (3, False)


def test_a_greenlet_that_is_thrown_out_of_a_backend_fails_its_request_alone() -> None:
    """GreenletExit, as gevent's kill() raises it, is a failure like any other; the instance is free again."""
    main = greenlet.getcurrent()
    with Pipe(backend=Switches) as pipe:
        killed = call(pipe, 1, main)
        killed.switch()
        assert isinstance(killed.throw(), greenlet.GreenletExit)
        assert pipe({"data": 2, "switch": int})["result"] == (2, False)
        assert pipe.stats()["requests"]["failed"] == 1


# ---- patched standard libraries --------------------------------------------------------------------------------------

PROLOGUE = """
import fastpipe, os, sys, threading, time

class Echo(fastpipe.Backend):
    def forward(self, batch):
        for request in batch:
            time.sleep(0.001)
            request["result"] = request["data"]

def refused(make):
    try:
        make()
    except fastpipe.PipeError as error:
        return str(error)
    raise AssertionError("not refused")
"""


def run(code: str, *, first: str = "") -> None:
    """Run code in a child that must end well, without a word on stderr."""
    source = "\n".join([first, PROLOGUE, textwrap.dedent(code)])
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", source],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr


PATCHES = {
    "gevent": ("from gevent import monkey; monkey.patch_all()", "gevent.monkey.patch_all(thread=False)"),
    "eventlet": ("import eventlet; eventlet.monkey_patch()", "eventlet.monkey_patch(thread=False)"),
}


@pytest.mark.parametrize("library", PATCHES)
@pytest.mark.parametrize("when", ["before fastpipe is imported", "afterwards"])
def test_a_pipe_among_threads_that_are_greenlets_is_refused(library: str, when: str) -> None:
    """Its workers would wait in the only real thread: the error says what to do instead."""
    pytest.importorskip(library, reason=f"{library} is not installed here")
    patch, advice = PATCHES[library]
    before = when.startswith("before")
    run(
        f"""
        {"" if before else patch}
        for keys in (dict(backend=Echo), dict(backend=Echo, hang_timeout=5)):
            words = refused(lambda: fastpipe.Pipe(**keys))
            assert "{advice}" in words, words
        embed = fastpipe.batched(max=4)(list)
        assert "{advice}" in refused(lambda: embed(1))
        """,
        first=patch if before else "",
    )


@pytest.mark.parametrize("library", PATCHES)
def test_a_pipe_that_was_built_before_its_threads_became_greenlets_starts_no_more_of_them(library: str) -> None:
    """What it has works; what needs another thread is refused."""
    pytest.importorskip(library, reason=f"{library} is not installed here")
    patch, advice = PATCHES[library]
    run(
        f"""
        pipe = fastpipe.Pipe(backend=Echo, instance_num=2)
        assert pipe({{"data": 1}})["result"] == 1
        {patch}
        assert pipe({{"data": 2}})["result"] == 2
        assert "{advice}" in refused(lambda: pipe.submit({{"data": 3}}, timeout=5))
        os._exit(0)  # real threads from before a patch do not end well, whoever has started them
        """
    )


def test_gevent_with_real_threads_works() -> None:
    """patch_all(thread=False): calls, futures, the thread pool, which does not block, and greenlets of one thread."""
    pytest.importorskip("gevent", reason="gevent is not installed here")
    run(
        """
        import gevent
        with fastpipe.Pipe(backend=Echo, instance_num=4) as pipe:
            assert pipe({"data": 1})["result"] == 1
            assert pipe.submit({"data": 2}, timeout=30).result(30)["result"] == 2
            pool = gevent.get_hub().threadpool
            ticks = []
            clock = gevent.spawn(lambda: [(gevent.sleep(0), ticks.append(n)) for n in range(100)])
            calls = [gevent.spawn(pool.apply, pipe, ({"data": n},)) for n in range(50)]
            gevent.joinall([clock, *calls], raise_error=True)
            assert [each.value["result"] for each in calls] == list(range(50))
            assert len(ticks) == 100
            # In greenlets of one thread: a backend that sleeps switches to the next, which finds an instance.
            calls = [gevent.spawn(pipe, {"data": n}) for n in range(4)]
            gevent.joinall(calls, raise_error=True)
            assert [each.value["result"] for each in calls] == list(range(4))
            assert pipe.stats()["requests"]["done"] == 56
        """,
        first="from gevent import monkey; monkey.patch_all(thread=False)",
    )


def test_eventlet_with_real_threads_works() -> None:
    """monkey_patch(thread=False): calls, futures, and tpool, which does not block."""
    pytest.importorskip("eventlet", reason="eventlet is not installed here")
    run(
        """
        from eventlet import tpool
        with fastpipe.Pipe(backend=Echo, instance_num=4) as pipe:
            assert pipe({"data": 1})["result"] == 1
            assert pipe.submit({"data": 2}, timeout=30).result(30)["result"] == 2
            pool = eventlet.GreenPool(20)
            answers = pool.imap(lambda n: tpool.execute(pipe, {"data": n})["result"], range(50))
            assert list(answers) == list(range(50))
            tpool.killall()
        """,
        first="import eventlet; eventlet.monkey_patch(thread=False)",
    )
