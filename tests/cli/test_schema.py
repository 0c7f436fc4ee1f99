"""The JSON schema: it lets pass what ``fastpipe`` takes, and refuses wrong types."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from fastpipe.cli.main import main
from fastpipe.cli.schema import _type, schema
from fastpipe.config.keys import NODE_KEYS
from fastpipe.config.values import BadValue, coerce

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed here")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def validator() -> Any:
    """The schema, with what reads it."""
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def places(validator: Any, written: dict[str, Any]) -> list[str]:
    """Return where the schema finds something wrong."""
    return sorted(error.json_path for error in validator.iter_errors(written))


def configurations() -> Iterator[tuple[str, str]]:
    """Yield every TOML configuration of the repository: files, and blocks of the documentation."""
    for folder in ("examples", "fastpipe", "tests", "docs"):
        for path in sorted((ROOT / folder).rglob("*.toml")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]):
        for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)):
            yield f"{page.name} {number}", block


def test_every_configuration_of_the_repository_passes(validator: Any) -> None:
    """Files and documentation alike."""
    found = dict(configurations())
    assert {"examples/thumbnails/thumbnails.toml", "examples/ocr/ocr.toml"} < found.keys()
    wrong = {name: places(validator, tomllib.loads(text)) for name, text in found.items()}
    assert not any(wrong.values()), wrong


def test_every_key_of_the_scheduler_is_described(validator: Any) -> None:
    """A new key has to be told what it means."""
    properties = validator.schema["properties"]
    assert all(properties[key]["description"] for key in NODE_KEYS)


@pytest.mark.parametrize(
    ("node", "wrong"),
    [
        ({"backend": "Pow", "max": "4x3x224x224", "min": "1&4&8", "instance_num": "2", "batching_timeout": "5"}, []),
        ({"backend": "Pow", "next": ["b", "c"], "map": {"b": {"result": "data"}}, "filter": "or", "bucket": "k"}, []),
        ({"backend": "Pow", "next": "b,c", "map": "b[result:data]", "restart": "a", "restart_limit": 3}, []),
        ({"backend": "Pow", "batching": "Preferred", "preferred_batch_sizes": "4,8"}, []),
        ({"backend": 3}, ["$.a.backend"]),
        ({"backend": "Pow", "instance_num": 0}, ["$.a.instance_num"]),
        ({"backend": "Pow", "instance_num": "many"}, ["$.a.instance_num"]),
        ({"backend": "Pow", "max": 0}, ["$.a.max"]),
        ({"backend": "Pow", "max": "big"}, ["$.a.max"]),
        ({"backend": "Pow", "batching_timeout": -1}, ["$.a.batching_timeout"]),
        ({"backend": "Pow", "batching": "sometimes"}, ["$.a.batching"]),
        ({"backend": "Pow", "preferred_batch_sizes": [0]}, ["$.a.preferred_batch_sizes"]),
        ({"backend": "Pow", "next": 3}, ["$.a.next"]),
        ({"backend": "Pow", "map": {"b": "data"}}, ["$.a.map"]),
        ({"backend": "Pow", "restart_limit": 0}, ["$.a.restart_limit"]),
        ({"backend": "Pow", "mx": 3}, ["$.a"]),
        ({"backend": "s[pow, sleep]", "time": "short"}, ["$.a.time"]),
        ({"backend": "s[pow, (or) sleep]", "time": "|5"}, []),
        ({"backend": "S[Pow,ours:Sleeper]", "time": "short", "mx": 3}, []),
        ({"backend": "Ours", "time": "short", "mx": 3}, []),
        ({"backend": "S", "S::backend": "ours:Sleeper", "mx": 3}, []),
        ({"backend": "Sleep", "Sleep::time": 3}, []),
        ({"backend": "MapReduce", "jump": "b", "on_error": "SKIP", "split": ["a", "b"]}, []),
        ({"backend": "MapReduce", "jump": "b", "on_error": "retry"}, ["$.a.on_error"]),
    ],
)
def test_a_node(node: dict[str, Any], wrong: list[str], validator: Any) -> None:
    """Types, limits and choices; what a backend of the user's takes is anybody's guess."""
    assert places(validator, {"a": node}) == wrong


def test_defaults_and_the_form_for_one_node(validator: Any) -> None:
    """Beside the tables and in ``global`` there are the same keys."""
    assert places(validator, {"instance_num": 0, "global": {"max": "x"}, "a": {"backend": "Pow"}}) == [
        "$.global.max",
        "$.instance_num",
    ]
    assert places(validator, {"backend": "Sleep", "time": 3}) == []
    assert places(validator, {"backend": "Sleep", "time": "short"}) == ["$.time"]
    # A default may put any backend into the trees of all nodes.
    assert places(validator, {"S::backend": "ours:Resizer", "a": {"backend": "S", "mx": 3}}) == []


@pytest.mark.parametrize(
    "annotation",
    [int, float, bool, str, int | None, list[int], list[float] | float, tuple[int, int], Path, Literal["a", "b.c", 3]],
)
def test_what_is_coerced_passes(annotation: Any) -> None:
    """The schema never refuses what the code takes, and refuses most of what it does not."""
    values = [
        *(0, 3, -1, 2.5, True, "", "x", "3", " 3 ", "+3", "2.5", "1e3", "inf", "true", "FALSE", "none", "a", "B.C"),
        *("1, 2", "1,2,3", [], [1, 2], [1.5], ["1", "2"], ["x"], [[1]], {}, {"a": 1}),
    ]
    reader = jsonschema.Draft202012Validator(_type(annotation))
    refused = 0
    for value in values:
        try:
            coerce(value, annotation)
        except BadValue:
            refused += not reader.is_valid(value)
        else:
            assert reader.is_valid(value), value
    assert refused >= 2


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the terminal or into a file."""
    assert main(["schema"]) == 0
    written = capsys.readouterr().out
    assert main(["schema", "-o", str(tmp_path / "fastpipe.schema.json")]) == 0
    assert (tmp_path / "fastpipe.schema.json").read_text() == written
    assert json.loads(written)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
