"""The promises of docs/reliability.md that need a process of their own: P6 to P9, P12, P13, P19 and P22 to P24.

The single cases are in test_life.py; here they come again and again, at random moments, under load. What says that
nothing grows has a negative control: something that does grow, and fails the same check. ``FASTPIPE_SCALE``: see
test_promises.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import promise_load as load
import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
HANG_S = 60.0  # how long a child may be silent
ATTEMPTS = 3  # at being flat: resident memory has noise, and what grows does so each time

scaled = load.scaled

PROLOGUE = """
import ctypes, fastpipe, gc, json, logging, os, random, signal, sys, threading, time

logging.disable()  # a full queue, or a hang, is a warning on stderr

def say(word):
    os.write(1, f"{word}\\n".encode())

class Echo(fastpipe.Backend):
    max_batch = 4
    def forward(self, batch):
        for request in batch:
            request["result"] = request["data"]

class Bound(Echo):
    thread_bound = True

class Slow(Echo):
    def forward(self, batch):
        time.sleep(0.001)
        super().forward(batch)

gate = threading.Event()

class Holds(Bound):
    def forward(self, batch):
        gate.wait(30)
        super().forward(batch)

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def settled_megabytes():
    # The C library gives back what it kept for next time: how much that is, is chance.
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    return megabytes()

def census():
    gc.collect()
    return {"threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd"))}
