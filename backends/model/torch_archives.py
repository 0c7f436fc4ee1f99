"""Exported programs as files: which of them torch may be given, though nobody vouches for them.

Reading such a file, torch unpickles parts, evaluates expressions, looks operators up by their dotted name and generates
code with the names in it. Here the file is read first, by rules that know only what is harmless, and written anew with
what was understood: torch reads that, and nothing else of the file. What the rules do not know needs ``trusted``.

A program is still a program. It may take all memory and time there is, and torch's operators are not hardened against
arguments that were chosen to hurt them: a model of a stranger's belongs into a process of its own, with limits.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["Suspicious", "harmless_copy", "kind_of"]


class Suspicious(Exception):
    """There is something in a file by which code may run; the message says what, to follow "it"."""


def kind_of(content: bytes) -> str:
    """Say what a file is, as torch tells files apart: "TorchScript", "exported", "compiled" or, of all else, "pickle".

    "compiled" is a package of AOTInductor's without a program that could be run in its place.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {name.partition("/")[2] for name in archive.namelist()}
    except Exception:  # it is no archive, or one whose directory is damaged, of which zipfile makes all sorts of errors
        return "pickle"
    if "constants.pkl" in records:
        return "TorchScript"
    if "models/model.json" in records:
        return "exported"
    if any(record.startswith("data/aotinductor/") for record in records):
        return "compiled"
    return "exported" if "archive_format" in records else "pickle"


