"""What goes into a pipe and comes out of it, in the words of a server's protocol: who declares it, and how.

A backend may say what its requests have (``announced_inputs``, ``announced_outputs``: see ``fastpipe.Backend``), and
the configuration may say it in the table ``serve``. A pipe only keeps it, for servers; nothing of it is checked when a
request runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DATATYPES", "IMAGE_FILE", "NOT_WRITTEN", "Announced", "Interface", "announced_array"]

DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
)
"""All of the Open Inference Protocol, by its names."""


@dataclass(frozen=True)
class Announced:
    """One input or output.

    Args:
        name: by which clients call it.
        datatype: of the Open Inference Protocol: "FP32", "UINT8", "BYTES", ...
        shape: of one request, without an axis for several; -1 is any size.
        key: of the request's dict.
        text: elements of BYTES are ``str`` in the request; what clients send is UTF-8.
        labels: names of the classes, if these are their scores.
        item: where what is under ``key`` is a dict or a list of several, which of them it is.
        sample_axis: on which axis an answer that has one more than ``shape`` has its only sample; None: it has none.
        is_optional: requests may lack it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    key: str
    text: bool = False
    labels: tuple[str, ...] = ()
    item: str | int | None = None
    sample_axis: int | None = 0
    is_optional: bool = False


_DATATYPE_OF = {
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "bool": "BOOL",
    "object": "BYTES",
}


def announced_array(name: str, dtype: str, shape: Sequence[object], key: str) -> Announced | None:
    """Return an input or output that is an array; None: the protocol has no datatype for its dtype.

    Args:
        name: as the model calls it.
        dtype: NumPy's name for it; objects are text.
        shape: of one sample; what is no int there is any size.
        key: of the request's dict.
    """
    datatype = _DATATYPE_OF.get(dtype)
    if datatype is None:
        return None
    sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
    return Announced(name, datatype, sizes, key, text=datatype == "BYTES")


IMAGE_FILE = (Announced("data", "BYTES", (1,), "data"),)
"""What decoders take: the content of a file."""


@dataclass(frozen=True)
class Interface:
    """What a pipe takes and gives, as far as that is known.

    ``inputs`` and ``outputs``: what the configuration says, else what the backends at both ends say; None: nobody says.
    ``max_batch_size``: how many rows a call of a server may have, each of which is one request; 0: calls have no rows;
    None: the configuration does not say.
    """

    inputs: tuple[Announced, ...] | None = None
    outputs: tuple[Announced, ...] | None = None
    max_batch_size: int | None = None


NOT_WRITTEN = Interface()
"""Where the configuration has no table ``serve``."""
