"""The signature of a served pipe: what its configuration says, else what its backends say, else "anything"."""

from __future__ import annotations

from fastpipe.announcing import Announced
from fastpipe.pipe import Pipe
from fastpipe.serve.signature import ANY_INPUT, ANY_OUTPUT, Signature, TensorSpec
from fastpipe.serve.tensors import dtype_of

__all__ = ["MOST_ROWS", "signature_of"]

MOST_ROWS = 128
"""Of a call, where the inputs are known and nobody says how many."""


def signature_of(pipe: Pipe) -> Signature:
    """Return what a server announces of a pipe; see ``Pipe.interface``.

    Without a word of the configuration, calls have rows where the inputs are known: it is clear then what one is.
    """
    interface = pipe.interface
    inputs, outputs = interface.inputs, interface.outputs
    most = interface.max_batch_size
    if most is None:
        most = 0 if inputs is None else MOST_ROWS
    return Signature(
        (ANY_INPUT,) if inputs is None else tuple(map(_spec, inputs)),
        (ANY_OUTPUT,) if outputs is None else tuple(map(_spec, outputs)),
        most,
    )


def _spec(announced: Announced) -> TensorSpec:
    if announced.datatype != "BYTES":
        dtype_of(announced.datatype)  # says what is wrong with it, or missing for it
    return TensorSpec(
        announced.name,
        announced.datatype,
        announced.shape,
        announced.key,
        announced.text,
        announced.labels,
        announced.item,
        announced.sample_axis,
        announced.is_optional,
    )
