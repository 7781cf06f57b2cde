"""Keeps account of the area of every class: in the mask, lost on the way, written."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.errors import ExportError
from wsi_pipeline.exporters.joining import Traced
from wsi_pipeline.exporters.objects import ClassCount, Objects
from wsi_pipeline.exporters.outlines import Ints
from wsi_pipeline.exporters.placing import place
from wsi_pipeline.exporters.sheet import Frame
from wsi_pipeline.pyramid import MaskPyramid


@dataclass(frozen=True)
class ClassArea:
    """Area of one class in the mask and in the file.

    What is written is the area in the mask, less what was dropped and what lies outside
    the frame, and with what was filled and what simplification changed.

    Parameters
    ----------
    value, name
        The class.
    pixels : int
        Pixels of the mask's base.
    area_um2 : float
        Their area.
    written_um2 : float
        Area of the outlines in the file.
    dropped_um2 : float
        Area of the objects left out because they are small.
    filled_um2 : float
        Area of the holes filled because they are small.
    simplified_um2 : float
        Area that simplification added, below 0 where it took some away.
    outside_um2 : float
        Area of outlines beyond the edge of the frame.
    objects, dropped_objects, filled_holes : int
        Objects in the file, objects left out because they are small, holes filled.
    """

    value: int
    name: str
    pixels: int
    area_um2: float
    written_um2: float
    dropped_um2: float = 0.0
    filled_um2: float = 0.0
    simplified_um2: float = 0.0
    outside_um2: float = 0.0
    objects: int = 0
    dropped_objects: int = 0
    filled_holes: int = 0


class Account:
    """Places objects in the file's frame and keeps account of their areas."""

    def __init__(self, masks: MaskPyramid, frame: Frame) -> None:
        self._masks, self._frame = masks, frame
        self._tally = np.zeros((256, 6), np.int64)
        # um2 before the cut, um2 and objects in the file
        self._sums = np.zeros((256, 3))

    def placed(self, traced: Iterable[Traced]) -> Iterator[Objects]:
        """Objects as they are written."""
        downsample = self._masks.levels[0].downsample
        for batch in traced:
            self._tally += batch.tally
            check_values(self._masks, self._tally[:, 0])
            self._add(0, batch.objects, self._masks.scale.area_um2)
            for objects in place(batch.objects, downsample, self._frame):
                self._add(1, objects, self._masks.source.scale.area_um2)
                yield objects

    def _add(self, column: int, objects: Objects, pixel_um2: float) -> None:
        areas = objects.outlines.areas() * pixel_um2
        np.add.at(self._sums[:, column], objects.value, areas)
        np.add.at(self._sums[:, 2], objects.value, column)

    def classes(self) -> tuple[ClassArea, ...]:
        """Every class but the background."""
        return tuple(
            self._class_area(kind.value, kind.name)
            for kind in self._masks.classes
            if kind.value
        )

    def _class_area(self, value: int, name: str) -> ClassArea:
        count = ClassCount(value, *self._tally[value].tolist())
        traced, written, objects = self._sums[value].tolist()
        pixel_um2 = self._masks.scale.area_um2
        kept = count.pixels - count.dropped_pixels + count.filled_pixels
        return ClassArea(
            value,
            name,
            count.pixels,
            count.pixels * pixel_um2,
            written,
            count.dropped_pixels * pixel_um2,
            count.filled_pixels * pixel_um2,
            traced - kept * pixel_um2,
            traced - written,
            int(objects),
            count.dropped_objects,
            count.filled_holes,
        )


def counted_areas(masks: MaskPyramid, totals: Ints) -> tuple[ClassArea, ...]:
    """Every class but the background, of a file that holds the mask as it is.

    Parameters
    ----------
    masks : MaskPyramid
    totals : (256,) int64 array
        Pixels of the mask's base per value.

    Raises
    ------
    ExportError
        If a value is no class.
    """
    check_values(masks, totals)
    areas = (totals * masks.scale.area_um2).tolist()
    return tuple(
        ClassArea(
            kind.value,
            kind.name,
            int(totals[kind.value]),
            areas[kind.value],
            areas[kind.value],
        )
        for kind in masks.classes
        if kind.value
    )


def check_values(masks: MaskPyramid, totals: Ints) -> None:
    """Refuse values that are neither a class nor 255.

    Parameters
    ----------
    masks : MaskPyramid
    totals : (256,) int64 array
        How often each value was found.

    Raises
    ------
    ExportError
    """
    known = {kind.value for kind in masks.classes} | {NOT_COMPUTED}
    strange = sorted(set(np.flatnonzero(totals).tolist()) - known)
    if strange:
        raise ExportError(
            f"{masks.path}: values {strange} are no classes of the mask; "
            f"expected {sorted(known)}"
        )
