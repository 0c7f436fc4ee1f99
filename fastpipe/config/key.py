"""A row of the table of keys (``keys.py``): what one key means, and how what is written becomes its value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastpipe.config.values import BadValue, coerce

__all__ = ["Check", "Key"]

Check = Callable[[Any, Mapping[str, Any], int | None], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class Key:
    """One key: what may be written, what it means, and where it goes."""

    name: str
    meaning: str
    """One sentence: in the schema, and what the line of docs/configuration.md begins with."""
    annotation: Any = Any
    """The type and the limits of the value, as of a backend's parameter; of what ``read`` takes, for the schema."""
    default: Any = None
    default_in_words: str | None = None
    """For the documentation; None: ``default`` as it is."""
    unit: str = ""
    """Behind the limits in an error: ``" seconds"``."""
    takes_none: bool = False
    """None means that it is not written."""
    read: Callable[[Any], Any] | None = None
    """Return the value of what is written, or raise BadValue or ConfigError. None: what the annotation says."""
    check: Check | None = None
    """Yield what is wrong with the value (None: it could not be read) beside the other keys and the node's ``max``."""
    form: Mapping[str, Any] | None = None
    """The JSON schema, where the annotation does not say it."""
    field: str | None = None
    """The field of NodeConfig or PipeConfig that has it; None: it is one of the ``settings``."""
    station: str | None = None
    """The setting of the engine's Station that it is; the Station's own default is what None means."""
    is_read_with_backend: bool = False
    """The node reads it together with its backends: ``config/nodes.py``."""
    is_own_of_logical: bool = False
    """A logical node, such as ``rec.2``, has its own."""
    is_passed_on: bool = False
    """A backend's constructor gets what was written, too, if it takes a parameter of that name."""
    is_divided: bool = False
    """``&`` in it separates the values of several backends."""
    is_switched: bool = False
    """``Pipe.swap`` may change it while the pipe serves."""

    def value(self, written: Mapping[str, Any]) -> Any:
        """Return the value, given all that is written.

        Raises:
            BadValue: it is no such value; the message has the limits.
            ConfigError: the same, with more to say.
        """
        if self.name not in written:
            return self.default
        value = written[self.name]
        if value is None and self.takes_none:
            return self.default
        if self.read is not None:
            return self.read(value)
        try:
            return coerce(value, self.annotation)
        except BadValue as problem:
            raise self._with_limits(problem) from None

    def _with_limits(self, problem: BadValue) -> BadValue:
        """Name the limits, and their unit, also where the value is no number at all."""
        if not hasattr(self.annotation, "__metadata__"):
            return problem
        limits = self.annotation.__metadata__[0]
        between = f"between {limits.low} and {limits.high}{self.unit}"
        kind = "" if problem.expected.startswith("between") else f"{problem.expected} "
        return BadValue(f"{kind}{between}", problem.got)
