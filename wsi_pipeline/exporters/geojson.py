"""Writes mask objects as GeoJSON that QuPath imports, one feature per object.

The rules are those that QuPath 0.4 to 0.7 apply on import.
"""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.exporters.collection import write_collection
from wsi_pipeline.exporters.outlines import GRID_PX
from wsi_pipeline.exporters.polygons import MaskObject
from wsi_pipeline.exporters.sheet import Sheet

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsi_pipeline/object")
_DECIMALS = round(-np.log10(GRID_PX))


def write_geojson(
    path: Path,
    objects: Sequence[MaskObject],
    outlines: Sequence[shapely.Polygon | shapely.MultiPolygon],
    sheet: Sheet,
) -> None:
    """Write a FeatureCollection as a stream; the same bytes for the same objects.

    Parameters
    ----------
    path : Path
        File to write.
    objects : sequence of n MaskObject
    outlines : sequence of n geometries
        In the sheet's frame, valid on the 0.01-px grid.
    sheet : Sheet

    References
    ----------
    RFC 7946; QuPath 0.7 ``qupath.lib.io`` (GsonTools, QuPathTypeAdapters).
    """
    write_collection(path, _features(objects, outlines, sheet), sheet)


def _features(
    objects: Sequence[MaskObject],
    outlines: Sequence[shapely.Polygon | shapely.MultiPolygon],
    sheet: Sheet,
) -> Iterator[bytes]:
    classes = {c.value: c for c in sheet.classes}
    run = dict(sheet.run)
    for item, outline in zip(objects, outlines, strict=True):
        kind = classes[item.value]
        properties: dict[str, Any] = {
            "objectType": "annotation",
            "classification": {"name": kind.name, "color": list(kind.rgb)},
            "isLocked": True,
            "measurements": _measurements(item, outline, sheet),
        }
        if run:
            properties["metadata"] = run
        feature = {
            "type": "Feature",
            "id": str(_identify(outline, kind, sheet)),
            "geometry": {
                "type": outline.geom_type,
                "coordinates": _coordinates(outline),
            },
            "properties": properties,
        }
        yield orjson.dumps(feature, option=orjson.OPT_SERIALIZE_NUMPY)


def _measurements(
    item: MaskObject, outline: shapely.Geometry, sheet: Sheet
) -> dict[str, float]:
    """Numbers of an object; its area is that of its pixels in the mask."""
    scale = np.array([sheet.scale.x, sheet.scale.y])
    perimeter = shapely.length(shapely.transform(outline, lambda p: p * scale))
    numbers = {
        "Area um^2": round(item.pixels * sheet.pixel_um2, 3),
        "Perimeter um": round(float(perimeter), 3),
    }
    if item.confidence is not None:
        numbers["Mean probability"] = round(item.confidence, 4)
    return numbers


def _identify(outline: shapely.Geometry, kind: MaskClass, sheet: Sheet) -> uuid.UUID:
    """UUIDv5 of slide, run facts, class and shape: a re-import shows as a duplicate."""
    shape = hashlib.sha256(shapely.to_wkb(outline)).hexdigest()
    facts = [sheet.slide_id, *(f"{k}={v}" for k, v in sheet.run), kind.name, shape]
    return uuid.uuid5(_NAMESPACE, "\n".join(facts))


def _coordinates(outline: shapely.Polygon | shapely.MultiPolygon) -> list[Any]:
    """Nested rings as GeoJSON holds them, whole numbers without a decimal point."""
    if isinstance(outline, shapely.MultiPolygon):
        return [_coordinates(part) for part in outline.geoms]
    rings = []
    for ring in (outline.exterior, *outline.interiors):
        points = np.round(shapely.get_coordinates(ring), _DECIMALS) + 0.0
        whole = points.astype(np.int64)
        rings.append(np.ascontiguousarray(whole if (whole == points).all() else points))
    return rings
