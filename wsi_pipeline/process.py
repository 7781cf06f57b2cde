"""What a process may use and holds, CPUs and memory; how it starts others."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from pathlib import Path

_SELF = "self"
_STOPS = signal.SIGINT, signal.SIGTERM
# numbers of malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory(block_bytes: int = 2**24) -> None:
    """Let the heap keep what is freed, instead of returning it to the system.

    Parameters
    ----------
    block_bytes : int
        Blocks up to this size are kept, of all together twice as much at the heap's
        end.

    Notes
    -----
    glibc asks the system for each larger block, and the system clears every page of it:
    a fifth of the time that tiling takes, a quarter of training on whole frames. See
    mallopt(3); other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    mallopt(_MMAP_THRESHOLD, block_bytes)
    mallopt(_TRIM_THRESHOLD, min(2 * block_bytes, 2**31 - 1))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and its like back while processes are started.

    One that is met while it starts shows an error of its own; see `listen`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen() -> None:
    """End what a process inherits of `undisturbed`; the first thing that it does."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def cpu_count() -> int:
    """CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def total_memory_bytes(root: Path = Path("/")) -> int:
    """Memory of the machine, or what a cgroup leaves of it to this process.

    Parameters
    ----------
    root : Path
        Where the file systems "proc" and "sys" are.

    Notes
    -----
    Limits of the groups above count too. In a container the path of the own group may
    be the host's, and the limit then stands at the root of what is mounted.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([pages, *_group_limits(root)])


def _group_limits(root: Path) -> Iterator[int]:
    """Limits of memory that cgroups set, version 2 and 1, bytes."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = top / group.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(top):
                break
            with suppress(OSError):
                text = (folder / name).read_text().strip()
                if text.isdecimal():  # not "max"
                    yield int(text)


def peak_resident_bytes(*, of_all: bool = False) -> int:
    """Largest resident memory since the start or the last reset, bytes.

    Parameters
    ----------
    of_all : bool
        Add those of the worker processes that are alive, where the system tells them.
    """
    peak = _peak(_SELF)
    if not peak:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak + sum(_peak(name) for name in _children() if of_all)


def reset_peaks() -> bool:
    """Start a new measurement of the peaks; False where the system does not let us."""
    try:
        for name in (_SELF, *_children()):
            # 5 resets VmHWM, see proc(5)
            Path(f"/proc/{name}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _children() -> list[str]:
    return [str(child.pid) for child in active_children()]


def _peak(name: str) -> int:
    try:
        lines = Path(f"/proc/{name}/status").read_text().splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(values[0]) * 1024 if values else 0