def harmless_copy(content: bytes) -> bytes:
    """Return an exported program's file with all that torch needs of it, and nothing by which code could run.

    Raises:
        Suspicious: if that cannot be had.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(target, "w") as copy:
        infos = archive.infolist()
        folded = {info.filename.lower() for info in infos}  # torch's reader of archives does not tell "A" from "a"
        if len(folded) < len(infos) or len({info.filename.partition("/")[0] for info in infos}) > 1:
            raise Suspicious("has two parts of one name")
        if sum(info.file_size for info in infos) > len(content):
            raise Suspicious("has parts that lie upon each other")
        for info in infos:
            record = info.filename.partition("/")[2]
            if info.compress_type != zipfile.ZIP_STORED:
                raise Suspicious(f"has a part '{record}' that is compressed, as torch writes none")
            copy.writestr(info.filename, _part(record, archive.read(info)))
    return target.getvalue()


def _part(record: str, content: bytes) -> bytes:
    if record == "models/model.json":
        return json.dumps(_understood(json.loads(content), "")).encode()
    if record.endswith("_config.json"):
        config = json.loads(content)
        if any(part.get("use_pickle") for part in config.get("config", {}).values()):
            raise Suspicious("has pickled parts")
        return json.dumps(_understood(config, "")).encode()
    if record.endswith((".pt", ".pkl")):
        try:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # it is not what the restricted reader takes, whatever it is
            raise Suspicious("has pickled parts") from error
    elif record not in _PLAIN_RECORDS and not record.startswith(("data/weights/", "data/constants/tensor_")):
        raise Suspicious(f"has a part '{record}' of an unknown kind")
    return content


_PLAIN_RECORDS = {
    "archive_format",
    "archive_version",
    "byteorder",
    "version",
    ".data/version",
    ".data/serialization_id",
    ".format_version",
    ".storage_alignment",
}


# ---- the program's graph ---------------------------------------------------------------------------------------------


# A word of a file can be evaluated, looked up, or become a part of generated code without doing anything.
_WORD = re.compile(r"[\w.+-]*", re.ASCII)
# What operators are told in words, "mean" or "bchw,bchw->bc": torch puts them between quotes.
_TEXT = re.compile(r"[\w .,:;<>=!?+*/|&%()\[\]{}-]*", re.ASCII)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(__i?(and|or|xor|lshift|rshift)__|(?!__)\w+)\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\._?sym_\w+|math\.\w+"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|index|inv|invert|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow"
    r"|rshift|sub|truediv|xor)",
    re.ASCII,
)
# Of torch's own operators these reach files, or what an interpreter has.
_REACHES_OUT = re.compile(r"torch\.ops\.aten\.\w*(file|save|load|print|import|eval|exec)\w*\..*", re.ASCII)
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def _understood(value: Any, key: str) -> Any:
    """Return a value of a program's JSON; ``key`` is whose it is.

    Raises:
        Suspicious: unless each text in it is of a kind that is harmless where it stands.
    """
    if isinstance(value, dict):
        for name in value:
            if key != "range_constraints" or not _is_arithmetic(name):  # of symbols, and of what is computed of them
                _need(_WORD, name, "a name")
        # The metadata say where a node came from, for people: torch would look up names in there, too.
        return {name: {} if name == "metadata" else _understood(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_understood(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key in ("target", "as_operator"):
        if not _OPERATOR.fullmatch(value) or _REACHES_OUT.fullmatch(value):
            raise Suspicious(f"calls '{_shown(value)}', which is none of torch's operators on tensors")
    elif key in ("expr_str", "guards_code"):
        if not _is_arithmetic(value):
            raise Suspicious(f"has an expression that is more than arithmetic, '{_shown(value)}'")
    elif key in ("in_spec", "out_spec"):
        return json.dumps(_container(json.loads(value)))
    elif key == "as_string":
        if value.startswith("Runtime assertion failed"):  # torch's own words, with names in quotes
            value = re.sub("['\"]", "", value)
        _need(_TEXT, value, "a text")
    else:
        _need(_WORD, value, "a name")
    return value


def _need(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise Suspicious(f"has {what} that might be code, '{_shown(value)}'")


def _shown(value: str) -> str:
    return ascii(value[:60])[1:-1]


def _container(spec: Any) -> Any:
    """Return how the inputs or outputs are nested, as torch writes it; in a dict of these are the keys, as JSON."""
    for part in _parts(spec):
        if part.get("type") not in _CONTAINERS:
            raise Suspicious(f"takes or gives a {_shown(str(part.get('type')))}, which is no plain container")
        _understood(json.loads(part.get("context") or "null"), "")
    return spec


def _parts(spec: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(spec, list):
        for inner in spec:
            yield from _parts(inner)
    elif isinstance(spec, dict):
        yield spec
        yield from _parts(spec.get("children_spec"))


# ---- expressions -----------------------------------------------------------------------------------------------------

_LONGEST_EXPRESSION = 20_000
_NODES = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.IfExp, ast.Tuple),
    *(ast.Subscript, ast.Constant, ast.Name, ast.Attribute, ast.Load, ast.boolop, ast.operator, ast.unaryop, ast.cmpop),
)
_NAMES = {
    *("Abs", "Add", "And", "BooleanFalse", "BooleanTrue", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality"),
    *("Float", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity"),
    *("IntTrueDiv", "Integer", "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne"),
    *("Not", "Or", "Piecewise", "Pow", "PowByNatural", "PythonMod", "RShift", "Rational", "RoundDecimal", "RoundToInt"),
    *("StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where"),
    *("IsNonOverlappingAndDenseIndicator", "L", "abs", "ceiling", "false", "floor", "inf", "int_oo", "math", "max"),
    *("min", "oo", "torch", "true"),
}
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")
_ATTRIBUTES = {
    *("ceil", "floor", "inf", "isnan", "size", "sqrt", "storage_offset", "stride", "sym_float", "sym_int", "sym_ite"),
    *("sym_max", "sym_min", "sym_not", "sym_sqrt", "trunc"),
}


def _is_arithmetic(text: str) -> bool:
    """Say whether evaluating an expression can do no more than compute with sizes."""
    if len(text) > _LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_is_harmless, ast.walk(tree)))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _NAMES or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        # Given to a function, it may be evaluated in its turn.
        return isinstance(node.value, str) and bool(_WORD.fullmatch(node.value))
    return isinstance(node, _NODES)
