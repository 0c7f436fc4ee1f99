"""What was meant: by a key that nobody takes, and by an attribute of a backend's class that fastpipe does not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from fastpipe.config.keys import NODE_KEYS, PIPE_KEYS
from fastpipe.contract import Backend
from fastpipe.errors import nearest

__all__ = ["hint_of", "misspelt_attributes"]

_TIMEOUTS = (
    "; did you mean 'request_timeout' (seconds that a request may take; it stands beside the nodes) or "
    "'batching_timeout' (milliseconds that a request waits for others)?"
)
_MAX = "; did you mean 'max'?"
_INSTANCES = "; did you mean 'instance_num'?"
_WAIT = "; did you mean 'batching_timeout', in milliseconds?"

_OTHER_WORDS = {
    "timeout": _TIMEOUTS,
    "timeout_s": _TIMEOUTS,
    "timeout_ms": _TIMEOUTS,
    **dict.fromkeys(("batch", "batch_size", "max_batch", "max_batch_size"), _MAX),
    **dict.fromkeys(("instances", "num_instances", "instance_count", "count", "workers", "num_workers"), _INSTANCES),
    **dict.fromkeys(("replicas", "num_replicas"), _INSTANCES),
    **dict.fromkeys(("max_wait_time", "max_wait_ms", "max_latency_ms", "max_batch_delay"), _WAIT),
    **dict.fromkeys(("batch_wait_timeout_s", "max_queue_delay_microseconds"), _WAIT),
    "max_queue_size": "; did you mean 'max_queue'?",
    "max_concurrency": "; did you mean 'max_in_flight'?",
}
"""Words of other servers and libraries for keys of ours, which are too far from them to be seen as misspelt."""


def hint_of(key: str, of_backends: Iterable[str], *, at_node: bool) -> str:
    """Return the end of a sentence that says which key was meant, or an empty string.

    Args:
        key: what nobody takes.
        of_backends: what the backends take, which is nearer than a word of another library.
        at_node: it stands in the table of a node, and not beside the nodes.
    """
    if key in PIPE_KEYS and at_node:
        return "; it is a key of the whole pipe, and stands beside the nodes: in a file, above the first table"
    own = list(of_backends)
    if key in _OTHER_WORDS and not nearest(key, own):
        return _OTHER_WORDS[key]
    return nearest(key, [*NODE_KEYS, *own, *PIPE_KEYS])


_SAME_BUT_A_LETTER = 0.92
"""Of difflib's ratio: ``maxbatch`` is near enough to ``max_batch``; ``max_batches``, which may be its own, is not."""

# Of one word are too many that a class may well have for itself: `buckets`, `weights`, `closed`.
_CONTRACT = tuple(name for name in vars(Backend) if "_" in name.strip("_") and not name.startswith("_"))


def misspelt_attributes(kind: type[Backend]) -> Iterator[str]:
    """Yield a remark for each attribute of a backend's class that is, but for a letter, one of the contract's.

    It would do nothing: the backend would take one request at a time, say, and nobody would know why.
    """
    of_the_user = [each for each in kind.__mro__ if each.__module__.partition(".")[0] != "fastpipe"]
    written = {name for each in of_the_user for name in vars(each)}
    for name in sorted(written - set(dir(Backend))):
        if name.startswith("_") or name.isupper():
            continue
        close = difflib.get_close_matches(name.lower(), _CONTRACT, n=1, cutoff=_SAME_BUT_A_LETTER)
        if close and getattr(kind, close[0]) is getattr(Backend, close[0]):
            yield f"fastpipe does not know {kind.__name__}.{name}; did you mean {close[0]!r}?"
