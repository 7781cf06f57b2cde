"""What regions that a person drew are to the rest of the package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import shapely


@dataclass(frozen=True)
class Annotation:
    """A region from a file of annotations.

    Parameters
    ----------
    geometry : shapely.Geometry
        Level-0 pixels; areas are valid, and empty where the file's had no area.
    class_name : str or None
        Name of its class.
    rgb : tuple of int or None
        Colour of its class, 0 to 255.
    object_type : str
        "annotation", "detection", "cell", ..., as the file says.
    name : str or None
        Name of the object itself.
    measurements : tuple of (str, float)
        In the order of the file.
    """

    geometry: shapely.Geometry
    class_name: str | None = None
    rgb: tuple[int, int, int] | None = None
    object_type: str = "annotation"
    name: str | None = None
    measurements: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Drawing:
    """What a file of annotations holds, in the coordinates that it is written in.

    Parameters
    ----------
    annotations : tuple of Annotation
        In the order of the file, children after their parents.
    frame : "qupath", "level0" or None
        Where the program that wrote it starts to count: at the corner of the scan's
        bounds, at that of level 0, or, None, in HALO: it depends on the slide.
    offset_px : tuple of int, optional
        x, y to add for level-0 pixels, where the file itself states them.
    size_px : tuple of int, optional
        (width, height) of the frame, where the file states it.
    mpp : tuple of float, optional
        um/px along x and y, where the file states them.
    """

    annotations: tuple[Annotation, ...]
    frame: Literal["qupath", "level0"] | None
    offset_px: tuple[int, int] | None = None
    size_px: tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None


@dataclass(frozen=True)
class Format:
    """A kind of files of annotations: a row of the table of readers.

    Parameters
    ----------
    endings : tuple of str
        Of such files, lower case; formats that share one share `load`.
    load : callable
        Parses a file to a document.
    fits : callable
        Whether a document is of this kind.
    read : callable
        A document, and its path for messages, to a Drawing.
    """

    endings: tuple[str, ...]
    load: Callable[[Path], Any]  # Any: what a parser gives
    fits: Callable[[Any], bool]
    read: Callable[[Any, Path], Drawing]
