from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self, final

@final
class OrtRun:
    def __new__(
        cls, run: Callable[..., list[Any]], outputs: Sequence[str], inputs: Sequence[str], options: Any
    ) -> Self: ...
    def __call__(self, arrays: list[Any]) -> list[Any]: ...

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
        call: Callable[[list[Any]], list[Any]],
        to_rows: Callable[[list[Any]], list[Any]],
        finish: Callable[[list[Any], list[dict[str, Any]]], None] | None,
    ) -> Self: ...
    def key(self, request: dict[str, Any]) -> Hashable | None: ...
    def run(
        self,
        batch: list[dict[str, Any]],
        note: Callable[[Exception, list[Any]], None],
        check: Callable[[list[Any], int], None],
    ) -> bool: ...
