"""Compares predicted masks with true ones, block by block."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.geometry import Level
from wsi_pipeline.metrics import dice_per_class, iou_per_class
from wsi_pipeline.pyramid import LABEL_SHARD_PX, MaskPyramid


@dataclass(frozen=True)
class MaskScores:
    """How well a predicted mask matches the truth.

    Parameters
    ----------
    classes : tuple of MaskClass
        The truth's classes; index k is value k.
    confusion : (K, K) int64 array
        Pixels by true (row) and predicted (column) class, computed pixels only.
    not_computed : (K,) int64 array
        Pixels by true class that the prediction left out.
    """

    classes: tuple[MaskClass, ...]
    confusion: NDArray[np.int64]
    not_computed: NDArray[np.int64]

    @property
    def iou(self) -> dict[str, float]:
        """IoU per class that occurs in truth or prediction, by name."""
        values = iou_per_class(self.confusion)
        return {
            c.name: float(values[c.value])
            for c in self.classes
            if np.isfinite(values[c.value])
        }

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur."""
        return float(np.mean(list(self.iou.values()))) if self.iou else float("nan")

    @property
    def computed_share(self) -> float:
        """Share of the pixels that the prediction computed, 0 to 1."""
        total = self.confusion.sum() + self.not_computed.sum()
        return float(self.confusion.sum() / total) if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        dice = dice_per_class(self.confusion)
        return {
            "miou": self.miou,
            "iou": self.iou,
            "dice": {
                c.name: float(dice[c.value])
                for c in self.classes
                if np.isfinite(dice[c.value])
            },
            "computed_share": self.computed_share,
            "confusion": self.confusion.tolist(),
            "not_computed": self.not_computed.tolist(),
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
    confusion = np.zeros((count, count), np.int64)
    missing = np.zeros(count, np.int64)
    for block in predicted.levels[left].box.blocks(LABEL_SHARD_PX):
        guess = predicted.read_level(block, left).ravel()
        true = truth.read_level(block, right).ravel()
        known = true != NOT_COMPUTED
        seen = known & (guess != NOT_COMPUTED)
        for name, values in (("prediction", guess[seen]), ("truth", true[known])):
            if values.size and values.max() >= count:
                raise PyramidError(
                    f"the {name} has the value {values.max()}, the truth only "
                    f"{count} classes"
                )
        pairs = true[seen].astype(np.int64) * count + guess[seen]
        confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)
        missing += np.bincount(true[known & ~seen], minlength=count)
    return MaskScores(truth.classes, confusion, missing)


def _common_level(
    left: tuple[Level, ...], right: tuple[Level, ...]
) -> tuple[int, int]:
    """Indices of the finest levels with the same downsample."""
    places = {level.downsample: index for index, level in enumerate(right)}
    for index, level in enumerate(left):
        if level.downsample in places:
            return index, places[level.downsample]
    raise PyramidError("the two masks share no level")
