"""The pages for newcomers are true: their commands, their service, their drawings and their errors."""

from __future__ import annotations

import contextlib
import doctest
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_pages import DOCS, blocks_of, close_pipes, environment, put_what_readers_have, run_page, write_files_of
from helpers import WAIT_S, once

import fastpipe
from fastpipe.errors import MissingExtra

COMMAND_S = 3 * WAIT_S
"""For processes that are started: the machine may be busy."""

GUIDES = [DOCS / name for name in ("start.md", "recipes.md", "tuning.md", "troubleshooting.md")]
PROGRAMS = {"fastpipe": [sys.executable, "-P", "-m", "fastpipe"], "cat": ["cat"]}


def transcripts_of(page: Path, mark: str = "") -> Iterator[tuple[list[str], str]]:
    """Yield the commands of a page's blocks ``console``, as words, and what the page says that each prints."""
    for block in blocks_of(page):
        if block.language == "console" and " ".join(block.marks[1:2]) == mark:
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, printed = part.partition("\n")
                yield shlex.split(command), printed


@once
@pytest.mark.parametrize("page", [page for page in GUIDES if any(transcripts_of(page))], ids=lambda page: page.name)
def test_the_commands_of_a_page_print_what_it_says(page: Path, tmp_path: Path) -> None:
    """``...`` stands for what differs from run to run."""
    for needed in ("tree_sitter_toml", "cv2", "onnx", "PIL"):
        pytest.importorskip(needed, reason="the extras cli and cpu are not installed")
    put_what_readers_have(tmp_path)
    write_files_of(page, tmp_path)
    for words, expected in transcripts_of(page):
        ran = subprocess.run(
            [*PROGRAMS[words[0]], *words[1:]],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        printed = ran.stdout if ran.stdout.endswith("\n") else ran.stdout + "\n"
        same = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
        assert same, f"{page.name}: {shlex.join(words)} prints\n{printed}and not\n{expected}"


@contextlib.contextmanager
def service_of(folder: Path) -> Iterator[str]:
    """Run ``uvicorn service:app`` in a folder, as the page says it, at a free port; yield its address."""
    command = [sys.executable, "-P", "-m", "uvicorn", "service:app", "--port", "0", "--no-access-log"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        said: list[str] = []
        try:
            while (line := server.stderr.readline()) and not re.search(r"http://[\d.]+:\d+", line):
                said.append(line)
            found = re.search(r"http://[\d.]+:\d+", line)
            assert found is not None, "".join(said)
            yield found[0]
        finally:
            server.terminate()
            server.stderr.read()
            server.wait(COMMAND_S)


@once
def test_the_first_service_answers_what_its_page_says(tmp_path: Path) -> None:
    """The files of docs/start.md, under uvicorn, and the page's own ``curl`` lines."""
    for needed in ("fastapi", "uvicorn", "pydantic"):
        pytest.importorskip(needed)
    page = DOCS / "start.md"
    write_files_of(page, tmp_path)
    asked = [(words, printed) for words, printed in transcripts_of(page, "no-run") if words[0] == "curl"]
    assert len(asked) == 3
    with service_of(tmp_path) as address:
        for words, printed in asked:
            path = words[1].removeprefix("http://127.0.0.1:8000")
            body = words[words.index("-d") + 1].encode() if "-d" in words else None
            request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                assert json.load(answer) == json.loads(printed)


def test_the_drawings_of_the_recipes_are_of_their_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``FASTPIPE_DRAW=1`` writes them anew."""
    page = DOCS / "recipes.md"
    drawn = re.findall(r"\]\(recipes/(\w+)\.svg\)", page.read_text())
    try:
        _, names = run_page(page, tmp_path, monkeypatch)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    pipes = {name: value for name, value in names.items() if isinstance(value, fastpipe.Pipe) and name != "pipe"}
    assert sorted(pipes) == sorted(drawn)
    for name, pipe in pipes.items():
        drawing = DOCS / "recipes" / f"{name}.svg"
        if os.environ.get("FASTPIPE_DRAW"):
            drawing.parent.mkdir(exist_ok=True)
            drawing.write_text(pipe.graph().svg())
        assert drawing.read_text() == pipe.graph().svg(), f"{drawing.name} is of another pipe"
    close_pipes(names)
