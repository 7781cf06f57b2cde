"""Reads the JSON of V7 Darwin, versions 1 and 2.

The paths of a polygon are filled by the even-odd rule: a path in a path is a hole.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_pipeline.annotations.geojson import JSON_ENDINGS, UNFIT, load_json
from wsi_pipeline.annotations.record import Annotation, Drawing, Format
from wsi_pipeline.annotations.shapes import (
    Points,
    check_places,
    even_odd,
    line,
    oval,
    rectangle,
)
from wsi_pipeline.errors import RegionError

_NO_PLACE = ("tag", "string", "link", "table")
"""What can be said of an image without saying where."""


def is_darwin(document: Any) -> bool:  # Any: a JSON document
    """Whether a document has what Darwin's have."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("annotations"), list)
        and ("item" in document or "image" in document)
    )


def read_darwin(document: Any, path: Path) -> Drawing:  # Any: a JSON document
    """Polygons, boxes, ellipses, lines and points as annotations.

    Parameters
    ----------
    document : dict
        As parsed.
    path : Path
        For messages.

    Returns
    -------
    Drawing
        With the size of the image; what has no place (tags) is left out.

    Raises
    ------
    RegionError
        If the item has several images, or an annotation is of a kind that cannot be
        read, such as a raster layer; the kind is named.
    """
    found = []
    for number, row in enumerate(document["annotations"]):
        try:
            geometry = _geometry(row)
            if geometry is not None:
                name = row.get("name")
                named = name if isinstance(name, str) and name else None
                found.append(Annotation(geometry, named))
        except UNFIT as error:
            raise RegionError(f"{path}: annotation {number}: {error}") from error
    return Drawing(tuple(found), "level0", size_px=_size(document, path))


def _size(document: dict[str, Any], path: Path) -> tuple[int, int] | None:
    match document:
        case {"item": {"slots": [_, _, *_] as slots}}:
            raise RegionError(
                f"{path}: an item of {len(slots)} images; export them one by one"
            )
        case {"item": {"slots": [{"width": int(w), "height": int(h)}]}} | {
            "image": {"width": int(w), "height": int(h)}
        }:
            return w, h
    return None


def _geometry(row: Any) -> shapely.Geometry | None:  # Any: a JSON value
    match row:
        case {"polygon": {"paths": [*paths]}} | {"complex_polygon": {"path": [*paths]}}:
            return even_odd([_points(path) for path in paths])
        case {"polygon": {"path": [*path]}}:
            return even_odd([_points(path)])
        case {"line": {"path": [*path]}}:
            return line(_points(path))
        case {"ellipse": {"center": centre, "radius": radius, **more}}:
            # the unit of the angle is stated nowhere
            if more.get("angle"):
                raise ValueError("a turned ellipse; draw it as a polygon")
            (centre_px,), (radii_px,) = _points([centre]), _points([radius])
            return oval(tuple(centre_px.tolist()), tuple(radii_px.tolist()))
        case {"keypoint": point}:
            return shapely.Point(_points([point])[0])
        case {"bounding_box": {"x": x, "y": y, "w": w, "h": h}}:
            (near,), (size,) = _points([{"x": x, "y": y}]), _points([{"x": w, "y": h}])
            return rectangle(np.stack([near, near + size]))
        case Mapping() if any(key in row for key in _NO_PLACE):
            return None
    keys = sorted(row) if isinstance(row, Mapping) else row
    raise ValueError(f"expected a polygon, box, ellipse, line or keypoint, got {keys}")


def _points(path: list[Any]) -> Points:
    """(n, 2) points of a path."""
    points = np.array([[point["x"], point["y"]] for point in path], np.float64)
    points = points.reshape(-1, 2)
    check_places(points)
    return points


DARWIN = Format(JSON_ENDINGS, load_json, is_darwin, read_darwin)