"""


def command(code: str) -> list[str]:
    options = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    return [sys.executable, "-P", *options, "-c", PROLOGUE + textwrap.dedent(code)]


def run(code: str, *, ends_with: int = 0, stderr: str = "", limit_s: float = HANG_S) -> str:
    """Run a child to its end, check its exit code and the last line of its stderr, and return its stdout."""
    ran = subprocess.run(command(code), capture_output=True, text=True, check=False, timeout=limit_s)
    last = ran.stderr.strip().splitlines()[-1:]
    assert (ran.returncode, last) == (ends_with, [stderr] if stderr else []), ran.stderr
    return ran.stdout.strip()


def flat(samples: list[float], *, share: float = 0.05, megabytes: float = 0.0) -> bool:
    """Whether nothing grows from the middle on: by no more than a share of what is there then, or so many MB."""
    middle = len(samples) // 2
    return max(samples[middle:]) <= samples[middle] + max(share * samples[middle], megabytes)


# ---- P6: close -------------------------------------------------------------------------------------------------------


def test_p06_shutdown_drains() -> None:
    """Six requests, closed: all answered. Then random closes under sixteen clients: answered or PipeClosed."""
    out = run(
        f"""
        pipe = fastpipe.Pipe(backend=Slow, max=1)
        futures = [pipe.submit({{"data": number}}) for number in range(6)]
        pipe.close()
        assert [future.result(0)["result"] for future in futures] == list(range(6))
        before = census()
        answered = closed = 0
        for turn in range({scaled(15)}):
            source = random.Random(turn)
            pipe = fastpipe.Pipe(a=dict(backend=source.choice([Echo, Bound, Slow]), next="b", instance_num=2),
                                 b=dict(backend=source.choice([Echo, Bound, Slow])))
            outcomes = []
            def client(pipe=pipe, outcomes=outcomes):
                try:
                    while True:
                        future = pipe.submit({{"data": 1}})
                        outcomes.append(pipe({{"data": 2}})["result"] == 2)
                        outcomes.append(future.result(30)["result"] == 1)
                except fastpipe.PipeClosed:
                    outcomes.append("closed")
            clients = [threading.Thread(target=client) for _ in range(16)]
            for each in clients:
                each.start()
            while turn == 0 and True not in outcomes:  # some are answered for certain
                time.sleep(0.001)
            time.sleep(source.random() * 0.02)
            closers = [threading.Thread(target=pipe.close, args=(source.choice([None, 0.0, 0.005]),)) for _ in range(2)]
            for each in closers:
                each.start()
            for each in clients + closers:
                each.join(30)
            pipe.close()
            assert outcomes.count("closed") == 16 and False not in outcomes, outcomes
            counts = pipe.stats()["requests"]
            assert counts["in_flight"] == 0
            assert counts["accepted"] == counts["done"] + counts["failed"] + counts["cancelled"]
            answered += len(outcomes) - 16
        del pipe
        assert census() == before, (census(), before)
        print(answered)
        """,
        limit_s=HANG_S * load.SCALE + HANG_S,
    )
    assert int(out) > 0


# ---- P7: exit --------------------------------------------------------------------------------------------------------

ENDS = {
    "normal": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "uncaught": ("raise ValueError('planned')", 1, "ValueError: planned"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)", -signal.SIGTERM, ""),
    "in flight": ("futures = [slow.submit({'data': number}) for number in range(20)]", 0, ""),
    "threads": (
        "[threading.Thread(target=lambda: [slow({'data': 1}) for _ in range(20)]).start() for _ in range(4)]",
        0,
        "",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_p07_exit_is_clean(end: str) -> None:
    """Without close(), again and again: the exit code that is expected, and not a word."""
    last, code, stderr = ENDS[end]
    for _ in range(scaled(3)):
        run(
            f"""
            slow = fastpipe.Pipe(backend=Slow, instance_num=2)
            pipe = fastpipe.Pipe(a=dict(backend=Echo, next="b"), b=dict(backend=Bound, instance_num=2))
            pipe([{{"data": number}} for number in range(50)])
            pipe.submit({{"data": 1}}, timeout=60).result()
            {last}
            """,
            ends_with=code,
            stderr=stderr,
        )


# ---- P8: Ctrl-C ------------------------------------------------------------------------------------------------------

BLOCKS = {
    "wait": 'pipe({"data": 1})',
    "list": 'pipe([{"data": 1}, {"data": 2}])',
    "map": 'list(pipe.map([{"data": 1}, {"data": 2}]))',
    "room": 'full.submit({"data": 1})',
    "close": "closing.close()",
    "build": "fastpipe.Pipe(backend=NeverBuilt)",
}


@pytest.mark.parametrize("block", BLOCKS)
def test_p08_ctrl_c(block: str) -> None:
    """At random moments, again and again in a process: KeyboardInterrupt, nothing hangs, the pipe works afterwards."""
    rounds = scaled(10)
    code = f"""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        class NeverBuilt(Echo):
            def __init__(self):
                time.sleep(30)
        for turn in range({rounds}):
            gate.clear()
            pipe = fastpipe.Pipe(backend=Holds)
            full = fastpipe.Pipe(backend=Holds, max_queue=1, max=1)
            closing = fastpipe.Pipe(backend=Holds)
            kept = [full.submit({{"data": 0}}), closing.submit({{"data": 0}})]
            while full.stats()["nodes"]["main"]["running"] == 0:
                time.sleep(0.001)
            kept.append(full.submit({{"data": 0}}))
            try:
                say("READY")
                {BLOCKS[block]}
                say("went through")
            except KeyboardInterrupt:
                say(f"caught {{time.monotonic()}}")
            gate.set()
            assert [future.result(30)["result"] for future in kept] == [0, 0, 0]
            assert pipe({{"data": "next"}})["result"] == "next"
            for each in (pipe, full, closing):
                each.close()
                counts = each.stats()["requests"]
                assert counts["in_flight"] == 0
                assert counts["accepted"] == counts["done"] + counts["failed"] + counts["cancelled"]
        say(threading.active_count())
    """
    source = random.Random(block)
    child = subprocess.Popen(command(code), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(HANG_S + rounds, child.kill)
    watchdog.start()
    try:
        assert child.stdout is not None
        for _ in range(rounds):
            assert child.stdout.readline() == "READY\n", child.communicate()
            time.sleep(source.random() * 0.02)
            child.send_signal(signal.SIGINT)
            line = child.stdout.readline()
            assert line.startswith("caught"), (line, child.communicate())
        out, err = child.communicate()
        assert (out.split(), err, child.returncode) == (["1"], "", 0)
    finally:
        watchdog.cancel()
        child.kill()
        child.communicate()


# ---- P9: fork --------------------------------------------------------------------------------------------------------


def test_p09_fork_safety() -> None:
    """Forks from several threads, plain and by multiprocessing, under load: children refuse, the parent goes on."""
    out = run(
        f"""
        import concurrent.futures.thread, multiprocessing, multiprocessing.popen_fork
        fork = multiprocessing.get_context("fork")
        pipe = fastpipe.Pipe(a=dict(backend=Echo, next="b,c"), b=dict(backend=Bound, next="d"),
                             c=dict(backend=Slow, next="d"), d=dict(backend=Echo, map="b[result:data],c[result:other]"))
        stop = threading.Event()
        codes = []
        def in_the_child():
            signal.alarm(20)
            try:
                pipe({{"data": 1}})
            except fastpipe.ForkedPipe:
                pipe.close()
                gc.collect()
                return 0
            return 1
        def forks(number):
            for turn in range({scaled(6)}):
                if (number + turn) % 2:
                    child = fork.Process(target=lambda: os._exit(in_the_child()))
                    child.start()
                    child.join()
                    codes.append(child.exitcode)
                else:
                    child = os.fork()
                    if child == 0:
                        os._exit(in_the_child())
                    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        right = []
        def client(number):
            while not stop.is_set():
                requests = [{{"data": (number, index)}} for index in range(5)]
                futures = [pipe.submit(dict(request)) for request in requests]
                right.append(pipe(dict(requests[0]))["result"] == requests[0]["data"])
                right.extend(future.result(30)["result"] == request["data"]
                             for future, request in zip(futures, requests))
        clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        forkers = [threading.Thread(target=forks, args=(number,)) for number in range(3)]
        for each in clients + forkers:
            each.start()
        for each in forkers:
            each.join()
        stop.set()
        for each in clients:
            each.join()
        pipe.close()
        assert pipe.stats()["requests"]["done"] == len(right) and all(right)
        print(len(codes), set(codes))
        """,
        limit_s=HANG_S * load.SCALE + HANG_S,
    )
    assert out == f"{3 * scaled(6)} {{0}}"


# ---- P12 and P13: memory ---------------------------------------------------------------------------------------------

OVERLOAD = """
        import itertools
        keys, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
        limit = keys.get("max_queue", 96)
        class Works(fastpipe.Backend):
            def forward(self, batch):
                time.sleep(0.02)
                for request in batch:
                    request["result"] = len(request["data"])
        most = 0
        offered = [0] * 4
        stop = threading.Event()
        with fastpipe.Pipe(backend=Works, **keys) as pipe:
            samples = []
            def client(number):
                due = time.monotonic()
                while not stop.is_set():
                    due += 0.02 * 4 / 10  # four clients: ten times what the backend can do
                    time.sleep(max(0.0, due - time.monotonic()))
                    offered[number] += 1
                    try:
                        pipe.submit({"data": b"x" * 1_000_000}, timeout=None)
                    except fastpipe.QueueFull:
                        pass
            clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
            for each in clients:
                each.start()
            def look():
                # How many wait now, and whether somebody was turned away.
                counts = pipe.stats()
                return counts["nodes"]["main"]["queued"], counts["requests"]["refused"] + counts["requests"]["failed"]
            overflows = keys.get("when_full") in ("reject", "shed_oldest")
            gives_up = time.monotonic() + 60
            turned_away = 0
            while (most < limit or (overflows and not turned_away)) and time.monotonic() < gives_up:  # it fills first
                time.sleep(0.001)
                queued, turned_away = look()
                most = max(most, queued)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(seconds / 100)
                samples.append(megabytes())
                most = max(most, look()[0])
            stop.set()
            for each in clients:
                each.join()
            queued = pipe.stats()["nodes"]["main"]["queued"]
            pipe.close(timeout=0.0)
        counts = pipe.stats()["requests"]
        assert counts["in_flight"] == 0
        print(json.dumps({"samples": samples, "most": most, "offered": sum(offered), "queued": queued, **counts}))
