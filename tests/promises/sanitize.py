"""Run tests on an engine that g++'s sanitizers watch: data races, and memory or arithmetic that C++ does not define.

    python tests/promises/sanitize.py [--controls] [--pytest "ARGUMENTS"] [thread] [address]

For each sanitizer: first the controls, tiny functions of which the faulty ones must be reported and the right ones must
not; then the engine is built into ``build/sanitize/`` (nothing that is installed is touched) and the tests run on it.
``--controls``: only those, in seconds. ``--pytest``: what pytest gets, instead of TESTS. Needs g++ and its sanitizers'
libraries. The exit status is 0 if all controls are judged rightly, nothing is reported, and the tests pass.

What the sanitizers do not see:

- CPython is not compiled with them: a race on the fields of a Python object is seen only where both sides are the
  engine's own code. (The GIL is built on pthread calls, which they do see: what it guards gives no report.)
- A futex is a system call to them. Who sleeps there and is woken is ordered by the atomics around it, or not at all.
- ``atomic_thread_fence`` is not known to ThreadSanitizer. What rests on a fence alone is for the models in ``proofs/``.
- Only what the tests make happen is judged.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What enters the engine from many threads, or ends a request, a pipe or a process in an unusual way; what takes JPEGs;
# and the compiled kernels, with every layout of an image.
TESTS = [
    "tests/engine/test_core_stress.py",
    "tests/engine/test_chain.py",
    "tests/engine/test_engine.py",
    "tests/engine/test_batching.py",
    "tests/engine/test_lengths.py",
    "tests/engine/test_limits.py",
    "tests/engine/test_faults.py",
    "tests/engine/test_hangs.py",
    "tests/engine/test_asyncio.py",
    "tests/engine/test_life.py",
    "tests/engine/test_hooks.py",
    "tests/engine/test_places.py",
    "tests/engine/test_routes.py",
    "tests/engine/test_states.py",
    "tests/engine/test_stepper.py",
    "tests/engine/test_streaming.py",
    "tests/engine/test_streaming_ends.py",
    "tests/engine/test_streaming_graphs.py",
    "tests/engine/test_streaming_readers.py",
    "tests/engine/test_swap.py",
    "tests/engine/test_turns.py",
    "tests/backends/test_nvjpeg.py",
    "tests/kernels/test_images.py",
    "tests/kernels/test_kernels.py",
]

# By the function that a report names, why it is none.
SUPPRESSIONS = {
    "_dl_deallocate_tls": "the C library frees a dead thread's variables when it reuses the stack, after the kernel has"
    " told it of the thread's end: a hand-over inside the C library, which is not compiled with the sanitizer",
    "sock_close": "asyncio closes the socket that wakes a loop while a worker's call_soon_threadsafe may write to it:"
    " asyncio's own, which expects the error; the engine has no sockets",
}

CONTROLS = r"""
#include <atomic>
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>

static int plain;
static std::atomic<unsigned> word;

static int handed_over(std::memory_order store, std::memory_order load) {
    word = 0;
    std::thread giver([=] {
        plain = 42;
        word.store(1, store);
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    });
    std::thread taker([=] {
        while (!word.load(load)) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
        plain += 1;
    });
    giver.join();
    taker.join();
    return plain;
}

