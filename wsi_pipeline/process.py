"""Tells what the process may use and holds: CPUs and memory."""

import os
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def cpu_count() -> int:
    """CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def peak_resident_bytes() -> int:
    """Largest resident memory since the start or the last reset, bytes."""
    peak = _status("VmHWM")
    if peak:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Start a new measurement of the peak; False where the system does not let us."""
    try:
        _CLEAR.write_text("5")  # 5 resets VmHWM, see proc(5)
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(values[0]) * 1024 if values else 0