"""


def overload(seconds: float, **keys: Any) -> dict[str, Any]:
    """Offer a slow backend ten times what it can do, in requests of 1 MB; return what it counted, and its memory.

    Memory is looked at for so many seconds from when the queue is full, or would be if it had a limit.
    """
    ran = subprocess.run(
        [*command(OVERLOAD), json.dumps(keys), str(seconds)],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 2 * HANG_S,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},  # else glibc keeps what it was given back
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("when_full", ["reject", "shed_oldest", "block"])
def test_p12_bounded_memory_under_overload(when_full: str) -> None:
    """Ten times what it can do, 1 MB each: the queue is full and no fuller, and memory is flat."""
    found = overload(min(60.0, 4.0 * load.SCALE), max_queue=96, when_full=when_full)
    assert 90 < found["most"] <= 96
    assert found["accepted"] + found["refused"] == found["offered"]
    assert found["refused" if when_full == "reject" else "failed"] > 0
    assert flat(found["samples"]), " ".join(map(str, found["samples"]))


def test_p12_without_a_limit_the_same_check_fails() -> None:
    """The negative control."""
    found = overload(2.0)
    assert found["refused"] == 0
    assert not flat(found["samples"]), found["samples"]


@pytest.mark.parametrize("leaks", [False, True])
def test_p13_no_leak_per_request(leaks: bool) -> None:
    """Requests of all kinds, in tenths: memory is flat from the middle on, no object is left; unless it leaks."""
    for _ in range(1 if leaks else ATTEMPTS):
        samples, left = requests_in_tenths(leaks)
        assert left == []
        if flat(samples, megabytes=2.0):
            break
    assert flat(samples, megabytes=2.0) != leaks, samples


def requests_in_tenths(leaks: bool) -> tuple[list[float], list[str]]:
    """Return what memory a process has after each tenth, and what it has of the engine's objects at the end."""
    found: tuple[list[float], list[str]] = json.loads(
        run(
            f"""
            sys.path.insert(0, {str(SUPPORT)!r})
            import promise_load
            kept = []
            samples = []
            for tenth in range(10):
                count = {scaled(40_000) // 320} * 32
                ledger = promise_load.ledgers.Ledger(count)
                with fastpipe.Pipe(promise_load.five_nodes(ledger)) as pipe:
                    clients = [promise_load.Client(pipe, ledger, 100 * tenth + seed) for seed in range(8)]
                    promise_load.run_clients(clients, count // 8)
                ledger.check(pipe.stats())
                if {leaks}:
                    kept.append(b"x" * 1_000_000)
                samples.append(settled_megabytes())
            del pipe, clients, ledger
            for _ in range(3):
                gc.collect()
            ours = ("Walk", "Visit", "Turn", "Station", "Node", "Pipe", "Terms", "Gather", "Instance", "Entry")
            left = [type(each).__name__ for each in gc.get_objects()
                    if str(type(each).__module__).startswith("fastpipe") and type(each).__name__ in ours]
            print(json.dumps([samples, left]))
            """,
            limit_s=HANG_S * load.SCALE + HANG_S,
        )
    )
    return found


