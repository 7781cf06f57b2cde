"""The cells of the segmentation table, in the order in which they are run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages, Views
from wsi_pipeline.training.datasets import DatasetOptions, load_dataset
from wsi_pipeline.training.datasets.pca_histo import RULE_NODES, strip_nodes
from wsi_pipeline.training.datasets.record import SegmentData
from wsi_pipeline.training.datasets.strip_files import paint_strips
from wsi_pipeline.training.frames import framed, on_canvas

FRAME_PX = 576, 768
BUDGETS = {256: (36, 48), 144: (48, 64), 64: (72, 96)}
"""Pixels of a frame per node, and the nodes."""
WIDER = {256: (40, 52), 144: (52, 71), 64: (79, 105)}
"""About a fifth more nodes: what the learned arm's placing costs."""

STUDY = 0.8, 0.6, 0.4, 0.2, 0.05
"""Even shares of handcrafted densities around the true boundaries, from nearly even
to dense: the published study of which density serves which class."""


CROP_PX = 192, 256
"""What the net without downsampling is trained on; it is measured on whole frames."""

STRIPS = Path(__file__).parent.parent.parent / "build" / "strips"
STRIP_SCALE = 0.25
"""500 px of 2 um high; a node is then 12 um, as at the published size."""
STRIP_STEPS = 2000

type Size = tuple[int, int]


class Frames(NamedTuple):
    """Images that are one region each, to train on and to measure.

    `nodes` is the rule for both, `measured` another one to measure by.
    """

    classes: tuple[MaskClass, ...]
    train: LabelledImages
    validation: LabelledImages
    views: Views
    nodes: Callable[[Size], Size] | None = None
    measured: Callable[[Size], Size] | None = None

    @property
    def rule(self) -> Callable[[Size], Size] | None:
        """What to measure by."""
        return self.measured or self.nodes


