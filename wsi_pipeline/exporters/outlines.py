"""Turns exact outlines on the mask's grid into those that are written to a file.

Small holes are filled, outlines cut to the frame, simplified with shared borders kept.
"""

import math

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.exporters.polygons import MaskObject
from wsi_pipeline.exporters.sheet import Frame
from wsi_pipeline.geometry import Box

GRID_PX = 0.01
"""QuPath rounds coordinates to this grid on import."""


def fill_holes(
    outlines: NDArray[np.object_], min_hole_px: float
) -> NDArray[np.object_]:
    """Fill holes below an area, unless another outline lies in them.

    Parameters
    ----------
    outlines : (n,) array of shapely.Polygon
    min_hole_px : float
        Holes of fewer square pixels are filled.

    Returns
    -------
    (n,) array of shapely.Polygon
    """
    rings, owner = shapely.get_rings(outlines, return_index=True)
    is_hole = np.diff(owner, prepend=-1) == 0
    holes = np.asarray(shapely.polygons(rings))
    small = is_hole & (shapely.area(holes) < min_hole_px)
    if not small.any():
        return outlines
    candidates = np.flatnonzero(small)
    tree = shapely.STRtree(outlines)
    taken, _ = tree.query(holes[candidates], predicate="covers")
    small[candidates[np.unique(taken)]] = False
    result = outlines.copy()
    for index in np.unique(owner[small]).tolist():
        mine = slice(*np.searchsorted(owner, (index, index + 1)))
        left = rings[mine][~small[mine]]
        result[index] = shapely.Polygon(left[0], left[1:])
    return result


def place(
    objects: tuple[MaskObject, ...],
    *,
    downsample: float,
    frame: Frame,
    tolerance_px: float,
    min_hole_px: float,
) -> NDArray[np.object_]:
    """Bring outlines into the frame of the file.

    Parameters
    ----------
    objects : tuple of MaskObject
        All objects that are written; neighbours keep common borders.
    downsample : float
        Level-0 pixels per pixel of the mask.
    frame : Frame
        Where coordinates start; outlines are cut at its edges.
    tolerance_px : float
        Simplification, level-0 pixels; 0 keeps pixel edges.
    min_hole_px : float
        Smaller holes are filled, square pixels of the mask.

    Returns
    -------
    (n,) array of shapely.Polygon or shapely.MultiPolygon
        In pixels of level 0 from the frame's corner, valid on the 0.01-px grid; empty
        where nothing of an object lies in the frame.

    Notes
    -----
    Memory: about 200 bytes per vertex of all objects, since they share borders. On
    smooth outlines the tolerance is what a border typically moves; the farthest points
    move two to three times as far.

    References
    ----------
    Visvalingam and Whyatt 1993, line simplification by triangle area, as GEOS applies
    it to coverages.
    """
    if not objects:
        return np.empty(0, object)
    outlines = fill_holes(np.array([o.outline for o in objects]), min_hole_px)
    outlines = shapely.transform(outlines, lambda points: points * downsample)
    outlines = _cut(outlines, frame.box)
    if tolerance_px > 0:
        simple = shapely.coverage_simplify(outlines, tolerance_px)
        good = shapely.is_valid(simple) & ~shapely.is_empty(simple)
        outlines = np.where(good, simple, outlines)
    else:
        outlines = shapely.simplify(outlines, 0)
    shift = np.array(frame.offset_px)
    outlines = shapely.transform(outlines, lambda points: points - shift)
    outlines = shapely.set_precision(outlines, GRID_PX)
    return np.array([_polygonal(o) for o in outlines.tolist()], dtype=object)


def _cut(outlines: NDArray[np.object_], box: Box) -> NDArray[np.object_]:
    """Cut outlines at the edges of a box; what lies outside becomes empty."""
    limits = np.array([box.x, box.y, -box.right, -box.bottom])
    bounds = shapely.bounds(outlines) * np.array([1, 1, -1, -1])
    crossing = np.flatnonzero((bounds < limits).any(axis=1))
    window = shapely.box(box.x, box.y, box.right, box.bottom)
    result = outlines.copy()
    for index in crossing.tolist():
        result[index] = _polygonal(shapely.intersection(outlines[index], window))
    return result


def _polygonal(
    geometry: shapely.Geometry,
) -> shapely.Polygon | shapely.MultiPolygon:
    """The areas of a geometry, oriented as RFC 7946 wants them, in a fixed order."""
    parts = [
        part
        for part in shapely.get_parts(shapely.get_parts(geometry))
        if isinstance(part, shapely.Polygon) and not part.is_empty
    ]
    if not parts:
        return shapely.Polygon()
    whole = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return shapely.orient_polygons(shapely.normalize(whole))


def pixel_tolerance(simplify_um: float, um_per_px: float) -> float:
    """Tolerance in pixels, 0 where it would not remove a single pixel's corner."""
    tolerance = simplify_um / um_per_px
    # the smallest triangle on the pixel grid has half a square pixel
    return tolerance if tolerance > math.sqrt(0.5) else 0.0
