"""What a process may be like: out of file descriptors, about to end, forked. Each case runs in a child."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

HANG_S = 60.0

PROLOGUE = """
import fastpipe, gc, logging, os, sys, threading, time

logging.disable()  # a hang is a warning on stderr

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Echo(fastpipe.Backend):
    max_batch = 4
    def forward(self, batch):
        for request in batch:
            request["result"] = request["data"]

class Bound(Echo):
    thread_bound = True
"""


def run(code: str) -> list[str]:
    """Run code after PROLOGUE in a child that must end well and without a word on stderr; return what it says."""
    source = PROLOGUE + textwrap.dedent(code)
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-W", "ignore:.*fork:DeprecationWarning", "-c", source],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    return ran.stdout.splitlines()


# ---- file descriptors ------------------------------------------------------------------------------------------------

WAYS_TO_CALL = {
    "call": 'assert pipe({"data": 1})["result"] == 1',
    "call with a time limit": 'assert pipe({"data": 1}, timeout=30)["result"] == 1',
    "eager": 'assert pipe({"data": 1}, eager=True)["result"] == 1',
    "list": 'assert [each["result"] for each in pipe([{"data": 1}, {"data": 2}])] == [1, 2]',
    "map": 'assert [each["result"] for each in pipe.map([{"data": 1}, {"data": 2}])] == [1, 2]',
    "submit": 'assert pipe.submit({"data": 1}).result(30)["result"] == 1',
    "submit with a time limit": 'assert pipe.submit({"data": 1}, timeout=30).result(30)["result"] == 1',
    "acall": """
        assert loop.run_until_complete(pipe.acall({"data": 1}))["result"] == 1
        loop.close()
        """,
    "amap": """
        async def main():
            return [each["result"] async for each in pipe.amap([{"data": 1}, {"data": 2}])]
        assert loop.run_until_complete(main()) == [1, 2]
        loop.close()
        """,
    "a failure": """
        try:
            pipe.submit({}).result(30)
        except KeyError:
            pass
        else:
            raise AssertionError
        """,
    "a hang": """
        try:
            stuck({"data": 1})
        except fastpipe.BackendHung as error:
            assert "in forward" in error.stacks
        gate.set()
        """,
    "close": "pipe.close()",
}


@pytest.mark.parametrize("way", WAYS_TO_CALL)
def test_a_built_pipe_needs_no_file_descriptor(way: str) -> None:
    """The first call of each kind works although the process has used all descriptors up: nothing is imported by it."""
    before = "import asyncio; loop = asyncio.new_event_loop()" if way in ("acall", "amap") else ""
    run(
        f"""
        import resource
        gate = threading.Event()
        class Stuck(Echo):
            def forward(self, batch):
                gate.wait(30)
        pipe = fastpipe.Pipe(backend=Echo)
        stuck = fastpipe.Pipe(backend=Stuck, hang_timeout=0.05)
        {before}
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
{textwrap.indent(textwrap.dedent(WAYS_TO_CALL[way]), " " * 8)}
        for each in held:
            os.close(each)
        """
    )


# ---- the end of a process --------------------------------------------------------------------------------------------


def test_a_pipe_that_outlives_the_modules_goes_in_silence() -> None:
    """Freed when the names of fastpipe's modules are gone already, it says nothing; it was closed before."""
    assert run(
        """
        class Closes(Echo):
            def close(self):
                say("closed")
        import fastpipe.pipe
        # Its names are set to None one after the other, the last one last.
        fastpipe.pipe.kept = [fastpipe.Pipe(backend=Closes), fastpipe.Pipe(backend=Bound), fastpipe.pipe]
        """
    ) == ["closed"]


# ---- fork ------------------------------------------------------------------------------------------------------------

FORK = """
class Leaves:
    # Stands for a library's model, whose end in a child may crash it, or wait for a thread of the parent.
    def __init__(self, name):
        self.name = name
    def __del__(self, write=os.write, parent=os.getpid(), getpid=os.getpid):
        if getpid() != parent:
            write(1, f"{self.name} was freed in the child\\n".encode())

class Holds(Echo):
    name = "shared"
    def __init__(self):
        self.model = Leaves(self.name)
        self.model.itself = self.model  # most are part of some cycle

class HoldsBound(Holds):
    name, thread_bound = "thread-bound", True

from fastpipe.backends.flow.graphs import Jump

class HoldsJump(Jump):
    def __init__(self, *, jump):
        super().__init__(jump=jump)
        self.model = Leaves("jump")

def child(body=lambda: None):
    # Fork, have the child run body and end as a program ends, and return its exit code, or None if it hangs.
    pid = os.fork()
    if pid == 0:
        body()
        sys.exit(7)
    for _ in range(3000):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""


def test_a_child_frees_nothing_that_the_parent_has_built() -> None:
    """Neither when it ends, nor when it drops the pipe, nor when it collects; also of pipes that are closed already."""
    assert (
        run(
            FORK
            + """
