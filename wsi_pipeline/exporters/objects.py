"""Objects of a mask, many at a time: what was found of each, and counts per class."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.outlines import Ints, Outlines


@dataclass(frozen=True)
class Objects:
    """4-connected components of one class each.

    Parameters
    ----------
    value : (n,) uint8 array
        Value in the mask.
    pixels : (n,) int64 array
        Pixels of the mask's base in the component.
    filled : (n,) int64 array
        Pixels of its holes that were filled.
    first : (n,) int64 array
        Reading order of their first pixels.
    probability : (n,) float64 array
        Mean probability of the class over the object's pixels, 0 to 1; NaN where
        there is no confidence label.
    highest : (n,) float64 array
        Highest probability among them.
    score : (n,) float64 array
        Highest score of a patch that was examined and overlaps the object, as of
        `Selection`; NaN where there is none.
    outlines : Outlines
        n outlines.
    """

    value: NDArray[np.uint8]
    pixels: Ints
    filled: Ints
    first: Ints
    probability: NDArray[np.float64]
    highest: NDArray[np.float64]
    score: NDArray[np.float64]
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.value)

    def take(self, which: Ints) -> Self:
        """Some of the objects."""
        return replace(
            self,
            value=self.value[which],
            pixels=self.pixels[which],
            filled=self.filled[which],
            first=self.first[which],
            probability=self.probability[which],
            highest=self.highest[which],
            score=self.score[which],
            outlines=self.outlines.take(which),
        )


@dataclass(frozen=True)
class ClassCount:
    """What of one class was found, what was too small to keep, and what was filled.

    Parameters
    ----------
    value : int
        Value in the mask.
    objects, pixels : int
        Components of the class and their pixels, all of them.
    dropped_objects, dropped_pixels : int
        Those among them below the smallest size.
    filled_holes, filled_pixels : int
        Holes of the others below the smallest size, filled.
    """

    value: int
    objects: int
    pixels: int
    dropped_objects: int
    dropped_pixels: int
    filled_holes: int
    filled_pixels: int


def class_counts(tally: Ints) -> tuple[ClassCount, ...]:
    """Rows of the classes that occur, from (256, 6) counts in the fields' order."""
    return tuple(
        ClassCount(value, *tally[value].tolist())
        for value in np.flatnonzero(tally[:, 0]).tolist()
    )


def tally_objects(
    value: NDArray[np.uint8],
    pixels: Ints,
    is_kept: NDArray[np.bool_],
    holes: Ints,
    filled: Ints,
) -> Ints:
    """(256, 6) counts of (n,) objects; `holes` and `filled` are those filled of each.

    Parameters
    ----------
    value, pixels, is_kept, holes, filled : (n,) arrays
        Class, size, whether it is large enough, filled holes and their pixels.
    """
    ones = np.ones(len(value), np.int64)
    dropped = (~is_kept).astype(np.int64)
    kept = is_kept.astype(np.int64)
    columns = (ones, pixels, dropped, dropped * pixels, kept * holes, kept * filled)
    tally = np.zeros((256, 6), np.int64)
    np.add.at(tally, value, np.stack(columns, axis=1))
    return tally
