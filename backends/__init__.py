"""The backends that ship with fastpipe. The registry imports a module of this package when a configuration names it."""

if __name__ != "fastpipe.backends":
    raise ImportError("import fastpipe.backends; the repository root is on sys.path")
