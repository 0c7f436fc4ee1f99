"""The table of keys: all that is said of a key elsewhere is made from its row, or is the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest

from fastpipe import _core
from fastpipe.cli.check import check
from fastpipe.cli.schema import schema
from fastpipe.config.key import Key
from fastpipe.config.keys import NODE_KEYS, PIPE_KEYS, station_settings
from fastpipe.config.reading import examine, load
from fastpipe.contract import Between
from fastpipe.errors import ConfigError

ROW = Key(
    "most_retries",
    "How many runs a request may have here.",
    Annotated[int, Between(1, 9)],
    3,
    unit=" runs",
    station="retries",
)


@pytest.mark.parametrize("value", ["two", 10])
def test_a_key_is_added_in_one_row(value: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading with its limits, the Station's settings, schema and checker have it; nothing else is edited."""
    with pytest.raises(ConfigError, match="nobody takes 'most_retries'"):
        load(None, {"backend": "Pow", "most_retries": 2})
    monkeypatch.setitem(NODE_KEYS, ROW.name, ROW)
    (node,) = load({"a": {"backend": "Pow", "most_retries": "2"}}, {}).nodes
    assert (node.settings[ROW.name], station_settings(node.settings)["retries"]) == (2, 2)
    assert load(None, {"backend": "Pow"}).nodes[0].settings[ROW.name] == 3

    described = schema()["$defs"]["node"]["properties"][ROW.name]
    assert described["description"] == ROW.meaning
    assert {"type": "integer", "minimum": 1, "maximum": 9} in described["anyOf"]

    written = {"a": {"backend": "Pow", "most_retries": value}}
    _, problems, _ = examine(written, {}, None)
    (mistake,) = problems.mistakes
    assert (mistake.node, mistake.key) == ("a", ROW.name)
    assert re.fullmatch(r"node 'a': most_retries: must be .*between 1 and 9 runs, got .*", mistake)
    path = tmp_path / "pipe.toml"
    path.write_text(f'[a]\nbackend = "Pow"\nmost_retries = {value!r}\n')
    (finding,) = check(path).findings
    assert finding.text == mistake
    assert finding.line in (3, None)  # None: tree-sitter is not installed


def test_a_key_of_the_pipe_is_added_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no default of nodes, and stands beside them."""
    monkeypatch.setitem(PIPE_KEYS, ROW.name, ROW)
    config = load({"a": {"backend": "Pow"}, "global": {"most_retries": 4}}, {})
    assert config.settings == {ROW.name: 4}
    assert schema()["properties"][ROW.name]["description"] == ROW.meaning
    with pytest.raises(ConfigError, match="configuration: most_retries: must be between 1 and 9 runs, got 10"):
        load({"a": {"backend": "Pow"}}, {"most_retries": 10})


def test_the_documentation_has_each_key(repository_root: Path) -> None:
    """A line for each, in the table's order, with its default, beginning with what the table says that it means."""
    page = (repository_root / "docs" / "configuration.md").read_text()
    for keys, heading in ((NODE_KEYS, "## Keys of the scheduler"), (PIPE_KEYS, "These keys belong to the whole pipe")):
        lines = page[page.index(heading) :].split("\n\n")
        table = next(block for block in lines if block.startswith("| key |"))
        rows = [plain(line) for line in table.splitlines()[2:]]
        assert [name for name, _, _ in rows] == list(keys)
        for name, default, meaning in rows:
            key = keys[name]
            shown = ("" if key.default is None else str(key.default)) if key.default_in_words is None else None
            assert default == (key.default_in_words if shown is None else shown), name
            assert meaning.lower().startswith(key.meaning.rstrip(".").lower()), name


def test_what_a_key_sets_is_a_setting_of_the_station() -> None:
    """A row may name what the engine has not: nobody would notice before somebody writes the key."""
    names = {key.station for key in NODE_KEYS.values() if key.station is not None}
    values = {"rule": "greedy", "preferred": [4], "when_full": "reject"}
    settings: dict[str, Any] = {name: values.get(name, 1) for name in names}
    assert _core.Station("a", 1, 8, False, has_buckets=False, **settings).name == "a"
    with pytest.raises(TypeError, match="no_such_setting"):
        _core.Station("a", 1, 8, False, has_buckets=False, **settings, no_such_setting=1)


def plain(line: str) -> tuple[str, str, str]:
    """Return the cells of a row, without quotes, code and what is said of torchpipe's own keys."""
    text = line.replace("`", "").replace('"', "").replace(" *(ours)*", "").replace(r"\|", "\0")
    name, default, meaning = (cell.strip().replace("\0", "|") for cell in text.strip("|").split("|"))
    return name, default, meaning