@pytest.mark.parametrize("forgets", [False, True])
def test_p13_no_leak_per_pipe(forgets: bool) -> None:
    """Built, used, closed or dropped, again and again: memory, threads and files as before; unless all are kept."""
    for _ in range(1 if forgets else ATTEMPTS):
        before, after, samples = pipes_in_tenths(forgets)
        assert (before == after) != forgets
        if flat(samples, megabytes=2.0):
            break
    assert flat(samples, megabytes=2.0) or forgets, samples


def pipes_in_tenths(forgets: bool) -> tuple[dict[str, int], dict[str, int], list[float]]:
    """Return the threads and files that a process has at first and at the end, and its memory after each tenth."""
    found: tuple[dict[str, int], dict[str, int], list[float]] = json.loads(
        run(
            f"""
            kept = []
            samples = []
            def use(turn):
                pipe = fastpipe.Pipe(a=dict(backend=(Echo, Bound)[turn % 2], next="b,c"),
                                     b=dict(backend=Echo, next="d"), c=dict(backend=Bound, next="d"),
                                     d=dict(backend=Echo, map="b[result:data],c[result:x]"))
                pipe({{"data": 1}})
                pipe.submit({{"data": 1}}, timeout=60).result(30)
                if {forgets}:
                    kept.append(pipe)
                elif turn % 8:
                    pipe.close()
            def settled():
                # Threads of a pipe that was dropped end by themselves.
                deadline = time.monotonic() + 20
                while (now := census())["threads"] > 1 and time.monotonic() < deadline and not {forgets}:
                    time.sleep(0.005)
                return now
            for turn in range(20):
                use(turn)
            before = settled()
            for tenth in range(10):
                for turn in range({20 if forgets else scaled(20)}):
                    use(turn)
                settled()
                samples.append(settled_megabytes())
            print(json.dumps([before, settled(), samples]))
            for pipe in kept:
                pipe.close()
            """,
            limit_s=HANG_S * load.SCALE + HANG_S,
        )
    )
    return found


