"""Find the codes in a picture by a detector, cut each out and read it, in one graph: ``python examples/codes``."""
