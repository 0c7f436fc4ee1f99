"""Engines that are kept: nothing that is torn, damaged or another's is ever loaded, whoever is killed when."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastpipe.backends.model import engine_cache
from fastpipe.backends.model.engine_cache import EngineCache, default_folder, key_of
from fastpipe.errors import ConfigError

KEY, OTHER_KEY = key_of({"model": "a"}), key_of({"model": "b"})
RACERS, HANG_S = 8, 120

# Loads or builds one engine again and again, as its argument says. What is built is random and ends with its own
# checksum, so that a part, or a mixture of two, would show. Each build and each whole load is a line. Files are written
# slowly, in small pieces, so that a kill finds many a writer in the middle.
RACER = """
import hashlib, os, sys, time
from pathlib import Path
from fastpipe.backends.model import engine_cache
from fastpipe.backends.model.engine_cache import EngineCache

folder, key, rounds, pause_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])

class SlowFile:
    def __init__(self, *arguments):
        self.file = open(*arguments, buffering=0)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, data):
        for start in range(0, len(data), 4096):
            self.file.write(data[start : start + 4096])
            time.sleep(pause_s)

engine_cache.open = SlowFile

def build():
    print("built", flush=True)
    body = os.urandom(64_000)
    return body + hashlib.sha256(body).digest()

print("ready", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    engine = EngineCache(folder).get(key, build)
    if hashlib.sha256(engine[:-32]).digest() != engine[-32:]:
        sys.exit(f"a torn engine of {len(engine)} bytes")
    print("loaded", flush=True)
    if rounds > 1:
        (folder / f"{key}.engine").unlink(missing_ok=True)  # so that it is written again
"""


def racer(folder: Path, rounds: int, pause_s: float = 0.001) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", RACER, str(folder), KEY, str(rounds), str(pause_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def next_line(process: subprocess.Popen[str]) -> str:
    """Return what it says next; "" if it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def engine_file(folder: Path) -> Path:
    return folder / f"{KEY}.engine"


def never() -> bytes:
    pytest.fail("it was built although it was kept")


# ---- P25: never poisoned ---------------------------------------------------------------------------------------------


def test_p25_eight_processes_that_race_for_one_engine_build_it_once(tmp_path: Path) -> None:
    """One builds, seven wait and load what it built."""
    racers = [racer(tmp_path, 1) for _ in range(RACERS)]
    assert [next_line(each) for each in racers] == ["ready"] * RACERS
    for each in racers:
        start(each)
    ended = [(*each.communicate(timeout=HANG_S), each.returncode) for each in racers]
    assert sorted(ended) == [("built\nloaded\n", "", 0), *[("loaded\n", "", 0)] * (RACERS - 1)]


def test_p25_processes_that_are_killed_at_any_moment_leave_only_whole_engines(tmp_path: Path) -> None:
    """Some write and load all the time, others are killed as they write; nobody ever loads a part of an engine."""
    dice = random.Random(25)
    racers = [racer(tmp_path, 1_000_000, pause_s) for pause_s in [0.001] * 2 + [0.02] * (RACERS - 2)]
    going_on, victims = racers[:2], racers[2:]  # these take 0.3 s to write
    killed_while_writing = 0
    try:
        for each in going_on:
            start(each)
        for victim in victims:
            assert next_line(victim) == "ready"
            start(victim)
            while (line := next_line(victim)) != "built":
                assert line == "loaded"  # "": it has ended, as it loaded a part
            time.sleep(dice.random() * 0.2)  # a moment in the middle of writing
            victim.kill()
            killed_while_writing += "loaded" not in victim.communicate(timeout=HANG_S)[0]
            for each in going_on:
                for _ in range(4):
                    assert next_line(each) in {"ready", "built", "loaded"}
    finally:
        for each in racers:
            each.kill()
        errors = [each.communicate(timeout=HANG_S)[1] for each in going_on]
    assert killed_while_writing > 0
    assert errors == ["", ""]
    engine = EngineCache(tmp_path).get(KEY, lambda: b"x" + hashlib.sha256(b"x").digest())
    assert hashlib.sha256(engine[:-32]).digest() == engine[-32:]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: data[:20], "ends within its header"),
        (lambda data: data[:-1], "has 999 bytes where 1000 were written"),
        (lambda data: data + b"x", "has 1001 bytes where 1000 were written"),
        (lambda data: data[:-1] + b"x", "its checksum does not match"),
        (lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:], "its checksum does not match"),
        (lambda data: b"x" + data[1:], "does not begin as an engine does"),
        (lambda data: data[:8] + bytes(32) + data[40:], "another model, GPU or version"),
        (lambda data: b"", "ends within its header"),
    ],
)
def test_p25_a_file_that_is_not_whole_is_told_apart_and_built_anew(tmp_path, caplog, damage, problem):
    """The negative control: what the kills above never leave behind would have been seen."""
    cache = EngineCache(tmp_path)
    cache.get(KEY, lambda: bytes(1000))
    path = engine_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.peek(KEY) is None
    assert problem in caplog.text
    assert cache.get(KEY, lambda: b"new") == b"new"
    assert cache.get(KEY, never) == b"new"


