"""Models before they serve: exported from torch to ONNX, quantized, and compared on real data.

``fastpipe export``, ``fastpipe quantize`` and ``fastpipe compare`` are these functions on the command line.
"""
