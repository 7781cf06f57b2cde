"""Compares predicted masks with true ones, block by block."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.geometry import Level
from wsi_pipeline.layout import LABEL_SHARD_PX
from wsi_pipeline.metrics import confusion, dice, iou
from wsi_pipeline.pyramid import MaskPyramid


@dataclass(frozen=True)
class MaskScores:
    """How well a predicted mask matches the truth.

    Parameters
    ----------
    classes : tuple of MaskClass
        The truth's classes; index k is value k.
    counts : (K, K + 1) int64 array
        Pixels by true (row) and predicted (column) class; the last column holds
        those that the prediction did not compute.
    """

    classes: tuple[MaskClass, ...]
    counts: NDArray[np.int64]

    @property
    def iou(self) -> dict[str, float]:
        """IoU on computed pixels, by name, of classes in truth or prediction."""
        return self._named(iou(self._computed))

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur; NaN where none does."""
        return float(np.mean(list(self.iou.values()))) if self.iou else float("nan")

    @property
    def computed_share(self) -> float:
        """Share of the pixels that the prediction computed, 0 to 1."""
        total = self.counts.sum()
        return float(self._computed.sum() / total) if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values; `iou_all` counts what was left out as missed."""
        return {
            "miou": self.miou,
            "iou": self.iou,
            "dice": self._named(dice(self._computed)),
            "iou_all": self._named(iou(self.counts)),
            "computed_share": self.computed_share,
            "counts": self.counts.tolist(),
        }

    @property
    def _computed(self) -> NDArray[np.int64]:
        counts = self.counts.copy()
        counts[:, -1] = 0
        return counts

    def _named(self, values: NDArray[np.float64]) -> dict[str, float]:
        return {
            c.name: float(value)
            for c, value in zip(self.classes, values, strict=True)
            if np.isfinite(value)
        }


def evaluate_masks(predicted: MaskPyramid, truth: MaskPyramid) -> MaskScores:
    """Count agreement on the finest grid that both pyramids have.

    Parameters
    ----------
    predicted, truth : MaskPyramid
        Of the same slide; their bases may differ by a power of two.

    Returns
    -------
    MaskScores
        Pixels that the prediction did not compute (255) are counted apart; pixels
        where the truth is 255 are left out.

    Raises
    ------
    PyramidError
        If the slides' sizes differ, no level has the same downsample, or a value is
        no class of the truth.

    Notes
    -----
    Memory: two label shards (32 MB), kept by going block by block.
    """
    if predicted.source.size_px != truth.source.size_px:
        raise PyramidError(
            f"{predicted.path} is of a slide of {predicted.source.size_px} px, "
            f"{truth.path} of one of {truth.source.size_px} px"
        )
    left, right = _common_level(predicted.levels, truth.levels)
    count = len(truth.classes)
    counts = np.zeros((count, count + 1), np.int64)
    for block in predicted.levels[left].box.blocks(LABEL_SHARD_PX):
        try:
            counts += confusion(
                truth.read_level(block, right), predicted.read_level(block, left), count
            )
        except ValueError as error:
            raise PyramidError(f"{predicted.path} or {truth.path}: {error}") from error
    return MaskScores(truth.classes, counts)


def _common_level(left: tuple[Level, ...], right: tuple[Level, ...]) -> tuple[int, int]:
    """Indices of the finest levels with the same downsample."""
    places = {level.downsample: index for index, level in enumerate(right)}
    for index, level in enumerate(left):
        if level.downsample in places:
            return index, places[level.downsample]
    raise PyramidError("the two masks share no level")
