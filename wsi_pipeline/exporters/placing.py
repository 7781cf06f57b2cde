"""Turns outlines on the mask's grid into those that are written to a file."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.outlines import Outlines, per_part
from wsi_pipeline.exporters.sheet import Frame
from wsi_pipeline.geometry import Box

GRID_PX = 0.01
"""QuPath rounds coordinates to this grid on import."""


def place(objects: Objects, downsample: float, frame: Frame) -> Iterator[Objects]:
    """Bring objects into the frame of the file.

    Parameters
    ----------
    objects : Objects
        Outlines in pixels of the mask.
    downsample : float
        Level-0 pixels per pixel of the mask, a whole number.
    frame : Frame
        Where coordinates start; outlines are cut at its edges.

    Yields
    ------
    Objects
        Twice at most, those that are cut apart from the others, without those of which
        nothing lies in the frame. Outlines are in pixels of level 0 from the frame's
        corner and valid on the 0.01-px grid, so that rounding to it changes nothing.
    """
    outlines = objects.outlines
    points = outlines.points * np.int64(round(downsample)) - np.array(frame.offset_px)
    shifted = replace(objects, outlines=replace(outlines, points=points))
    window = Box(0, 0, frame.box.w, frame.box.h)
    is_odd = _crosses(shifted.outlines, window)
    is_odd |= _may_round(shifted.outlines, downsample)
    yield shifted.take(np.flatnonzero(~is_odd)) if is_odd.any() else shifted
    odd = shifted.take(np.flatnonzero(is_odd))
    shapes = odd.outlines.to_shapely()
    shapes = shapely.intersection(shapes, shapely.box(0, 0, window.w, window.h))
    shapes = shapely.set_precision(shapes, GRID_PX)
    polygons = np.array([_polygonal(shape) for shape in shapes.tolist()], object)
    there = np.flatnonzero(~shapely.is_empty(polygons))
    if len(there):
        yield replace(odd.take(there), outlines=Outlines.of(polygons[there]))


def _crosses(outlines: Outlines, window: Box) -> NDArray[np.bool_]:
    """(n,) whether an outline reaches beyond a window whose corner is (0, 0)."""
    beyond = outlines.bounds() - np.array([0, 0, window.w, window.h])
    return np.asarray((beyond * np.array([-1, -1, 1, 1]) > 0).any(axis=1))


def _may_round(outlines: Outlines, downsample: float) -> NDArray[np.bool_]:
    """(n,) whether a vertex may lie so near to another border that rounding joins them.

    The distance of a corner of the mask's pixels from a border of length l between two
    others is at least the area of a pixel by l, or a pixel's side where it is straight.
    """
    steps = outlines.steps()
    is_long = np.hypot(steps[:, 0], steps[:, 1]) > downsample**2 / GRID_PX
    is_long &= (steps != 0).all(axis=1)
    return per_part(np.logical_or, is_long, outlines.point_starts)


def _polygonal(
    geometry: shapely.Geometry,
) -> shapely.Polygon | shapely.MultiPolygon:
    """The areas of a geometry in a fixed order; that of holes counts below 0."""
    parts = [
        part
        for part in shapely.get_parts(shapely.get_parts(geometry))
        if isinstance(part, shapely.Polygon) and not part.is_empty
    ]
    if not parts:
        return shapely.Polygon()
    whole = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return shapely.orient_polygons(shapely.normalize(whole))
