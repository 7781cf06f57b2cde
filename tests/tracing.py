"""Masks in memory, traced; what was found, sorted, for tests to compare."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter

from wsi_pipeline.exporters.objects import ClassCount, Objects, class_counts
from wsi_pipeline.exporters.pieces import Rules
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.scores import BlockScores, PatchScores
from wsi_pipeline.geometry import Box

Mask = NDArray[np.uint8]


@dataclass
class ArraySource:
    """A mask in memory; `reads` are the boxes that were read."""

    mask: Mask
    confidence: Mask | None = None
    scores: PatchScores | None = None

    def __post_init__(self) -> None:
        self.reads: list[Box] = []

    def read(self, box: Box) -> Mask:
        self.reads.append(box)
        return self.mask[box.rows, box.columns]

    def read_confidence(self, box: Box) -> Mask | None:
        if self.confidence is None:
            return None
        return self.confidence[box.rows, box.columns]

    def read_scores(self, box: Box) -> BlockScores | None:
        return None if self.scores is None else self.scores.read(box)

    def is_blank(self, box: Box) -> bool:
        return False

    @property
    def whole(self) -> Box:
        return Box(0, 0, self.mask.shape[1], self.mask.shape[0])


@dataclass(frozen=True)
class Item:
    """An object: what was found of it, and its outline."""

    value: int
    first: int
    pixels: int
    filled: int
    probability: float | None
    highest: float | None
    score: float | None
    outline: shapely.Polygon


@dataclass(frozen=True)
class Found:
    """Objects by class and first pixel, and counts."""

    items: tuple[Item, ...]
    counts: tuple[ClassCount, ...]

    @property
    def outlines(self) -> NDArray[np.object_]:
        return np.array([item.outline for item in self.items], object)


def trace(
    mask: Mask,
    block_px: int = 4096,
    rules: Rules = Rules(),  # noqa: B008  # frozen
    *,
    confidence: Mask | None = None,
    scores: PatchScores | None = None,
    workers: int = 1,
) -> Found:
    source = ArraySource(mask, confidence, scores)
    items: list[Item] = []
    tally = np.zeros((256, 6), np.int64)
    for batch in trace_objects(
        source, source.whole, rules, block_px=block_px, workers=workers
    ):
        items += items_of(batch.objects)
        tally += batch.tally
    items.sort(key=lambda item: (item.value, item.first))
    return Found(tuple(items), class_counts(tally))


def items_of(objects: Objects) -> list[Item]:
    columns = (objects.value, objects.first, objects.pixels, objects.filled)
    measured = [
        [None if np.isnan(number) else number for number in column.tolist()]
        for column in (objects.probability, objects.highest, objects.score)
    ]
    outlines = objects.outlines.to_shapely()
    rows = zip(*(c.tolist() for c in columns), *measured, outlines, strict=True)
    return [Item(*row) for row in rows]


def drawn(found: Found, shape: tuple[int, ...]) -> Mask:
    """The mask that the outlines show."""
    rows = [(item.outline, item.value) for item in found.items]
    if not rows:
        return np.zeros(shape, np.uint8)
    return np.asarray(rasterize(rows, out_shape=shape, dtype="uint8"), np.uint8)


def check_exact(mask: Mask, found: Found) -> None:
    """Outlines are valid, of the objects' area to the pixel, and draw the mask."""
    assert (drawn(found, mask.shape) == np.where(mask == 255, 0, mask)).all()
    outlines = found.outlines
    assert shapely.is_valid(outlines).all()
    pixels = np.array([item.pixels for item in found.items])
    assert (shapely.area(outlines) == pixels).all()
    counted = {count.value: count.pixels for count in found.counts}
    values, sizes = np.unique(mask[(mask > 0) & (mask < 255)], return_counts=True)
    assert counted == dict(zip(values.tolist(), sizes.tolist(), strict=True))
    rounded = shapely.set_precision(outlines, 0.01)
    assert (shapely.get_type_id(rounded) == shapely.get_type_id(outlines)).all()
    assert (shapely.area(rounded) == pixels).all()


def blobs(seed: int, side: int, classes: int = 3, sigma: float = 3.0) -> Mask:
    """A smooth random mask with objects of all sizes and shared borders."""
    noise = np.random.default_rng(seed).normal(size=(classes, side, side))
    return gaussian_filter(noise, (0, sigma, sigma)).argmax(0).astype(np.uint8)
