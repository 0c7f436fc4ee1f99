"""The mistakes of a description, collected while it is read, so that all of them are said at once."""

from __future__ import annotations

from fastpipe.config.values import BadValue
from fastpipe.errors import AT_KEY, ConfigError, MissingExtra, Mistake, Part

__all__ = ["NO_BACKEND", "Problems", "shown_part"]

NO_BACKEND = "it has no backend"
"""What is wrong with a node that may be wired all the same."""


class Problems:
    """The mistakes found so far, each once, in the order they were found."""

    def __init__(self) -> None:
        self.mistakes: dict[Mistake, None] = {}  # a dict for its order and for leaving out repetitions
        self.missing_extras: dict[Mistake, MissingExtra] = {}

    def note(self, mistake: Mistake) -> None:
        """Note a mistake that has been made elsewhere."""
        self.mistakes.setdefault(mistake)

    def add(self, node: str, key: str | None, text: str, part: Part = None) -> None:
        """Note what is wrong with a node, or with one of its keys; see :class:`fastpipe.errors.Mistake`."""
        self.note(Mistake(text, node, key, part))

    def add_bad(self, node: str, key: str, problem: BadValue) -> None:
        """Note a value that does not fit."""
        self.add(node, key, str(problem), shown_part(problem))

    def add_general(self, where: str, text: str, key: str | None = None, part: Part = AT_KEY) -> None:
        """Note what is not one node's; ``where`` is ``"configuration"`` or ``"defaults"``."""
        self.note(Mistake(text, None, key, part, sentence=f"{where}: {Mistake(text, None, key, part)}"))

    def add_error(
        self, node: str, key: str, error: ConfigError | MissingExtra, part: str | None = None, *, says_key: bool = True
    ) -> None:
        """Note what an error says.

        Args:
            node: whose key it is.
            key: the key that the error is about.
            error: each of its mistakes is noted, with the part of the value that it tells.
            part: of the value, where the mistake tells none.
            says_key: False: the sentence does without the key.
        """
        if isinstance(error, MissingExtra):
            mistake = Mistake(str(error), node, key)
            self.missing_extras[mistake] = error
            self.note(mistake)
            return
        shown_key = f"{key}: " if says_key else ""
        for problem in error.problems:
            at = part if problem.part is None else problem.part
            sentence = f"node {node!r}: {shown_key}{problem}"
            self.note(Mistake(problem.text, node, problem.key or key, at, sentence=sentence))

    def raise_if_any(self) -> None:
        """Raise ConfigError with everything noted; where only libraries are missing, the first MissingExtra."""
        if not self.mistakes:
            return
        first_missing = next(iter(self.missing_extras.values()), None)
        if first_missing is not None and self.mistakes.keys() == self.missing_extras.keys():
            raise first_missing
        raise ConfigError(*self.mistakes) from first_missing


def shown_part(problem: BadValue) -> str | None:
    """Return the part of a value that a problem shows: text without its quotes."""
    return problem.got if isinstance(problem.got, str) and problem.got else None
