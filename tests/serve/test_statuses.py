"""The table of statuses: each error has a row, and the documentation has the same."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import pytest

from fastpipe import errors
from fastpipe.errors import DecodeError, GraphError, PipeError, QueueFull
from fastpipe.serve import statuses
from fastpipe.serve.statuses import STATUSES, ServeError, message_of, status_of

OURS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PipeError)]
SERVERS = [kind for kind in vars(statuses).values() if isinstance(kind, type) and issubclass(kind, ServeError)]
BASES = {errors.PipeError, errors.ItemErrors, ServeError}


@pytest.mark.parametrize("kind", [*OURS, *SERVERS])
def test_every_error_has_its_status(kind: type[BaseException]) -> None:
    """Those of a pipe, and those of a server; what a class extends may have it."""
    if kind not in BASES:
        assert any(base in STATUSES for base in kind.__mro__)


def test_statuses() -> None:
    """Subclasses are looked up by their bases; what nobody knows is a fault of the server."""
    assert status_of(QueueFull("full"))[:2] == (429, "RESOURCE_EXHAUSTED")
    assert status_of(GraphError("a cycle"))[:2] == (400, "INVALID_ARGUMENT")
    assert status_of(KeyError("x"))[:2] == (500, "INTERNAL")
    assert list(STATUSES.values()) == sorted(STATUSES.values(), key=lambda status: status.http)
    for status in STATUSES.values():
        assert status.http == 499 or HTTPStatus(status.http)
        assert status.retry_after == (status.http in (429, 503))


def test_grpc_s_codes() -> None:
    """Each is one of gRPC's."""
    grpc = pytest.importorskip("grpc")
    assert {status.grpc for status in STATUSES.values()} <= set(grpc.StatusCode.__members__)


def test_messages() -> None:
    """Ours are shown as they are, others with their type, or hidden; never empty."""
    assert message_of(DecodeError("no image")) == "no image"
    assert message_of(DecodeError()) == "DecodeError"
    assert message_of(ValueError("bad")) == "ValueError: bad"
    assert message_of(ValueError("secret"), hide=True) == "the model failed; the server's log has the reason"
    assert message_of(DecodeError("no image"), hide=True) == "no image"
    assert message_of(ValueError("half \ud800 of é")) == r"ValueError: half \ud800 of é"


def test_the_documentation_has_the_table(repository_root: Path) -> None:
    """The same errors, in the same order, with the same statuses."""
    page = (repository_root / "docs" / "serving.md").read_text()
    table = page[page.index("| HTTP | gRPC |") :].split("\n\n")[0].splitlines()[2:]
    documented = {}
    for line in table:
        http, grpc, retry, names = (cell.strip() for cell in line.strip("|").split("|")[:4])
        for name in re.findall(r"`([A-Z]\w+)`", names):
            documented[name] = (int(http), grpc.strip("`"), retry == "yes")
    assert documented == {kind.__name__: tuple(status) for kind, status in STATUSES.items()}