extern "C" {
int both_write() {
    std::thread one([] { for (int i = 0; i < 1000; i++) ++plain; });
    std::thread other([] { for (int i = 0; i < 1000; i++) ++plain; });
    one.join();
    other.join();
    return plain;
}
int hand_over_unordered() { return handed_over(std::memory_order_relaxed, std::memory_order_relaxed); }
int hand_over_by_futex() { return handed_over(std::memory_order_release, std::memory_order_acquire); }
int under_the_gil() { return ++plain; }
int beyond_the_end(volatile int size) {
    char* block = new char[size];
    block[size] = 1;
    int result = block[size];
    delete[] block;
    return result;
}
int after_the_end(volatile int size) {
    char* block = new char[size];
    delete[] block;
    return block[0];
}
int beyond_int(volatile int size) { return INT_MAX - 7 + size; }
int within(volatile int size) {
    char* block = new char[size];
    block[size - 1] = 1;
    int result = block[size - 1];
    delete[] block;
    return result;
}
}
"""


@dataclass(frozen=True)
class Sanitizer:
    """One of g++'s sanitizers, and what it is tried on."""

    flags: str
    """After ``-fsanitize=``."""
    libraries: tuple[str, ...]
    """To be loaded before the interpreter begins. (libstdc++: else AddressSanitizer does not see exceptions.)"""
    options: str
    faulty: tuple[str, ...]
    right: tuple[str, ...]

    def environment(self, log: Path) -> dict[str, str]:
        """Return the environment of a watched interpreter, which writes its reports to ``log`` and its process number.

        It is the interpreter itself that must be run so: a shell or a script in front of it does not live with the
        library. Python's own allocator is off, as its blocks would hide the ends of objects.
        """
        suppressions = log.with_name("suppressions")
        suppressions.write_text("".join(f"# {why}\nrace:{function}\n" for function, why in SUPPRESSIONS.items()))
        common = f"log_path={log}:exitcode=66"
        return {
            **os.environ,
            "LD_PRELOAD": " ".join(filter(None, map(library_path, self.libraries))),
            "PYTHONMALLOC": "malloc",
            "TSAN_OPTIONS": f"{common}:{self.options}:suppressions={suppressions}:print_suppressions=0",
            "ASAN_OPTIONS": f"{common}:{self.options}",
            "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        }


SANITIZERS = {
    "thread": Sanitizer(
        flags="thread",
        libraries=("libtsan.so",),
        # A child of a fork may start threads; an exit needs no pause in which late races might show.
        options="history_size=4:second_deadlock_stack=1:die_after_fork=0:atexit_sleep_ms=0",
        faulty=("both_write", "hand_over_unordered"),
        right=("hand_over_by_futex", "under_the_gil", "within"),
    ),
    "address": Sanitizer(
        flags="address,undefined",
        libraries=("libasan.so", "libstdc++.so"),
        options="detect_leaks=0",  # an interpreter does not free everything at its end
        faulty=("beyond_the_end", "after_the_end", "beyond_int"),
        right=("hand_over_by_futex", "under_the_gil", "within"),
    ),
}

# Calls a control from two threads; PyDLL keeps the GIL, CDLL lets it go.
CALL_CONTROL = """
import ctypes, sys, threading
path, function = sys.argv[1:]
library = (ctypes.PyDLL if function == "under_the_gil" else ctypes.CDLL)(path)
def call():
    for _ in range(1000 if function == "under_the_gil" else 1):
        getattr(library, function)(8)
threads = [threading.Thread(target=call) for _ in range(2 if function == "under_the_gil" else 1)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def compiler() -> list[str]:
    """Return the C++ compiler that setup.py would take, too."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def library_path(name: str) -> str:
    """Return where the compiler has one of its libraries, or an empty string."""
    command = [*compiler(), f"-print-file-name={name}"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return str(Path(said).resolve()) if os.sep in said else ""


def what_is_missing(sanitizer: Sanitizer) -> str:
    """Return one sentence saying why a sanitizer cannot be used here, or an empty string."""
    if shutil.which(compiler()[0]) is None:
        return f"there is no C++ compiler {compiler()[0]!r}"
    for name in sanitizer.libraries:
        if not library_path(name):
            return f"{compiler()[0]!r} has no {name}; a g++ of a Linux distribution brings it"
    with open(sys.executable, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return f"{sys.executable} is not the interpreter itself, and the sanitizer must be loaded into that alone"
    command = [sys.executable, "-c", "pass"]
    with tempfile.TemporaryDirectory() as folder:
        environment = sanitizer.environment(Path(folder, "log"))
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        return f"{sys.executable} does not start with {', '.join(sanitizer.libraries)}: {ran.stderr.strip()[-300:]}"
    return ""


def watched(sanitizer: Sanitizer, log: Path, arguments: Sequence[str], path: str = "") -> int:
    """Run the interpreter with arguments, in the root, and return its exit status. Its stderr goes to a log, too.

    (UndefinedBehaviorSanitizer reports there, and not to its log_path, where AddressSanitizer was loaded before it.)
    """
    environment = sanitizer.environment(log)
    with open(f"{log}.stderr", "w") as stderr:
        ran = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": path} if path else environment,
            stderr=stderr,
            check=False,
        )
    return ran.returncode


def reports_of(log: Path) -> list[str]:
    """Return what processes have written to their logs, one report after the other."""
    texts = [path.read_text(errors="replace") for path in sorted(log.parent.glob(f"{log.name}.*"))]
    begin = r"(?m)^(?=WARNING: ThreadSanitizer|==\d+==ERROR: AddressSanitizer|.*: runtime error: )"
    return [report.rstrip("=\n") for text in texts for report in re.split(begin, text)[1:]]


def last_words(log: Path) -> str:
    """Return the end of what was written to logs."""
    return "".join(path.read_text(errors="replace") for path in sorted(log.parent.glob(f"{log.name}.*")))[-500:].strip()


def wrong_controls(sanitizer: Sanitizer) -> list[str]:
    """Try the controls; return a sentence for each that is judged wrongly."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="fastpipe-sanitize-") as folder:
        source, library = Path(folder, "controls.cpp"), Path(folder, "controls.so")
        source.write_text(CONTROLS)
        flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-pthread", f"-fsanitize={sanitizer.flags}"]
        subprocess.run([*compiler(), *flags, str(source), "-o", str(library)], check=True)
        for function in (*sanitizer.faulty, *sanitizer.right):
            log = Path(folder, f"{function}.log")
            status = watched(sanitizer, log, ["-c", CALL_CONTROL, str(library), function])
            reports = reports_of(log)
            if function in sanitizer.faulty and not any(function in report for report in reports):
                wrong.append(f"{function} is faulty and was not reported: {last_words(log)}")
            if function in sanitizer.right and (reports or status):
                wrong.append(f"{function} is right, and ended with status {status}: {last_words(log)}")
    return wrong


def build(sanitizer: Sanitizer) -> Path:
    """Build the package with a watched engine; return the folder to put on Python's path.

    Raises:
        subprocess.CalledProcessError: if it cannot be built; the compiler has said why.
    """
    folder = ROOT / "build" / "sanitize" / sanitizer.flags.partition(",")[0]  # its options are split at commas
    library = folder / "lib"
    for stale in library.rglob("*.py"):  # setuptools would leave what is no longer in the tree
        stale.unlink()
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(folder), "--build-lib", str(library)]
    environment = {**os.environ, "FASTPIPE_SANITIZE": sanitizer.flags}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return library


def tested(sanitizer: Sanitizer, library: Path, pytest_arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Run pytest on the watched engine; return its exit status and all reports."""
    log = library.parent / "log"
    for old in log.parent.glob(f"{log.name}.*"):
        old.unlink()
    # -P: the current folder has a fastpipe, too.
    where = ["-P", "-c", f"import fastpipe._core as core; exit(not core.__file__.startswith({str(library)!r}))"]
    if watched(sanitizer, log, where, str(library)):
        raise RuntimeError(f"the tests would not run on {library}: {last_words(log)}")
    # --capture=sys: what C++ writes to stderr is not pytest's.
    command = ["-P", "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *pytest_arguments]
    return watched(sanitizer, log, command, str(library)), reports_of(log)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--controls", action="store_true", help="try the sanitizers on known faults, and run no test")
    parser.add_argument("--pytest", metavar="ARGUMENTS", help="what pytest gets, instead of the usual tests")
    parser.add_argument("sanitizers", nargs="*", metavar="SANITIZER", help=" or ".join(SANITIZERS))
    options = parser.parse_args(arguments)
    if unknown := set(options.sanitizers) - set(SANITIZERS):
        parser.error(f"there is no sanitizer {unknown.pop()!r}; there are: {', '.join(SANITIZERS)}")
    pytest_arguments = ["-q", *TESTS] if options.pytest is None else shlex.split(options.pytest)
    failures = 0
    for name in options.sanitizers or SANITIZERS:
        sanitizer, started = SANITIZERS[name], time.monotonic()
        if problem := what_is_missing(sanitizer):
            sys.stderr.write(f"{name}: {problem}\n")
            failures += 1
            continue
        wrong = wrong_controls(sanitizer)
        count = len(sanitizer.faulty) + len(sanitizer.right)
        sys.stdout.write("".join(f"{name}: WRONG: {sentence}\n" for sentence in wrong))
        sys.stdout.write(f"{name}: {count} controls, {len(wrong)} judged wrongly\n")
        sys.stdout.flush()
        failures += len(wrong)
        if options.controls or wrong:
            continue
        library = build(sanitizer)
        status, reports = tested(sanitizer, library, pytest_arguments)
        sys.stdout.write("".join(f"{report}\n\n" for report in reports))
        if status and not reports:
            sys.stdout.write(f"{last_words(library.parent / 'log')}\n")
        verdict = "tests passed" if status == 0 else f"pytest ended with status {status}"
        seconds = time.monotonic() - started
        sys.stdout.write(f"{name}: {len(reports)} reports, {verdict}; {seconds:.0f} s\n")
        sys.stdout.flush()
        failures += len(reports) + (status != 0)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