# ---- P19: nobody sleeps for ever -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2])
def test_p19_no_lost_wake_up(cpus: int) -> None:
    """On one CPU and on two: callers and workers meet again and again, and none of them is left asleep.

    The models in proofs/ search all interleavings of the same protocol: test_proofs.py.
    """
    out = run(
        f"""
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, usable[:{cpus}])
        pipe = fastpipe.Pipe(a=dict(backend=Bound, max=1, next="b"), b=dict(backend=Bound, max=2, instance_num=2))
        rounds = {scaled(3000)}
        barrier = threading.Barrier(3)
        def client(number):
            for index in range(rounds):
                if index % 16 == 0:
                    barrier.wait(30)
                if index % 3:
                    assert pipe({{"data": index}})["result"] == index
                else:
                    assert pipe.submit({{"data": index}}, timeout=60).result(30)["result"] == index
        clients = [threading.Thread(target=client, args=(number,)) for number in range(3)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        pipe.close()
        print(pipe.stats()["requests"]["done"] == 3 * rounds)
        """,
        limit_s=HANG_S * load.SCALE + HANG_S,
    )
    assert out == "True"


# ---- P22: a failed start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RuntimeError", "KeyboardInterrupt", "MemoryError"])
def test_p22_failed_start_is_atomic(kind: str, tmp_path: Path) -> None:
    """An exception at the n-th Python call of construction, for many n: no thread, no file, no pipe is left behind."""
    out = run(
        f"""
        import inspect, weakref
        os.chdir({str(tmp_path)!r})
        built = weakref.WeakSet()
        class Counted(Echo):
            def __init__(self):
                built.add(self)
        class BoundCounted(Counted):
            thread_bound = True
        nodes = dict(a=dict(backend=Counted, next="b,c", instance_num=2), b=dict(backend=BoundCounted, next="d"),
                     c=dict(backend="MapReduce", jump="e", next="d"), e=dict(backend=Counted),
                     d=dict(backend=Counted, map="b[result:data],c[result:x]"))
        def build(fails_at):
            calls = 0
            def count(frame, event, argument):
                nonlocal calls
                # What is raised as a generator is closed has nobody to be raised to.
                is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
                if event == "call" and "fastpipe" in frame.f_code.co_filename and not is_generator:
                    calls += 1
                    if calls == fails_at:
                        sys.setprofile(None)
                        raise {kind}("planned")
            try:
                sys.setprofile(count)
                pipe = fastpipe.Pipe(nodes, request_timeout=60)
            finally:
                sys.setprofile(None)
            pipe.close()
            return calls
        build(-1)
        steps = build(-1)
        before = census()
        failed = 0
        for fails_at in range(1, steps + 1, max(1, int(steps / {scaled(150)}))):
            try:
                build(fails_at)
            except {kind}:
                failed += 1
            deadline = time.monotonic() + 20
            while (threading.active_count() > before["threads"] or built) and time.monotonic() < deadline:
                gc.collect()
                time.sleep(0.0005)
            assert census() == before, (fails_at, census(), [thread.name for thread in threading.enumerate()])
            assert not built, (fails_at, len(built))
            assert os.listdir(".") == []
        print(steps, failed)
        """,
        limit_s=HANG_S * load.SCALE + HANG_S,
    )
    steps, failed = map(int, out.split())
    assert steps > 300
    assert failed > 0


