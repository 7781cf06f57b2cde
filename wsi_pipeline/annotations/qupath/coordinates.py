"""Checks the coordinates of a geometry by QuPath's rules, each rule with its remedy."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon

from wsi_pipeline.annotations.qupath.areas import Area, find_flaw, mend_area, polygon_of
from wsi_pipeline.annotations.qupath.findings import Defect, Json
from wsi_pipeline.annotations.qupath.values import is_number, number_of

DEPTHS = {
    "Point": 0,
    "MultiPoint": 1,
    "LineString": 1,
    "MultiLineString": 2,
    "Polygon": 2,
    "MultiPolygon": 3,
}
"""The geometries that QuPath reads: how many lists stand around a position."""

_ELLIPSE = 0.05  # QuPath writes an ellipse as a polygon of 1 % less
_Points = list[list[float]]


def check_coordinates(shape: Json) -> Iterator[Defect]:
    """Yield the flaws of the first kind that a geometry has.

    Parameters
    ----------
    shape : dict
        Its type is one of `DEPTHS`; remedies change it in place.
    """
    coordinates, kind = shape.get("coordinates"), shape["type"]
    lists = list(_lists(coordinates, DEPTHS[kind]))
    words = next(filter(None, map(_what_is_wrong, lists)), None)
    if words:
        numbers = _as_numbers(coordinates)
        cure = partial(shape.update, coordinates=numbers)
        mends = numbers is not None and numbers != coordinates
        yield Defect("abort", words, cure if mends else None, "read as numbers")
        return
    deep = [p for points in lists for p in points if len(p) > 2 and any(p[2:])]
    if deep:
        words = f"a third number in {len(deep)} positions, which is not read"
        yield Defect("changed", words, partial(_flatten, deep), "left out")
        return
    arrays = [_array(points) for points in lists]
    if not all(np.isfinite(array).all() for array in arrays):
        if any(np.isnan(array).any() for array in arrays):
            yield Defect("abort", "NaN as a coordinate", before="kept")
        else:
            yield Defect("kept", "infinity as a coordinate: an object of no use")
    elif kind.endswith("Polygon"):
        yield from _check_rings(shape, arrays)
    elif kind.endswith("LineString"):
        yield from _check_lines(shape, lists, arrays)
    elif not lists[0]:
        yield Defect("dropped", "no point: an empty object")


def _lists(value: Any, depth: int) -> Iterator[Any]:  # Any: JSON values
    """The lists of positions in coordinates; None stands for what is no list."""
    if depth == 0:
        yield [value]
    elif not isinstance(value, list):
        yield None
    elif depth == 1:
        yield value
    else:
        for inner in value:
            yield from _lists(inner, depth - 1)


def _what_is_wrong(points: Any) -> str | None:  # Any: a JSON value
    """Why a value is no list of positions; fast where it is one."""
    if points is None or set(map(type, points)) - {list}:
        return "coordinates that are not lists of positions"
    if points and min(map(len, points)) < 2:
        return "a position of fewer than two numbers"
    if set(map(type, chain.from_iterable(points))) - {int, float}:
        return "coordinates that are no numbers, but text, true, false or null"
    return None


def _as_numbers(value: Any) -> Any:  # Any: a JSON value
    """Coordinates with the numbers that text in them spells; None: some is none."""
    if isinstance(value, list):
        inner = [_as_numbers(one) for one in value]
        return None if any(one is None for one in inner) else inner
    return value if is_number(value) else number_of(value)


def _flatten(positions: _Points) -> None:
    for position in positions:
        del position[2:]


def _array(points: _Points) -> NDArray[np.float64]:
    """(n, 2) array of positions."""
    if set(map(len, points)) != {2}:
        points = [point[:2] for point in points]
    try:
        return np.array(points, np.float64).reshape(-1, 2)
    except OverflowError:  # a whole number beyond 1e308
        return np.full((1, 2), np.inf)


def _check_rings(shape: Json, arrays: list[NDArray[np.float64]]) -> Iterator[Defect]:
    inner = shape["coordinates"]
    parts: list[list[_Points]] = [inner] if shape["type"] == "Polygon" else inner
    rings = [ring for part in parts for ring in part]
    opened = [ring for ring in rings if ring and ring[0][:2] != ring[-1][:2]]
    if opened:
        first, last = opened[0][0][:2], opened[0][-1][:2]
        words = f"{len(opened)} open rings, the first from {first} to {last}"
        yield Defect("abort", words, partial(_close, opened), "closed")
        return
    lone = [part[0] for part in parts if len(part) > 1 and not part[0]]
    short = [ring for ring in rings if 0 < len(ring) < 3] + lone
    if short:
        words = f"{len(short)} rings of fewer than three positions"
        yield Defect("abort", words, partial(_leave_out, parts, short), "left out")
        return
    blank = sum(not any(part) or not all(part) for part in parts)
    if blank and any(map(any, parts)):
        words = f"{blank} parts that are empty or have an empty hole"
        yield Defect("dropped", words, partial(_tidy, parts), "emptiness left out")
        return
    each = iter(arrays)
    areas = [
        polygon_of([ring for _, ring in zip(part, each, strict=False) if len(ring)])
        for part in parts
    ]
    drawn: Area = areas[0] if areas else MultiPolygon()
    if shape["type"] == "MultiPolygon":
        drawn = MultiPolygon([area for area in areas if not area.is_empty])
    flaw = find_flaw(drawn, partial(_redraw, shape, drawn))
    if flaw:
        yield flaw
    elif shape.get("isEllipse") and not _is_ellipse(drawn):
        words = "isEllipse, and the outline is none: becomes the ellipse in its box"
        yield Defect("changed", words, partial(shape.pop, "isEllipse"), "left out")


def _is_ellipse(drawn: Area) -> bool:
    """Whether an area is about as large as the ellipse in its box."""
    left, top, right, bottom = drawn.bounds
    whole = pi / 4 * (right - left) * (bottom - top)
    return bool(abs(drawn.area - whole) <= _ELLIPSE * whole)


def _close(rings: list[_Points]) -> None:
    """End rings where they begin; a last position within QuPath's grid is moved."""
    for ring in rings:
        gap = np.abs(np.subtract(ring[0][:2], ring[-1][:2])).max()
        if gap < 0.01 and len(ring) > 3:
            ring[-1] = list(ring[0])
        else:
            ring.append(list(ring[0]))


