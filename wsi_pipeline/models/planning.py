"""Plans the batch of a net on a device, and holds its budget while it is in use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.config import NetOptions
from wsi_pipeline.errors import BudgetError
from wsi_pipeline.models.budget import (
    BatchPlan,
    budget_for,
    enforced,
    held_bytes,
    is_out_of_memory,
    measure_peak,
    name_device,
    plan_batch,
)
from wsi_pipeline.models.peaks import keep_peaks, load_peaks
from wsi_pipeline.models.tracing import resident_bytes

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """What a batch is planned for.

    Parameters
    ----------
    what : str
        What it is called in a refusal.
    net : torch.nn.Module
        On its device, ready for use.
    identity : tuple of str
        All that decides what a batch takes, but for device and versions: sha256 of the
        weights, type of the numbers, size of an item, and the like.
    run : callable
        Runs the net on a batch of that many blank items, as it is used; frees nothing
        that was there before, which the trace on the CPU could not follow.
    largest : int
        Batch beyond which a bigger one buys nothing.
    item_host_bytes : int
        What the host holds per item of a batch besides what torch allocates.
    """

    what: str
    net: nn.Module
    identity: tuple[str, ...]
    run: Callable[[int], object]
    largest: int
    item_host_bytes: int = 0


@contextmanager
def planned(
    workload: Workload,
    device: torch.device,
    options: NetOptions,
    *,
    host_bytes: int = 0,
    cache: Path | None = None,
) -> Iterator[BatchPlan]:
    """Plan a net's batch inside the stated budget, and hold it while the block runs.

    Parameters
    ----------
    workload : Workload
        The net and how it is run.
    device : torch.device
        Where it runs.
    options : NetOptions
        State the budget.
    host_bytes : int
        What the host holds besides, such as a queue of items; taken off the budget on
        the CPU.
    cache : Path, optional
        File of peaks that were measured before; those that were missing are added.

    Yields
    ------
    BatchPlan
        The same with and without the file.

    Raises
    ------
    BudgetError
        If not even one item fits, or memory runs out in a warm-up or in what the block
        does besides its batches.

    Notes
    -----
    With all peaks in the file nothing is run on the CPU, where they are the same in
    every run; on CUDA one warm-up with the chosen batch confirms it.
    """
    budget, option = budget_for(device, options.memory, options.gpu_memory)
    measured = _Measured(workload, device, option, cache)
    on_host = device.type == "cpu"

    def count(peak: int) -> int:
        if not on_host:
            return peak
        held = held_bytes(workload.net)
        return host_bytes + resident_bytes(peak, held, _loading_bytes(workload.net))

    while True:
        plan = plan_batch(
            measured,
            budget,
            option=option,
            what=workload.what,
            largest=workload.largest,
            count=count,
        )
        if on_host or plan.batch in measured.fresh:
            break
        measured.warm_up(plan.batch)
    measured.keep()
    try:
        with enforced(device, budget):
            yield plan
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BudgetError(
            f"memory ran out beside the batches of the {workload.what}; give a larger "
            f"{option}, or close what else uses the memory"
        ) from error


class _Measured:
    """Peaks by batch: as the file has them, else from a warm-up."""

    def __init__(
        self, workload: Workload, device: torch.device, option: str, cache: Path | None
    ) -> None:
        self._workload, self._device = workload, device
        self._option, self._cache = option, cache
        self._key = "; ".join(
            [
                f"{workload.what} {' '.join(workload.identity)}",
                name_device(device),
                f"torch {torch.__version__}",
                f"wsi-pipeline {version('wsi-pipeline')}",
            ]
        )
        self._known = load_peaks(cache, self._key) if cache else {}
        self.fresh: dict[int, int] = {}

    def __call__(self, batch: int) -> int:
        if batch not in self._known:
            self.warm_up(batch)
        return self._known[batch]

    def warm_up(self, batch: int) -> None:
        """Measure a batch, whatever is known of it; with 0 nothing is run."""
        work, device = self._workload, self._device
        held = held_bytes(work.net)
        try:
            peak = measure_peak(device, lambda: batch and work.run(batch), held)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BudgetError(
                f"memory ran out when the {work.what} was tried with {batch} at a "
                f"time, inside {self._option}; close what else uses the memory, or "
                "state less"
            ) from error
        if device.type == "cpu":
            peak += batch * work.item_host_bytes
        self._known[batch] = self.fresh[batch] = peak

    def keep(self) -> None:
        """Add what was measured to the file."""
        if self._cache and self.fresh:
            keep_peaks(self._cache, self._key, self.fresh)


def _loading_bytes(net: nn.Module) -> int:
    """What loading a net takes: fresh weights and those of the file, in float32."""
    return 2 * _FLOAT_BYTES * sum(tensor.numel() for tensor in net.parameters())
