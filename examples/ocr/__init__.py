"""The demo: text is read from pages by three models in one pipe. Run it with ``python examples/ocr``."""

__all__ = ["DemoError"]


class DemoError(Exception):
    """What the person who started the demo has to know, in one line."""
