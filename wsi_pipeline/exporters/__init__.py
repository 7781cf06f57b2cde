"""Writes masks in formats that other programs read; one row per format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ExportError, UnknownNameError
from wsi_pipeline.exporters.accounts import ClassArea
from wsi_pipeline.exporters.exporter import Export, Exporter
from wsi_pipeline.exporters.labels import LabelSource
from wsi_pipeline.exporters.scores import PatchScores
from wsi_pipeline.exporters.sheet import Frame, Sheet, packed_name
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.regions import Selection
from wsi_pipeline.registry import Registry

__all__ = [
    "EXPORTERS",
    "ClassArea",
    "ExportSummary",
    "Exporter",
    "export_masks",
    "exporter_for",
]

EXPORTERS = Registry(
    "export format",
    {
        "geojson": "wsi_pipeline.exporters.geojson:GEOJSON",
        "geoparquet": "wsi_pipeline.exporters.geoparquet:GEOPARQUET",
        "ometiff": "wsi_pipeline.exporters.ometiff:OME_TIFF",
        "csv": "wsi_pipeline.exporters.areas:AREAS",
    },
)
_PACKED = (".gz", ".zip")


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Parameters
    ----------
    path : Path
        The file, ".gz" or ".zip" included.
    title : str
        What it is.
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
    title: str
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
    selection: Selection | None = None,
    coverage: MaskPyramid | None = None,
    tissue_mm2: float | None = None,
    workers: int = 0,
) -> ExportSummary:
    """Write a mask, or its objects, to a file in the format that its name ends with.

    Parameters
    ----------
    masks : MaskPyramid
        Its base is exported; 0 and 255 are no objects.
    path : Path
        File to publish: .geojson, .parquet, .ome.tif or .csv. To the first, ".gz" or
        ".zip" is added as the options say.
    options : ExportOptions
        Simplification, smallest sizes, frame. Label images and areas are those of the
        whole level 0, unsimplified.
    slide_id : str
        Name of the slide in the results; part of the objects' ids.
    run : mapping of str to str, optional
        Short facts (model, version) to write with every object; part of the ids.
    confidence : MaskPyramid, optional
        Label of 254 * probability on the same grid, or one so many times coarser, for
        the mean and the highest per object.
    selection : Selection, optional
        The slide's patches, for the selection score per object: the highest score of
        a patch that was examined and overlaps it.
    coverage : MaskPyramid, optional
        Label of what was done to each pixel, for outlines of what has no result.
    tissue_mm2 : float, optional
        Area of the slide's tissue, for the shares in a table of areas.
    workers : int
        Threads; 0 = one per CPU. The file is the same for any.

    Returns
    -------
    ExportSummary

    Raises
    ------
    UnknownNameError
        If the table has no such format; the message lists the endings.
    ExportError
        If a label holds a value that is no class, the confidence label lies on
        another grid, or the file cannot be written.
    """
    row = exporter_for(path)
    if confidence is not None and not _lie_together(confidence, masks):
        raise ExportError(
            f"{confidence.path}: its base has {confidence.levels[0].size_px} px, "
            f"{masks.path} has {masks.levels[0].size_px} px; stitch them together"
        )
    frame = Frame.of(row.frame or options.frame, masks.source)
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
    if row.is_packed:
        path = packed_name(path, options)
    scores = None
    if selection is not None:
        scores = PatchScores.of(selection, masks.levels[0].downsample)
    source = LabelSource(masks, confidence, scores)
    workers = workers or cpu_count()
    export = Export(masks, source, options, sheet, workers, tissue_mm2, coverage)
    with staged(path) as temporary:
        classes = row.write(temporary, export)
    count = sum(kind.objects for kind in classes)
    return ExportSummary(path, row.title, count, frame.name, frame.offset_px, classes)


def exporter_for(path: Path) -> Exporter:
    """The row of the table for a file, by the ending of its name.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    name = path.with_suffix("").name if path.suffix in _PACKED else path.name
    rows: list[Exporter] = [EXPORTERS.load(known) for known in EXPORTERS.names()]
    for row in rows:
        if name.endswith(row.ending) and (row.is_packed or name == path.name):
            return row
    raise UnknownNameError(
        f"{path}: no such export format; names end with: "
        f"{', '.join(row.ending for row in rows)}"
    )


def _lie_together(coarser: MaskPyramid, masks: MaskPyramid) -> bool:
    """Whether pixels of a label's base are so many times larger than a mask's."""
    factor = coarser.levels[0].downsample / masks.levels[0].downsample
    w, h = masks.levels[0].size_px
    return factor >= 1 and coarser.levels[0].size_px == (
        -(-w // factor),
        -(-h // factor),
    )
