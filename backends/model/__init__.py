"""Models: ONNX Runtime, OpenVINO, torch, TensorRT, and what proves that a row in a batch is a request's own.

``heads/`` has what is made of outputs, ``onnx_runtime/`` what runs ONNX files.
"""
