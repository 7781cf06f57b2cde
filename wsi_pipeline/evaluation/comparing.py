"""Compares two masks of a slide as a stream of blocks: counts, regions, a picture."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.evaluation.changes import Region, RegionCounter
from wsi_pipeline.evaluation.scores import (
    NO_CLASS,
    MaskScores,
    join_classes,
    recoding,
)
from wsi_pipeline.evaluation.views import MaskView
from wsi_pipeline.geometry import Box, halved
from wsi_pipeline.layout import LABEL_SHARD_PX
from wsi_pipeline.metrics import confusion
from wsi_pipeline.ngff import Source

DRAWN_MPP = 0.5
"""um/px at which two drawings are compared where nothing else is said."""
MIN_REGION_UM2 = 200.0
_PICTURE_PX = 1024
SHARES = ("agreed", "added", "removed", "not computed")
"""What a pixel of the picture is made of; the rest is background in both."""


@dataclass(frozen=True)
class Comparison:
    """A prediction and the truth of one slide.

    Parameters
    ----------
    source : Source
        The slide.
    downsample : int
        Level-0 pixels per pixel of the grid that was compared.
    scores : MaskScores
        Counts of pixels.
    added, removed : tuple of Region
        Of the truth's and the prediction's classes where the two differ and both say
        something; the largest first, small ones left out.
    shares : (4, h, w) float32 array
        Share of each pixel of a small picture by `SHARES`, 0 to 1.
    picture_downsample : int
        Level-0 pixels per pixel of the picture.
    """

    source: Source
    downsample: int
    scores: MaskScores
    added: tuple[Region, ...]
    removed: tuple[Region, ...]
    shares: NDArray[np.float32]
    picture_downsample: int


def compare_masks(
    predicted: MaskView,
    truth: MaskView,
    *,
    mpp: float | None = None,
    min_region_um2: float = MIN_REGION_UM2,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare masks on one grid.

    Parameters
    ----------
    predicted, truth : MaskView
        Of the same slide; classes are matched by their names.
    mpp : float, optional
        um/px that the grid must not be coarser than; left out, the finest level that
        both have, for two drawings 0.5.
    min_region_um2 : float
        Smaller regions are counted in areas, not listed.
    progress : callable, optional
        Called with (blocks done, blocks).

    Returns
    -------
    Comparison
        Pixels that the prediction did not compute (255) are counted apart; pixels
        where the truth is 255 are left out.

    Raises
    ------
    PyramidError
        If the slides' sizes differ, no level has the same downsample, or a value is
        no class of its mask.

    Notes
    -----
    Memory: about 15 bytes per pixel of a block of 4096 px, 250 MB, whatever the slide's
    size.
    """
    if predicted.source.size_px != truth.source.size_px:
        raise PyramidError(
            f"{predicted.path} is of a slide of {predicted.source.size_px} px, "
            f"{truth.path} of one of {truth.source.size_px} px"
        )
    source = predicted.source
    step = common_downsample(predicted, truth, mpp)
    classes = join_classes(truth.classes, predicted.classes)
    tables = [recoding(view.classes, classes) for view in (truth, predicted)]
    whole = Box(0, 0, *halved(source.size_px, step.bit_length() - 1))
    pixel_um2 = source.scale.coarser(step).area_um2
    least = max(1, int(np.ceil(min_region_um2 / pixel_um2 - 1e-9)))
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    added, removed = RegionCounter(whole.w, least), RegionCounter(whole.w, least)
    picture = _Picture(whole)
    blocks = list(whole.blocks(LABEL_SHARD_PX))
    for done, block in enumerate(blocks):
        t, p = (
            _recoded(view, block, step, table)
            for view, table in zip((truth, predicted), tables, strict=True)
        )
        counts += confusion(t, p, len(classes))
        differ = (t != p) & (t != NOT_COMPUTED) & (p != NOT_COMPUTED)
        added.add(block, t * differ)
        removed.add(block, p * differ)
        picture.add(block, t, p, differ)
        if progress:
            progress(done + 1, len(blocks))
    return Comparison(
        source,
        step,
        MaskScores(classes, counts, pixel_um2),
        added.regions(),
        removed.regions(),
        picture.shares,
        step * picture.factor,
    )


def common_downsample(
    predicted: MaskView, truth: MaskView, mpp: float | None = None
) -> int:
    """Level-0 pixels per pixel of the grid that two masks are compared on.

    Raises
    ------
    PyramidError
        If no level has the same downsample.
    """
    sides = [set(v.downsamples) for v in (predicted, truth) if v.downsamples]
    finest = predicted.source.scale.mean
    if sides:
        shared = sorted(set.intersection(*sides))
        if not shared:
            raise PyramidError(
                f"{predicted.path} and {truth.path}: the two masks share no level"
            )
    else:
        mpp = mpp or DRAWN_MPP
        shared = [2**n for n in range(16)]
    if mpp is None:
        return shared[0]
    # 1 %: scanners state their scale as roughly as that
    fits = [step for step in shared if step * finest <= mpp * 1.01]
    return fits[-1] if fits else shared[0]


def _recoded(
    view: MaskView, block: Box, step: int, table: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    values = view.read(block, step)
    found = table[values]
    strange = found == NO_CLASS
    if strange.any():
        raise PyramidError(
            f"{view.path}: values {np.unique(values[strange])[:8].tolist()} are no "
            f"classes of it; expected {[kind.value for kind in view.classes]} or 255"
        )
    return np.asarray(found)


class _Picture:
    """Adds up shares of pixels on a grid that is small enough to be looked at."""

    def __init__(self, whole: Box) -> None:
        longest = max(whole.w, whole.h, 1)
        parts = -(-longest // _PICTURE_PX)
        self.factor = min(1 << (parts - 1).bit_length(), LABEL_SHARD_PX)
        h, w = -(-whole.h // self.factor), -(-whole.w // self.factor)
        self.shares = np.zeros((len(SHARES), h, w), np.float32)

    def add(
        self,
        block: Box,
        truth: NDArray[np.uint8],
        predicted: NDArray[np.uint8],
        differ: NDArray[np.bool_],
    ) -> None:
        inside = truth != NOT_COMPUTED
        kinds = (
            inside & (truth == predicted) & (truth > 0),
            differ & (truth > 0),
            differ & (truth == 0),
            inside & (predicted == NOT_COMPUTED),
        )
        place = block.scaled_down(self.factor)
        for shares, where in zip(self.shares, kinds, strict=True):
            if where.any():
                shares[place.rows, place.columns] = self._reduced(where)

    def _reduced(self, where: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Mean of squares; what lies beyond the mask counts as background."""
        h, w = (-(-side // self.factor) * self.factor for side in where.shape)
        whole = np.zeros((h, w), np.float32)
        whole[: where.shape[0], : where.shape[1]] = where
        size = w // self.factor, h // self.factor
        found = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
        return np.asarray(found, np.float32)
