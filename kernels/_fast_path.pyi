from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self, final

@final
class FastPath:
    def __new__(
        cls,
        *,
        fits: dict[Any, Any],
        names: Sequence[str],
        initial: dict[str, Any],
        input_axes: Sequence[int | None],
        output_axes: Sequence[int | None],
        runs_alone: bool,
        has_rows: bool,
        to_rows: Callable[[list[Any]], list[Any]],
        finish: Callable[[list[Any], list[dict[str, Any]]], None] | None,
    ) -> Self: ...
    def key(self, request: dict[str, Any]) -> Hashable | None: ...
    def run(
        self,
        batch: list[dict[str, Any]],
        call: Callable[[list[Any]], list[Any]],
        check: Callable[[list[Any], int], None],
    ) -> bool: ...