@dataclass(frozen=True)
class Cell:
    """One arm on one budget, trained once.

    Parameters
    ----------
    data : str
        "binary" or "glas" (3 classes), whole frames; "canvas", binary, a quarter of
        the area; "crops", binary, a node per pixel; "strips", painted, of many sizes;
        else a name in the table of datasets, whole images.
    strategy : str
        A name in the table of strategies.
    budget : int
        Pixels per node.
    nodes : (int, int)
        Rows and columns; for strips of a named dataset the rule that gives them.
    seed, steps, batch : int
        Of the training.
    changes : tuple of (str, value)
        Fields of the spec that differ from its defaults.
    """

    data: str
    strategy: str
    budget: int
    nodes: tuple[int, int]
    seed: int = 0
    steps: int = 1000
    batch: int = 16
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What tells it from all others."""
        wider = "+" * (self.nodes == WIDER.get(self.budget))
        changes = "".join(f",{key}={value}" for key, value in self.changes)
        return (
            f"{self.data} 1/{self.budget}{wider} {self.strategy}{changes} "
            f"seed {self.seed} steps {self.steps}"
        )

    def load(self, data_dir: Path) -> Frames:
        """Its frames."""
        if self.data not in ("binary", "glas", "canvas", "crops", "strips"):
            return self._whole_images(load_dataset(self.data, data_dir))
        if self.data == "strips":
            strips = load_dataset("folder", STRIPS)
            parts = kept(strips.train), kept(strips.validation)
            return Frames(strips.classes, *parts, Views(None, whole=True), strip_rule)
        merge = None if self.data == "glas" else "binary"
        found = load_dataset("glas", data_dir, classes=merge)
        parts = [framed(part, FRAME_PX) for part in (found.train, found.validation)]
        frame_px = FRAME_PX
        if self.data == "canvas":
            parts = [on_canvas(part, seed=7) for part in parts]
            frame_px = FRAME_PX[0] * 2, FRAME_PX[1] * 2
        train, validation = (kept(part) for part in parts)
        if self.data == "crops":
            views = Views(CROP_PX, far=0)
            return Frames(found.classes, train, validation, views, measured=every_pixel)
        views = Views(frame_px, whole=True)
        return Frames(found.classes, train, validation, views)

    def _whole_images(self, found: SegmentData) -> Frames:
        views = Views(found.frame_px, whole=True)
        rule = None if found.frame_px else partial(strip_nodes, rule=self.nodes)
        return Frames(found.classes, found.train, found.validation, views, rule)


def cells_of(dataset: str, data_dir: Path) -> list[Cell]:
    """A dataset under its usual budgets, whole images, as the papers measure it."""
    found = load_dataset(dataset, data_dir)
    if not found.budgets:
        raise ConfigError(f"dataset {dataset!r} names no usual number of nodes")
    h, w = found.frame_px or found.train.labels[0].shape
    cells = []
    for nodes in found.budgets:
        count = prod(nodes if found.frame_px else strip_nodes((h, w), nodes))
        for seed in range(3):
            for strategy in ("learned", "uniform", "edge", "saliency"):
                cell = Cell(dataset, strategy, round(h * w / count), nodes, seed)
                cells.append(cell if found.frame_px else replace(cell, batch=2))
    return cells


def every_pixel(size_px: Size) -> Size:
    """A node for each pixel."""
    return size_px


def strip_rule(size_px: Size) -> Size:
    """Nodes of a strip."""
    return strip_nodes(size_px, RULE_NODES)


def paint_missing_strips() -> None:
    """Paint the strips, about four minutes, unless they are there."""
    if not (STRIPS / "split.csv").exists():
        paint_strips(STRIPS, DatasetOptions(scale=STRIP_SCALE))


def kept(data: LabelledImages) -> LabelledImages:
    """All images in memory: they are asked for again and again."""
    images = [np.ascontiguousarray(image) for image in data.images]
    return LabelledImages(images, list(data.labels), data.names, data.groups, data.mpp)


def _plan() -> Iterator[Cell]:
    """What is promised first comes first."""
    for budget, nodes in BUDGETS.items():
        for seed in range(3):
            for strategy in ("learned", "uniform", "edge", "saliency"):
                yield Cell("binary", strategy, budget, nodes, seed)
        if budget == 256:
            yield from _around_256(nodes)
    for seed in range(3):
        for strategy in ("learned", "uniform", "edge"):
            yield Cell("strips", strategy, 36, (83, 391), seed, STRIP_STEPS, batch=2)
    for budget in (144, 64):
        yield Cell("binary", "uniform", budget, WIDER[budget], 0)


def _partly_tissue(
    data: str, budget: int, nodes: Size, seed: int, batch: int = 16
) -> Iterator[Cell]:
    """Tissue on glass: a wider kernel, and less that is spread evenly."""
    for strategy, changes in (
        ("uniform", {}),
        ("zoomed", {"sigma": 0.1, "floor": 0.05}),
        ("learned", {"sigma": 0.1, "floor": 0.1}),
        ("edge", {}),
    ):
        yield Cell(
            data, strategy, budget, nodes, seed,
            batch=batch, changes=tuple(changes.items()),
        )  # fmt: skip


def _around_256(nodes: tuple[int, int]) -> Iterator[Cell]:
    for seed in range(3):
        yield Cell("binary", "uniform", 256, WIDER[256], seed)
    for seed in range(3):
        yield from _partly_tissue("canvas", 1024, nodes, seed)
    for seed in range(3):
        yield Cell("binary", "learned", 256, nodes, seed, changes=(("view_stride", 2),))
    for strategy in ("learned", "uniform"):
        yield Cell("binary", strategy, 256, nodes, 0, steps=3000)
    for seed in range(3):
        yield Cell("binary", "staged", 256, nodes, seed)
    for strategy in (
        "alternating",
        "jin",
        "oracle",
        "separable",
        "fixed",
        "point",
    ):
        yield Cell("binary", strategy, 256, nodes)
    for strategy in ("learned", "uniform"):
        yield Cell("binary", strategy, 256, nodes, changes=(("resizer", "bilinear"),))
    yield Cell("crops", "point", 1, CROP_PX, batch=4)
    for strategy in ("learned", "uniform", "edge", "saliency"):
        yield Cell("glas", strategy, 256, nodes)
    for floor in STUDY:
        yield Cell("glas", "oracle", 256, nodes, changes=(("floor", floor),))


PLAN = list(_plan())
