"""What goes wrong where such libraries are used, case by case: a mistake, an odd moment, an odd value."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import inspect
import subprocess
import sys
import threading
import time
import traceback
import weakref
from typing import Any

import numpy as np
import pytest

from fastpipe import Backend, ConfigError, GraphError, Pipe, PipeError, Request

WAIT_S = 20.0


class Echo(Backend):
    max_batch = 4

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


def ours() -> int:
    return sum(thread.name.startswith("fastpipe") for thread in threading.enumerate())


def run(code: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    prologue = "import fastpipe, os, signal, sys, threading, time\n"
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-W", "ignore::DeprecationWarning", "-c", prologue + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **keywords,
    )


@pytest.mark.parametrize("value", [-5, "x"])
def test_a_batching_timeout_that_makes_no_sense_is_a_sentence(value: Any) -> None:
    """With the node, the key, and what is allowed."""
    with pytest.raises(ConfigError, match=r"node 'main': batching_timeout: must be .*, got"):
        Pipe(backend=Echo, batching_timeout=value)


def test_two_pipes_with_one_node_name_know_nothing_of_each_other() -> None:
    """Neither while they work, nor when one is closed."""
    with Pipe(same={"backend": Echo}) as first, Pipe(same={"backend": "Pow"}) as second:
        assert first({"data": 3})["result"] == 3
        assert second({"data": 3})["result"] == 9
        second.close()
        assert first({"data": 3})["result"] == 3


def test_one_request_object_sent_by_four_threads_is_four_requests() -> None:
    """Each call has its answer, and the dict holds one of them."""
    request: Request = {"data": 7}
    begin = threading.Barrier(4)

    def send() -> Any:
        begin.wait(WAIT_S)
        return [pipe(request)["result"] for _ in range(200)]

    with Pipe(backend=Echo, instance_num=2) as pipe, concurrent.futures.ThreadPoolExecutor(4) as executor:
        for done in [executor.submit(send) for _ in range(4)]:
            assert done.result(WAIT_S) == [7] * 200
        assert pipe.stats()["requests"]["done"] == 800
    assert request == {"data": 7, "result": 7}


def test_ctrl_c_does_not_wait_for_the_request() -> None:
    """KeyboardInterrupt comes at once, although the backend goes on."""
    ran = run("""
gate = threading.Event()
class Holds(fastpipe.Backend):
    thread_bound = True
    def forward(self, batch):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        gate.wait(50)
pipe = fastpipe.Pipe(backend=Holds)
try:
    pipe({"data": 1})
except KeyboardInterrupt:
    print("not finished" if not gate.is_set() else "late")
gate.set()
""")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("not finished\n", "", 0)


def test_in_the_child_of_a_fork_a_request_is_refused_at_once() -> None:
    """With ForkedPipe; the parent goes on."""
    ran = run("""
pipe = fastpipe.Pipe(backend="Identity")
pipe({"data": 1})
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
        pipe({"data": 1})
    except fastpipe.ForkedPipe:
        os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pipe({"data": 2})["result"])