def test_what_a_killed_writer_left_is_swept_away_by_the_next_but_not_what_is_being_written(tmp_path: Path) -> None:
    """A part whose lock nobody holds has no writer any more."""
    cache = EngineCache(tmp_path)
    cache.put(KEY, b"old")
    left = tmp_path / f"{OTHER_KEY}.engine.part"
    left.write_bytes(b"half of an eng")
    writing = cache._open_lock(tmp_path / f"{OTHER_KEY}.engine")
    assert writing is not None
    with engine_cache._held(writing):
        cache.put(KEY, b"new")
        assert left.exists()
    cache.put(KEY, b"newer")
    assert not left.exists()


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_everything_an_engine_depends_on_is_in_its_key():
    """The order in which it is told is not."""
    assert key_of({"GPU": "H100", "version": "11"}) == key_of({"version": "11", "GPU": "H100"})
    assert key_of({"GPU": "H100", "version": "11"}) != key_of({"GPU": "H200", "version": "11"})
    assert len(KEY) == 64


def test_an_engine_is_built_once_and_then_loaded(tmp_path: Path) -> None:
    """Also by another cache of the same folder, and each key has its own."""
    assert EngineCache(tmp_path / "new" / "folder").get(KEY, lambda: b"engine") == b"engine"
    assert EngineCache(tmp_path / "new" / "folder").get(KEY, never) == b"engine"
    assert EngineCache(tmp_path / "new" / "folder").peek(OTHER_KEY) is None


def test_threads_that_race_build_once(tmp_path: Path) -> None:
    """A lock of a process would not keep its own threads apart."""
    builds = []
    barrier = threading.Barrier(4)

    def build() -> bytes:
        builds.append(None)
        return b"engine"

    def load() -> None:
        barrier.wait(HANG_S)
        assert EngineCache(tmp_path).get(KEY, build) == b"engine"

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert len(builds) == 1


