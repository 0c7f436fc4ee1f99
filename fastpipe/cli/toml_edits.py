"""Other values in a TOML file, with comments and layout as they were, by tomlkit (extra ``tune``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastpipe.config.nodes import ONE_NODE_NAME
from fastpipe.config.reading import BYTE_ORDER_MARK
from fastpipe.errors import MissingExtra

try:
    import tomlkit
except ImportError as error:
    raise MissingExtra("fastpipe tune", "tune", error) from error

__all__ = ["with_values"]


def with_values(source: bytes, values: Mapping[tuple[str, str], Any]) -> bytes:
    """Return the text of a configuration with other values.

    Args:
        source: the file.
        values: by node and key. A key that a node has not is put behind its last one; what stands beside the tables is
            not changed, since it is also other nodes'.
    """
    document = tomlkit.parse(source.removeprefix(BYTE_ORDER_MARK).decode())
    for (node, key), value in values.items():
        table: Any = document if node == ONE_NODE_NAME and node not in document else document[node]
        table[key] = value
    text = tomlkit.dumps(document).encode()
    if b"\r\n" in source:  # tomlkit ends its own lines otherwise
        text = re.sub(rb"(?<!\r)\n", b"\r\n", text)
    return (BYTE_ORDER_MARK if source.startswith(BYTE_ORDER_MARK) else b"") + text
