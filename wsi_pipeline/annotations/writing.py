"""Writes annotations of any format as GeoJSON that QuPath imports."""

import gzip
import hashlib
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely

from wsi_pipeline.annotations.record import Annotation
from wsi_pipeline.annotations.shapes import areas_of
from wsi_pipeline.publishing import publish_bytes

_GRID_PX = 0.01  # QuPath rounds to it
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsi_pipeline/annotation")
_TYPES = ("annotation", "detection", "tile", "cell")


def write_annotations(
    path: Path, annotations: Iterable[Annotation], offset_px: tuple[int, int] = (0, 0)
) -> int:
    """Write a FeatureCollection; the same bytes for the same annotations.

    Parameters
    ----------
    path : Path
        File to publish, ``.geojson`` or ``.geojson.gz``.
    annotations : iterable of Annotation
        In level-0 pixels. Those without a place on QuPath's grid are left out.
    offset_px : tuple of int
        x, y of the frame's corner, which becomes (0, 0) and is stated in the file: the
        corner of the scan's bounds for QuPath.

    Returns
    -------
    int
        How many were written.

    Raises
    ------
    ExportError
        If the file cannot be written.

    Notes
    -----
    Areas keep their holes and are valid on the 0.01-px grid. What belongs to an object
    and is not in the record (locks, metadata, cells' nuclei) is not written.
    """
    shift = np.array(offset_px)
    seen: Counter[str] = Counter()
    lines = [
        orjson.dumps(feature)
        for one in annotations
        for feature in _features(one, shift, seen)
    ]
    head = orjson.dumps({"offset_px": list(offset_px)})
    body = b'{"type":"FeatureCollection","wsi_pipeline":' + head + b',"features":[\n'
    data = body + b",\n".join(lines) + b"\n]}\n"
    publish_bytes(path, gzip.compress(data, 6, mtime=0) if _is_packed(path) else data)
    return len(lines)


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _features(
    one: Annotation, shift: Any, seen: Counter[str]
) -> Iterator[dict[str, Any]]:  # Any: (2,) array; JSON values
    moved = shapely.transform(one.geometry, lambda points: points - shift)
    if shapely.area(moved) > 0:
        placed = areas_of(shapely.set_precision(moved, _GRID_PX))
    else:
        placed = shapely.set_precision(moved, _GRID_PX, mode="pointwise")
    if shapely.is_empty(placed) or isinstance(placed, shapely.GeometryCollection):
        return
    properties: dict[str, Any] = {
        "objectType": one.object_type if one.object_type in _TYPES else "annotation"
    }
    if one.name:
        properties["name"] = one.name
    if one.class_name and one.rgb:
        properties["classification"] = {"name": one.class_name, "color": [*one.rgb]}
    elif one.class_name:  # with a name alone, QuPath aborts
        properties["classification"] = one.class_name
    elif one.rgb:
        properties["color"] = [*one.rgb]
    if one.measurements:
        numbers = {name: _number(value) for name, value in one.measurements}
        properties["measurements"] = numbers
    geometry = orjson.loads(shapely.to_geojson(placed))
    feature = {"type": "Feature", "geometry": geometry, "properties": properties}
    content = hashlib.sha256(orjson.dumps(feature)).hexdigest()
    seen[content] += 1
    identity = uuid.uuid5(_NAMESPACE, f"{content} {seen[content]}")
    yield {"type": "Feature", "id": str(identity), **feature}


def _number(value: float) -> float | str:
    """A measurement; what JSON has no number for goes as text, as in QuPath."""
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
