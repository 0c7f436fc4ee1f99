"""What is in the box: the names of its backends, where each is, what it needs, and which open files.

fastpipe's registry looks this table up by its own name; nobody else imports it. A backend that is added gets its line
here, and is imported when a configuration first names it.
"""

from __future__ import annotations

__all__ = ["BUILT_IN", "COMPOSER", "EXTRAS", "NEEDS_TRUST"]

# Module of the box -> its names; a name differs from its class only where "Name=Class" says so.
_MODULES = {
    "basic": "Identity PyIdentity=Identity Pow Sleep Add Copy cp=Copy Move mv=Move Remove Del=Remove rm=Remove "
    "ThrowIfNoResult RuntimeError=RaiseRuntimeError Logger ReadFile",
    "flow.catsplit": "CatSplit Concatenate SplitRows",
    "flow.composites": "Range",
    "flow.conditions": "HasKey NotHasKey Random",
    "flow.sequential": "Sequential S=Sequential SequentialV0=Sequential S_v0=Sequential",
    "flow.graphs": "Jump MapReduce Proxy",
    "image.codec": "DecodeMat SaveMat",
    "image.color": "CvtColorMat NormalizeMat",
    "image.evaluation": "ResizeShorterMat CenterCropMat",
    "image.geometry": "ResizeMat PillowResizeMat ResizePadMat TopLeftResizeMat=ResizePadMat LetterBoxMat "
    "ResizeCenterPadMat=LetterBoxMat DynamicResizeMat AlignMat CropMat CropResizeMat PerspectiveTransformMat",
    "model.onnx": "OnnxTensor",
    "model.openvino": "OpenvinoTensor",
    "gpu.synchronization": "SyncTensor StreamGuard=SyncTensor TensorSync=SyncTensor Torch",
    "tensor.convert": "Mat2Tensor Mat2CpuTensor Mat2GpuTensor Tensor2Mat Tensor2Vector",
    "tensor.decode": "DecodeTensor",
    "tensor.color": "CvtColorTensor",
    "tensor.geometry": "ResizeTensor PillowResizeTensor ResizePadTensor CropTensor CopyMakeBorderTensor "
    "WarpAffineTensor",
    "tensor.moves": "GpuTensor CpuTensor SaveTensor LoadTensor",
    "tensor.preprocess": "ResizeNormalizeTensor",
    "model.tensorrt": "TensorrtTensor",
    "model.torch": "TorchTensor",
}

# What to install where a module of the box cannot be imported for want of an optional library.
EXTRAS = {
    **dict.fromkeys(("image.codec", "image.color", "image.evaluation", "image.geometry", "model.onnx"), "cpu"),
    **dict.fromkeys(("tensor.color", "tensor.convert", "tensor.decode", "tensor.geometry"), "torch"),
    **dict.fromkeys(("tensor.moves", "tensor.preprocess"), "torch"),
    "model.openvino": "openvino",
    "model.torch": "torch",
    "model.tensorrt": "tensorrt",
}


# Of the box, what reads or writes files, or runs code, that its parameters or a request name. All else only computes.
NEEDS_TRUST = frozenset(
    ("readfile", "savemat", "savetensor", "loadtensor", "onnxtensor", "openvinotensor", "tensorrttensor", "torchtensor")
)


def _read() -> dict[str, tuple[str, str, str]]:
    table = {}
    for module, entries in _MODULES.items():
        for entry in entries.split():
            name, _, class_name = entry.partition("=")
            table[name.lower()] = (name, module, class_name or name)
    return table


BUILT_IN = _read()
"""Folded name -> the name as it is written, its module and its class."""

COMPOSER = ("'&'", "flow.composites", "Composite")
"""What an instance of a node is whose keys have ``&``, in the same form; no configuration names it."""
