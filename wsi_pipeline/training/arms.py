"""Trains one strategy: first what places nodes, then it and the segmenter together."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline.models.bodies.pretrained import load_pretrained
from wsi_pipeline.models.placing import FieldPlacer, FixedPlacer
from wsi_pipeline.models.sampling import (
    TAPS,
    cell_areas,
    class_shares,
    identity_grid,
)
from wsi_pipeline.models.segmenter import Segmented, SegmentNet
from wsi_pipeline.models.segmenting import COARSER_LEVELS
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.training.data import (
    LabelledImages,
    RegionBatch,
    RegionSource,
    Views,
    first_level,
)
from wsi_pipeline.training.fields import boundary_field
from wsi_pipeline.training.journal import Journal
from wsi_pipeline.training.loop import LoopOptions, fit, rank, rank_seed
from wsi_pipeline.training.losses import (
    balanced_weights,
    boundary_density,
    density_divergence,
    minmax_error,
    soft_cross_entropy,
)

PLACER_RATE = 0.3
"""Factor on the learning rate of what places nodes, in the joint phase."""
PLACER_STEPS = 100
"""Steps in which it learns alone from boundaries."""
TURN_STEPS = 50, 80
"""Steps of the placer and of the segmenter, where they learn in turns."""
_STAGED_SHARE = 0.3
"""Of the steps, where nothing teaches it later on."""
_MEAN_BATCHES = 32
_JOURNAL_STEPS = 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LossOptions:
    """What a wrong node costs.

    Parameters
    ----------
    focus : float
        Exponent of the focal loss; 0 for cross entropy.
    balanced : bool
        Whether rare classes count more, by the inverse root of their share.
    """

    focus: float = 0.0
    balanced: bool = False


@dataclass(frozen=True)
class ArmOptions:
    """How an arm is trained, beside the loop.

    Parameters
    ----------
    views : Views
        Size and place of regions.
    batch : int
        Regions per step.
    seed : int
        Of weights, batches and augmentation.
    loss : LossOptions
        What a wrong node costs.
    nodes : callable, optional
        Rows and columns of an image to those of its nodes; left out, all regions have
        the spec's.
    folder : Path, optional
        Where checkpoints are kept while training, so that it can go on after an
        interruption, and where the losses are written down, one table per strategy.
    source : str
        Name of the data, so that no checkpoint of others is taken.
    pretrained : Path, optional
        Weights that the body starts from, apart from its head; see `load_pretrained`.
    """

    views: Views
    batch: int = 8
    seed: int = 0
    loss: LossOptions = LossOptions()
    nodes: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    folder: Path | None = None
    source: str = ""
    pretrained: Path | None = None


def fit_arm(
    spec: SegmenterSpec,
    strategy: str,
    data: LabelledImages,
    arm: ArmOptions,
    loop: LoopOptions,
    *,
    progress: Progress | None = None,
    validate: Callable[[SegmentNet, int], None] | None = None,
) -> tuple[SegmentNet, list[float]]:
    """Train one strategy; the net comes back in eval mode, with the loss per step.

    Parameters
    ----------
    spec : SegmenterSpec
        Sizes.
    strategy : str
        A name in the table of strategies.
    data : LabelledImages
        Training images.
    arm : ArmOptions
        Regions, batch, seed: the same batches for every strategy.
    loop : LoopOptions
        Steps, rates, device.
    progress : callable, optional
        Told (done, total) steps of the joint phase.
    validate : callable, optional
        Given (net, steps done) now and then, with the averaged weights.

    Raises
    ------
    ConfigError
        If the folder holds a checkpoint of another training.
    ModelError
        If the pretrained weights do not fit the body.
    """
    with torch.random.fork_rng():
        torch.manual_seed(arm.seed)
        net = SegmentNet(spec, strategy)
    if arm.pretrained is not None:
        load_pretrained(net.body, arm.pretrained)
    net = net.to(memory_format=torch.channels_last)
    lessons = _Lessons(net, data, arm, loop.device)
    joint = arm.folder / f"{strategy}.checkpoint" if arm.folder else None
    if joint is None or not joint.exists():  # else the placer is in there
        alone = joint.with_name(f"{strategy}.placer.checkpoint") if joint else None
        lessons.teach_placer(loop, alone)
    frozen = not net.strategy.joint
    for parameter in net.placer.parameters():
        parameter.requires_grad_(not frozen)

    def show(_: nn.Module, done: int) -> None:
        if validate is not None:
            validate(net, done)

    with ExitStack() as stack:
        journal = None
        if arm.folder and rank() == 0:
            journal = Journal(arm.folder / f"{strategy}.csv", every=_JOURNAL_STEPS)
            stack.callback(journal.close)
        losses = fit(
            net,
            lessons.joint_loss,
            replace(loop, lr_scales={"placer.": PLACER_RATE}),
            progress=progress,
            checkpoint=joint,
            drawn_from=lessons.drawn_from,
            journal=journal,
            validate=show if validate else None,
        )
    return net, losses


class _Lessons:
    """The losses of one arm, each drawing its own batch."""

    def __init__(
        self, net: SegmentNet, data: LabelledImages, arm: ArmOptions, device: str
    ) -> None:
        self._net, self._arm, self._device = net, arm, device
        self._row, self._spec = net.strategy, net.spec
        h, w = arm.views.region_px or data.labels[0].shape
        nodes = arm.nodes((h, w)) if arm.nodes else net.spec.shape
        first = first_level(net, (h, w), nodes)
        self._source = RegionSource(data, arm.views, COARSER_LEVELS + 2, first)
        self._weights = None
        if arm.loss.balanced:
            self._weights = balanced_weights(data.labels, net.spec.classes).to(device)
        self.drawn_from = (
            f"{arm.source} of {len(data)}, {arm.views}, batch {arm.batch}, "
            f"seed {arm.seed}, {arm.loss}, {net.spec}, from {arm.pretrained}"
        )

    def teach_placer(self, loop: LoopOptions, checkpoint: Path | None) -> None:
        """Let what places nodes learn alone, if its strategy has a teacher."""
        teacher, placer = self._row.teacher, self._net.placer
        if teacher == "mean":
            if not isinstance(placer, FixedPlacer):
                raise TypeError(f"nothing to fix in {type(placer).__name__}")
            drawn = (self._draw(1, step) for step in range(_MEAN_BATCHES))
            shape = placer.density.shape[-2:]
            densities = torch.cat(
                [functional.interpolate(self.edges_of(one), shape) for one in drawn]
            )
            placer.density.copy_(densities.mean(dim=0, keepdim=True))
        elif teacher != "none":
            share = 0 if self._row.joint else _STAGED_SHARE
            steps = max(PLACER_STEPS, round(share * loop.steps))
            alone = replace(loop, steps=min(steps, loop.steps))
            fit(
                placer,
                self._placer_loss,
                alone,
                checkpoint=checkpoint,
                drawn_from=self.drawn_from,
            )

    def _placer_loss(self, module: nn.Module, step: int) -> Tensor:
        drawn = self._draw(1, step)
        shape = self._shape(drawn)
        view = self._net.view(drawn.sample, len(drawn.labels), shape)
        found = module(view, shape)
        placer = self._net.placer
        if isinstance(placer, FieldPlacer):
            wanted = boundary_field(self._labels(drawn), placer.lattice_of(*shape))
            return _field_error(found.grid, wanted)
        return density_divergence(found.density, self.edges_of(drawn))

    def joint_loss(self, module: nn.Module, step: int) -> Tensor:
        if self._row.in_turns:
            self._take_turns(step)
        drawn = self._draw(0, step)
        given = self.edges_of(drawn) if self._row.needs_truth else None
        count, shape = len(drawn.labels), self._shape(drawn)
        result: Segmented = module(drawn.sample, count, shape, given)
        labels = drawn.tap_labels(result.grid, TAPS)
        soft = class_shares(labels, self._spec.classes, TAPS)
        areas = cell_areas(result.grid)
        if not self._row.by_area:
            areas = torch.ones_like(areas)
        loss = soft_cross_entropy(
            result.logits,
            soft,
            areas,
            focus=self._arm.loss.focus,
            class_weights=self._weights,
        )
        if result.density is None or not self._row.edge_loss:
            return loss
        error = minmax_error if self._row.edge_error == "minmax" else density_divergence
        return loss + self._row.edge_loss * error(result.density, self.edges_of(drawn))

    def _take_turns(self, step: int) -> None:
        """Freeze the placer or the segmenter, as the step says."""
        placing = step % sum(TURN_STEPS) < TURN_STEPS[0]
        for name, parameter in self._net.named_parameters():
            parameter.requires_grad_(name.startswith("placer.") == placing)

    def edges_of(self, drawn: RegionBatch) -> Tensor:
        """Density of the true boundaries."""
        shape, floor = self._shape(drawn), self._spec.floor
        return boundary_density(self._labels(drawn), shape, floor=floor)

    def _labels(self, drawn: RegionBatch) -> Tensor:
        return drawn.tap_labels(self._grid(drawn), TAPS)

    def _grid(self, drawn: RegionBatch) -> Tensor:
        even = identity_grid(*self._shape(drawn)).to(self._device)
        return even.expand(len(drawn.labels), -1, -1, -1)

    def _shape(self, drawn: RegionBatch) -> tuple[int, int]:
        """Rows and columns of nodes."""
        if self._arm.nodes is None:
            return self._spec.shape
        _, h, w = drawn.labels.shape
        return self._arm.nodes((h, w))

    def _draw(self, phase: int, step: int) -> RegionBatch:
        random = np.random.default_rng(rank_seed([self._arm.seed, phase, step]))
        return self._source.draw(self._arm.batch, random, self._device)


def _field_error(grid: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of a grid from a coarser field, in lattice steps."""
    target = functional.interpolate(
        wanted, grid.shape[1:3], mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    steps = grid.new_tensor([wanted.shape[-1] - 1, wanted.shape[-2] - 1]) / 2
    return (((grid - target) * steps) ** 2).sum(dim=-1).mean()
