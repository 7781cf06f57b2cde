"""Writes masks in formats that other programs read; one row per format."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ExportError
from wsi_pipeline.exporters.joining import Traced
from wsi_pipeline.exporters.labels import LabelSource
from wsi_pipeline.exporters.objects import ClassCount, Objects
from wsi_pipeline.exporters.pieces import Rules
from wsi_pipeline.exporters.placing import place
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.sheet import Frame, Sheet, packed_name
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.registry import Registry

EXPORTERS = Registry(
    "export format", {"geojson": "wsi_pipeline.exporters.geojson:write_geojson"}
)


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
    dropped_um2: float
    filled_um2: float
    simplified_um2: float
    outside_um2: float
    objects: int
    dropped_objects: int
    filled_holes: int


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Parameters
    ----------
    path : Path
        The file, ".gz" or ".zip" included.
    objects : int
        Objects in the file.
    frame : str
        "qupath" or "level0".
    offset_px : tuple of int
        x, y to add to the file's coordinates to get level-0 pixels.
    classes : tuple of ClassArea
        Every class but the background, those without a pixel too.
    """

    path: Path
    objects: int
    frame: str
    offset_px: tuple[int, int]
    classes: tuple[ClassArea, ...]


def export_masks(
    masks: MaskPyramid,
    path: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  # frozen
    *,
    slide_id: str,
    run: Mapping[str, str] | None = None,
    confidence: MaskPyramid | None = None,
    workers: int = 0,
) -> ExportSummary:
    """Write the objects of a mask to a file.

    Parameters
    ----------
    masks : MaskPyramid
        Its base is exported; 0 and 255 are no objects.
    path : Path
        File to publish; ".gz" or ".zip" is added as the options say.
    options : ExportOptions
        Format, simplification, smallest sizes, frame.
    slide_id : str
        Name of the slide in the results; part of the objects' ids.
    run : mapping of str to str, optional
        Short facts (model, version) to write with every object; part of the ids.
    confidence : MaskPyramid, optional
        Label of 254 * probability on the same grid, for the mean per object.
    workers : int
        Threads that trace; 0 = one per CPU. The file is the same for any.

    Returns
    -------
    ExportSummary

    Raises
    ------
    UnknownNameError
        If the table has no such format.
    ExportError
        If the mask holds a value that is no class, the confidence label lies on
        another grid, or the file cannot be written.

    Notes
    -----
    Memory: see `trace_objects`; what is complete goes to the disk. Neighbours share
    their borders after simplification, too.
    """
    write = EXPORTERS.load(options.format)
    if confidence is not None and not _lie_together(confidence, masks):
        raise ExportError(
            f"{confidence.path}: its base has {confidence.levels[0].size_px} px, "
            f"{masks.path} has {masks.levels[0].size_px} px; stitch them together"
        )
    frame = Frame.of(options.frame, masks.source)
    sheet = Sheet(
        slide_id,
        frame,
        masks.source.scale,
        masks.scale.area_um2,
        masks.classes,
        tuple(sorted((run or {}).items())),
        options.objects,
        options.group,
    )
    path = packed_name(path, options)
    traced = trace_objects(
        LabelSource(masks, confidence),
        masks.levels[0].box,
        _rules(masks, options),
        workers=workers or cpu_count(),
    )
    account = _Account(masks, frame)
    with staged(path) as temporary, closing(traced):
        write(temporary, account.placed(traced), sheet)
    classes = account.classes()
    count = sum(kind.objects for kind in classes)
    return ExportSummary(path, count, frame.name, frame.offset_px, classes)


def _lie_together(coarser: MaskPyramid, masks: MaskPyramid) -> bool:
    """Whether pixels of a label's base are so many times larger than a mask's."""
    factor = coarser.levels[0].downsample / masks.levels[0].downsample
    w, h = masks.levels[0].size_px
    return factor >= 1 and coarser.levels[0].size_px == (
        -(-w // factor),
        -(-h // factor),
    )


def _rules(masks: MaskPyramid, options: ExportOptions) -> Rules:
    """The options in pixels of the mask."""
    pixel_um2 = masks.scale.area_um2
    # 1e-9 px absorbs the rounding of an area that is a whole number of pixels
    least = int(np.ceil(options.min_area_um2 / pixel_um2 - 1e-9))
    return Rules(
        max(1, least),
        options.min_hole_um2 / pixel_um2,
        options.simplify_um / masks.scale.mean,
    )


class _Account:
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
            self._check_values()
            self._add(0, batch.objects, self._masks.scale.area_um2)
            for objects in place(batch.objects, downsample, self._frame):
                self._add(1, objects, self._masks.source.scale.area_um2)
                yield objects

    def _add(self, column: int, objects: Objects, pixel_um2: float) -> None:
        areas = objects.outlines.areas() * pixel_um2
        np.add.at(self._sums[:, column], objects.value, areas)
        np.add.at(self._sums[:, 2], objects.value, column)

    def _check_values(self) -> None:
        known = {kind.value for kind in self._masks.classes}
        strange = sorted(set(np.flatnonzero(self._tally[:, 0]).tolist()) - known)
        if strange:
            raise ExportError(
                f"{self._masks.path}: values {strange} are no classes of the mask; "
                f"expected {sorted(known)} or 255"
            )

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
