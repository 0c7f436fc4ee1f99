"""ONNX files, what is changed in them, and how ONNX Runtime is told to run them."""
