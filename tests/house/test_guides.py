"""The pages for newcomers are true: their commands, their service, their drawings and their errors."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import importlib
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
def server_of(folder: Path, *words: str) -> Iterator[str]:
    """Run a module that serves, in a folder, at a free port; yield its address."""
    command = [sys.executable, "-P", "-m", *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        said: list[str] = []
        try:
            while (line := server.stdout.readline()) and not re.search(r"http://[\d.]+:\d+", line):
                said.append(line)
            found = re.search(r"http://[\d.]+:\d+", line)
            assert found is not None, "".join(said)
            yield found[0]
        finally:
            server.terminate()
            server.stdout.read()
            server.wait(COMMAND_S)


def ask_as_written(words: list[str], address: str) -> object:
    """Ask what a ``curl`` line of the page asks, of a server at another port; return the JSON of its answer."""
    (url,) = [word for word in words if word.startswith("http://")]
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    path = url.removeprefix("http://127.0.0.1:8000")
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        return json.load(answer)


def with_what_the_page_adds(page: Path, folder: Path) -> None:
    """Put the page's blocks of TOML that are no files into its file: keys above the tables, tables below."""
    file = folder / "pipeline.toml"
    above, below = [block.text for block in blocks_of(page) if block.language == "toml" and block.file is None]
    file.write_text(f"{above}\n{file.read_text()}\n{below}")


@once
def test_the_first_service_answers_what_its_page_says(tmp_path: Path) -> None:
    """The files of docs/start.md, under uvicorn, and the page's own ``curl`` lines."""
    for needed in ("fastapi", "uvicorn", "pydantic"):
        pytest.importorskip(needed)
    page = DOCS / "start.md"
    write_files_of(page, tmp_path)
    asked = [(words, printed) for words, printed in transcripts_of(page, "no-run") if words[0] == "curl"]
    asked = [(words, printed) for words, printed in asked if "/v2/" not in " ".join(words)]
    assert len(asked) == 3
    with server_of(tmp_path, "uvicorn", "service:app", "--port", "0", "--no-access-log") as address:
        for words, printed in asked:
            assert ask_as_written(words, address) == json.loads(printed)


@once
def test_the_file_of_the_first_service_is_served_by_the_command(tmp_path: Path) -> None:
    """With what the page adds to it; asked by the page's own ``curl`` line."""
    for needed in ("starlette", "uvicorn", "orjson"):
        pytest.importorskip(needed)
    page = DOCS / "start.md"
    write_files_of(page, tmp_path)
    with_what_the_page_adds(page, tmp_path)
    ((words, printed),) = [each for each in transcripts_of(page, "no-run") if "/v2/" in " ".join(each[0])]
    command = ("fastpipe", "serve", "pipeline.toml", "--http", "127.0.0.1:0", "--grpc", "none")
    with server_of(tmp_path, *command) as address:
        assert ask_as_written(words, address) == json.loads(printed)


def test_the_first_service_gives_errors_their_statuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI asks the handler for every error of fastpipe: that of the nearest class above it."""
    for needed in ("fastapi", "pydantic"):
        pytest.importorskip(needed)
    write_files_of(DOCS / "start.md", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "service", raising=False)
    service = importlib.import_module("service")
    sys.modules.pop("service")
    assert service.app.exception_handlers[fastpipe.PipeError] is service.failed
    for error, status in (("QueueFull", 429), ("RequestTimeout", 504), ("NoResult", 422), ("WorkerDied", 500)):
        answer = asyncio.run(service.failed(None, getattr(fastpipe, error)("why")))
        assert (answer.status_code, json.loads(answer.body)) == (status, {"error": "why"})


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
