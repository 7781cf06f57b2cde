"""What is measured over the pixels of objects, and how it adds up from their parts."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import CERTAIN
from wsi_pipeline.exporters.outlines import Ints
from wsi_pipeline.exporters.scores import NO_SCORE, BlockScores
from wsi_pipeline.geometry import Box

Floats = NDArray[np.float64]

MEASUREMENTS = {
    "Area um^2": "of its pixels in the mask",
    "Perimeter um": "of its outline in this file, holes included",
    "Mean probability": "of its class, over its pixels",
    "Max probability": "of its class, the highest among its pixels",
    "Selection score": "the highest attention score of a patch that was examined and "
    "overlaps it; missing where no such patch does",
}
"""Names of the numbers of an object, and what they are."""


def name_evidence(mean: float, highest: float, score: float) -> dict[str, float]:
    """Probabilities and score by their names, without those that are not known: NaN."""
    numbers = {}
    if mean == mean:
        numbers["Mean probability"] = round(mean, 4)
        numbers["Max probability"] = round(highest, 4)
    if score == score:
        numbers["Selection score"] = float(f"{score:.4g}")
    return numbers


@dataclass(frozen=True)
class Layers:
    """What is known of the pixels of a block, besides their class.

    Parameters
    ----------
    confidence : (h, w) uint8 array or None
        254 * probability.
    scores : BlockScores or None
        Of the patches there.
    """

    confidence: NDArray[np.uint8] | None = None
    scores: BlockScores | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return self.confidence is None and self.scores is None

    def crop(self, box: Box) -> Self:
        """Those of a part of the block."""
        sure, scores = self.confidence, self.scores
        return type(self)(
            None if sure is None else sure[box.rows, box.columns],
            None if scores is None else scores.crop(box),
        )


@dataclass(frozen=True)
class Measured:
    """What was measured over n parts of objects.

    Parameters
    ----------
    weight : (n,) float64 array
        Sum of the confidence, a whole number; NaN where there is no such label.
    peak : (n,) uint8 array
        Highest confidence.
    score : (n,) float64 array
        Highest score of a patch; `NO_SCORE` where no patch lies.
    """

    weight: Floats
    peak: NDArray[np.uint8]
    score: Floats

    @classmethod
    def nothing(cls, n: int) -> Self:
        """Of n parts of which nothing is known."""
        return cls(np.full(n, np.nan), np.zeros(n, np.uint8), np.full(n, NO_SCORE))

    @property
    def columns(self) -> tuple[Floats, NDArray[np.uint8], Floats]:
        """Its fields in order."""
        return self.weight, self.peak, self.score

    def take(self, which: Ints | NDArray[np.bool_]) -> Self:
        """Those of some parts."""
        return type(self)(self.weight[which], self.peak[which], self.score[which])

    def grouped(self, group: Ints, count: int) -> Self:
        """Those of larger parts: `group` is the one that each belongs to."""
        peak, score = np.zeros(count, np.uint8), np.full(count, NO_SCORE)
        np.maximum.at(peak, group, self.peak)
        np.maximum.at(score, group, self.score)
        return type(self)(np.bincount(group, self.weight, count), peak, score)

    def told(self, pixels: Ints) -> tuple[Floats, Floats, Floats]:
        """Of whole objects of so many pixels.

        Returns
        -------
        mean, highest : (n,) float64 arrays
            Probability, 0 to 1; NaN where it is not known.
        score : (n,) float64 array
            NaN where no patch lies.
        """
        mean = self.weight / (pixels * CERTAIN)
        highest = np.where(np.isnan(mean), np.nan, self.peak / CERTAIN)
        return mean, highest, np.where(self.score < 0, np.nan, self.score)
