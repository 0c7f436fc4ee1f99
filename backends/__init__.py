"""The backends that ship with fastpipe. The registry imports a module of this package when a configuration names it.

    box         the names of backends, where each is, and which extra it needs
    basic       plumbing: copy, move and log keys, read a file, sleep
    flow        backends that run other backends: Sequential, Jump, MapReduce, Proxy, Range, HasKey, CatSplit
    image       images as NumPy arrays on the CPU: decode, resize, crop, normalize, write
    tensor      images and rows as torch tensors, on the CPU or a GPU; JPEGs decoded on a GPU
    gpu         which GPU, which stream, and when the work queued there is done
    model       OnnxTensor, TorchTensor, TensorrtTensor, and the proof that a row of a batch belongs to its request

Each is an ordinary :class:`fastpipe.Backend`, without rights that a user's backend has not.
"""

if __name__ != "fastpipe.backends":
    raise ImportError("import fastpipe.backends; the repository root is on sys.path")