def _leave_out(parts: list[list[_Points]], short: list[_Points]) -> None:
    """Take rings out of the parts, with the holes of an outline that goes."""
    ids = set(map(id, short))
    for part in parts:
        gone = bool(part) and id(part[0]) in ids
        keep = [] if gone else [r for r in part if id(r) not in ids]
        part[:] = keep


def _tidy(parts: list[list[_Points]]) -> None:
    for part in parts:
        part[:] = filter(None, part)
    parts[:] = filter(None, parts)


def _redraw(shape: Json, drawn: Area) -> None:
    parts = mend_area(drawn)
    if len(parts) == 1:
        shape.update(type="Polygon", coordinates=parts[0])
    else:
        shape.update(type="MultiPolygon", coordinates=parts)


def _check_lines(
    shape: Json, lists: list[_Points], arrays: list[NDArray[np.float64]]
) -> Iterator[Defect]:
    """Lines that are points; QuPath makes nothing of them."""
    flat = [not len(a) or bool((np.round(a - a[0], 2) == 0).all()) for a in arrays]
    if not lists:
        yield Defect("dropped", "no line: an empty object")
    elif any(flat):
        single = any(len(points) == 1 for points in lists)
        long = [points for points, no in zip(lists, flat, strict=True) if not no]
        many = shape["type"] == "MultiLineString"
        yield Defect(
            "abort" if single else "dropped",
            "a line of one position" if single else "a line without length",
            partial(shape.update, coordinates=long) if many and long else None,
            "left out",
        )
