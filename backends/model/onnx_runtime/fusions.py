"""What ONNX Runtime leaves apart of an ONNX graph, although one operator could do it: put together here, in advance.

Exporters write a hard swish as four operators, and Paddle's put a scalar factor and a scalar offset behind each
convolution and each activation. ONNX Runtime 1.32 merges neither: it makes a pass over memory of each, and unpacks its
blocked layout for it. In PP-OCR's recogniser that took two fifths of the time.

    x -> Conv -> * s -> + b                             x -> Conv (weights * s, bias * s + b)
    x -> + 3 -> Clip 0..6 -> * x -> / 6                 x -> HardSigmoid -> * x, which it merges into a convolution
    x -> * s -> + b -> Conv                             x -> + b/s -> Conv (weights * s); without padding x -> Conv

Values change by the rounding of float32 alone. Only what is certain is touched: scalars that are constants, float32,
and values in between that nobody else reads, in the graph itself (not in the bodies of loops and branches).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

__all__ = ["fuse"]

Floats = npt.NDArray[np.float32]

# x * clip(x + SHIFT, 0, TOP) / TOP is a hard swish; without the factor x it is a hard sigmoid.
SHIFT, TOP = 3.0, 6.0
FIRST_WITH_DEFAULTS = 4  # version of the format
# Operators whose output has axes, whatever the shapes are called.
MAKERS_OF_AXES = frozenset({"Conv", "BatchNormalization", "GlobalAveragePool", "AveragePool", "MaxPool", "Gemm"})


def fuse(model: onnx.ModelProto) -> None:
    """Put operators of a model together, in place; what is not understood stays as it is."""
    graph = _Graph(model)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite any more is left as it was
        _merge_scalars_into_convolutions_before(graph)
        _merge_hard_swishes(graph)
        _merge_scalars_into_convolutions_behind(graph)
    graph.write()


class _Graph:
    """A graph that is being changed: who reads a value, what is constant, and which nodes are left."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self._graph = graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        # An initializer among them may be another one at a run; before version 4 of the format all are among them, and
        # are constants.
        self._given = {value.name for value in graph.input} if model.ir_version >= FIRST_WITH_DEFAULTS else set()
        self._with_axes = {
            value.name for value in (*graph.input, *graph.value_info) if value.type.tensor_type.shape.dim
        }
        self._with_axes.update(node.output[0] for node in self.nodes if node.op_type in MAKERS_OF_AXES)
        self._constants: dict[str, Any] = {each.name: each for each in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and not node.domain:
                self._constants.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
        self._to_array = numpy_helper.to_array
        # How often anybody reads a value, in a body of a loop or branch, too, or as an output of the graph.
        self._reads = Counter(value.name for value in graph.output)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._removed: set[int] = set()  # ids of nodes; self.nodes keeps them alive
        for node in self.nodes:
            self._reads.update(_names_read(node))
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def each(self, *kinds: str) -> list[onnx.NodeProto]:
        """Return the nodes of these kinds that are left."""
        return [node for node in self.nodes if node.op_type in kinds and not node.domain and self._is_left(node)]

    def _is_left(self, node: onnx.NodeProto) -> bool:
        return id(node) not in self._removed

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value, each once for each time; none, if somebody else does, too."""
        found = [node for node in self._readers.get(name, []) if self._is_left(node)]
        times = [node for node in found for each in node.input if each == name]
        return times if len(times) == self._reads[name] else []

    def only_reader(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """Return the node of one of these kinds that alone reads a value, once; None: there is none such."""
        readers = self.readers(name)
        if len(readers) != 1 or readers[0].op_type not in kinds or readers[0].domain:
            return None
        return readers[0]

    def constant(self, name: str) -> Floats | None:
        """Return a value that is float32 and always the same; None: it is not."""
        from onnx import TensorProto

        tensor = self._constants.get(name)
        if name in self._given or tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        array: Floats = self._to_array(tensor)
        return array

    def scalar(self, name: str) -> float | None:
        """Return the number that a value always is."""
        array = self.constant(name)
        return None if array is None or array.size != 1 or array.ndim > 1 else float(array.reshape(()))

    def has_axes(self, name: str) -> bool:
        """Return whether a value certainly has an axis: then a number in a list of one leaves its shape alone."""
        return name in self._with_axes

    def is_in_list(self, name: str) -> bool:
        """Return whether a constant number is in a list of one, and not alone."""
        array = self.constant(name)
        return array is not None and array.ndim == 1

    def scalar_and_rest(self, node: onnx.NodeProto) -> tuple[float, str] | None:
        """Return the number that is one operand of a node, and the name of the other operand."""
        for own, other in ((0, 1), (1, 0)):
            number = self.scalar(node.input[own])
            if number is not None:
                return number, node.input[other]
        return None

    def remove(self, node: onnx.NodeProto) -> None:
        """Take a node out; who reads its output has to be given another input."""
        self._removed.add(id(node))
        self._reads.subtract(_names_read(node))

    def set_input(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Have a node read another value."""
        self._reads[node.input[index]] -= 1
        self._reads[name] += 1
        node.input[index] = name
        readers = self._readers.setdefault(name, [])
        if not any(reader is node for reader in readers):
            readers.append(node)

    def drop_input(self, node: onnx.NodeProto, index: int) -> None:
        """Have a node read one value less."""
        self._reads[node.input[index]] -= 1
        del node.input[index]

    def set_constant(self, node: onnx.NodeProto, index: int, array: Any) -> None:
        """Have a node read a constant of its own as an input that it has, or its next one."""
        from onnx import numpy_helper

        name = f"{node.output[0]}::fused::{index}"
        while name in self._constants or name in self._readers:
            name += "'"
        tensor = numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
        self._constants[name] = tensor
        self._graph.initializer.append(tensor)
        if index == len(node.input):
            node.input.append("")
        self.set_input(node, index, name)

    def take_output(self, node: onnx.NodeProto, of: onnx.NodeProto) -> None:
        """Have a node make what another made, which is taken out."""
        self.remove(of)
        node.output[0] = of.output[0]

    def write(self) -> None:
        """Write what is left of the nodes and constants to the graph."""
        left = [node for node in self.nodes if self._is_left(node)]
        used = {name for name, count in self._reads.items() if count > 0} | self._given
        kept = [node for node in left if node.op_type != "Constant" or node.output[0] in used]
        constants = [each for each in self._graph.initializer if each.name in used]
        del self._graph.node[:]
        self._graph.node.extend(kept)
        del self._graph.initializer[:]
        self._graph.initializer.extend(constants)


def _names_read(node: onnx.NodeProto) -> list[str]:
    """Return the names that a node reads, those in its bodies too, each as often as it does."""
    names = list(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            names += [value.name for value in body.output]
            for inner in body.node:
                names += _names_read(inner)
    return names


# ---- a scalar behind a convolution -----------------------------------------------------------------------------------


def _merge_scalars_into_convolutions_before(graph: _Graph) -> None:
    for convolution in graph.each("Conv"):
        weights = graph.constant(convolution.input[1])
        bias = _bias(graph, convolution, weights)
        if weights is None or bias is None:
            continue
        while (node := graph.only_reader(convolution.output[0], "Mul", "Add")) is not None:
            operands = graph.scalar_and_rest(node)
            if operands is None:
                break
            number = np.float32(operands[0])
            factor, offset = (number, np.float32(0)) if node.op_type == "Mul" else (np.float32(1), number)
            if not _are_finite(weights * factor, bias * factor + offset):
                break
            weights, bias = weights * factor, bias * factor + offset
            graph.take_output(convolution, node)
            graph.set_constant(convolution, 1, weights)
            graph.set_constant(convolution, 2, bias)


def _bias(graph: _Graph, convolution: onnx.NodeProto, weights: Floats | None) -> Floats | None:
    """Return a convolution's bias, zeros if it has none; None: it is no constant."""
    if len(convolution.input) > 2 and convolution.input[2]:
        return graph.constant(convolution.input[2])
    return None if weights is None else np.zeros(weights.shape[0], np.float32)


def _are_finite(*arrays: Any) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


# ---- an activation in four operators ---------------------------------------------------------------------------------


def _merge_hard_swishes(graph: _Graph) -> None:
    from onnx import helper

    for shift in graph.each("Add"):
        operands = graph.scalar_and_rest(shift)
        clip = graph.only_reader(shift.output[0], "Clip")
        if operands is None or operands[0] != SHIFT or clip is None or _limits(graph, clip) != (0.0, TOP):
            continue
        source = operands[1]
        following = graph.only_reader(clip.output[0], "Mul", "Div")
        if following is None:
            continue
        product = following if following.op_type == "Mul" and source in following.input else None
        quotient = following if product is None else graph.only_reader(product.output[0], "Mul", "Div")
        if quotient is None or not _divides_by_top(graph, quotient):
            continue
        names = [*shift.input, *clip.input[1:], *quotient.input]
        if any(graph.is_in_list(name) for name in names) and not graph.has_axes(source):
            continue
        graph.remove(clip)
        if product is None:
            graph.take_output(shift, quotient)
        else:
            graph.take_output(product, quotient)
            graph.set_input(product, [*product.input].index(clip.output[0]), shift.output[0])
        graph.drop_input(shift, 1 - [*shift.input].index(source))
        shift.op_type = "HardSigmoid"
        shift.attribute.extend([helper.make_attribute("alpha", 1 / TOP), helper.make_attribute("beta", SHIFT / TOP)])


def _limits(graph: _Graph, clip: onnx.NodeProto) -> tuple[float | None, float | None]:
    """Return the least and the greatest that a Clip lets through; None: that is no constant."""
    if clip.attribute:  # before version 11 of the operators
        given = {attribute.name: attribute.f for attribute in clip.attribute}
        return given.get("min"), given.get("max")
    if len(clip.input) != 3:
        return None, None
    return graph.scalar(clip.input[1]), graph.scalar(clip.input[2])


def _divides_by_top(graph: _Graph, node: onnx.NodeProto) -> bool:
    if node.op_type == "Div":
        return graph.scalar(node.input[1]) == TOP
    operands = graph.scalar_and_rest(node)
    return operands is not None and np.float32(operands[0]) == np.float32(1 / TOP)


# ---- a scalar in front of convolutions -------------------------------------------------------------------------------


def _merge_scalars_into_convolutions_behind(graph: _Graph) -> None:
    for first in graph.each("Mul"):
        operands = graph.scalar_and_rest(first)
        if operands is None or operands[0] == 0:
            continue
        factor, source = operands
        offset, last = 0.0, first
        addition = graph.only_reader(first.output[0], "Add")
        if addition is not None and (added := graph.scalar_and_rest(addition)) is not None:
            offset, last = added[0], addition
        convolutions = graph.readers(last.output[0])
        merged = [_merged(graph, node, last.output[0], factor, offset) for node in convolutions]
        if not merged or not _are_finite(np.float32(offset / factor)) or any(each is None for each in merged):
            continue
        pads = offset != 0 and any(_pads(node) for node in convolutions)
        for node, changed in zip(convolutions, merged, strict=True):
            if changed is None:
                continue
            weights, bias = changed
            graph.set_constant(node, 1, weights)
            if offset != 0 and not pads:
                graph.set_constant(node, 2, bias)
        if pads:  # what is padded with zeros has no offset, so that no bias can stand for it
            constant = next(index for index, name in enumerate(last.input) if name != first.output[0])
            graph.set_constant(last, constant, np.float32(offset / factor))
            graph.set_input(last, 1 - constant, source)
            graph.remove(first)
            continue
        for node in convolutions:
            graph.set_input(node, 0, source)
        for node in {id(each): each for each in (first, last)}.values():
            graph.remove(node)


def _merged(
    graph: _Graph, node: onnx.NodeProto, name: str, factor: float, offset: float
) -> tuple[Floats, Floats] | None:
    """Return weights and bias of a convolution to which a value comes without factor and offset; None: it is none."""
    if node.op_type != "Conv" or node.domain or node.input[0] != name:
        return None
    weights = graph.constant(node.input[1])
    bias = _bias(graph, node, weights)
    if weights is None or bias is None:
        return None
    sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.float64)
    merged = weights * np.float32(factor), (bias + offset * sums).astype(np.float32)
    return merged if _are_finite(*merged) else None


def _pads(convolution: onnx.NodeProto) -> bool:
    for attribute in convolution.attribute:
        if attribute.name == "pads" and any(attribute.ints):
            return True
        if attribute.name == "auto_pad" and attribute.s not in (b"NOTSET", b"VALID"):
            return True
    return False
