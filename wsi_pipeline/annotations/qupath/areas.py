"""Tells what QuPath makes of a polygon by rounding it as QuPath does; mends it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.annotations.qupath.findings import Defect, Effect
from wsi_pipeline.annotations.shapes import without_holes

GRID_PX = 0.01
"""QuPath 0.6 and later round coordinates to this when they read."""

Area = shapely.Polygon | shapely.MultiPolygon

_REASONS = {
    "Self-intersection": "outlines cross or overlap",
    "Ring Self-intersection": "an outline touches itself",
    "Hole lies outside shell": "a hole lies outside its outline",
    "Holes are nested": "a hole lies inside another",
    "Nested shells": "a part lies inside another",
    "Interior is disconnected": "holes cut the area in two",
    "Duplicate Rings": "an outline is there twice",
    "Too few points in geometry component": "an outline has too few points",
}


def polygon_of(rings: list[NDArray[np.float64]]) -> shapely.Polygon:
    """Polygon of closed rings, (n, 2) each with n >= 3; the first is its outline."""
    if not rings:
        return shapely.Polygon()
    # shapely wants four positions where QuPath is content with three
    closed = [np.vstack([r, r[:1]]) if len(r) == 3 else r for r in rings]
    made: list[Any] = [shapely.linearrings(ring) for ring in closed]  # Any: its types
    polygon: shapely.Polygon = shapely.polygons(made[0], made[1:] or None)
    return polygon


def find_flaw(drawn: Area, redraw: Callable[[], object]) -> Defect | None:
    """What QuPath alters in an area, if anything.

    Parameters
    ----------
    drawn : Polygon or MultiPolygon
        As the file has it, valid or not.
    redraw : callable
        The remedy, where something of it can be kept.

    References
    ----------
    QuPath 0.7 ``qupath.lib.io.ROITypeAdapters``; JTS 1.20 ``GeometryPrecisionReducer``:
    of 600 random geometries it and GEOS refuse the same ones.
    """
    if _stands(drawn):
        return None
    plain = isinstance(drawn, shapely.Polygon) and not len(drawn.interiors)
    kept: Effect | None = None if plain else "kept"
    anew = "drawn anew without that"
    if drawn.is_empty:
        return Defect("dropped", "no outline: an empty object")
    read = _round(drawn)
    if read is None:
        before: Effect = "repaired" if plain else "kept"
        return Defect("abort", _reason(drawn), redraw, anew, before)
    if read.is_empty and not drawn.area:
        return Defect("dropped", "no area: an empty object")
    if read.is_empty:
        words = f"thinner than {GRID_PX} px, nothing is left: are these no pixels?"
        return Defect("dropped", words, before="kept")
    lost = drawn.area - read.area
    rounding = GRID_PX * drawn.length + GRID_PX
    many = _count(drawn), _count(read)
    if many[0] != many[1] or abs(lost) > rounding:
        gone = sum(_vanishes(ring) for ring in _rings(drawn))
        if gone:
            words = f"{gone} parts or holes are thinner than {GRID_PX} px and vanish"
            return Defect("dropped", words, redraw, "left out", kept)
        words = f"area {drawn.area:.2f} becomes {read.area:.2f} px{_told(*many)}"
        effect: Effect = "dropped" if lost > rounding else "repaired"
        return Defect(effect, words, redraw, anew, kept)
    if not read.is_valid:  # rounding looks at lines that meet, and at nothing else
        return Defect("kept", f"{_reason(read)}: counted twice", redraw, anew)
    if not drawn.is_valid:
        return Defect("repaired", _reason(drawn), redraw, anew, kept)
    return None


def mend_area(drawn: Area) -> list[Any]:
    """Coordinates of a MultiPolygon on QuPath's grid that covers what is drawn.

    Outlines that cross themselves are taken apart, parts that overlap are joined, holes
    cut what they overlap; what is thinner than the grid is left out, even all of it.
    """
    whole: shapely.Geometry = drawn
    if not drawn.is_valid:
        whole = shapely.union_all(
            [without_holes(part) for part in shapely.get_parts(drawn)]
        )
    read = shapely.set_precision(whole, GRID_PX)
    return [
        [_positions(ring) for ring in (part.exterior, *part.interiors)]
        for part in _polygons(read)
    ]


def _stands(drawn: Area) -> bool:
    """Whether rounding each position by itself is all that happens: the usual case.

    What keeps 3 grid steps of distance, when each position has moved by no more than
    0.71 of one, has crossed nothing and comes near enough to nothing to be snapped to
    it. To know this takes a third of the time of the rounding that looks.
    """
    near = shapely.set_precision(drawn, GRID_PX, mode="pointwise")
    clear = shapely.minimum_clearance(near)
    return bool(3 * GRID_PX <= clear < np.inf and shapely.is_valid(near))


def _round(drawn: Area) -> Area | None:
    """The area as QuPath reads it; None where it gives up."""
    try:
        return shapely.set_precision(drawn, GRID_PX)
    except shapely.GEOSException:
        return None


def _reason(drawn: Area) -> str:
    """Why it is not valid, and where, in words that are not GEOS's."""
    words, _, place = str(shapely.is_valid_reason(drawn)).partition("[")
    at = place.rstrip("]").replace(" ", ", ")
    return _REASONS.get(words, words) + (f" at ({at})" if at else "")


def _polygons(area: shapely.Geometry) -> list[shapely.Polygon]:
    parts = shapely.get_parts(shapely.get_parts(area))
    return [p for p in parts if isinstance(p, shapely.Polygon) and not p.is_empty]


def _rings(area: Area) -> list[shapely.LinearRing]:
    return [r for p in _polygons(area) for r in (p.exterior, *p.interiors)]


def _vanishes(ring: shapely.LinearRing) -> bool:
    read = _round(shapely.Polygon(ring))
    return read is not None and read.is_empty


def _count(area: Area) -> tuple[int, int]:
    """Parts, and holes in all of them."""
    parts = _polygons(area)
    return len(parts), sum(len(part.interiors) for part in parts)


def _told(before: tuple[int, int], after: tuple[int, int]) -> str:
    pairs = zip(before, after, ("parts", "holes"), strict=True)
    return "".join(f", {a} {name} become {b}" for a, b, name in pairs if a != b)


def _positions(ring: shapely.LinearRing) -> list[list[float]]:
    """Positions with two decimals; whole numbers without any."""
    points = np.round(shapely.get_coordinates(ring), 2) + 0.0
    whole = points.astype(np.int64)
    return (whole if (whole == points).all() else points).tolist()  # type: ignore[no-any-return]
