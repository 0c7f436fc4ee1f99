"""The backends that ship with fastpipe. The registry imports a module of this package when a configuration names it.

Its rooms, by what they do to data; each uses only those below it:

    model/      neural networks: requests read and checked, models loaded, run in batches, and what is made of outputs
    tensor/     images as torch tensors: decoding, size, color, normalisation, the way between devices
    image/      the same for NumPy's arrays on the CPU
    gpu/        on which GPU an instance is, its CUDA stream, and forms of data that stay on it
    flow/       which backend a request meets, and with whom: Sequential, conditions, composed batches, graphs in nodes
    basic       plumbing: keys, files, logging, and help in tests
    box         the names of backends, where each is, and which extra it needs
    odd_arrays, ranges    what passes for an array and is none; which sizes and numbers are taken

They have no privileges: what they use of fastpipe is public, and a backend of yours may do all that they do.
"""

if __name__ != "fastpipe.backends":
    raise ImportError("import fastpipe.backends; the repository root is on sys.path")
