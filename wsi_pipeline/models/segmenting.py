"""Segments regions with a trained net inside a memory budget, NumPy in and out."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.config import SegmentOptions
from wsi_pipeline.models.budget import (
    BatchPlan,
    ElasticBatch,
    MemoryReport,
    report_memory,
    resolve_device,
)
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.models.planning import Workload, planned
from wsi_pipeline.models.precision import Precision, fold, resolve_precision
from wsi_pipeline.models.sampling import mip_levels, sample_image, to_unit
from wsi_pipeline.models.segmenter import SegmentNet, load_segmenter

COARSER_LEVELS = 2
"""Mip levels above the one that is read, kept for wide cells."""

# Beyond these a bigger batch is not faster; measured with the small nets.
_LARGEST_BATCH = {"cpu": 8, "cuda": 128}
# Batches of pixels on the host: read ahead, read, put together, filled up.
_HOST_BATCHES = 4


class RegionSegmenter:
    """Segments regions batch by batch: NumPy in, NumPy out.

    Parameters
    ----------
    net : SegmentNet
        In eval mode, on its device.
    batch : int
        Regions per forward pass. Smaller batches are filled up, so that a region gets
        the same answer whatever it shares a batch with.
    plan : BatchPlan, optional
        Where the batch came from.
    option : str
        Name of the option that states the budget.
    precision : "float32" or "bfloat16"
        Of the convolutions, as in training; places and softmax stay float32.

    Notes
    -----
    Shipped weights, batches of 8 regions of 64 x 64 nodes, one core with AMX, learned
    and uniform: 192 and 152 ms as they are, 174 and 119 folded, 108 and 67 in bfloat16.
    """

    def __init__(
        self,
        net: SegmentNet,
        batch: int,
        *,
        plan: BatchPlan | None = None,
        option: str = "--memory",
        precision: Precision = "float32",
    ) -> None:
        self.net = net.to(memory_format=torch.channels_last)
        self.device = next(net.parameters()).device
        self.plan = plan
        self.precision = precision
        self.elastic = ElasticBatch(batch, option)

    @property
    def batch(self) -> int:
        """Regions per forward pass."""
        return self.elastic.size

    @property
    def nodes(self) -> int:
        """Side of the grid of nodes."""
        return self.net.spec.shape[0]

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return self.net.spec.classes

    def level_for(self, side_px: float) -> int:
        """Level to read a region of `side_px` base pixels from; see `read_level`."""
        return read_level(self.net, side_px)

    def warm_up(self, side_px: int) -> None:
        """Run one full batch of blank regions, `side_px` wide on the level read."""
        self(np.zeros((self.batch, 3, side_px, side_px), np.uint8), 0)

    def __call__(
        self, regions: NDArray[np.uint8], level: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Segment n regions.

        Parameters
        ----------
        regions : (n, 3, s, s) uint8 array
            Pixels on one level of the pyramid, n at least 1.
        level : int
            That level; the regions are ``s * 2**level`` base pixels wide.

        Returns
        -------
        probabilities : (n, classes, h, w) float16 array
        grids : (n, 2, h, w) float32 array
            x and y of the nodes in [0, 1] of the region.

        Raises
        ------
        BudgetError
            If memory runs out with a single region.
        """
        parts = self.elastic.run(
            lambda start, stop: self._forward(regions[start:stop], level), len(regions)
        )
        probabilities, grids = zip(*parts, strict=True)
        return np.concatenate(probabilities), np.concatenate(grids)

    def report(self) -> MemoryReport:
        """Peaks of memory so far."""
        if self.plan is None:
            return report_memory(self.device)
        plan = self.plan
        return report_memory(self.device, plan.measured_bytes, plan.counted_bytes)

    @torch.inference_mode()
    def _forward(
        self, regions: NDArray[np.uint8], level: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        n, size = len(regions), self.batch
        full = np.full((size, *regions.shape[1:]), 255, np.uint8)
        full[:n] = regions
        pixels = torch.from_numpy(full).to(self.device).float() / 255
        levels = mip_levels(pixels, COARSER_LEVELS + 1)

        def sample(grid: Tensor, taps: int) -> Tensor:
            return sample_image(levels, grid, first=level, taps=taps, mip=taps > 1)

        low = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            result = self.net(sample, size)
        probabilities = result.logits.float().softmax(dim=1)[:n]
        grids = to_unit(result.grid[:n]).cpu().numpy()
        return probabilities.half().cpu().numpy(), np.ascontiguousarray(grids)


def read_level(net: SegmentNet, side_px: float, nodes: int | None = None) -> int:
    """Level to read a region of `side_px` base pixels from; `nodes` along that side.

    Its pixels are not coarser than a tap of an even grid, so that what it hides lies
    well inside a cell, also where nodes are twice as dense. Points are read from the
    base: what is coarser would be an average.
    """
    if net.taps == 1:
        return 0
    nodes = nodes or max(net.spec.shape)
    tap_px = (side_px - 1) / (nodes - 1) / net.spec.taps
    return max(0, math.floor(math.log2(max(tap_px, 1))))


@contextmanager
def open_segmenter(
    model: ModelFolder,
    options: SegmentOptions,
    side_px: float,
    *,
    cache: Path | None = None,
) -> Iterator[RegionSegmenter]:
    """Load a model's segmenter, plan its batch, and hold the budget while in use.

    Parameters
    ----------
    model : ModelFolder
        With weights for the strategy.
    options : SegmentOptions
        Strategy, device, memory, precision.
    side_px : float
        Side of a region in base pixels.
    cache : Path, optional
        File of measured peaks; see `planned`.

    Yields
    ------
    RegionSegmenter
        Ready; no pixel was read yet.

    Raises
    ------
    BudgetError
        If the budget does not allow a single region.
    ConfigError
        If there is no such device.
    ModelError
        If the model folder is incomplete or does not fit.
    UnknownNameError
        If the model has no weights for the strategy.
    """
    device = resolve_device(options.device)
    net = load_segmenter(model, options.strategy, str(device))
    _fold_parts(net)
    net = net.to(memory_format=torch.channels_last)  # now, not in a warm-up
    precision = resolve_precision(options.precision, device)
    side = math.ceil(side_px / 2 ** read_level(net, side_px))
    workload = Workload(
        "segmenter",
        net,
        (model.card.need_segmenter().sha256, options.strategy, precision, f"{side} px"),
        lambda batch: RegionSegmenter(net, batch, precision=precision).warm_up(side),
        _LARGEST_BATCH[device.type],
        item_host_bytes=_HOST_BATCHES * 3 * side**2,
    )
    with planned(workload, device, options, cache=cache) as plan:
        yield RegionSegmenter(
            net, plan.batch, plan=plan, option=plan.option, precision=precision
        )


def _fold_parts(net: SegmentNet) -> None:
    """Fold batch norms of a net's parts; the net itself keeps its type."""
    for parent in (net, net.placer):
        for name, part in list(parent.named_children()):
            if part is not net.placer:
                setattr(parent, name, fold(part))
