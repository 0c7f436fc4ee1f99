"""Models: OnnxTensor, TorchTensor, TensorrtTensor, and what proves that a row in a batch is a request's own."""
