"""Makes geometries of what annotation programs store: rings, corners, holes."""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity

Points = NDArray[np.float64]

FARTHEST_PX = 1e9
"""No slide reaches so far, and sums of such numbers do not overflow."""
_ARC_SEGMENTS = 32  # per quarter: an ellipse's area is 0.04 % too small


def check_places(points: Points) -> None:
    """Refuse coordinates that are no places on any slide.

    Raises
    ------
    ValueError
        If one is NaN, infinite, or beyond 1e9 px.
    """
    if not (np.abs(points) <= FARTHEST_PX).all():  # NaN compares as False
        raise ValueError("expected finite coordinates of at most 1e9 px")


def mended(geometry: shapely.Geometry) -> shapely.Geometry:
    """The geometry itself if it is valid, else its areas, which overlaps do not double.

    Returns
    -------
    shapely.Geometry
        An empty polygon where nothing with an area is left.
    """
    if shapely.is_valid(geometry):
        return geometry
    parts = shapely.get_parts(shapely.get_parts(geometry))
    cut = [without_holes(part) for part in parts if isinstance(part, shapely.Polygon)]
    return areas_of(shapely.union_all(cut))


def without_holes(part: shapely.Polygon) -> shapely.Geometry:
    """An outline that may cross itself without what lies in its holes, wherever."""
    rings = [shapely.Polygon(ring) for ring in (part.exterior, *part.interiors)]
    areas = shapely.make_valid(rings, method="structure", keep_collapsed=False)
    left: shapely.Geometry = shapely.difference(areas[0], shapely.union_all(areas[1:]))
    return left


def areas_of(geometry: shapely.Geometry) -> shapely.Geometry:
    """The polygons among a geometry's parts as one Polygon or MultiPolygon."""
    parts = [
        part
        for part in shapely.get_parts(shapely.get_parts(geometry))
        if isinstance(part, shapely.Polygon) and not part.is_empty
    ]
    if not parts:
        return shapely.Polygon()
    return parts[0] if len(parts) == 1 else shapely.union_all(parts)


def only_areas(geometry: shapely.Geometry) -> shapely.Geometry:
    """A geometry with an area; of a collection, its polygons without lines and dots."""
    mixed = isinstance(geometry, shapely.GeometryCollection)
    return areas_of(geometry) if mixed else geometry


def polygon(points: Points) -> shapely.Geometry:
    """Area inside (n, 2) points; fewer than three of them are no area."""
    return mended(shapely.Polygon(points)) if len(points) > 2 else line(points)


def rectangle(points: Points) -> shapely.Geometry:
    """Area inside (n, 2) points, where two of them are opposite corners."""
    return _corners(points) if len(points) == 2 else polygon(points)


def ellipse(points: Points) -> shapely.Geometry:
    """The ellipse in the box around 2 to 4 corners, or the area inside more points."""
    if not 2 <= len(points) <= 4:
        return polygon(points)
    near, far = points.min(axis=0), points.max(axis=0)
    centre, radii = (near + far) / 2, (far - near) / 2
    return oval(tuple(centre.tolist()), tuple(radii.tolist()))


def oval(centre: tuple[float, float], radii: tuple[float, float]) -> shapely.Geometry:
    """An ellipse by its centre and its radii along x and y."""
    circle = shapely.Point(0, 0).buffer(1, quad_segs=_ARC_SEGMENTS)
    scaled = affinity.scale(circle, *radii, origin=(0, 0))
    return mended(affinity.translate(scaled, *centre))


def line(points: Points) -> shapely.Geometry:
    """A line through (n, 2) points; a point for one, empty for none."""
    if len(points) > 1:
        return shapely.LineString(points)
    return shapely.Point(points[0]) if len(points) else shapely.Polygon()


def dots(points: Points) -> shapely.Geometry:
    """(n, 2) points as themselves."""
    return shapely.MultiPoint(points) if len(points) > 1 else line(points)


def even_odd(rings: Iterable[Points]) -> shapely.Geometry:
    """Area inside an odd number of the rings: a ring in a ring is a hole."""
    areas = [mended(shapely.Polygon(ring)) for ring in rings if len(ring) > 2]
    if not areas:
        return shapely.Polygon()
    return areas_of(reduce(shapely.symmetric_difference, areas))


def cut_out(
    areas: Sequence[shapely.Geometry], holes: Sequence[shapely.Geometry]
) -> list[shapely.Geometry]:
    """Areas without what lies in the holes; lines, points and areas beside stay."""
    solid = np.array([hole for hole in holes if shapely.area(hole) > 0], dtype=object)
    tree = shapely.STRtree(solid)
    left = []
    for area in areas:
        hits = tree.query(area, predicate="intersects")
        if len(hits) and shapely.area(area) > 0:
            area = areas_of(shapely.difference(area, shapely.union_all(solid[hits])))
        left.append(area)
    return left


def _corners(points: Points) -> shapely.Geometry:
    return shapely.box(*points.min(axis=0), *points.max(axis=0))