def test_a_build_that_fails_leaves_nothing_and_lets_the_next_try(tmp_path: Path) -> None:
    """Its exception reaches the caller."""
    with pytest.raises(ZeroDivisionError):
        EngineCache(tmp_path).get(KEY, lambda: b"%d" % (1 // 0))
    assert not engine_file(tmp_path).exists()
    assert EngineCache(tmp_path).get(KEY, lambda: b"engine") == b"engine"


# ---- the place -------------------------------------------------------------------------------------------------------


def test_only_the_user_may_read_what_is_kept(tmp_path: Path) -> None:
    """An engine holds the weights."""
    EngineCache(tmp_path / "engines").put(KEY, b"engine")
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700
    assert engine_file(tmp_path / "engines").stat().st_mode & 0o777 == 0o600


def test_the_engines_not_used_for_longest_go_first(tmp_path: Path) -> None:
    """Loading counts as use, and what was just written stays, however large."""
    keys = [key_of({"number": number}) for number in range(4)]
    cache = EngineCache(tmp_path, limit_bytes=3_500)
    for age, key in enumerate(keys[:3]):
        cache.put(key, bytes(1_000))
        os.utime(tmp_path / f"{key}.engine", ns=(age, age))
    assert cache.peek(keys[0]) is not None
    cache.put(keys[3], bytes(1_000))
    assert [cache.peek(key) is not None for key in keys] == [True, False, True, True]
    EngineCache(tmp_path, limit_bytes=10).put(keys[1], bytes(1_000))
    assert [cache.peek(key) is not None for key in keys] == [False, True, False, False]


def test_one_file_holds_the_engine_last_asked_for(tmp_path: Path) -> None:
    """As torchpipe's model::cache; but one for another GPU or version is replaced, not loaded."""
    path = tmp_path / "resnet.trt"
    assert EngineCache(path).get(KEY, lambda: b"engine") == b"engine"
    assert EngineCache(path).get(KEY, never) == b"engine"
    assert EngineCache(path).get(OTHER_KEY, lambda: b"other") == b"other"
    assert EngineCache(path).get(OTHER_KEY, never) == b"other"


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    """It may be an engine that another tool has built."""
    path = tmp_path / "resnet.engine"
    path.write_bytes(b"vtrt something")
    with pytest.raises(ConfigError, match=r"resnet\.engine' is no engine that fastpipe kept: remove it"):
        EngineCache(path).get(KEY, never)
    assert path.read_bytes() == b"vtrt something"


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda path: path.chmod(0o662), "others may have written it"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is no plain file"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/null")), "it is no plain file"),
    ],
    ids=["writable by others", "a pipe", "a device"],
)
def test_an_engine_that_others_may_have_put_there_is_built_anew(tmp_path, caplog, prepare, problem):
    """Who can put one there runs it; and of a pipe nothing may ever come."""
    cache = EngineCache(tmp_path)
    cache.put(KEY, b"engine")
    (path,) = tmp_path.glob("*.engine")
    prepare(path)
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY, lambda: b"new") == b"new"
    assert problem in caplog.text
    assert cache.get(KEY, never) == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_engine_of_another_user_is_loaded_only_where_others_cannot_write(tmp_path, monkeypatch):
    """As one that an administrator built for all."""
    cache = EngineCache(tmp_path)
    cache.put(KEY, b"engine")
    monkeypatch.setattr(engine_cache.os, "geteuid", lambda: 12345)
    real = os.fstat

    def of_another(descriptor):
        values = list(real(descriptor))
        values[4] = 54321  # st_uid
        return os.stat_result(values)

    monkeypatch.setattr(engine_cache.os, "fstat", of_another)
    tmp_path.chmod(0o755)
    assert cache.get(KEY, never) == b"engine"
    tmp_path.chmod(0o777)
    assert cache.peek(KEY) is None


def test_a_place_that_cannot_be_written_to_costs_a_warning(tmp_path, caplog):
    """The engine is built, and not kept."""
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert EngineCache(tmp_path / "file" / "engines").get(KEY, lambda: b"engine") == b"engine"
        EngineCache(tmp_path / "file" / "engines").put(KEY, b"engine")
    assert caplog.text.count("engines cannot be kept in") == 2


def test_a_disk_that_is_full_costs_a_warning(tmp_path, caplog, monkeypatch):
    """What was written of it is deleted."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert EngineCache(tmp_path).get(KEY, lambda: b"engine") == b"engine"
    assert "No space left on device" in caplog.text
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_file_system_without_locks_costs_a_warning(tmp_path, caplog, monkeypatch):
    """Several may then build the same, which is written whole nevertheless."""

    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(engine_cache.fcntl, "flock", no_locks)
    assert EngineCache(tmp_path).get(KEY, lambda: b"engine") == b"engine"
    assert "no lock among processes" in caplog.text
    assert EngineCache(tmp_path).get(KEY, never) == b"engine"


def test_without_a_place_engines_are_in_the_users_cache_folder(tmp_path, monkeypatch):
    """By the XDG's rules: a relative folder does not count."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fastpipe" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "fastpipe" / "engines"