# ---- P23 and P24: loops and idling -----------------------------------------------------------------------------------


def test_p23_asyncio() -> None:
    """Tasks with random cancels; then a loop that is closed with a thousand in flight: not a word is printed."""
    out = run(
        f"""
        import asyncio
        pipe = fastpipe.Pipe(a=dict(backend=Slow, next="b", instance_num=2), b=dict(backend=Bound))
        async def main():
            source = random.Random(23)
            right = cancelled = 0
            for _ in range({scaled(10)}):
                requests = [{{"data": index}} for index in range(500)]
                tasks = [asyncio.create_task(pipe.acall(request)) for request in requests]
                for task in tasks:
                    if source.random() < 0.3:
                        asyncio.get_running_loop().call_later(source.random() * 0.05, task.cancel)
                await asyncio.sleep(0)
                tasks[-1].cancel()  # for certain: it has begun, and its loop has not heard of an end
                for index, outcome in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
                    if isinstance(outcome, asyncio.CancelledError):
                        cancelled += 1
                    else:
                        right += outcome is requests[index] and outcome["result"] == index
            return right, cancelled
        right, cancelled = asyncio.run(main())
        counts = pipe.stats()["requests"]
        assert right + cancelled == {500 * scaled(10)} and cancelled, (right, cancelled)
        assert right <= counts["done"] and counts["failed"] == 0 == counts["in_flight"], counts
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(pipe.acall({{"data": index}})) for index in range(1000)]
        loop.run_until_complete(asyncio.sleep(0.005))
        for task in tasks:
            task._log_destroy_pending = False  # asyncio's own warning, of the program that does such a thing
        loop.close()
        assert pipe({{"data": "after"}})["result"] == "after"
        pipe.close()
        del tasks, task, loop
        gc.collect()
        print(pipe.stats()["requests"]["in_flight"])
        """,
        limit_s=HANG_S * load.SCALE + HANG_S,
    )
    assert out == "0"


def test_p24_idle_costs_nothing() -> None:
    """Eight instances, a time limit that is far away, a caller that waits: next to no CPU while nothing happens."""
    out = run(
        f"""
        pipe = fastpipe.Pipe(backend=Echo, instance_num=8)
        holds = fastpipe.Pipe(backend=Holds, max=1)
        pipe([{{"data": index}} for index in range(200)])
        futures = [holds.submit({{"data": 1}}, timeout=3600) for _ in range(20)]
        waits = threading.Thread(target=holds, args=({{"data": 1}},))
        waits.start()
        while holds.in_flight < 21:
            time.sleep(0.001)
        spent = []
        while len(spent) < 5 and min(spent, default=1) >= 0.01:  # the best of five: who polls, polls each time
            time.sleep(0.2)
            before = time.process_time()
            time.sleep({min(10.0, 2.0 * load.SCALE)})
            spent.append(time.process_time() - before)
        print(min(spent))
        gate.set()
        waits.join()
        """
    )
    assert float(out) < 0.01
