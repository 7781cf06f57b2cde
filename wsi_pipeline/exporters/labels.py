"""Reads the base of a label from its store, as cheaply as the store allows."""

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.chunks import ChunkReader
from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import LABEL_CHUNK_PX
from wsi_pipeline.pyramid import MaskPyramid


class LabelSource:
    """A mask, and how sure it is, for `trace_objects`.

    Parameters
    ----------
    masks : MaskPyramid
    confidence : MaskPyramid or None
        On the same grid, or on one so many times coarser.

    Raises
    ------
    PyramidError
        Here and later, if a part of them is lost or damaged.
    """

    def __init__(
        self, masks: MaskPyramid, confidence: MaskPyramid | None = None
    ) -> None:
        self._masks = _Base(masks)
        self._confidence = confidence

    def read(self, box: Box) -> NDArray[np.uint8]:
        """(h, w) uint8 values of the mask."""
        return self._masks.read(box)

    def read_confidence(self, box: Box) -> NDArray[np.uint8] | None:
        """(h, w) uint8, 254 * probability; None where there is no such label."""
        if self._confidence is None:
            return None
        factor = self._confidence.levels[0].downsample / self._masks.downsample
        return self._confidence.read_enlarged(box, round(factor))

    def is_blank(self, box: Box) -> bool:
        """Whether a glance at the chunks of a box tells that it holds no object."""
        return self._masks.is_blank(box)


class _Base:
    """Level 0 of a label."""

    def __init__(self, label: MaskPyramid) -> None:
        self._label = label
        self.downsample = label.levels[0].downsample
        self._chunks = ChunkReader.of(label.path / "0", label.array(0))

    def read(self, box: Box) -> NDArray[np.uint8]:
        if self._chunks is None:
            return self._label.read_level(box, 0)
        out = np.empty((box.h, box.w), np.uint8)
        self._chunks.read(box.blocks(LABEL_CHUNK_PX), box.x, box.y, out)
        return out

    def is_blank(self, box: Box) -> bool:
        if self._chunks is None:
            return False
        values = self._chunks.values(box.blocks(LABEL_CHUNK_PX))
        return values is not None and values <= {0, NOT_COMPUTED}
