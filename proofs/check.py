"""Check the models with Spin: each run in full, then each planted bug, which must be found.

    python proofs/check.py [--small] [--list] [WORD ...]

``--small``: the smallest run of each model and three planted bugs, for the test suite. With words: only the runs whose
model or macros contain one of them. Needs ``spin`` (Debian and Ubuntu have it in the package spin) and a C compiler.
The exit status is 0 if every run is clean and complete, and every planted bug is found.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MEMORY_MIB = 1800
"""Of one run; there are at most two at a time."""
LONGEST_S = 280


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with its sizes, and what is expected of it."""

    model: str
    macros: str
    says: str
    small: bool = False

    @property
    def planted(self) -> bool:
        """A bug that has to be found, or a false claim that has to be refuted."""
        return "BUG_" in self.macros or "CLAIM_" in self.macros

    @property
    def is_liveness(self) -> bool:
        """A property over endless runs, under weak fairness; else invalid end states and assertions."""
        return bool({"LIVENESS", "FOREVER"} & set(self.macros.split()))


RUNS = [
    Run("inbox", "REUSE", "2 producers of 2, 2 consumers, one ticket pushed again", small=True),
    Run("inbox", "PRODUCERS=3 CONSUMERS=1", "3 producers of 2"),
    Run("inbox", "EACH=3 CONSUMERS=1 REUSE", "2 producers of 3, one ticket pushed again"),
    Run("inbox", "LIVENESS", "everything comes out in the end"),
    Run("station", "CALLERS=2", "1 worker, 1 instance, 2 callers", small=True),
    Run("station", "CALLERS=2 EACH=2", "the same, 2 requests each"),
    Run("station", "WORKERS=2 CALLERS=2", "2 workers compete for 1 token"),
    Run("station", "WORKERS=2 INSTANCES=2 SUBMITTERS=2 HANG", "of 2 instances one may hang: the other goes on"),
    Run("station", "WORKERS=2 INSTANCES=2 SUBMITTERS=1 EACH=3 MAX=2 HANG", "the same, batches of up to 2"),
    Run("station", "WORKERS=2 INSTANCES=2 CALLERS=1 SUBMITTERS=1 EACH=2 MAX=2 GIL", "all together, under the GIL"),
    Run("station", "WORKERS=2 INSTANCES=2 CALLERS=2 BOUND", "thread-bound instances"),
    Run("station", "WORKERS=2 INSTANCES=2 SUBMITTERS=1 EACH=2 BOUND HANG", "thread-bound instances, one may hang"),
    Run("station", "CALLERS=1 STEPPERS=2", "steppers wait for a token"),
    Run("station", "CALLERS=1 SUBMITTERS=1 STEPPERS=1 INTERRUPT", "a signal takes a stepper away"),
    Run("station", "WORKERS=2 INSTANCES=2 SUBMITTERS=2 RULE GIL", "a rule in Python: GIL and mutex"),
    Run("station", "WORKERS=2 SUBMITTERS=1 EACH=3 MAX=2 COLLECT", "a worker collects, its deadline is far"),
    Run("station", "SUBMITTERS=2 MAX=2 COLLECT", "the same, two at a time come"),
    Run("station", "CALLERS=2 DELAYED_STORES", "(B) reaches memory late, as it may on a processor"),
    Run("station", "SUBMITTERS=2 INSTANCES=2 WORKERS=2 DELAYED_STORES GIL", "the same with 2 instances"),
    Run("station", "CALLERS=2 FOREVER GIL", "who queues is answered, although others come for ever"),
    Run("outcome", "", "2 ends, a cancel, 2 signals, a stray wake-up", small=True),
    Run("outcome", "ENDS=3 SIGNALS=3 STRAY=2", "3 ends, 3 signals, 2 stray wake-ups"),
    Run("outcome", "LIVENESS", "the caller goes"),
    Run("chain", "SIGNALS=1", "3 callers sleep, a wait ends by itself", small=True),
    Run("chain", "", "2 waits end by themselves"),
    Run("chain", "SLEEPERS=4 SIGNALS=0", "4 callers, none of whom leaves early"),
    Run("chain", "DEPTH=2", "two on their way at once"),
    Run("close", "CALLERS=2", "2 callers", small=True),
    Run("close", "SUBMITTERS=1 NODES=2", "requests of two nodes"),
    Run("close", "CALLERS=2 NODES=2 CANCEL", "a request is cancelled while a branch of it runs"),
    Run("close", "CALLERS=0 SUBMITTERS=2 WORKERS=2 INSTANCES=2", "2 workers, 2 instances"),
    Run("close", "SUBMITTERS=1 CANCEL DEAD_STAY_QUEUED", "workers drop what was cancelled"),
    Run("close", "SUBMITTERS=1 NODES=2 TIMEOUT", "close(timeout) gives up at any moment"),
    Run("close", "SUBMITTERS=1 TIMEOUT CANCEL", "the same, and a request is cancelled"),
    Run("close", "SUBMITTERS=1 TIMEOUT HANG", "the same, a batch never returns"),
    Run("close", "CLOSERS=2 CANCEL", "two threads close"),
    Run("close", "CLOSERS=2 TIMEOUT", "two threads close, with a timeout"),
    Run("stream", "LEAVES ENDS", "2 chunks may wait, the reader may leave, the request may be ended", small=True),
    Run("stream", "IDLES ENDS", "the reader may come no more: the end of the request lets the backend go"),
    Run("stream", "CHUNKS=5 LIMIT=3 LEAVES ENDS", "the same, 3 of 5 chunks may wait"),
    Run("stream", "LIMIT=1", "each chunk waits for the reader, who reads all"),
    Run("flight", "", "3 equal requests: one runs"),
    Run("flight", "CANCELS FAILS", "they leave, and what runs fails", small=True),
    Run("flight", "CANCELS FAILS CLEARS", "the same, and the cache is emptied"),
    Run("swap", "REQUESTS=1", "a request is submitted", small=True),
    Run("swap", "", "2 requests are submitted"),
    Run("swap", "CALLERS=1", "one of the 2 runs on its caller"),
]

