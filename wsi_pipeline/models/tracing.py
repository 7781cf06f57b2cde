"""Traces what a net allocates on the host, and says what memory that may take."""

from collections.abc import Callable

# The legacy recorder, since it is silent, costs microseconds and gives the allocator's
# own events in order; torch.profiler writes to stderr and starts for seconds.
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

_MIB = 1 << 20
_LIBRARY_BYTES = 48 * _MIB
_HEAP_SHARE = 3
_HEAP_MOST = 768 * _MIB


def trace_peak(action: Callable[[], object]) -> int:
    """Largest sum of torch's allocations alive at once during an action, bytes.

    Returns
    -------
    int
        Of this thread; the same number in every run.

    Notes
    -----
    The resident set was tried as well: it says 0 for anything that fits into heap the
    process already holds, so no plan can be made from it; see `resident_bytes`.
    """
    config = ProfilerConfig(
        ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig()
    )
    _enable_profiler_legacy(config)
    try:
        action()
    finally:
        threads = _disable_profiler_legacy()
    total = peak = 0
    for events in threads:
        for event in events:
            if str(event.kind()) == "memory_alloc":  # stubs say int
                total += event.cpu_memory_usage()
                peak = max(peak, total)
    return peak


def resident_bytes(traced: int, held: int, loading: int = 0) -> int:
    """Resident memory that a net may take above the idle process, at most.

    Parameters
    ----------
    traced : int
        What it holds and the traced peak of a batch, bytes.
    held : int
        What it holds (weights), bytes.
    loading : int
        What loading it took, bytes.

    Notes
    -----
    Idle is a process that has imported the modules of the net. Where every block is a
    mapping of its own (MALLOC_MMAP_THRESHOLD_=65536) it grows by the trace and 22 to 24
    MiB, code of libraries that the first pass brings in: oneDNN's buffers and packed
    weights do not show. By default glibc serves blocks below 32 MiB from its heap, and
    what is freed there stays in pieces. Growth, MiB, as ``python -m
    tests.benchmarks.host_memory`` prints it (torch 2.15, glibc 2.36, one thread):

    =======================  ====  ===============  =====  =======
    net, side and batch      held  traced above it  grown  allowed
    =======================  ====  ===============  =====  =======
    small, 64 px, 64            2                8     41       81
    small, 64 px, 512           2               62    180      298
    small, 64 px, 4096          2              496    530     1314
    small, 128 px, 64           2               31     71      174
    resnet18, 128 px, 16       43               36    136      234
    resnet18, 128 px, 256      43              572    730     1431
    resnet18, 224 px, 16       43              109    221      529
    segmenter, 256 px, 8        3               44    147      225
    segmenter, 256 px, 32       3              175    503      749
    segmenter, 256 px, 60       3              327    961     1146
    =======================  ====  ===============  =====  =======

    The pieces differ between processes: the fourth row was seen at 139 as well. The
    heap's share is at most 3 times the trace (2.9 seen) and 768 MiB (640 seen), since
    blocks of 32 MiB and more bypass it.
    """
    used = traced - held
    most = max(loading, traced + min(_HEAP_SHARE * used, _HEAP_MOST))
    return _LIBRARY_BYTES + most
