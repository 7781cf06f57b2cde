"""Compares the masks of many slides, and says how sure the figures are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import WsiError
from wsi_pipeline.evaluation.changes import Region
from wsi_pipeline.evaluation.comparing import (
    MIN_REGION_UM2,
    Comparison,
    compare_masks,
)
from wsi_pipeline.evaluation.opening import DrawnOptions, open_prediction, open_truth
from wsi_pipeline.evaluation.pairing import LeftOut, Pair
from wsi_pipeline.evaluation.scores import ClassAreas, MaskScores, join_classes
from wsi_pipeline.metrics import bootstrap_intervals, by_group, dice, iou, mean_iou
from wsi_pipeline.ngff import Source

Interval = tuple[float, float] | None
"""Low and high end, 95 %; None where there is one patient only."""
_AREAS = tuple(one.name for one in fields(ClassAreas) if one.name != "kind")


@dataclass(frozen=True)
class SlideScores:
    """What one slide reaches, without its picture.

    Parameters
    ----------
    pair : Pair
    source : Source
        The slide.
    downsample : int
        Level-0 pixels per pixel of the grid that was compared.
    scores : MaskScores
    added, removed : tuple of Region
        See `Comparison`.
    """

    pair: Pair
    source: Source
    downsample: int
    scores: MaskScores
    added: tuple[Region, ...]
    removed: tuple[Region, ...]

    def regions(self, name: str) -> tuple[int, int]:
        """How many regions of a class were added and removed."""
        names = [kind.name for kind in self.scores.classes]
        added, removed = (
            sum(names[region.value] == name for region in found)
            for found in (self.added, self.removed)
        )
        return added, removed

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            "slide": self.pair.name,
            "patient": self.pair.patient,
            "predicted": str(self.pair.predicted),
            "truth": str(self.pair.truth),
            "mpp": self.source.scale.coarser(self.downsample).mean,
            **self.scores.to_json(),
            "regions_added_removed": {
                kind.name: list(self.regions(kind.name)) for kind in self.scores.classes
            },
        }


@dataclass(frozen=True)
class ClassScores:
    """What one class reaches on all slides together.

    Parameters
    ----------
    slides : int
        With the class in truth or prediction.
    dice, iou : float
        Of all pixels together, by their areas.
    dice_interval, iou_interval : (float, float) or None
        When patients are drawn anew.
    median_dice : float
        Of these slides.
    areas : ClassAreas
        Summed.
    added, removed : int
        Regions.
    """

    slides: int
    dice: float
    dice_interval: Interval
    iou: float
    iou_interval: Interval
    median_dice: float
    areas: ClassAreas
    added: int
    removed: int

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"class": self.areas.kind.name, **own} | {
            "areas": None,
            "areas_um2": self.areas.to_json(),
        }


@dataclass(frozen=True)
class CohortScores:
    """What all slides reach together.

    Parameters
    ----------
    slides : tuple of SlideScores
        Those that were compared.
    left_out : tuple of LeftOut
        Those that were not.
    """

    slides: tuple[SlideScores, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def classes(self) -> tuple[MaskClass, ...]:
        """Of all slides, by name."""
        lists = [slide.scores.classes for slide in self.slides]
        return reduce(join_classes, lists, ())

    @property
    def patients(self) -> int:
        """How many there are."""
        return len({slide.pair.patient for slide in self.slides})

    def aligned(self) -> list[MaskScores]:
        """Scores of each slide with the classes of all."""
        return [slide.scores.aligned(self.classes) for slide in self.slides]

    def pooled(self) -> tuple[float, Interval]:
        """Mean IoU over classes that occur, all pixels together, and its interval."""
        if not self.slides:
            return float("nan"), None
        counts = self._by_area(self.aligned())
        bounds = self._intervals(counts)
        middle = mean_iou(counts.sum(axis=0))
        return middle, None if bounds is None else _interval(bounds, -1)

    def rows(self) -> list[ClassScores]:
        """A row per class that occurs."""
        if not self.slides:
            return []
        aligned = self.aligned()
        counts = self._by_area(aligned)
        bounds = self._intervals(counts)
        total = counts.sum(axis=0)
        areas = [scores.areas() for scores in aligned]
        found = []
        for place, kind in enumerate(self.classes):
            reached = [s.dice[kind.name] for s in aligned if kind.name in s.dice]
            if not reached:
                continue
            moved = [slide.regions(kind.name) for slide in self.slides]
            sums = (sum(getattr(row[place], name) for row in areas) for name in _AREAS)
            found.append(
                ClassScores(
                    len(reached),
                    float(dice(total)[place]),
                    _interval(bounds, place),
                    float(iou(total)[place]),
                    _interval(bounds, len(self.classes) + place),
                    float(np.median(reached)),
                    ClassAreas(kind, *sums),
                    *(sum(side) for side in zip(*moved, strict=True)),
                )
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        middle, interval = self.pooled()
        return {
            "slides": [slide.to_json() for slide in self.slides],
            "left_out": [{"name": o.name, "reason": o.reason} for o in self.left_out],
            "patients": self.patients,
            "miou": middle if np.isfinite(middle) else None,
            "miou_interval_by_patient": interval,
            "classes": [row.to_json() for row in self.rows()],
        }

    @staticmethod
    def _by_area(aligned: Sequence[MaskScores]) -> NDArray[np.int64]:
        """(n, K, K + 1) um2 of each slide: their grids may differ."""
        areas = [np.rint(scores.computed * scores.pixel_um2) for scores in aligned]
        return np.stack(areas).astype(np.int64)

    def _intervals(self, counts: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """(2, 2 K + 1): low and high of Dice, of IoU and of its mean."""
        if self.patients < 2:
            return None
        patients = by_group(counts, [slide.pair.patient for slide in self.slides])
        return bootstrap_intervals(
            patients, lambda sums: np.array([*dice(sums), *iou(sums), mean_iou(sums)])
        )


def evaluate_pairs(
    pairs: Sequence[Pair],
    left_out: Sequence[LeftOut] = (),
    options: DrawnOptions = DrawnOptions(),  # noqa: B008  # frozen
    *,
    slide: Source | None = None,
    mpp: float | None = None,
    min_region_um2: float = MIN_REGION_UM2,
    show: Callable[[Pair, Comparison], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CohortScores:
    """Compare pairs one by one; what is wrong with one does not stop the others.

    Parameters
    ----------
    pairs, left_out : sequence of Pair, sequence of LeftOut
        As `find_pairs` gives them.
    options : DrawnOptions
        How files of annotations are read.
    slide : Source, optional
        Of annotations as a prediction that do not state their slide.
    mpp, min_region_um2
        See `compare_masks`.
    show : callable, optional
        Called with each pair and its comparison, which is then let go.
    progress : callable, optional
        Called with (pairs done, pairs).

    Notes
    -----
    Memory: that of one comparison.
    """
    done, failed = [], list(left_out)
    for number, pair in enumerate(pairs, 1):
        try:
            predicted = open_prediction(pair.predicted, options, slide)
            truth = open_truth(pair.truth, predicted, options)
            found = compare_masks(
                predicted, truth, mpp=mpp, min_region_um2=min_region_um2
            )
        except WsiError as error:
            failed.append(LeftOut(pair.name, str(error)))
            continue
        if show:
            show(pair, found)
        done.append(
            SlideScores(
                pair,
                found.source,
                found.downsample,
                found.scores,
                found.added,
                found.removed,
            )
        )
        if progress:
            progress(number, len(pairs))
    return CohortScores(tuple(done), tuple(failed))


def _interval(bounds: NDArray[np.float64] | None, place: int) -> Interval:
    if bounds is None or not np.isfinite(bounds[:, place]).all():
        return None
    low, high = bounds[:, place].tolist()
    return low, high
