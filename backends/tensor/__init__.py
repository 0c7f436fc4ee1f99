"""Images and rows as torch tensors, on the CPU or a GPU."""
