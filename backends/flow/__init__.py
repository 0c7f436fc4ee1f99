"""Backends that run other backends: in sequence, on a condition, as alternatives, on rows, and as sub-graphs."""
