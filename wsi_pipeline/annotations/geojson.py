"""Reads GeoJSON of all ages of QuPath as annotations."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape

from wsi_pipeline.annotations.record import Annotation
from wsi_pipeline.errors import RegionError

MAX_BYTES = 1 << 30
"""Larger files are refused: QuPath, too, takes the whole file into memory."""
GZIP_MAGIC = b"\x1f\x8b"
GEOMETRIES = (
    "Point",
    "MultiPoint",
    "LineString",
    "MultiLineString",
    "Polygon",
    "MultiPolygon",
)
_JAVA_TYPES = {  # QuPath 0.2 wrote the Java class as the id
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "PathRootObject": "root",
    "TMACoreObject": "tmaCore",
}

_UNFIT = (TypeError, ValueError, AttributeError, LookupError, ShapelyError)

Json = dict[str, Any]  # Any: what a JSON file may hold


def read_geojson(
    path: Path, *, offset_px: tuple[int, int] | None = None
) -> list[Annotation]:
    """Read annotations; geometries that are not valid are mended.

    Parameters
    ----------
    path : Path
        FeatureCollection, array of features, single feature or bare geometry; UTF-8,
        with or without gzip.
    offset_px : tuple of int, optional
        x, y to add to every coordinate; left out, what the file states, else (0, 0).

    Returns
    -------
    list of Annotation

    Raises
    ------
    RegionError
        If the file cannot be read, is no GeoJSON, or a feature has no usable geometry
        or class; `wsi check-geojson` lists everything that is wrong.
    """
    document = load_json(path)
    shift = np.array(stated_offset(document) if offset_px is None else offset_px)
    found = []
    for number, feature in enumerate(features_of(document, path)):
        try:
            found.append(_annotation(feature, shift))
        except _UNFIT as error:
            raise RegionError(
                f"{path}: feature {number}: {error}; "
                "`wsi check-geojson` lists everything that is wrong"
            ) from error
    return found


def load_json(path: Path) -> Any:  # Any: a JSON document
    """Content of a JSON file; NaN and Infinity are let through as numbers.

    Raises
    ------
    RegionError
        If it cannot be read, is larger than 1 GiB, or is no JSON.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if packed:
                with gzip.open(raw) as stream:
                    data = stream.read(MAX_BYTES + 1)
            else:
                data = raw.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RegionError(f"{path}: cannot read it ({error})") from error
    if len(data) > MAX_BYTES:
        raise RegionError(f"{path}: larger than 1 GiB; split the file")
    try:
        text = data.decode("utf-8-sig")
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return json.loads(text)  # orjson knows no NaN
    except (ValueError, RecursionError) as error:
        raise RegionError(f"{path}: no JSON ({error})") from error


def features_of(document: Any, path: Path) -> Iterator[Json]:  # Any: a JSON document
    """Yield all features of a document, children after their parents.

    Raises
    ------
    RegionError
        If the document is no GeoJSON.
    """
    rows: Any = None  # Any: a JSON value
    if isinstance(document, list):
        rows = document
    elif isinstance(document, dict) and document.get("type") == "FeatureCollection":
        rows = document.get("features")
    elif isinstance(document, dict) and "type" in document:
        rows = [document]
    if not isinstance(rows, list):
        got = sorted(document)[:6] if isinstance(document, dict) else type(document)
        raise RegionError(
            f"{path}: no GeoJSON: expected a FeatureCollection, an array of features, "
            f"a feature or a geometry, got {got}"
        )
    for row in rows:
        yield from _with_children(row, path)


def _with_children(row: Any, path: Path) -> Iterator[Json]:  # Any: a JSON value
    pending = [row]
    while pending:
        one = pending.pop()
        kind = one.get("type") if isinstance(one, dict) else None
        if kind in (*GEOMETRIES, "GeometryCollection", "LinearRing"):
            one = {"type": "Feature", "geometry": one}
        elif kind != "Feature":
            raise RegionError(
                f"{path}: no GeoJSON: expected a feature, got type {kind!r}"
            )
        yield one
        properties = one.get("properties")
        if isinstance(properties, dict):
            children = properties.get("childObjects") or properties.get("children")
            if isinstance(children, list):
                pending += reversed(children)


