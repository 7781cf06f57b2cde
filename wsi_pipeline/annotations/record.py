"""What a region that a person drew is to the rest of the package."""

from dataclasses import dataclass

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
