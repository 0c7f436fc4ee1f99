"""Who else used the CPUs while something was measured: then the figures say as much about that."""

from __future__ import annotations

import os
import time

__all__ = ["Neighbours", "disturbance"]

# So much of the CPUs in other hands, and the figures say more about these than about what is compared.
DISTURBED = 0.1


def disturbance(share: float | None) -> str:
    """Return what is said in front of a comparison, if others had too much of the CPUs; otherwise nothing.

    Args:
        share: as ``Neighbours.share`` returns it.
    """
    if share is None or share <= DISTURBED:
        return ""
    return f"Disturbed: other programs had {100 * share:.0f} % of the CPUs meanwhile, so another run may say otherwise."


class Neighbours:
    """Whoever else used the CPUs since this was made."""

    def __init__(self) -> None:
        self._start = _busy_s(), time.process_time(), time.perf_counter()

    def share(self) -> float | None:
        """Return what share of the CPUs others had, from 0 to 1; None: this system does not say."""
        busy_s, cpu_count = _busy_s(), os.cpu_count()
        began_busy_s, began_own_s, began_s = self._start
        if busy_s is None or began_busy_s is None or not cpu_count:
            return None
        others_s = busy_s - began_busy_s - (time.process_time() - began_own_s)
        return min(1.0, max(0.0, others_s / (cpu_count * (time.perf_counter() - began_s))))


def _busy_s() -> float | None:
    """Return how long the CPUs have been busy, stolen time included: from the first line of /proc/stat."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = (int(word) for word in file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / float(os.sysconf("SC_CLK_TCK"))
