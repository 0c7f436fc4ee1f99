"""How many CPUs this process may use: the number that every thread budget starts from."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["cgroup_quota", "usable_cpu_count"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")


@functools.cache
def usable_cpu_count() -> int:
    """Return the number of CPUs in the affinity mask, or fewer where a cgroup's quota allows fewer; at least 1.

    A quota of 2.5 CPUs counts as 2: three busy threads would be stopped for a part of every period. Read once per
    process, since a thread pool cannot follow a change anyway.
    """
    # The affinity mask is not offered outside of Linux.
    cpu_count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, cpu_count if quota is None else int(min(cpu_count, quota)))


def cgroup_quota() -> float | None:
    """Return how many CPUs the cgroups around this process let it use, the least of them; None: there is no limit."""
    return min(_cgroup_quotas(_read(Path("/proc/self/cgroup")), _CGROUP_ROOT), default=None)


def _cgroup_quotas(membership: str, root: Path) -> Iterator[float]:
    """Yield the quota, in CPUs, of each cgroup this process is in, and of the groups around it.

    Args:
        membership: the text of ``/proc/self/cgroup``: ``hierarchy:controllers:path`` in each line, version 2 without
            controllers.
        root: where the cgroups are mounted.
    """
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root if not controllers else root / "cpu"
        inside = PurePosixPath(path).relative_to("/") if path.startswith("/") else PurePosixPath(path)
        # In a container the path may be the host's, which does not exist here; the mount itself always does.
        for group in (mount / inside, *(mount / parent for parent in inside.parents)):
            quota = _quota_v2(group) if not controllers else _quota_v1(group)
            if quota is not None:
                yield quota


def _quota_v2(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    return _share(quota, period)


def _quota_v1(group: Path) -> float | None:
    return _share(_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip())


def _share(quota_us: str, period_us: str) -> float | None:
    """Return quota / period, or None where there is no limit (``max``, ``-1``) or nothing that can be read."""
    if not quota_us.isdigit() or not period_us.isdigit() or period_us == "0":
        return None
    return int(quota_us) / int(period_us)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
