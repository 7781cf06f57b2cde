"""Regions that people drew, read from the files of other programs; a row per format."""

from pathlib import Path

from wsi_pipeline.annotations.frames import Extent, Frame, find_offset, move
from wsi_pipeline.annotations.record import Annotation, Drawing, Format
from wsi_pipeline.errors import RegionError, UnknownNameError
from wsi_pipeline.registry import Registry

__all__ = [
    "READERS",
    "Annotation",
    "Drawing",
    "ending_of",
    "endings",
    "read_annotations",
    "read_drawing",
]

READERS = Registry(
    "format of annotations",
    {
        "darwin": "wsi_pipeline.annotations.darwin:DARWIN",
        "camelyon": "wsi_pipeline.annotations.camelyon:CAMELYON",
        "geojson": "wsi_pipeline.annotations.geojson:GEOJSON",  # after all other JSON
        "imagescope": "wsi_pipeline.annotations.imagescope:IMAGESCOPE",
        "asap": "wsi_pipeline.annotations.asap:ASAP",
    },
)


def endings() -> tuple[str, ...]:
    """Endings of the names of files that are read, each once."""
    rows = [READERS.load(name).endings for name in READERS.names()]
    return tuple(dict.fromkeys(ending for row in rows for ending in row))


def ending_of(name: str) -> str | None:
    """The ending of a file's name, as written, where it is one of `endings`."""
    # the longest one, since ".gz" comes after another
    fits = [end for end in endings() if name.lower().endswith(end)]
    return name[-len(max(fits, key=len)) :] if fits else None


def read_annotations(
    path: Path,
    *,
    slide: Extent | None = None,
    frame: Frame = "auto",
    offset_px: tuple[int, int] | None = None,
) -> list[Annotation]:
    """Read a file of annotations in level-0 pixels of its slide.

    Parameters
    ----------
    path : Path
        GeoJSON as QuPath of any age writes it, JSON of Darwin or CAMELYON16 (with .gz
        or not), XML of ImageScope or ASAP, or .annotations of HALO.
    slide : SlideInfo or Source, optional
        The slide that was drawn on: its bounds decide where some programs start to
        count.
    frame : "auto", "qupath", "level0" or "halo"
        Where the coordinates start; "auto": as the file or its format says.
    offset_px : tuple of int, optional
        x, y to add to every coordinate, whatever the file says.

    Returns
    -------
    list of Annotation
        In the order of the file, children after their parents; areas without the holes
        and excluded regions of the format.

    Raises
    ------
    UnknownNameError
        If no reader takes such names; the message lists the endings.
    RegionError
        If the file is missing, holds no annotations, or was drawn on another slide.
    """
    drawing = read_drawing(path)
    try:
        offset = offset_px or find_offset(drawing, slide, frame)
    except RegionError as error:
        raise RegionError(f"{path}: {error}") from error
    return move(drawing, offset)


def read_drawing(path: Path) -> Drawing:
    """Read a file of annotations as it is written.

    Raises
    ------
    UnknownNameError
        If no reader takes such names; the message lists the endings.
    RegionError
        If the file is missing or holds no annotations.
    """
    ending = ending_of(path.name)
    rows: list[Format] = [READERS.load(name) for name in READERS.names()]
    rows = [row for row in rows if ending and ending.lower() in row.endings]
    if not rows:
        raise UnknownNameError(
            f"{path}: no reader for this kind of annotations; there are: "
            f"{', '.join(endings())}"
        )
    document = rows[0].load(path)
    for row in rows:
        if row.fits(document):
            return row.read(document, path)
    raise RegionError(
        f"{path}: XML of another kind; expected that of ImageScope, HALO or ASAP"
    )