""")
    assert (ran.stdout, ran.stderr) == ("7 2\n", "")


def test_pipes_that_are_dropped_are_freed() -> None:
    """With their threads, although nobody has closed them."""
    before = ours()
    references = []
    for _ in range(50):
        pipe = Pipe(a={"backend": Echo, "next": "b"}, b={"backend": Echo})
        assert pipe({"data": 1})["result"] == 1
        references.append(weakref.ref(pipe))
    del pipe
    deadline = time.monotonic() + WAIT_S
    while ours() > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.001)
    assert ours() == before
    assert [reference() for reference in references] == [None] * 50


def test_the_process_ends_with_a_hundred_idle_threads() -> None:
    """Silently, although nobody has closed the pipe. (How long it takes: test_life.py.)"""
    ran = run("pipe = fastpipe.Pipe(backend='Identity', instance_num=100); print(pipe({'data': 1})['result'])")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("1\n", "", 0)


class NoBackend:
    """A class of another kind."""


class NoForward(Backend):
    """A backend that does nothing."""


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"main": {"backend": "Identity", "instance_nun": 2}}, "did you mean 'instance_num'?"),
        ({"main": {"instance_num": 2}}, "backend"),
        ({"main": {"backend": "Identiti"}}, "did you mean 'Identity'?"),
        ({"first": {"backend": "Identity", "next": "seconds"}, "second": {"backend": "Identity"}}, "mean 'second'?"),
        ({"main": {"backend": NoBackend}}, "subclass fastpipe.Backend"),
        ({"main": {"backend": NoForward}}, "forward"),
    ],
)
def test_what_is_misspelt_or_missing_is_said_with_the_nearest_name(nodes: dict[str, Any], words: str) -> None:
    """Nothing is accepted silently."""
    with pytest.raises(ConfigError) as raised:
        Pipe(nodes)
    assert words in str(raised.value)
    assert "node '" in str(raised.value)


def test_one_bad_request_of_four_fails_alone() -> None:
    """The other three have their answers."""

    class Inverts(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = 1 / request["data"]

    with Pipe(backend=Inverts) as pipe:
        requests: list[Request] = [{"data": number} for number in (1, 2, 0, 4)]
        with pytest.raises(ExceptionGroup) as raised:
            pipe(requests)
    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError]
    assert [request.get("result") for request in requests] == [1.0, 0.5, None, 0.25]


def test_one_object_cannot_be_two_instances() -> None:
    """It would be called by two threads at once."""
    with pytest.raises(ConfigError, match="instance"):
        Pipe(backend=Echo(), instance_num=2)


def test_the_callers_configuration_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """It is neither changed nor printed."""
    config = {"a": {"backend": "Identity", "next": "b", "max": "4"}, "b": {"backend": "S[Identity,Identity]"}}
    before = copy.deepcopy(config)
    with Pipe(config) as pipe:
        pipe({"data": 1})
    assert config == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", [[1, 2], (1, 2), {"a": 1}, np.arange(4), 2**100, None, b"x", object(), 1 + 2j])
def test_data_comes_out_as_the_object_that_went_in(data: Any) -> None:
    """Whatever its type: nothing is converted on the way."""
    with Pipe(a={"backend": "Identity", "next": "b"}, b={"backend": "S[Identity,Identity]"}) as pipe:
        assert pipe({"data": data})["result"] is data


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Identity", "next": "a"}}, ["a", "b"]),
        ({"main": {"backend": "Identity", "instance_num": 0}}, ["node 'main'", "instance_num", "between 1"]),
    ],
)
def test_a_cycle_or_no_instances_are_a_sentence(nodes: dict[str, Any], words: list[str]) -> None:
    """With the path, or the node, and the range."""
    with pytest.raises((ConfigError, GraphError)) as raised:
        Pipe(nodes)
    assert all(word in str(raised.value) for word in words), raised.value


def test_missing_data_is_a_key_error_that_says_where() -> None:
    """The node, the backend and the keys that are there; the traceback leads into forward."""
    with Pipe(reads={"backend": Echo}) as pipe, pytest.raises(KeyError) as raised:
        pipe({"image": 1})
    said = "\n".join(raised.value.__notes__)
    assert all(word in said for word in ("'reads'", "Echo", "'image'"))
    assert "forward" in "".join(traceback.format_exception(raised.value))


def test_sys_exit_in_a_backend_is_its_requests_error() -> None:
    """With its code; the worker lives."""

    class Exits(Echo):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "exit":
                sys.exit(3)
            super().forward(batch)

    with Pipe(backend=Exits) as pipe:
        with pytest.raises(SystemExit) as raised:
            pipe({"data": "exit"})
        assert raised.value.code == 3
        assert pipe({"data": "next"})["result"] == "next"


def test_the_first_exception_of_a_process_is_as_fast_as_any_other() -> None:
    """Nothing is loaded for it."""
    ran = run("""
class Fails(fastpipe.Backend):
    def forward(self, batch):
        raise ValueError("planned")
pipe = fastpipe.Pipe(backend=Fails)
before = set(sys.modules)
try:
    pipe({"data": 1})
except ValueError:
    print(sorted(set(sys.modules) - before))
""")
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_thirty_two_clients_are_served_first_come_first_served() -> None:
    """Nobody is served twice while another has waited for longer."""
    served: list[int] = []
    turn = threading.Semaphore(0)

    class Serves(Backend):
        def forward(self, batch: list[Request]) -> None:
            assert turn.acquire(timeout=WAIT_S)
            served.append(batch[0]["data"])
            batch[0]["result"] = None

    def client(name: int) -> None:
        for _ in range(10):
            pipe({"data": name})

    with Pipe(backend=Serves) as pipe, concurrent.futures.ThreadPoolExecutor(32) as executor:
        clients = [executor.submit(client, name) for name in range(32)]
        for count in range(320):
            # The next is served only when all that are not done yet are there: in the queue, or running.
            deadline = time.monotonic() + WAIT_S
            present = 32 - sum(served.count(name) == 10 for name in range(32))
            while pipe.stats()["requests"]["accepted"] < count + present and time.monotonic() < deadline:
                time.sleep(0.0001)
            assert pipe.stats()["requests"]["accepted"] == count + present
            turn.release()
            while len(served) <= count and time.monotonic() < deadline:
                time.sleep(0.0001)
        for done in clients:
            done.result(WAIT_S)
    for first in range(0, 320 - 64, 32):
        assert len(set(served[first : first + 33])) >= 31, served


def test_a_batch_that_nobody_else_can_join_leaves_at_once() -> None:
    """Two or three of `max` 4 do not wait out the timeout, here an hour, while all instances are idle."""
    with Pipe(backend=Echo, max=4, batching_timeout=3_600_000) as pipe:
        for count in (2, 3):
            futures = [pipe.submit({"data": index}) for index in range(count)]
            assert [future.result(WAIT_S)["result"] for future in futures] == list(range(count))
        assert pipe([{"data": 1}, {"data": 2}])


def test_a_pipe_is_built_once() -> None:
    """Its constructor, called again, would leave its threads behind; it goes on as it was."""
    with Pipe(backend="Pow") as pipe:
        with pytest.raises(PipeError, match="is built already"):
            pipe.__init__(backend="Identity")  # type: ignore[misc]
        assert pipe({"data": 3})["result"] == 9


def test_help_and_editors_see_what_a_call_takes() -> None:
    """A method of C has no signature but for the one that its docstring gives; help() shows the rest of that."""
    with Pipe(backend="Identity") as pipe:
        words = "(request, *, timeout=None, priority=0, eager=False, entry=None)"
        assert str(inspect.signature(pipe.__call__)) == words
        assert (inspect.getdoc(pipe.__call__) or "").startswith("Run one request, or a list of them, to the end;")