pipes = [
    fastpipe.Pipe(backend=Holds, instance_num=2),
    fastpipe.Pipe(backend=HoldsBound),
    fastpipe.Pipe(a=dict(backend=HoldsJump, jump="b"), b=dict(backend=Holds)),
    fastpipe.Pipe(backend=fastpipe.Sequential(Echo, Holds)),
]
closed = fastpipe.Pipe(backend=Holds)
closed.close()
embed = fastpipe.batched(max=4)(list)
embed(1)
def drops():
    pipes.clear()
    del globals()["closed"]
    gc.collect()
assert child() == 7
assert child(drops) == 7
def forks_again():
    assert child(drops) == 7
assert child(forks_again) == 7
"""
        )
        == []
    )


def test_a_fork_while_equal_requests_wait_for_one_that_runs() -> None:
    """The child is refused, at each entry, and has a cache of its own in a pipe of its own; the parent's goes on."""
    code = """
started, go = threading.Event(), threading.Event()

class Waits(fastpipe.PerRequest):
    def run(self, request):
        started.set()
        assert go.wait(30)
        request["result"] = request["data"] * 2

pipe = fastpipe.Pipe(a=dict(backend="Identity", next="b"), b=dict(backend=Waits, cache="1MB"),
                     proxy=dict(backend="Proxy", proxy="b"))
equal = [pipe.submit({"data": 4}, entry="a") for _ in range(4)]
assert started.wait(30)

def in_the_child():
    for refused in (
        lambda: pipe({"data": 4}, entry="a"),
        lambda: pipe({"data": 4}, entry="proxy", eager=True),
        lambda: next(pipe.stream({"data": 4}, entry="b")),
        lambda: pipe.swap("b"),
        lambda: pipe.resize("b", instance_num=2),
    ):
        try:
            refused()
        except fastpipe.ForkedPipe:
            continue
        os._exit(1)
    go.set()
    with fastpipe.Pipe(backend=Waits, cache="1MB") as own:
        assert [own({"data": 4})["result"] for _ in range(3)] == [8, 8, 8]
        assert own.stats()["nodes"]["main"]["cache"]["hits"] == 2
    assert pipe.stats()["nodes"]["b"]["cache"]["entries"] == 0

assert child(in_the_child) == 7
go.set()
assert [each.result(30)["result"] for each in equal] == [8, 8, 8, 8]
assert pipe({"data": 4}, entry="proxy")["result"] == 8
counts = pipe.stats()["nodes"]["b"]["cache"]
assert (counts["misses"], counts["hits"] + counts["coalesced"], counts["entries"]) == (1, 4, 1), counts
assert child() == 7
pipe.close()
"""
    assert run(FORK + code) == []


def test_a_pipe_that_is_being_built_while_the_process_forks_is_not_freed_in_the_child() -> None:
    """What it has by then is the parent's."""
    assert (
        run(
            FORK
            + """
class Forks(Echo):
    def __init__(self):
        assert child() == 7
pipe = fastpipe.Pipe(
    first=dict(backend=HoldsBound, next="second"), second=dict(backend=Holds, next="third"), third=dict(backend=Forks)
)
pipe.close()
"""
        )
        == []
    )


@pytest.mark.parametrize("ending", ["return", "sys.exit(5)", "raise ValueError"])
def test_a_child_in_which_forward_returns_to_a_worker_ends(ending: str) -> None:
    """It has a copy of the queue, which nobody fills, and of the callers, who wait in the parent."""
    assert run(
        f"""
        class Forks(Bound):
            def forward(self, batch):
                pid = os.fork()
                if pid == 0:
                    os.close(2)
                    {ending}
                super().forward(batch)
                batch[0]["status"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with fastpipe.Pipe(backend=Forks) as pipe:
            say(pipe({{"data": 1}})["status"])
        """
    ) == ["70"]


