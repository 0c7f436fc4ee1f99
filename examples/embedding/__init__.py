"""Which text means nearly the same? Found by a language model: ``python examples/embedding``."""
