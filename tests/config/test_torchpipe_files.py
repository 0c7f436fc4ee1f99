"""Configurations in torchpipe's own notation, in torchpipe/, give the answers that are written beside them."""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path
from typing import Any

import pytest

from fastpipe import Pipe, Request

FOLDER = Path(__file__).with_name("torchpipe")
FILES = sorted(FOLDER.glob("*.toml"))
WAIT_S = 20.0


def expected(path: Path) -> list[dict[str, Any]]:
    """Return pairs of a request and what becomes of it: an answer, or the name of an error's type.

    ``entry``: where the call says that it enters; ``obeyed``: for a pipe that obeys these keys of a request.
    """
    pairs: list[dict[str, Any]] = json.loads(path.with_suffix(".answers.json").read_text())
    return pairs


def check(pipe: Pipe, pair: dict[str, Any], **how: Any) -> None:
    request: Request = dict(pair["request"])
    how["entry"] = pair.get("entry")
    if "error" in pair:
        with pytest.raises(Exception) as raised:  # noqa: PT011  # its type is compared below
            pipe(request, **how)
        assert type(raised.value).__name__ == pair["error"]
        assert request == pair["request"]
    else:
        pipe(request, **how)
        assert request == pair["answer"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_answers_as_written_beside_it(path: Path) -> None:
    """Alone, eagerly, from eight threads at once, and as one list."""
    pairs = expected(path)
    check_all(path, [pair for pair in pairs if "obeyed" not in pair])
    for pair in pairs:
        if "obeyed" in pair:
            check_all(path, [pair], obey_request_keys=pair["obeyed"])


def check_all(path: Path, pairs: list[dict[str, Any]], **keys: Any) -> None:
    with Pipe(path, **keys) as pipe:
        for pair in pairs:
            check(pipe, pair)
            check(pipe, pair, eager=True)
        with concurrent.futures.ThreadPoolExecutor(8) as callers:
            for done in [callers.submit(check, pipe, pair) for pair in pairs * 8]:
                done.result(WAIT_S)
        good = [pair for pair in pairs if "answer" in pair and "entry" not in pair] * 4
        requests: list[Request] = [dict(pair["request"]) for pair in good]
        pipe(requests)
        assert requests == [pair["answer"] for pair in good]


def test_no_answers_lie_beside_a_file_that_is_gone() -> None:
    """Each list of answers belongs to a file, and each has some."""
    answers = {path.name.removesuffix(".answers.json") for path in FOLDER.glob("*.answers.json")}
    assert answers == {path.stem for path in FILES}
    assert all(expected(path) for path in FILES)
