"""Reads JSON with "positive" and "negative" polygons, as is common for CAMELYON16.

What is negative is cut out of what is positive, and is a class of its own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_pipeline.annotations.geojson import JSON_ENDINGS, UNFIT, load_json
from wsi_pipeline.annotations.record import Annotation, Drawing, Format
from wsi_pipeline.annotations.shapes import check_places, cut_out, polygon
from wsi_pipeline.errors import RegionError

_CLASSES = ("positive", "negative")


def is_camelyon(document: Any) -> bool:  # Any: a JSON document
    """Whether a document has the two lists."""
    return isinstance(document, dict) and all(
        isinstance(document.get(name), list) for name in _CLASSES
    )


def read_camelyon(document: Any, path: Path) -> Drawing:  # Any: a JSON document
    """Polygons of the classes "positive" and "negative".

    Parameters
    ----------
    document : dict
        As parsed.
    path : Path
        For messages.

    Raises
    ------
    RegionError
        If a polygon has no usable vertices.
    """
    drawn = {name: _polygons(document[name], name, path) for name in _CLASSES}
    negative = [geometry for _, geometry in drawn["negative"]]
    positive = cut_out([geometry for _, geometry in drawn["positive"]], negative)
    found = [
        Annotation(geometry, class_name, name=name)
        for class_name, geometries in zip(_CLASSES, (positive, negative), strict=True)
        for (name, _), geometry in zip(drawn[class_name], geometries, strict=True)
    ]
    return Drawing(tuple(found), "level0")


def _polygons(
    rows: list[Any], kind: str, path: Path
) -> list[tuple[str | None, shapely.Geometry]]:
    found = []
    for number, row in enumerate(rows):
        try:
            points = np.array([(x, y) for x, y in row["vertices"]], np.float64)
            check_places(points)
            name = row.get("name")
            found.append((name if isinstance(name, str) else None, polygon(points)))
        except UNFIT as error:
            raise RegionError(f"{path}: {kind} {number}: {error!r}") from error
    return found


CAMELYON = Format(JSON_ENDINGS, load_json, is_camelyon, read_camelyon)