def stated_offset(document: Any) -> tuple[int, int]:  # Any: a JSON document
    """Offset that a file of this package states, else (0, 0)."""
    own = document.get("wsi_pipeline") if isinstance(document, dict) else None
    match own:
        case {"offset_px": [int(x), int(y)]}:
            return x, y
    return 0, 0


def _annotation(feature: Json, shift: Any) -> Annotation:  # Any: (2,) array
    geometry = feature.get("geometry")
    if not isinstance(geometry, dict):
        raise TypeError(f"expected a geometry, got {geometry!r}")
    properties = feature.get("properties") or {}
    class_name, rgb = _class_of(properties.get("classification"))
    name = properties.get("name")
    return Annotation(
        _geometry(geometry, shift),
        class_name,
        rgb,
        _object_type(feature, properties),
        name if isinstance(name, str) else None,
        tuple(_measurements(properties.get("measurements"))),
    )


def _geometry(geometry: Json, shift: Any) -> shapely.Geometry:  # Any: (2,) array
    """Valid shapely geometry, areas mended, moved by (2,) `shift`."""
    if "coordinates" not in geometry and "geometries" not in geometry:
        raise ValueError(f"expected coordinates, got {sorted(geometry)}")
    with np.errstate(invalid="ignore"):
        drawn = shapely.force_2d(shape(geometry))
    if not np.isfinite(shapely.get_coordinates(drawn)).all():
        raise ValueError("expected finite coordinates, got NaN or infinity")
    moved = shapely.transform(drawn, lambda points: points + shift)
    if moved.is_valid:
        return moved
    mended = shapely.make_valid(moved, method="structure", keep_collapsed=False)
    parts = [
        part
        for part in shapely.get_parts(shapely.get_parts(mended))
        if isinstance(part, shapely.Polygon)
    ]
    if not parts:
        return shapely.Polygon()
    return parts[0] if len(parts) == 1 else shapely.union_all(parts)


def _class_of(value: Any) -> tuple[str | None, tuple[int, int, int] | None]:
    """Name and colour of a class in any of QuPath's spellings."""
    if value is None:
        return None, None
    if isinstance(value, str):
        return value or None, None
    if not isinstance(value, dict):
        raise TypeError(f"expected a class name, got {value!r}")
    name = value.get("name")
    if name is None and isinstance(value.get("names"), list):
        name = ": ".join(str(part) for part in value["names"])
    if not isinstance(name, str | None):
        raise TypeError(f"expected a class name, got {name!r}")
    return name or None, _colour(value)


def _colour(value: Json) -> tuple[int, int, int] | None:
    match value:
        case {"color": [int(r), int(g), int(b), *_]}:
            return r & 255, g & 255, b & 255
        case {"colorRGB": int(packed)} | {"color": int(packed)}:
            return packed >> 16 & 255, packed >> 8 & 255, packed & 255
    return None


def _object_type(feature: Json, properties: Json) -> str:
    for key in ("objectType", "object_type", "type"):
        if isinstance(properties.get(key), str):
            return str(properties[key])
    return _JAVA_TYPES.get(str(feature.get("id")), "annotation")


def _measurements(value: Any) -> Iterator[tuple[str, float]]:  # Any: a JSON value
    """Name and number of each measurement; those without a number are left out."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = [(m.get("name"), m.get("value")) for m in value if isinstance(m, dict)]
    else:
        return
    for name, number in pairs:
        if isinstance(name, str) and is_number(number):
            yield name, float(number)


def is_number(value: Any) -> bool:  # Any: a JSON value
    """Whether QuPath reads a value as a measurement: a number, or text like "NaN"."""
    if isinstance(value, str):
        return value in ("NaN", "inf", "-inf", "Infinity", "-Infinity")
    return isinstance(value, int | float) and not isinstance(value, bool)
