"""Writes masks in formats that other programs read; one row per format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ExportError
from wsi_pipeline.exporters.outlines import pixel_tolerance, place
from wsi_pipeline.exporters.polygons import MaskObject, Trace, trace_objects
from wsi_pipeline.exporters.sheet import Frame, Sheet
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.registry import Registry

EXPORTERS = Registry(
    "export format", {"geojson": "wsi_pipeline.exporters.geojson:write_geojson"}
)
BLOCK_PX = 2048


@dataclass(frozen=True)
class ClassArea:
    """Area of one class in the mask and in the file.

    Parameters
    ----------
    value, name
        The class.
    pixels : int
        Pixels of the mask's base.
    area_um2 : float
        Their area.
    written_um2 : float
        Area of the outlines in the file: after simplification, filled holes and
        objects left out.
    dropped_um2 : float
        Area of the objects left out because they are small.
    objects, dropped_objects : int
        Objects in the file, and left out.
    """

    value: int
    name: str
    pixels: int
    area_um2: float
    written_um2: float
    dropped_um2: float
    objects: int
    dropped_objects: int


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Parameters
    ----------
    path : Path
        The file, ".gz" included where it was compressed.
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
) -> ExportSummary:
    """Write the objects of a mask to a file.

    Parameters
    ----------
    masks : MaskPyramid
        Its base is exported; 0 and 255 are no objects.
    path : Path
        File to publish; with `options.gzip`, ".gz" is added where it lacks.
    options : ExportOptions
        Format, simplification, smallest sizes, frame.
    slide_id : str
        Name of the slide in the results; part of the objects' ids.
    run : mapping of str to str, optional
        Short facts (model, version) to write with every object; part of the ids.
    confidence : MaskPyramid, optional
        Label of 254 * probability on the same grid, for the mean per object.

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
    Memory: 100 MB for a block, and about 200 bytes per vertex of all outlines, which
    are held at once because neighbours share their borders.
    """
    write = EXPORTERS.load(options.format)
    trace = _trace(masks, confidence, options)
    frame = Frame.of(options.frame, masks.source)
    pixel_um2 = masks.scale.area_um2
    outlines = place(
        trace.objects,
        downsample=masks.levels[0].downsample,
        frame=frame,
        tolerance_px=pixel_tolerance(options.simplify_um, masks.source.scale.mean),
        min_hole_px=options.min_hole_um2 / pixel_um2,
    )
    shown = np.flatnonzero(~shapely.is_empty(outlines)).tolist()
    objects = [trace.objects[i] for i in shown]
    sheet = Sheet(
        slide_id,
        frame,
        masks.source.scale,
        pixel_um2,
        masks.classes,
        tuple(sorted((run or {}).items())),
        options.gzip or path.suffix == ".gz",
    )
    if sheet.gzip and path.suffix != ".gz":
        path = path.with_name(path.name + ".gz")
    with staged(path) as temporary:
        write(temporary, objects, [outlines[i] for i in shown], sheet)
    areas = shapely.area(outlines[shown]) * masks.source.scale.area_um2
    classes = tuple(
        _class_area(kind, trace, objects, areas.tolist(), pixel_um2)
        for kind in masks.classes
        if kind.value
    )
    return ExportSummary(path, len(objects), frame.name, frame.offset_px, classes)


def _trace(
    masks: MaskPyramid, confidence: MaskPyramid | None, options: ExportOptions
) -> Trace:
    """Objects of the mask's base that are large enough."""
    if confidence is not None and confidence.levels[0] != masks.levels[0]:
        raise ExportError(
            f"{confidence.path}: its base has {confidence.levels[0].size_px} px, "
            f"{masks.path} has {masks.levels[0].size_px} px; stitch them together"
        )
    # 1e-9 px absorbs the rounding of an area that is a whole number of pixels
    least = np.ceil(options.min_area_um2 / masks.scale.area_um2 - 1e-9)
    trace = trace_objects(
        lambda box: masks.read_level(box, 0),
        masks.levels[0].box,
        block_px=BLOCK_PX,
        min_pixels=max(1, int(least)),
        read_confidence=None
        if confidence is None
        else lambda box: confidence.read_level(box, 0),
    )
    _check_values(trace, masks)
    return trace


def _check_values(trace: Trace, masks: MaskPyramid) -> None:
    known = {kind.value for kind in masks.classes}
    strange = sorted({count.value for count in trace.counts} - known)
    if strange:
        raise ExportError(
            f"{masks.path}: values {strange} are no classes of the mask; "
            f"expected {sorted(known)} or 255"
        )


def _class_area(
    kind: MaskClass,
    trace: Trace,
    objects: list[MaskObject],
    areas: list[float],
    pixel_um2: float,
) -> ClassArea:
    count = next((c for c in trace.counts if c.value == kind.value), None)
    pixels = count.pixels if count else 0
    dropped = count.dropped_pixels if count else 0
    written = [a for o, a in zip(objects, areas, strict=True) if o.value == kind.value]
    return ClassArea(
        kind.value,
        kind.name,
        pixels,
        pixels * pixel_um2,
        float(np.sum(written)),
        dropped * pixel_um2,
        len(written),
        count.dropped_objects if count else 0,
    )
