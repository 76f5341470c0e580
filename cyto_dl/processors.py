"""How many processors this process may use: in a container fewer than the machine has."""

import math
import os
from pathlib import Path

_CGROUP_2 = "cpu.max"  # "200000 100000": microseconds of processor time per period; "max 100000": no limit
_CGROUP_1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")  # a quota of -1: no limit


def num_processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that the scheduler gives this process: of its affinity, and at most the container's limit.

    More threads than that are stopped in the middle of a layer until the next period: a network becomes slower.

    Args:
        cgroup: Where the kernel shows the container's limits.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _limit(cgroup)
    return max(1, min(allowed, math.ceil(limit))) if limit else allowed


def _limit(cgroup: Path) -> float | None:
    try:
        if (cgroup / _CGROUP_2).is_file():
            quota, period = (cgroup / _CGROUP_2).read_text().split()
        else:
            quota, period = ((cgroup / name).read_text().strip() for name in _CGROUP_1)
        return int(quota) / int(period) if quota not in {"max", "-1"} else None
    except (OSError, ValueError, ZeroDivisionError):  # not Linux, or another kernel's layout
        return None
