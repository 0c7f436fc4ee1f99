"""Array kernels, usable without the engine: the same operations for each kind of array, in a module of its own.

``fastpipe.kernels.reference`` is plain NumPy, slow and obvious, and the judge in tests; ``fastpipe.kernels.cpu`` is
compiled. Both have ``convert_color`` and ``normalize``, with the same arguments and the same bits as results.
``fastpipe.kernels.cuda`` is for arrays on an NVIDIA GPU. Importing any of them loads nothing but NumPy.
"""

if __name__ != "fastpipe.kernels":
    raise ImportError("import fastpipe.kernels; the repository root is on sys.path")