PLANTED = [
    Run("inbox", "REUSE BUG_INIT_LATE", "next is cleared after (A)"),
    Run("inbox", "BUG_EXCHANGE_IN_TWO", "(A) is a load and a store"),
    Run("inbox", "BUG_LAST_UNCHECKED", "the last ticket leaves without a look at head"),
    Run("inbox", "CLAIM_ONLY_LATER_ARE_HIDDEN", "no bug, a false claim: see README.md"),
    Run("station", "CALLERS=2 BUG_NOTIFY_FIRST", "a push notifies before it is visible", small=True),
    Run("station", "CALLERS=2 BUG_LOOK_FIRST", "a worker looks before it announces itself", small=True),
    Run("station", "CALLERS=2 BUG_RELEASE_LOOKS_FIRST", "release looks at queued, then raises idle"),
    Run("station", "CALLERS=2 DELAYED_STORES BUG_NO_FENCE", "c_notify has no fence"),
    Run("station", "SUBMITTERS=2 MAX=2 COLLECT BUG_WAKE_AT_COUNTS_UNSEEN", "wake_at counts what was not seen"),
    Run("station", "CALLERS=1 SUBMITTERS=1 STEPPERS=1 INTERRUPT BUG_INTERRUPT_KEEPS", "a signal keeps a wake-up"),
    Run(
        "station",
        "WORKERS=2 INSTANCES=2 SUBMITTERS=2 RULE GIL BUG_ASK_UNDER_MUTEX",
        "a rule is asked under the mutex",
    ),
    Run("station", "CALLERS=2 FOREVER GIL BUG_NOTIFY_FIRST", "found by liveness, too"),
    Run("outcome", "BUG_OUTCOME_BY_STORE", "the outcome by a store", small=True),
    Run("outcome", "BUG_SET_BY_STORE", "SET by a load and a store"),
    Run("outcome", "BUG_PARK_BY_STORE", "PARKED by a store"),
    Run("outcome", "BUG_SET_FIRST", "SET before the error is written"),
    Run("outcome", "BUG_CANCEL_IS_SILENT", "a cancel wakes nobody"),
    Run("chain", "BUG_NOBODY_WAKES_THE_NEXT", "the last one on the way goes on without a look"),
    Run("chain", "BUG_COUNTS_AFTERWARDS", "who is woken is counted after that"),
    Run("chain", "BUG_WAKES_WHO_HAS_GONE", "who has woken up by itself counts as woken"),
    Run("chain", "BUG_STAYS_PARKED", "who is called away by a signal still counts as asleep"),
    Run("chain", "BUG_LETS_GO_FIRST", "the chain is freed before its last use"),
    Run("close", "SUBMITTERS=1 CANCEL DEAD_STAY_QUEUED BUG_LEAVE_UNSEEN", "workers leave without a look"),
    Run("close", "SUBMITTERS=1 BUG_NOTIFY_BEFORE_CLOSING", "notified before CLOSING is written"),
    Run("close", "SUBMITTERS=1 CANCEL BUG_RELEASE_IS_SILENT", "release tells nobody while closing"),
    Run("close", "SUBMITTERS=1 NODES=2 TIMEOUT BUG_QUEUE_DEAD", "what has ended is queued"),
    Run("close", "SUBMITTERS=1 TIMEOUT CANCEL DEAD_STAY_QUEUED", "what was cancelled stays in the queue"),
    Run("stream", "BUG_PARK_BY_STORE", "who waits for room overlooks that it was set", small=True),
    Run("stream", "BUG_BLOCKED_LATE", "who waits for room is listed after the GIL was free"),
    Run("stream", "CHUNKS=5 LIMIT=3 BUG_ONLY_AT_HALF", "a reader wakes at exactly half"),
    Run("stream", "IDLES ENDS BUG_END_IS_SILENT", "the end of a request wakes no backend"),
    Run("flight", "CANCELS BUG_FOLLOWERS_DO_NOT_COUNT", "a leader that has left is dropped", small=True),
    Run("flight", "CANCELS BUG_DROPPED_IS_FOLLOWED", "what was dropped may still be followed"),
    Run("flight", "CLEARS BUG_CLEAR_KEEPS", "what began before the cache was emptied is kept"),
    Run("flight", "FAILS BUG_ERROR_IS_THE_LEADERS", "an error goes to the leader only"),
    Run("swap", "BUG_CLOSES_AT_ONCE", "the old instance is closed while it runs", small=True),
    Run("swap", "CALLERS=1 BUG_RETIRE_BY_STORE", "a token is retired by a load and a store"),
    Run("swap", "BUG_RELEASE_IS_SILENT", "release does not tell who waits for the old instance"),
    Run("swap", "BUG_NOTIFY_ONE", "a request wakes one thread: who waits for the old instance"),
    Run("swap", "CALLERS=1 BUG_WANTED_FIRST", "a request looks who waits for that, then wakes one thread"),
    Run(
        "swap",
        "CALLERS=1 BUG_SWITCH_IS_SILENT BUG_LEAVES_WITH_A_WAKE_UP",
        "old workers are not told, and leave with the wake-up for a request",
    ),
]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run."""

    is_right: bool
    text: str
    trail: str = ""


def checked(run: Run) -> Result:
    """Generate, compile and run one verifier in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fastpipe-model-") as folder:
        for source in (*HERE.glob("*.pml"), *HERE.glob("*.inc")):
            shutil.copy(source, folder)
        macros = [f"-D{macro}" for macro in run.macros.split()]
        model = f"{run.model}.pml"
        # pan: -DSAFETY leaves out what only liveness needs; partial-order reduction is on in both.
        kind = ["-DNFAIR=4"] if run.is_liveness else ["-DSAFETY"]
        compiler = [os.environ.get("CC", "cc"), "-O0" if run.planted else "-O1", "-w", "-o", "pan", "pan.c"]
        options = [*kind, "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={MEMORY_MIB}"]
        for command in (["spin", "-a", *macros, model], [*compiler, *options]):
            made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if made.returncode != 0 or not (Path(folder) / "pan.c").exists():
                return Result(False, "does not build: " + (made.stdout + made.stderr).strip())
        pan = ["./pan", "-m1000000", *(["-a", "-f"] if run.is_liveness else [])]
        started = time.monotonic()
        try:
            ran = subprocess.run(pan, cwd=folder, capture_output=True, text=True, check=False, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            return Result(False, f"not done after {LONGEST_S} s")
        seconds = time.monotonic() - started
        errors = re.search(r"errors: (\d+)", ran.stdout)
        states = re.search(r"(\S+) states, stored", ran.stdout)
        memory = re.search(r"(\S+)\ttotal actual memory usage", ran.stdout)
        if errors is None or states is None or memory is None:
            return Result(False, "no verdict: " + (ran.stdout + ran.stderr).strip()[-500:])
        found = re.search(r"pan:\d+: (.*) \(at depth", ran.stdout)
        size = f"{int(float(states[1])):>10} states {float(memory[1]):5.0f} MiB {seconds:5.1f} s"
        if run.planted:
            return Result(found is not None, f"{size}  {'found: ' + found[1] if found else 'NOT FOUND'}")
        if found is None and int(errors[1]) == 0 and not re.search("not completed|too small|out of memory", ran.stdout):
            return Result(True, size)
        replay = subprocess.run(
            ["spin", "-t", "-p", *macros, model], cwd=folder, capture_output=True, text=True, check=False
        )
        return Result(False, f"{size}  ERROR: {found[1] if found else 'not searched to the end'}", replay.stdout)


def main() -> int:
    """Run what was asked for, two at a time; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="one small run of each model, and three planted bugs")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only runs whose model or macros contain one of these")
    options = parser.parse_args()
    runs = [run for run in RUNS + PLANTED if run.small or not options.small]
    if options.words:
        runs = [run for run in runs if any(word in f"{run.model} {run.macros}" for word in options.words)]
    if options.list:
        sys.stdout.writelines(f"{run.model:8}{run.macros}: {run.says}\n" for run in runs)
        return 0
    if shutil.which("spin") is None:
        sys.stderr.write("The models need Spin: Debian and Ubuntu have it in the package spin.\n")
        return 1
    started = time.monotonic()
    wrong = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for run, result in zip(runs, pool.map(checked, runs), strict=True):
            wrong += not result.is_right
            mark = "ok   " if result.is_right else "WRONG"
            sys.stdout.write(f"{mark} {run.model:8}{run.macros or '-'}\n      {run.says}\n      {result.text}\n")
            sys.stdout.write(result.trail)
            sys.stdout.flush()
    clean = sum(not run.planted for run in runs)
    sys.stdout.write(
        f"{clean} runs and {len(runs) - clean} planted bugs, {wrong} not as expected; "
        f"{time.monotonic() - started:.0f} s\n"
    )
    return 1 if wrong or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
