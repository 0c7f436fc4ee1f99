"""A cheap model first, and a better one where that is not sure: ``python examples/cascade``."""
