from collections.abc import Sequence
from typing import Any, ClassVar

from typing_extensions import disjoint_base

def rows_of_cupy(images: Sequence[Any], channels: int, device: int, uint8: Any) -> bytearray | int: ...
def rows_by_dlpack(images: Sequence[Any], channels: int, device: int, device_type: int = 2) -> bytearray | int: ...
def extent_of(rows: Any) -> tuple[int, int, int, int, bool]: ...
def write_first_row(to: int, rows: Any, offset: int) -> None: ...
def write_rows(to: int, rows: Any, start: int, count: int, are_alike: bool) -> None: ...

@disjoint_base
class Driver:
    NAMES: ClassVar[tuple[str, ...]]
    def __init__(self, addresses: Sequence[int], context: int, follows_closely: bool) -> None: ...
    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int],
        shared_bytes: int,
        batch: int,
        stream: int,
        table_to: int,
        table_from: int,
        table_bytes: int,
        event: int,
    ) -> int: ...