def test_a_child_skips_the_exit_handlers_of_the_parents_libraries() -> None:
    """The C library's, which destroy a library's globals; those that the child registers run, and its Python's do."""
    if not sys.platform.startswith("linux") or not hasattr(__import__("ctypes").CDLL(None), "on_exit"):
        pytest.skip("on_exit() is glibc's")
    assert run(
        """
            import atexit, ctypes
            libc = ctypes.CDLL(None)
            def at_exit(words):
                # Called with the exit code as first argument: 1 is standard output.
                libc.on_exit(libc.dprintf, ctypes.c_char_p(words))
            at_exit(b"the parent's\\n")
            pipe = fastpipe.Pipe(backend=Echo)
            pid = os.fork()
            if pid == 0:
                at_exit(b"the child's\\n")
                atexit.register(say, "the child's Python's")
                sys.exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
            """
    ) == ["the child's Python's", "the child's"]


def test_without_a_pipe_a_child_ends_as_ever() -> None:
    """Nothing of fastpipe's is in the way of a process that has built none: the parent's handlers run."""
    if not sys.platform.startswith("linux") or not hasattr(__import__("ctypes").CDLL(None), "on_exit"):
        pytest.skip("on_exit() is glibc's")
    assert run(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.strdup.restype = ctypes.c_void_p  # Python's own bytes are gone by then
        libc.on_exit(libc.dprintf, ctypes.c_void_p(libc.strdup(b"the parent's\\n")))
        pid = os.fork()
        if pid == 0:
            sys.exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        """
    ) == ["the parent's"]


def test_a_batched_function_builds_anew_after_a_fork() -> None:
    """In the child the same function works, with a pipe of the child's own; so does a method; the parent goes on."""
    assert (
        run(
            FORK
            + """
double = fastpipe.batched(max=4)(lambda items: [item * 2 for item in items])
class Model:
    @fastpipe.batched(max=4)
    def triple(self, items):
        return [item * 3 for item in items]
model = Model()
assert (double(1), model.triple(1)) == (2, 3)
def calls():
    assert (double(2), model.triple(2), double.submit(3).result(30)["result"]) == (4, 6, 6)
    double.close()
    model.triple.close()
assert child(calls) == 7
assert (double(4), model.triple(4)) == (8, 12)
"""
        )
        == []
    )


def test_a_fork_while_another_thread_builds_a_batched_function_leaves_no_lock_behind() -> None:
    """The child's first call does not wait for a thread that is the parent's."""
    assert (
        run(
            FORK
            + """
inside, gate = threading.Event(), threading.Event()
double = fastpipe.batched(max=4)(lambda items: [item * 2 for item in items])
build = fastpipe.batched.__globals__["Pipe"]
def slow(settings):
    if threading.current_thread() is not threading.main_thread():
        inside.set()
        gate.wait(30)
    return build(settings)
fastpipe.batched.__globals__["Pipe"] = slow
build(backend=Echo).close()  # the process is set up
builder = threading.Thread(target=double, args=(1,))
builder.start()
inside.wait(30)
def calls():
    assert double(2) == 4
    double.close()
assert child(calls) == 7
gate.set()
builder.join(30)
assert double(3) == 6
"""
        )
        == []
    )


@pytest.mark.parametrize("module", ["process", "registry"])
def test_a_fork_while_another_thread_holds_a_lock_of_a_module_leaves_none_behind(module: str) -> None:
    """A child builds pipes, which its children refuse, and registers names; it waits for no thread of the parent."""
    assert (
        run(
            FORK
            + """
import importlib.metadata, fastpipe.process, fastpipe.config.registry
inside, gate = threading.Event(), threading.Event()
def slow(*arguments, **keywords):
    if threading.current_thread() is not threading.main_thread():
        inside.set()
        gate.wait(30)
    return real(*arguments, **keywords)
if MODULE == "process":
    real = fastpipe.process._configure
    fastpipe.process._configure = slow
    def holds():
        fastpipe.Pipe(backend=Echo).close()
else:
    real = importlib.metadata.entry_points
    importlib.metadata.entry_points = slow
    holds = fastpipe.config.registry.known_names
holder = threading.Thread(target=holds)
holder.start()
inside.wait(30)
def uses():
    fastpipe.config.registry.register("Mine", Echo)
    assert "Mine" in fastpipe.config.registry.known_names()
    with fastpipe.Pipe(backend="Mine") as pipe:
        assert pipe({"data": 1})["result"] == 1
        assert child(lambda: refuses(pipe)) == 7
def refuses(pipe):
    try:
        pipe({"data": 1})
    except fastpipe.ForkedPipe:
        return
    os._exit(1)
assert child(uses) == 7
gate.set()
holder.join(30)
uses()
""".replace("MODULE", repr(module))
        )
        == []
    )
