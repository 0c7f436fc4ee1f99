"""Nodes whose work is another graph, or another node: Jump, MapReduce and Proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastpipe.contract import Request, SubGraph
from fastpipe.errors import ConfigError, keys_in_brief

__all__ = ["Jump", "MapReduce", "Proxy"]


class Jump(SubGraph):
    """The node's work is another graph: it gets the request without ``context``, and its answer is ours.

    Args:
        jump: the root of that graph; requests of all callers meet there in the same batches.
    """

    def split(self, request: Request) -> list[Request]:
        part = dict(request)
        part.pop("context", None)
        part.pop("node_name", None)
        part.pop("restart", None)  # meant for when the whole has ended
        return [part]

    def merge(self, request: Request, answers: Sequence[Any]) -> None:
        (answer,) = answers
        request.update(answer)
        if "result" not in answer:
            request.pop("result", None)


class Proxy(SubGraph):
    """One run of another node's backend: of its own instances, in its queue, in batches with the node's other requests.

    The request goes there as it is, with ``context``, and comes back as the backend leaves it. The other node's
    ``filter``, ``map`` and ``next`` are not looked at.

    Args:
        proxy: the node's name. It has instances of its own: it is no Jump, MapReduce or Proxy.
    """

    runs_there = True

    def __init__(self, *, proxy: str) -> None:
        super().__init__(jump=proxy)

    @classmethod
    def entry_node(cls, parameters: Mapping[str, Any]) -> Any:
        return parameters.get("proxy")

    def split(self, request: Request) -> list[Request]:
        part = dict(request)
        part.pop("restart", None)  # it is for the graph in which this stands, not for the part
        return [part]

    def merge(self, request: Request, answers: Sequence[Any]) -> None:
        (answer,) = answers
        kept = {"restart": request["restart"]} if "restart" in request else {}
        request.clear()
        request.update(answer, **kept)


class MapReduce(SubGraph):
    """Run the graph at ``jump`` for each element of a list, and gather the answers.

    Args:
        jump: the root of the graph to run; requests of all callers meet there in the same batches.
        split: the key of the list, default ``data``; several keys (comma or list) are split in step; empty: the list
            under ``data`` holds dicts, which are the parts. An array is a list of what is along its first axis.
        share: keys of the request that every part gets, the same object, not a copy: the image whose boxes are split.
            Without it, a part has no more than what is split. What is shared has to be there.
        merge: the keys of the parts' answers that are gathered into lists, in order; default ``result``.
        on_error: a failing part fails the request (``fail``), is left out (``skip``), or gives None (``none``).
    """

    def __init__(
        self,
        *,
        jump: str,
        split: list[str] | None = None,
        share: list[str] | None = None,
        merge: list[str] | None = None,
        on_error: Literal["fail", "skip", "none"] = "fail",
    ) -> None:
        super().__init__(jump=jump)
        self.split_keys = ["data"] if split is None else [key for key in split if key]
        self.share_keys = [key for key in share or () if key]
        self.merge_keys = ["result"] if merge is None else [key for key in merge if key]
        self.on_error = on_error
        self.keeps_failures = on_error != "fail"
        own_keys = self.split_keys or ["data"]
        problems = [
            f"MapReduce: share cannot have {key!r}, which is split" for key in self.share_keys if key in own_keys
        ]
        problems += [
            f"MapReduce: share cannot have {key!r}: each part has its own"
            for key in self.share_keys
            if key in ("result", "context", "node_name", *self.ignored_keys)
        ]
        if problems:
            raise ConfigError(*problems)

    def split(self, request: Request) -> list[Request]:
        shared = self._shared(request)
        if not self.split_keys:
            return [{**shared, **self._as_part(*each)} for each in enumerate(self._elements(request, "data"))]
        columns = [self._elements(request, key) for key in self.split_keys]
        lengths = {key: len(column) for key, column in zip(self.split_keys, columns, strict=True)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"MapReduce splits keys in step, and their lengths differ: {lengths}")
        rows = zip(*columns, strict=True)
        if "data" in self.split_keys or "data" in shared:
            return [{**shared, **dict(zip(self.split_keys, row, strict=True))} for row in rows]
        return [{"data": row[0], **shared, **dict(zip(self.split_keys, row, strict=True))} for row in rows]

    def merge(self, request: Request, answers: Sequence[Any]) -> None:
        if self.on_error == "skip":
            answers = [answer for answer in answers if not isinstance(answer, BaseException)]
        for key in self.merge_keys:
            gathered: list[Any] = []
            for answer in answers:
                if isinstance(answer, BaseException):
                    gathered.append(None)
                elif key in answer:
                    gathered.append(answer[key])
                elif self.on_error == "none":
                    gathered.append(None)
                else:
                    from fastpipe.summaries import summarize  # here: import fastpipe does without it

                    keys = summarize(sorted(map(str, answer)))
                    raise KeyError(f"MapReduce gathers {key!r}, and a part's answer has only {keys}")
            request[key] = gathered

    def _elements(self, request: Request, key: str) -> Sequence[Any]:
        elements: Any = request.get(key)
        if isinstance(elements, list | tuple):
            return elements
        if hasattr(elements, "__dlpack__") and len(getattr(elements, "shape", ())) > 0:  # an array of any library
            return list(elements)
        raise TypeError(f"MapReduce splits the list under {key!r}; it is {type(elements).__name__}")

    def _shared(self, request: Request) -> Request:
        missing = [key for key in self.share_keys if key not in request]
        if missing:
            raise KeyError(
                f"MapReduce shares {', '.join(map(repr, missing))}, and the request has {keys_in_brief(request)}"
            )
        return {key: request[key] for key in self.share_keys}

    def _as_part(self, index: int, element: Any) -> Request:
        """Take a dict as the engine takes a caller's: it may be one, and must not steer, nor bring its own answer."""
        if not isinstance(element, dict):
            kind = type(element).__name__
            raise TypeError(f"MapReduce without split keys takes a list of dicts; element {index} is {kind}")
        return {key: value for key, value in element.items() if key != "result" and key not in self.ignored_keys}
