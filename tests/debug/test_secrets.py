"""Which values nobody should see, and where they may hide."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from fastpipe import Backend, Pipe, Request
from fastpipe.config.reading import load
from fastpipe.errors import ConfigError
from fastpipe.redaction import Secrets, is_secret_pair, lines_without, own_copy_without, secret_texts

SECRET = 'it\'s "quoted"\n'


class Credentials(NamedTuple):
    """Two fields, the second a secret."""

    user: str
    password: str


@dataclass
class Account:
    """A dataclass with more in it."""

    user: str
    login: Credentials


class Login:
    """An object of another kind."""

    __slots__ = ("password", "unset")

    def __init__(self, password: str) -> None:
        self.password = password


class Refused(Exception):
    """An error with a secret as an attribute."""

    def __init__(self, password: str) -> None:
        super().__init__("refused")
        self.password = password


def caused_by(cause: Exception) -> Exception:
    error = ValueError("no")
    error.__cause__ = cause
    return error


class Unreadable(Mapping[str, str]):
    """A mapping that cannot be looked into."""

    def __getitem__(self, key: str) -> str:
        raise RuntimeError("not to be read")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("not to be read")

    def __len__(self) -> int:
        raise RuntimeError("not to be read")


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        OrderedDict(more={"api_key": SECRET}),
        {"headers": [["Authorization", SECRET]]},
        {"headers": (("Authorization", SECRET),)},
        [[[[[[[[[[[[{"token": SECRET}]]]]]]]]]]]],
        Credentials("me", SECRET),
        [Account("me", Credentials("me", SECRET))],
        caused_by(Refused(SECRET)),
        ValueError({"password": SECRET}),
        ValueError("Authorization", SECRET),
        {("Authorization", SECRET)},
        deque([("Authorization", SECRET)]),
        Login(SECRET),
        [SimpleNamespace(user="me", password=SECRET)],
    ],
)
def test_what_an_error_may_repeat_is_known_in_each_form(value: Any) -> None:
    """As it is, and as repr() and JSON write it, in whatever mapping and however deep."""
    assert set(secret_texts(value)) == {SECRET, repr(SECRET)[1:-1], '"it\'s \\"quoted\\"\\n"'[1:-1]}


def test_what_cannot_be_looked_into_or_leads_back_hides_nothing_else() -> None:
    """A mapping that raises, a list that holds itself twice: looked at once, and the rest is found."""
    cycle: list[Any] = [Unreadable()]
    cycle += [cycle, cycle, {"token": "battery"}]
    assert set(secret_texts(cycle)) == {"battery"}


def test_of_two_secrets_the_longer_is_left_out_first() -> None:
    """One may be a part of the other, of a configuration or of a request."""
    secrets = Secrets({"token": "battery"}).and_of({"password": "battery staple"})
    assert secrets.left_out_of("neither battery staple nor battery") == "neither <secret> nor <secret>"
    assert Secrets().left_out_of("battery") == "battery"


@pytest.mark.parametrize(("value", "is_pair"), [(["Cookie", 1], True), (("a", "Cookie"), False), (["token"], False)])
def test_a_header_is_a_secret_as_a_list_as_well(value: Any, is_pair: bool) -> None:
    """JSON has no tuples."""
    assert is_secret_pair(value) is is_pair


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (["model_key = 'S'"], ["model_key = ..."]),
        (["model_kye = 'S'"], ["model_kye = ..."]),
        (['password = """', "S", 'S"""', "max = 2"], ["password = ...", "...", "...", "max = 2"]),
        (["password = '''S'''", "max = 2"], ["password = ...", "max = 2"]),
        (["max = 2", "model = 'm.onnx'"], ["max = 2", "model = 'm.onnx'"]),
    ],
)
def test_a_files_lines_are_shown_without_secrets(lines: list[str], shown: list[str]) -> None:
    """Also if the key is misspelt, or the value has several lines."""
    assert list(lines_without(lines)) == shown


def test_a_long_text_is_gone_over_once() -> None:
    """Base64 in a configuration held the GIL for minutes: whoever records, or checks the file, waits for this."""
    long = "QUJD" * 50_000
    started_s = time.process_time()
    left_out: list[str] = []
    assert own_copy_without({"icon": long, "step": f"A(x={long}, model_key=y)"}, left_out) == {"icon": long}
    assert left_out == ["['step']"]
    assert list(lines_without([f'icon = "{long}"', f"a{' ' * 50_000}x"])) == [f'icon = "{long}"', f"a{' ' * 50_000}x"]
    with pytest.raises(ConfigError, match="expected 'node"):
        load({"a": {"backend": "Pow", "map": f"b{' ' * 10_000}]"}}, {})
    assert time.process_time() - started_s < 10


def test_a_header_in_a_configuration_is_left_out() -> None:
    """With its place."""
    left_out: list[str] = []
    written = {"a": {"backend": "Pow", "headers": [["Authorization", SECRET], ["Accept", "x"]]}}
    kept = own_copy_without(written, left_out)
    assert kept == {"a": {"backend": "Pow", "headers": [["Authorization"], ["Accept", "x"]]}}
    assert left_out == ["['a']['headers'][0][1]"]


def test_what_a_swap_brings_is_as_secret_as_what_was_there(tmp_path: Path) -> None:
    """In what describes the pipe, in its errors, in its log's lines and in its records."""

    class Asks(Backend):
        def __init__(self, *, api_key: str = "none", count: int = 1) -> None:
            self.given = api_key, count

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = request["data"]

    secret = "a-secret-of-a-service"
    with Pipe(backend=Asks) as pipe:
        pipe.swap("main", api_key=secret)
        texts = [repr(pipe), repr(pipe._made_of), str(pipe.graph()), pipe.graph().svg()]
        for keys in ({"api_key": [secret]}, {"api_key": secret, "count": "many"}):
            with pytest.raises(ConfigError) as caught:
                pipe.swap("main", keys)
            texts.append(str(caught.value))
        with pipe.record(tmp_path, sample=1.0):
            pipe({"data": 1})
        texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) > 6
    assert [text for text in texts if secret in text] == []
