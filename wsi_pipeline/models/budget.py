"""Memory budget of nets: devices, peaks, and the batch that a number of bytes allows.

The only room that names ``torch.cuda``.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# The legacy recorder, since it is silent, costs microseconds and gives the allocator's
# own events in order; torch.profiler writes to stderr and starts for seconds.
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

from wsi_pipeline.errors import BudgetError, ConfigError
from wsi_pipeline.process import peak_resident_bytes

MARGIN = 0.95
"""Share of the budget that a plan fills; the rest is the allocators' rounding."""

_MIB = 1 << 20
# A CUDA context with its libraries; more than that belongs to other processes.
_LARGEST_CONTEXT = 600 * _MIB


@dataclass(frozen=True)
class MemoryReport:
    """Peaks of memory, bytes.

    Parameters
    ----------
    allocated : int
        Held by tensors on the device; on the CPU as traced for the planned batch.
    reserved : int
        Held by torch's allocator on the device, plus the CUDA context.
    process : int
        Resident memory of this process, on the host.
    """

    allocated: int
    reserved: int
    process: int


@dataclass(frozen=True)
class BatchPlan:
    """How many items go through a net at once, and why.

    Parameters
    ----------
    batch : int
        A power of two.
    budget_bytes : int
        What the user stated.
    intercept, slope : float
        The fit: bytes(I) = intercept + slope x I.
    measured_bytes : int
        Peak of a warm-up with the chosen batch.
    """

    batch: int
    budget_bytes: int
    intercept: float
    slope: float
    measured_bytes: int

    @property
    def predicted_bytes(self) -> int:
        """What the fit says for the chosen batch."""
        return math.ceil(self.intercept + self.slope * self.batch)


def resolve_device(name: str | None) -> torch.device:
    """Turn a device's name into the device; None means cuda where there is one.

    Raises
    ------
    ConfigError
        If the name is none of cpu, cuda, cuda:N, or there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda:0" if count else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not match:
        raise ConfigError(f"device {name!r}: expected cpu, cuda or cuda:N")
    index = int(match[1] or 0)
    if index >= count:
        raise ConfigError(
            f"device {name!r}: this machine shows {count} CUDA devices to torch; "
            "use --device cpu"
        )
    return torch.device("cuda", index)


def budget_for(
    device: torch.device, memory: int, gpu_memory: int | None
) -> tuple[int, str]:
    """Bytes that apply to a device, and the option that states them.

    Parameters
    ----------
    memory : int
        Budget on the CPU, bytes.
    gpu_memory : int or None
        Budget on the GPU, bytes; None means nine tenths of what is free now.
    """
    if device.type != "cuda":
        return memory, "--memory"
    if gpu_memory is None:
        free, _ = torch.cuda.mem_get_info(device)
        gpu_memory = int(free * 0.9)
    return gpu_memory, "--gpu-memory"


def measure_peak(
    device: torch.device, action: Callable[[], object], held_bytes: int = 0
) -> int:
    """Peak bytes that an action needs on a device.

    Parameters
    ----------
    action : callable
        Runs the net once.
    held_bytes : int
        What the net holds already (weights); counted on the CPU, where the trace sees
        new allocations only. On CUDA the allocator knows it.

    Returns
    -------
    int
        CPU: running total of torch's allocator at its highest, this thread, the same
        number in every run. CUDA: largest reserved memory plus the context.

    Notes
    -----
    On the CPU the resident set was tried as well: it says 0 for anything that fits into
    heap the process already holds, so it serves as a check only.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) + _context_bytes(device)
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
    return held_bytes + peak


