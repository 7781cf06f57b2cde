"""Reads the base of a label from its store, as cheaply as the store allows."""

from collections.abc import Collection

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.chunks import ChunkReader
from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.exporters.scores import BlockScores, PatchScores
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import LABEL_CHUNK_PX
from wsi_pipeline.pyramid import MaskPyramid

Pixels = NDArray[np.uint8]


class LabelSource:
    """A mask, how sure it is and how salient the patches there, for `trace_objects`.

    Parameters
    ----------
    masks : MaskPyramid
    confidence : MaskPyramid or None
        On the same grid, or on one so many times coarser.
    scores : PatchScores or None
        On the mask's grid.
    hidden : collection of int
        Values that are no objects, besides 255.

    Raises
    ------
    PyramidError
        Here and later, if a part of them is lost or damaged.
    """

    def __init__(
        self,
        masks: MaskPyramid,
        confidence: MaskPyramid | None = None,
        scores: PatchScores | None = None,
        *,
        hidden: Collection[int] = (0,),
    ) -> None:
        self._masks = _Base(masks)
        self._confidence, self._scores = confidence, scores
        self._blank = {*hidden, NOT_COMPUTED}
        self._shown = np.arange(256, dtype=np.uint8)
        self._shown[list(hidden)] = 0

    def read(self, box: Box) -> Pixels:
        """(h, w) uint8 values of the mask, 0 for those that are hidden."""
        values = self._masks.read(box)
        if self._blank != {0, NOT_COMPUTED}:
            cv2.LUT(values, self._shown, values)
        return values

    def read_confidence(self, box: Box) -> Pixels | None:
        """(h, w) uint8, 254 * probability; None where there is no such label."""
        if self._confidence is None:
            return None
        ratio = self._confidence.levels[0].downsample / self._masks.downsample
        factor = round(ratio)
        cover = box.scaled_down(factor)
        around = Box(cover.x - 1, cover.y - 1, cover.w + 2, cover.h + 2)
        around = around.intersect(self._confidence.levels[0].box)
        sure = _spread(self._confidence.read_level(around, 0))
        rows = np.arange(box.y, box.bottom) // factor - around.y
        columns = np.arange(box.x, box.right) // factor - around.x
        return sure[rows[:, None], columns]

    def read_scores(self, box: Box) -> BlockScores | None:
        """Scores of the patches there; None where they are not known."""
        return None if self._scores is None else self._scores.read(box)

    def is_blank(self, box: Box) -> bool:
        """Whether a glance at the chunks of a box tells that it holds no object."""
        values = self._masks.values(box)
        return values is not None and values <= self._blank


def _spread(sure: Pixels) -> Pixels:
    """Confidence with the neighbours' highest where it is not known.

    A coarse pixel whose middle lies beside a region has none, and may hold pixels of
    objects that lie in the region.
    """
    known = np.where(sure == NOT_COMPUTED, np.uint8(0), sure)
    beside = cv2.dilate(known, np.ones((3, 3), np.uint8))
    return np.where(sure == NOT_COMPUTED, beside, sure)


class _Base:
    """Level 0 of a label."""

    def __init__(self, label: MaskPyramid) -> None:
        self._label = label
        self.downsample = label.levels[0].downsample
        self._chunks = ChunkReader.of(label.path / "0", label.array(0))

    def read(self, box: Box) -> Pixels:
        if self._chunks is None:
            return self._label.read_level(box, 0)
        out = np.empty((box.h, box.w), np.uint8)
        self._chunks.read(box.blocks(LABEL_CHUNK_PX), box.x, box.y, out)
        return out

    def values(self, box: Box) -> set[int] | None:
        """Values of a box's chunks, where each holds one; else None."""
        if self._chunks is None:
            return None
        return self._chunks.values(box.blocks(LABEL_CHUNK_PX))
