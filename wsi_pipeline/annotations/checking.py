"""Checks a GeoJSON file by the rules of QuPath's importer, before QuPath does.

The rules were measured on QuPath 0.5.1, 0.6.0 and 0.7.0; one bad feature there aborts
the import of the whole file.
"""

import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape

from wsi_pipeline.annotations.geojson import (
    GEOMETRIES,
    GZIP_MAGIC,
    Json,
    features_of,
    is_number,
    load_json,
)
from wsi_pipeline.errors import RegionError

GRID_PX = 0.01
_OBJECT_TYPES = ("annotation", "detection", "tile", "cell", "tmaCore", "root")

Severity = Literal["abort", "changed", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that QuPath would refuse or alter.

    Parameters
    ----------
    severity : str
        "abort": QuPath imports nothing of the file. "changed": imported, but not as
        written. "note": imported as written, with a surprise.
    where : str
        "file" or "feature N", counted from 0, children after their parents.
    message : str
        What was found and what was expected.
    """

    severity: Severity
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message}"


Found = Iterator[tuple[Severity, str]]


def check_geojson(path: Path) -> list[Finding]:
    """List what QuPath would refuse or alter in a file; an empty list is good.

    Parameters
    ----------
    path : Path
        A GeoJSON file, with or without gzip.

    Returns
    -------
    list of Finding
        In the order of the file.

    Raises
    ------
    RegionError
        If the file cannot be opened.
    """
    findings = [Finding(level, "file", text) for level, text in _check_file(path)]
    try:
        features = list(features_of(load_json(path), path))
    except RegionError as error:
        return [*findings, Finding("abort", "file", str(error))]
    ids: set[str] = set()
    colours: dict[str, object] = {}
    for number, feature in enumerate(features):
        for level, text in _check_feature(feature, ids, colours):
            findings.append(Finding(level, f"feature {number}", text))
    return findings


def _check_file(path: Path) -> Found:
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == GZIP_MAGIC
    except OSError as error:
        raise RegionError(f"{path}: cannot open it ({error.strerror})") from error
    if packed != path.name.lower().endswith(".gz"):
        yield "abort", f"gzip is {packed}, but the name {path.name!r} says otherwise"


def _check_feature(feature: Json, ids: set[str], colours: dict[str, object]) -> Found:
    for key in ("id", "properties", "geometry"):
        if key in feature and feature[key] is None:
            yield "abort", f"{key} is null; expected a value, or no such key"
    yield from _check_id(feature.get("id"), ids)
    geometry = feature.get("geometry")
    if "geometry" not in feature:
        yield "abort", "no geometry"
    elif geometry is not None:
        yield from _check_geometry(geometry)
    if "objectType" in feature:
        yield "note", "objectType outside properties is ignored"
    properties = feature.get("properties")
    if isinstance(properties, dict):
        yield from _check_properties(properties, colours)


def _check_id(value: Any, ids: set[str]) -> Found:  # Any: a JSON value
    if value is None:
        return
    try:
        text = str(uuid.UUID(value))
    except (ValueError, AttributeError, TypeError):
        yield "note", f"id {value!r} is no UUID; QuPath makes a new one at each import"
        return
    if text in ids:
        yield "note", f"id {text} occurs twice"
    ids.add(text)


def _check_geometry(geometry: Any) -> Found:  # Any: a JSON value
    kind = geometry.get("type") if isinstance(geometry, dict) else geometry
    if kind not in GEOMETRIES:
        yield (
            "abort",
            f"geometry type {kind!r}; expected one of {', '.join(GEOMETRIES)}",
        )
        return
    coordinates = geometry.get("coordinates")
    numbers = list(_numbers(coordinates))
    if not isinstance(coordinates, list) or not all(map(_is_plain, numbers)):
        yield "abort", "coordinates that are no numbers"
        return
    if any(math.isnan(number) for number in numbers):
        yield "abort", "NaN as a coordinate"
        return
    if any(math.isinf(number) for number in numbers):
        yield "changed", "infinity as a coordinate: the object is of no use"
        return
    if kind in ("Polygon", "MultiPolygon"):
        parts = [coordinates] if kind == "Polygon" else coordinates
        problems = list(_check_rings(parts))
        yield from problems or _check_area(geometry)


def _check_rings(parts: list[Any]) -> Found:  # Any: JSON values
    for part in parts:
        for ring in part if isinstance(part, list) else [None]:
            if not (isinstance(ring, list) and all(map(_is_position, ring))):
                yield "abort", "a ring that is no list of positions"
            elif 0 < len(ring) < 3:
                yield "changed", f"a ring of {len(ring)} points: an empty object"
            elif ring and ring[0][:2] != ring[-1][:2]:
                yield "abort", f"an open ring: {ring[0][:2]} to {ring[-1][:2]}"
            elif len(ring) == 3:
                yield "changed", "a ring without area"


def _check_area(geometry: Json) -> Found:
    """Rounds a polygon to QuPath's grid with the algorithm that QuPath uses."""
    try:
        drawn = shape(geometry)
    except (ValueError, IndexError, ShapelyError) as error:
        yield "abort", f"rings that do not make a polygon: {error}"
        return
    if drawn.is_empty:
        yield "changed", "an empty geometry"
        return
    try:
        read = shapely.set_precision(drawn, GRID_PX)
    except shapely.GEOSException:
        yield "abort", f"not valid: {shapely.is_valid_reason(drawn)}"
        return
    lost = abs(read.area - drawn.area)
    parts = len(shapely.get_parts(read)), len(shapely.get_parts(drawn))
    if not read.is_valid:
        yield "abort", f"not valid: {shapely.is_valid_reason(read)}"
    elif read.is_empty:
        yield "changed", f"thinner than {GRID_PX} px: nothing is left of it"
    elif lost > GRID_PX * drawn.length + GRID_PX or parts[0] != parts[1]:
        yield (
            "changed",
            f"area {drawn.area:.2f} becomes {read.area:.2f} px, "
            f"{parts[1]} parts become {parts[0]}",
        )
    elif not drawn.is_valid:
        yield "changed", f"mended on import: {shapely.is_valid_reason(drawn)}"


def _check_properties(properties: Json, colours: dict[str, object]) -> Found:
    if "name" in properties and properties["name"] is None:
        yield "abort", "name is null; expected text, or no such key"
    kind = properties.get("objectType")
    if kind is not None and kind not in _OBJECT_TYPES:
        yield "note", f"objectType {kind!r} is unknown: read as annotation"
    if isinstance(properties.get("color"), str):
        yield "abort", f"colour {properties['color']!r}; expected three numbers 0-255"
    yield from _check_class(properties.get("classification"), colours)
    yield from _check_measurements(properties.get("measurements"))


def _check_class(value: Any, colours: dict[str, object]) -> Found:  # Any: JSON value
    if value is None:
        return
    name = value.get("name") if isinstance(value, dict) else value
    names = value.get("names") if isinstance(value, dict) else None
    if name is None and isinstance(names, list) and names:
        name = ": ".join(map(str, names))
    if not isinstance(name, str) or not name:
        yield "abort", f"class {value!r}: expected a name"
        return
    if not isinstance(value, dict):
        return
    if "color" not in value and isinstance(value.get("colorRGB"), int):
        return
    colour = value.get("color")
    if "color" not in value:
        yield "abort", f"class {name!r} has no colour"
    elif isinstance(colour, list) and all(map(_is_plain, colour)):
        if any(isinstance(part, float) and part % 1 for part in colour):
            yield "changed", f"class {name!r}: colour {colour} is read as black"
        elif colours.setdefault(name, colour) != colour:
            yield "note", f"class {name!r} in two colours: the first one wins"
    elif colour is not None:
        yield "abort", f"class {name!r}: colour {colour!r}; expected [r, g, b]"


def _check_measurements(value: Any) -> Found:  # Any: a JSON value
    if isinstance(value, dict):
        for name, number in value.items():
            if number is None:
                yield "changed", f"measurement {name!r} is null: left out"
            elif not is_number(number):
                yield "abort", f"measurement {name!r}: {number!r} is no number"
    elif isinstance(value, list):
        for row in value:
            if not isinstance(row, dict) or not is_number(row.get("value")):
                yield "abort", f"measurement {row!r}: expected a name and a number"
    elif value is not None:
        yield "abort", f"measurements {value!r}: expected names and numbers"


def _numbers(value: Any) -> Iterator[Any]:  # Any: a JSON value
    """Leaves of nested lists."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        else:
            yield one


def _is_plain(value: Any) -> bool:  # Any: a JSON value
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_position(value: Any) -> bool:  # Any: a JSON value
    return isinstance(value, list) and len(value) >= 2 and all(map(_is_plain, value))