def plan_batch(
    measure: Callable[[int], int],
    budget_bytes: int,
    *,
    option: str,
    what: str,
    start: int = 8,
    largest: int = 64,
) -> BatchPlan:
    """Choose the largest power of two whose peak stays inside the budget.

    Parameters
    ----------
    measure : callable
        Batch size to peak bytes; runs a warm-up.
    budget_bytes : int
        The stated budget.
    option : str
        Name of the option that states it.
    what : str
        What is planned for, as the refusal names it.
    start : int
        I0 of the two warm-ups I0 and 2 x I0 that the fit is made from; smaller where
        2 x I0 might not fit.
    largest : int
        Batch beyond which a bigger one buys nothing.

    Returns
    -------
    BatchPlan
        Its batch was measured, not only predicted.

    Raises
    ------
    BudgetError
        If not even one item fits; names the smallest workable budget.

    Notes
    -----
    No warm-up but the very first (one item) can exceed the budget: bytes(k) is at most
    k x bytes(1) for an affine law with an intercept that is not negative, and for the
    largest of several such laws, which is what a net's layers make.
    """
    room = budget_bytes * MARGIN
    one = measure(1)
    if one > room:
        needed = math.ceil(one / MARGIN / _MIB)
        raise BudgetError(
            f"{option} {_mib(budget_bytes)}: the {what} needs at least {needed} MiB, "
            f"for one item at a time; give {option} {needed}MiB or more"
        )
    step = 1 << (max(1, start).bit_length() - 1)
    while step > 1 and (2 * step * one > room or 2 * step > largest):
        step //= 2
    if 2 * step * one > room or largest < 2:
        return BatchPlan(1, budget_bytes, 0.0, float(one), one)
    low, high = measure(step), measure(2 * step)
    slope = max(0.0, (high - low) / step)
    intercept = low - slope * step
    batch = 1
    while 2 * batch <= largest and intercept + slope * 2 * batch <= room:
        batch *= 2
    measured = measure(batch)
    while measured > room and batch > 1:
        batch //= 2
        measured = measure(batch)
    return BatchPlan(batch, budget_bytes, intercept, slope, measured)


class ElasticBatch:
    """Runs items in batches and halves the batch when memory runs out.

    Parameters
    ----------
    size : int
        Batch to begin with.
    option : str
        Name of the option that states the budget.

    Attributes
    ----------
    size : int
        The batch now.
    downgrades : list of (int, int)
        Each halving: batch before, batch after.
    """

    def __init__(self, size: int, option: str) -> None:
        self.size = size
        self.downgrades: list[tuple[int, int]] = []
        self._option = option

    def run[T](self, work: Callable[[int, int], T], count: int) -> list[T]:
        """Do `count` items, at most `size` at a time; only a failed batch is redone.

        Parameters
        ----------
        work : callable
            Does the items from start to stop; may pad them to `size`.

        Returns
        -------
        list
            What `work` returned, in order.

        Raises
        ------
        BudgetError
            If memory runs out with a single item.
        """
        done: list[T] = []
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            failed = False
            try:
                done.append(work(start, stop))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            if failed:
                # outside the except block: its traceback would keep the tensors alive
                self._halve()
            else:
                start = stop
        return done

    def _halve(self) -> None:
        if self.size == 1:
            raise BudgetError(
                "memory ran out with one item at a time; give a larger "
                f"{self._option}, or close what else uses the memory"
            )
        self.downgrades.append((self.size, self.size // 2))
        self.size //= 2
        release_cached()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on a GPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch's CPU allocator raises a bare RuntimeError
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_cached() -> None:
    """Give back what torch's CUDA allocator keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def enforced(device: torch.device, budget_bytes: int) -> Iterator[None]:
    """Have torch's allocator refuse what exceeds the budget, while the block runs.

    Notes
    -----
    CUDA only: the share of the card that this process may reserve, the context taken
    off. The CPU's allocator knows no limit; there the plan alone holds.
    """
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.mem_get_info(device)[1]
    share = max(0, budget_bytes - _context_bytes(device)) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def report_memory(device: torch.device, planned_bytes: int = 0) -> MemoryReport:
    """Peaks since the start or the last `enforced`.

    Parameters
    ----------
    planned_bytes : int
        Traced peak of the plan; stands in on the CPU, which keeps no count of its own.
    """
    if device.type != "cuda":
        return MemoryReport(planned_bytes, planned_bytes, peak_resident_bytes())
    return MemoryReport(
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device) + _context_bytes(device),
        peak_resident_bytes(),
    )


def held_bytes(module: torch.nn.Module) -> int:
    """Bytes of a net's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _context_bytes(device: torch.device) -> int:
    """What is held on the card outside torch's allocator, at most 600 MiB."""
    free, total = torch.cuda.mem_get_info(device)
    outside = total - free - torch.cuda.memory_reserved(device)
    return max(0, min(outside, _LARGEST_CONTEXT))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.0f}MiB"
