"""Reads GeoJSON of all ages of QuPath as annotations."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape

from wsi_pipeline.annotations.files import read_pieces
from wsi_pipeline.annotations.record import Annotation, Drawing, Format
from wsi_pipeline.annotations.shapes import FARTHEST_PX, check_places, mended
from wsi_pipeline.errors import RegionError

JSON_ENDINGS = (
    ".geojson",
    ".json",
    ".geojson.gz",
    ".json.gz",
    ".geojson.zip",
    ".zip",
)
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

UNFIT = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    ShapelyError,
)
"""What reading raises on JSON that is not what it should be."""

Json = dict[str, Any]  # Any: what a JSON file may hold


def read_geojson(document: Any, path: Path) -> Drawing:  # Any: a JSON document
    """Features as annotations; geometries that are not valid are mended.

    Parameters
    ----------
    document : dict or list
        FeatureCollection, array of features, single feature or bare geometry.
    path : Path
        For messages.

    Returns
    -------
    Drawing
        In QuPath's frame, unless the document states its offset and size.

    Raises
    ------
    RegionError
        If it is no GeoJSON, or a feature has no usable geometry or class;
        `wsi check-geojson` lists everything that is wrong.
    """
    found = []
    for number, feature in enumerate(features_of(document, path)):
        try:
            found.append(_annotation(feature))
        except UNFIT as error:
            raise RegionError(
                f"{path}: feature {number}: {error}; "
                "`wsi check-geojson` lists everything that is wrong"
            ) from error
    return Drawing(tuple(found), "qupath", **_stated(document, path))


def load_json(path: Path) -> Any:  # Any: a JSON document
    """Content of a JSON file; NaN and Infinity are let through as numbers.

    Raises
    ------
    RegionError
        If it cannot be read, is larger than 1 GiB, or is no JSON.
    """
    data = b"".join(read_pieces(path)).removeprefix(codecs.BOM_UTF8)
    try:
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            return json.loads(data.decode())  # orjson knows no NaN
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


def _stated(document: Any, path: Path) -> dict[str, Any]:  # Any: a JSON document
    """What a file of this package states of its frame, as `Drawing` holds it."""
    own = document.get("wsi_pipeline") if isinstance(document, dict) else None
    stated: dict[str, Any] = {}
    match own:
        case {"offset_px": [int(x), int(y)]}:
            if max(abs(x), abs(y)) > FARTHEST_PX:
                raise RegionError(f"{path}: states an offset beyond 1e9 px")
            stated["offset_px"] = x, y
    match own:
        case {"frame_size_px": [int(w), int(h)]}:
            stated["size_px"] = w, h
    match own:
        case {"mpp": [float(mpp_x), float(mpp_y)]} if mpp_x > 0 and mpp_y > 0:
            stated["mpp"] = mpp_x, mpp_y
    return stated


def _annotation(feature: Json) -> Annotation:
    geometry = feature.get("geometry")
    if not isinstance(geometry, dict):
        raise TypeError(f"expected a geometry, got {geometry!r}")
    properties = feature.get("properties") or {}
    class_name, rgb = _class_of(properties.get("classification"))
    name = properties.get("name")
    return Annotation(
        _geometry(geometry),
        class_name,
        rgb,
        _object_type(feature, properties),
        name if isinstance(name, str) else None,
        tuple(_measurements(properties.get("measurements"))),
    )


def _geometry(geometry: Json) -> shapely.Geometry:
    """Valid shapely geometry, areas mended."""
    if "coordinates" not in geometry and "geometries" not in geometry:
        raise ValueError(f"expected coordinates, got {sorted(geometry)}")
    with np.errstate(invalid="ignore"):
        drawn = shapely.force_2d(shape(geometry))
    check_places(shapely.get_coordinates(drawn))
    return mended(drawn)


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


GEOJSON = Format(JSON_ENDINGS, load_json, lambda _: True, read_geojson)
