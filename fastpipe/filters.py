"""Filters: the small decision taken before a node or a step.

A filter is called with the request and says what happens to it there, as a :class:`Status`. It may prepare the
request (``swap`` moves the previous result to ``data``); it must not block.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from fastpipe.errors import ConfigError, nearest

__all__ = ["Filter", "Status", "filter", "find_filter"]

Request = dict[str, Any]


class Status(enum.IntEnum):
    """What a filter decided for a request, at the node or step in front of which it stands."""

    Run = 0  # run the node
    Skip = 1  # do not run it; the request goes on as it is
    Break = 2  # the graph ends here for this request: its dict is the answer
    Error = 3  # fail the request
    SerialSkip = 4  # skip this node and its chain up to the next fork or join; in a Sequential: Break
    SubGraphSkip = 5  # skip the largest sub-graph that can only be reached through here


class Filter:
    """Base for filters with parameters or state; called from several threads at once."""

    def __call__(self, request: Request) -> Status:
        raise NotImplementedError(f"{type(self).__name__} has no __call__(request)")  # abstract


AnyFilter = Callable[[Request], Status]
_FILTERS: dict[str, AnyFilter] = {}


def filter(name: str) -> Callable[[AnyFilter], AnyFilter]:
    """Register a filter under a name for configurations: ``@fastpipe.filter("big")``; used as ``filter="big"``."""

    def register(function: AnyFilter) -> AnyFilter:
        known = _FILTERS.get(name)
        if known is not None and known is not function:
            raise ConfigError(f"a filter named {name!r} is already registered")
        _FILTERS[name] = function
        return function

    return register


def find_filter(name: str) -> AnyFilter:
    """Return the filter of that name, or raise ConfigError with the nearest one."""
    try:
        return _FILTERS[name]
    except KeyError:
        raise ConfigError(f"no filter is named {name!r}{nearest(name, _FILTERS)}") from None


def run(request: Request) -> Status:
    """Run the node on the request as it is."""
    return Status.Run


def swap(request: Request) -> Status:
    """Move the result of the previous node to ``data``, then run; without a result the graph ends here.

    This is also what happens between nodes, and between the steps of a Sequential, where no filter is written.
    """
    return Status.Run if move_result(request) else Status.Break


def move_result(request: Request) -> bool:
    """Move the result to ``data``; False if there is none. The engine has the same in C (``routing.pxi``)."""
    if "result" not in request:
        return False
    request["data"] = request.pop("result")
    return True


def run_if_no_result(request: Request) -> Status:
    """Run if there is no result so far; otherwise skip, and the result stays."""
    return Status.Skip if "result" in request else Status.Run


def end(request: Request) -> Status:
    """End the graph here, without a result: the one that is there is the previous node's."""
    request.pop("result", None)
    return Status.Break


def _constant(status: Status) -> AnyFilter:
    def constant_filter(request: Request) -> Status:
        return status

    return constant_filter


_FILTERS.update(
    {
        "Run": run,
        "run": run,
        "Continue": run,
        "swap": swap,
        "or": run_if_no_result,
        "else": run_if_no_result,
        "Break": end,
        "break": end,
    }
)
for _names, _status in (
    (("Skip", "skip"), Status.Skip),
    (("SerialSkip", "serial_skip"), Status.SerialSkip),
    (("SubGraphSkip", "subgraph_skip"), Status.SubGraphSkip),
    (("Error", "error"), Status.Error),
):
    for _name in _names:
        _FILTERS[_name] = _constant(_status)
