"""Arrays that pass for ordinary ones and are none: whoever read their numbers would lose something, or find none.

NumPy drops the mask of a masked array in silence wherever it makes an array of one. Torch's sparse, quantized, nested
and meta tensors are of the class of all tensors, and fail at the first operator that is not made for them, in words of
its own.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["oddity"]


def oddity(value: Any) -> str:
    """Return what is odd about an array and what makes an ordinary one of it, in words; "" if nothing is.

    Of anything that is no array of NumPy or torch nothing is said. Neither library is imported for this.
    """
    if type(value) is np.ndarray:
        return ""
    if isinstance(value, np.ma.MaskedArray):
        return "a masked array, whose mask would be lost: .filled(value) makes an ordinary array of it"
    torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is None or not isinstance(value, torch.Tensor):
        return ""
    if value.is_nested:
        return "a nested tensor: .to_padded_tensor(padding) makes an ordinary one of it"
    if value.is_quantized:
        return f"a quantized tensor ({_plain_name(value.dtype)}): .dequantize() makes an ordinary one of it"
    layout = _plain_name(value.layout)
    if layout != "strided":
        kind = "a sparse tensor" if layout.startswith("sparse") else "a tensor of another layout"
        return f"{kind} ({layout}): .to_dense() makes an ordinary one of it"
    if value.is_meta:
        return "a tensor on the device 'meta', which has a shape and no numbers: send one on the CPU or a GPU"
    return ""


def _plain_name(dtype_or_layout: Any) -> str:
    return str(dtype_or_layout).removeprefix("torch.").removeprefix("_")
