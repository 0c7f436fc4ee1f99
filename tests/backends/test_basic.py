"""The plumbing backends."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe.backends import basic
from fastpipe.config.reading import load
from fastpipe.errors import BackendError, ConfigError, ItemErrors


def run(backend: Any, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    batch = list(requests)
    backend.forward(batch)
    return batch


def test_identity_passes_the_same_object_on() -> None:
    """The result is the data itself, not a copy."""
    data = [1]
    assert run(basic.Identity(), {"data": data})[0]["result"] is data


def test_pow_squares_numbers_and_arrays() -> None:
    """Numbers and arrays are multiplied by themselves."""
    results = run(basic.Pow(), {"data": 3}, {"data": np.array([1, 2])})
    assert results[0]["result"] == 9
    assert results[1]["result"].tolist() == [1, 4]


def test_sleep_takes_milliseconds_and_sleeps_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleep::time is in milliseconds, as text or number; a batch shares one sleep."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    plan = load(None, {"backend": "Sleep", "Sleep::time": "5"}).nodes[0].plan
    assert plan is not None
    batch = run(plan.build(), {"data": 1}, {"data": 2})
    assert slept == [0.005]
    assert [request["result"] for request in batch] == [1, 2]


def test_sleep_refuses_a_negative_time() -> None:
    """Limits are checked before anything is built."""
    with pytest.raises(ConfigError, match="time: must be between 0 and 3600000, got -1"):
        load(None, {"backend": "Sleep", "time": -1})


@pytest.mark.parametrize(
    ("backend", "request_before", "request_after"),
    [
        (basic.Add(key="x", value=7), {"data": 1}, {"data": 1, "result": 1, "x": 7}),
        (basic.Add(key="result", value=7), {"data": 1}, {"data": 1, "result": 7}),
        (basic.Copy(source="data", target="kept"), {"data": 1}, {"data": 1, "result": 1, "kept": 1}),
        (basic.Copy(source="result", target="kept"), {"data": 1, "result": 2}, {"data": 1, "result": 2, "kept": 2}),
        (basic.Move(source="a", target="b"), {"data": 1, "a": 5}, {"data": 1, "result": 1, "b": 5}),
        (basic.Move(source="a", target="data"), {"a": 5}, {"data": 5}),
        (basic.Remove(key=["a", "b"]), {"data": 1, "a": 5}, {"data": 1, "result": 1}),
        (basic.Remove(key=["result"]), {"data": 1}, {"data": 1}),
    ],
)
def test_editing_keys(backend: Any, request_before: dict[str, Any], request_after: dict[str, Any]) -> None:
    """Each editing backend changes the keys it names, and passes the data on as the result where there is none."""
    assert run(backend, request_before) == [request_after]


def test_editing_keys_from_a_configuration() -> None:
    """The editing backends are written with arguments in the notation."""
    plan = load(None, {"backend": "S[Add(lang, en),cp(lang, other),rm('lang, unknown')]"}).nodes[0].plan
    assert plan is not None
    assert run(plan.build(), {"data": 1}) == [{"data": 1, "result": 1, "other": "en"}]


def test_throw_if_no_result_fails_only_requests_without_one() -> None:
    """Requests with a result go on; the others fail with the message."""
    backend = basic.ThrowIfNoResult(message="no face found")
    with pytest.raises(ItemErrors) as caught:
        run(backend, {"result": 1}, {"data": 1})
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], BackendError)
    assert str(caught.value.errors[1]) == "no face found"


def test_runtime_error_raises() -> None:
    """The backend for testing failures raises RuntimeError with its message."""
    plan = load(None, {"backend": "RuntimeError", "message": "boom"}).nodes[0].plan
    assert plan is not None
    with pytest.raises(RuntimeError, match="boom"):
        plan.build().forward([{"data": 1}])


def test_logger_logs_types_and_shapes_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """By default a line has the keys with types and shapes; with ``keys`` it has their values."""
    with caplog.at_level(logging.INFO, "mine"):
        requests = run(basic.Logger(message="seen", logger="mine"), {"data": np.zeros((2, 3)), "n": 1})
        run(basic.Logger(logger="mine", keys=["n", "absent"], level="warning"), {"data": 0, "n": 1})
        run(basic.Logger(logger="mine", level="debug"), {"data": 0})
    assert [record.getMessage() for record in caplog.records] == ["seen: data: ndarray(2, 3), n: int", "request: n=1"]
    assert requests[0]["result"] is requests[0]["data"]


def test_a_key_that_a_request_brings_does_not_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nor steer the terminal that shows it."""
    with caplog.at_level(logging.INFO, "mine"):
        run(basic.Logger(logger="mine"), {"data": 1, "x\nadmin logged in \x1b[2J": 2, 3: 4})
    assert caplog.messages == ["request: data: int, 'x\\nadmin logged in \\x1b[2J': int, 3: int"]


def test_read_file_gives_bytes_and_fails_what_cannot_be_read(tmp_path: Path) -> None:
    """A missing file fails its own request; the others have their bytes."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    batch: list[dict[str, Any]] = [{"data": str(path)}, {"data": tmp_path / "missing"}, {"data": path}, {"data": 5}]
    with pytest.raises(ItemErrors) as caught:
        basic.ReadFile().forward(batch)
    assert {index: type(error) for index, error in caught.value.errors.items()} == {1: FileNotFoundError, 3: TypeError}
    assert batch[0]["result"] == batch[2]["result"] == b"abc"
