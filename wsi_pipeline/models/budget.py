"""Memory budget of nets: devices, peaks, and the batch that a number of bytes allows.

With precision.py and carrying.py the only room that names ``torch.cuda``.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from wsi_pipeline.errors import BudgetError, ConfigError
from wsi_pipeline.models.tracing import trace_peak
from wsi_pipeline.process import peak_resident_bytes, total_memory_bytes

MARGIN = 0.95
"""Share of the budget that a plan fills; the rest is the allocators' rounding."""

_log = logging.getLogger(__name__)
_MIB = 1 << 20
_START = 8  # the smaller of the two batches that a fit is made from
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
        Held by torch's allocator on the device, plus the CUDA context: what the driver
        shows for this process. On the CPU what the plan counts with.
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
    option : str
        Name of the option that states it.
    intercept, slope : float
        The fit: bytes(I) = intercept + slope x I.
    measured_bytes : int
        Peak of a warm-up with the chosen batch.
    counted_bytes : int
        What that peak takes of the budget.
    """

    batch: int
    budget_bytes: int
    option: str
    intercept: float
    slope: float
    measured_bytes: int
    counted_bytes: int

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


def name_device(device: torch.device) -> str:
    """What decides, besides the net, what a batch takes: kind, model, threads."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    kind = torch.backends.cpu.get_cpu_capability()
    return f"cpu {kind}, {torch.get_num_threads()} threads"


def budget_for(
    device: torch.device, memory: float, gpu_memory: float | None
) -> tuple[int, str]:
    """Bytes that apply to a device, and the option that states them.

    Parameters
    ----------
    memory : int or float
        Budget on the CPU: bytes, or as a float a share of the machine's memory.
    gpu_memory : int, float or None
        Budget on the GPU: bytes, or as a float a share of the card's memory; None means
        nine tenths of what is free now.
    """
    if device.type != "cuda":
        return _bytes_of(memory, total_memory_bytes), "--memory"
    torch.cuda.empty_cache()  # what another act left is free for this one
    if gpu_memory is None:
        gpu_memory = int(torch.cuda.mem_get_info(device)[0] * 0.9)
    size = _bytes_of(gpu_memory, lambda: torch.cuda.mem_get_info(device)[1])
    return size, "--gpu-memory"


def _bytes_of(amount: float, total: Callable[[], int]) -> int:
    return amount if isinstance(amount, int) else int(amount * total())


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
        CPU: see `trace_peak`. CUDA: largest reserved memory plus the context.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) + _context_bytes(device)
    return held_bytes + trace_peak(action)


def plan_batch(
    measure: Callable[[int], int],
    budget_bytes: int,
    *,
    option: str,
    what: str,
    largest: int = 64,
    count: Callable[[int], int] = int,
) -> BatchPlan:
    """Choose the largest power of two whose peak stays inside the budget.

    Parameters
    ----------
    measure : callable
        Batch size to peak bytes; runs a warm-up. With 0, asked after 1, what is taken
        at rest: weights, context, libraries.
    budget_bytes : int
        The stated budget.
    option : str
        Name of the option that states it.
    what : str
        What is planned for, as the refusal names it.
    largest : int
        Batch beyond which a bigger one buys nothing.
    count : callable
        What a peak takes of the budget, more for a larger peak.

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
    The fit is made from warm-ups with 8 and 16 items, with fewer where 16 might not
    fit. None but the very first (one item) can exceed the budget: above what is taken
    at rest, k items take at most k times as much as one by an affine law with an
    intercept that is not negative, and by the largest of several such laws, which is
    what a net's layers make.
    """

    def fits(peak: float) -> bool:
        return count(math.ceil(peak)) <= budget_bytes * MARGIN

    one = measure(1)
    if not fits(one):
        needed = math.ceil(count(one) / MARGIN / _MIB)
        raise BudgetError(
            f"{option} {_mib(budget_bytes)}: the {what} needs at least {needed} MiB, "
            f"for one item at a time; give {option} {needed}MiB or more"
        )
    rest = min(one, measure(0))
    step = _START
    while step and (2 * step > largest or not fits(rest + 2 * step * (one - rest))):
        step //= 2
    intercept, slope = float(rest), float(one - rest)
    if step:
        low, high = measure(step), measure(2 * step)
        slope = max(0.0, (high - low) / step)
        intercept = low - slope * step
    batch = 1
    while 2 * batch <= largest and fits(intercept + slope * 2 * batch):
        batch *= 2
    peak = measure(batch)
    while batch > 1 and not fits(peak):
        batch //= 2
        peak = measure(batch)
    return BatchPlan(batch, budget_bytes, option, intercept, slope, peak, count(peak))


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
        _log.warning("memory ran out: from %d at a time to %d", *self.downgrades[-1])
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
    before = torch.cuda.get_per_process_memory_fraction(device)
    total = torch.cuda.mem_get_info(device)[1]
    share = max(0, budget_bytes - _context_bytes(device)) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def report_memory(
    device: torch.device, measured_bytes: int = 0, counted_bytes: int = 0
) -> MemoryReport:
    """Peaks since the start or the last `enforced`.

    Parameters
    ----------
    measured_bytes, counted_bytes : int
        Of the plan; they stand in on the CPU, which keeps no count of its own.
    """
    if device.type != "cuda":
        counted = max(measured_bytes, counted_bytes)
        return MemoryReport(measured_bytes, counted, peak_resident_bytes())
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
