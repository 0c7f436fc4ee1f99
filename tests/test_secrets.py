"""Which values nobody should see, and where they may hide."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest

from fastpipe._secrets import is_secret_pair, lines_without, own_copy_without, secret_texts

SECRET = 'it\'s "quoted"\n'


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        OrderedDict(more={"api_key": SECRET}),
        {"headers": [["Authorization", SECRET]]},
        {"headers": (("Authorization", SECRET),)},
        [[[[[[[[[[[[{"token": SECRET}]]]]]]]]]]]],
    ],
)
def test_what_an_error_may_repeat_is_known_in_each_form(value: Any) -> None:
    """As it is, and as repr() and JSON write it, in whatever mapping and however deep."""
    assert set(secret_texts(value)) == {SECRET, repr(SECRET)[1:-1], '"it\'s \\"quoted\\"\\n"'[1:-1]}


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


def test_a_header_in_a_configuration_is_left_out() -> None:
    """With its place."""
    left_out: list[str] = []
    written = {"a": {"backend": "Pow", "headers": [["Authorization", SECRET], ["Accept", "x"]]}}
    kept = own_copy_without(written, left_out)
    assert kept == {"a": {"backend": "Pow", "headers": [["Authorization"], ["Accept", "x"]]}}
    assert left_out == ["['a']['headers'][0][1]"]
