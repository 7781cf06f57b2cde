"""How well masks agree: pixels by true and predicted class, and what follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.metrics import dice, iou

NO_CLASS = 254
"""What `recoding` makes of a value that is no class."""
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class MaskScores:
    """How well a predicted mask matches the truth.

    Parameters
    ----------
    classes : tuple of MaskClass
        Of truth and prediction; index k is value k.
    counts : (K, K + 1) int64 array
        Pixels by true (row) and predicted (column) class; the last column holds
        those that the prediction did not compute.
    pixel_um2 : float
        Area of a pixel.
    """

    classes: tuple[MaskClass, ...]
    counts: NDArray[np.int64]
    pixel_um2: float

    @property
    def iou(self) -> dict[str, float]:
        """IoU on computed pixels, by name, of classes in truth or prediction."""
        return self._named(iou(self.computed))

    @property
    def dice(self) -> dict[str, float]:
        """Dice on computed pixels, by name, of classes in truth or prediction."""
        return self._named(dice(self.computed))

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur; NaN where none does."""
        return float(np.mean(list(self.iou.values()))) if self.iou else float("nan")

    @property
    def computed_share(self) -> float:
        """Share of the pixels that the prediction computed, 0 to 1."""
        total = self.counts.sum()
        return float(self.computed.sum() / total) if total else 0.0

    @property
    def computed(self) -> NDArray[np.int64]:
        """The counts without the pixels that the prediction did not compute."""
        counts = self.counts.copy()
        counts[:, -1] = 0
        return counts

    def areas(self) -> "tuple[ClassAreas, ...]":
        """Areas of every class."""
        computed = self.computed
        hits = np.diagonal(computed)
        truth, found = computed.sum(axis=1), computed.sum(axis=0)[:-1]
        rows = (found, truth, hits, self.counts[:, -1])
        return tuple(
            ClassAreas(kind, *(float(row[kind.value] * self.pixel_um2) for row in rows))
            for kind in self.classes
        )

    def aligned(self, classes: Sequence[MaskClass]) -> Self:
        """The same counts for a longer list of classes that has all these names.

        Raises
        ------
        KeyError
            If a name is not in the list.
        """
        places = {kind.name: kind.value for kind in classes}
        at = [places[kind.name] for kind in self.classes]
        counts = np.zeros((len(classes), len(classes) + 1), np.int64)
        counts[np.ix_(at, [*at, len(classes)])] = self.counts
        return type(self)(tuple(classes), counts, self.pixel_um2)

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values; `iou_all` counts what was left out as missed."""
        return {
            "miou": self.miou if self.iou else None,
            "iou": self.iou,
            "dice": self.dice,
            "iou_all": self._named(iou(self.counts)),
            "computed_share": self.computed_share,
            "areas_um2": {row.kind.name: row.to_json() for row in self.areas()},
            "counts": self.counts.tolist(),
        }

    def _named(self, values: NDArray[np.float64]) -> dict[str, float]:
        return {
            c.name: float(value)
            for c, value in zip(self.classes, values, strict=True)
            if np.isfinite(value)
        }


@dataclass(frozen=True)
class ClassAreas:
    """Areas of a class in um2, where truth and prediction say something.

    Parameters
    ----------
    kind : MaskClass
    predicted_um2, truth_um2, common_um2 : float
        Of prediction, truth and both, on pixels that the prediction computed.
    not_computed_um2 : float
        Of the truth where the prediction computed nothing.
    """

    kind: MaskClass
    predicted_um2: float
    truth_um2: float
    common_um2: float
    not_computed_um2: float

    @property
    def added_um2(self) -> float:
        """In the truth and not in the prediction, which computed it."""
        return self.truth_um2 - self.common_um2

    @property
    def removed_um2(self) -> float:
        """In the prediction and not in the truth."""
        return self.predicted_um2 - self.common_um2

    def to_json(self) -> dict[str, float]:
        """By name, without the class."""
        return {
            "predicted": self.predicted_um2,
            "truth": self.truth_um2,
            "added": self.added_um2,
            "removed": self.removed_um2,
            "not_computed": self.not_computed_um2,
        }


def join_classes(
    first: Sequence[MaskClass], second: Sequence[MaskClass]
) -> tuple[MaskClass, ...]:
    """Classes of both masks by name, with values 0, 1, ...; 0 of both is one class."""
    both = (*first, *second)
    plain = MaskClass(0, "Background", (255, 255, 255))
    ground = next((kind for kind in both if kind.value == 0), plain)
    named: dict[str, Rgb] = {}
    for kind in both:
        if kind.value and kind.name != ground.name:
            named.setdefault(kind.name, kind.rgb)
    rows = enumerate(named.items(), 1)
    return ground, *(MaskClass(value, name, rgb) for value, (name, rgb) in rows)


def recoding(
    classes: Sequence[MaskClass], joint: Sequence[MaskClass]
) -> NDArray[np.uint8]:
    """(256,) table from a mask's values to those of joint classes.

    Returns
    -------
    (256,) uint8 array
        255 stays; values that are no class become `NO_CLASS`.
    """
    values = {kind.name: kind.value for kind in joint}
    table = np.full(256, NO_CLASS, np.uint8)
    table[NOT_COMPUTED] = NOT_COMPUTED
    for kind in classes:
        table[kind.value] = values[kind.name] if kind.value else 0
    return table
