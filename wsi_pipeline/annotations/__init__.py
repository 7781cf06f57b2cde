"""Regions that people drew, read from the files of other programs; a row per format."""

from pathlib import Path

from wsi_pipeline.annotations.record import Annotation
from wsi_pipeline.errors import UnknownNameError
from wsi_pipeline.registry import Registry

__all__ = ["READERS", "Annotation", "read_annotations"]

_GEOJSON = "wsi_pipeline.annotations.geojson:read_geojson"
READERS = Registry(
    "ending of annotation files",
    {
        ".geojson": _GEOJSON,
        ".json": _GEOJSON,
        ".geojson.gz": _GEOJSON,
        ".json.gz": _GEOJSON,
    },
)


def read_annotations(
    path: Path, *, offset_px: tuple[int, int] | None = None
) -> list[Annotation]:
    """Read a file of annotations, its format taken from the name.

    Parameters
    ----------
    path : Path
        GeoJSON as QuPath of any age writes it: .geojson or .json, also with .gz.
    offset_px : tuple of int, optional
        x, y to add to every coordinate: the corner of the scan's bounds for files that
        QuPath wrote. Left out, what the file itself states, else (0, 0).

    Returns
    -------
    list of Annotation
        In the order of the file, children after their parents.

    Raises
    ------
    UnknownNameError
        If no reader takes such names; the message lists the endings.
    RegionError
        If the file is missing or holds no annotations.
    """
    for ending in READERS.names():
        if path.name.lower().endswith(ending):
            found: list[Annotation] = READERS.load(ending)(path, offset_px=offset_px)
            return found
    raise UnknownNameError(
        f"{path}: no reader for this kind of annotations; there are: "
        f"{', '.join(READERS.names())}"
    )
