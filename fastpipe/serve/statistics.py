"""What a served model has counted, in the form of Triton's statistics extension.

The counts of calls are the server's own; those of batches, and the times in queues and backends, are the pipe's
``stats()``, read when somebody asks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastpipe.measures import Stats

if TYPE_CHECKING:
    from fastpipe.pipe import Pipe

__all__ = ["Statistics"]

NS = 1_000_000_000


class Statistics:
    """Counts of one model. Written on the event loop's thread only; read from any."""

    __slots__ = ("cancelled", "failed", "failed_ns", "last_ms", "rows", "succeeded", "succeeded_ns")

    def __init__(self) -> None:
        self.rows = 0
        """Requests of the pipe that were answered."""
        self.succeeded = 0
        self.succeeded_ns = 0
        self.failed = 0
        self.failed_ns = 0
        self.cancelled = 0
        """Calls whose client left."""
        self.last_ms = 0

    def answered(self, rows: int, elapsed_ns: int) -> None:
        """Count a call that was answered."""
        self.rows += rows
        self.succeeded += 1
        self.succeeded_ns += elapsed_ns
        self.last_ms = time.time_ns() // 1_000_000

    def failed_after(self, elapsed_ns: int) -> None:
        """Count a call that has failed."""
        self.failed += 1
        self.failed_ns += elapsed_ns

    def document(self, name: str, version: str, pipe: Pipe | None) -> dict[str, Any]:
        """Return one element of ``model_stats``."""
        stats = None if pipe is None else pipe.stats()
        queue, run, batches = _of_pipe(stats)
        hits, misses = _of_caches(stats)
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": sum(batch["compute_infer"]["count"] for batch in batches),
            "inference_stats": {
                "success": {"count": self.succeeded, "ns": self.succeeded_ns},
                "fail": {"count": self.failed, "ns": self.failed_ns},
                "queue": queue,
                "compute_input": {"count": run["count"], "ns": 0},
                "compute_infer": run,
                "compute_output": {"count": run["count"], "ns": 0},
                "cache_hit": {"count": hits, "ns": 0},
                "cache_miss": {"count": misses, "ns": 0},
            },
            "batch_stats": batches,
            "memory_usage": [],
        }


def _of_caches(stats: Stats | None) -> tuple[int, int]:
    """Return how many requests nodes have answered from what they keep, and how many came to it and ran, over nodes.

    One that waited for an equal one is a hit, since nothing ran for it. How long the looks took is not measured.
    """
    caches = [node["cache"] for node in (() if stats is None else stats["nodes"].values()) if "cache" in node]
    return sum(cache["hits"] + cache["coalesced"] for cache in caches), sum(cache["misses"] for cache in caches)


def _of_pipe(stats: Stats | None) -> tuple[dict[str, int], dict[str, int], list[dict[str, Any]]]:
    """Return the times in queues and in backends, summed over nodes, and the batches by their size.

    Sizes are the upper edges of the engine's buckets: exact for small ones.
    """
    queue, run = {"count": 0, "ns": 0}, {"count": 0, "ns": 0}
    sizes: dict[int, dict[str, int]] = {}
    for node in () if stats is None else stats["nodes"].values():
        for into, measured in ((queue, node["queue_s"]), (run, node["run_s"])):
            into["count"] += measured["count"]
            into["ns"] += round(measured["sum"] * NS)
        batch_count = max(node["batch_sizes"]["count"], 1)
        for edge, count in node["batch_sizes"]["buckets"].items():
            size = sizes.setdefault(round(edge), {"count": 0, "ns": 0})
            size["count"] += count
            size["ns"] += round(node["run_s"]["sum"] * NS * count / batch_count)
    batches = [
        {
            "batch_size": size,
            "compute_input": {"count": of_size["count"], "ns": 0},
            "compute_infer": of_size,
            "compute_output": {"count": of_size["count"], "ns": 0},
        }
        for size, of_size in sorted(sizes.items())
    ]
    return queue, run, batches
