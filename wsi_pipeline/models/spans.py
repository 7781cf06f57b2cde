"""Finds the quads of a mesh along each row of pixels, and the classes they tell.

A row is cut into spans where it crosses the lines of the mesh. A span in a quad whose
nodes agree on a class has that class (see `Mesh`); neighbours of one class stay one
span. What is left is for `solving`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.models.compiling import compiled
from wsi_pipeline.models.meshes import MIXED, NO_REGION, OFF_TISSUE, Mesh
from wsi_pipeline.models.quads import LEAST

_MIXED, _OFF, _NONE = np.uint8(MIXED), np.uint8(OFF_TISSUE), np.uint8(NO_REGION)


class Place(NamedTuple):
    """Where a region lies on a band of rows of a raster.

    Attributes
    ----------
    left, right : int
        Its columns.
    own_left, own_right : int
        Columns that no other region covers.
    first_own, last_own : int
        Columns of quads that lie in those, the last one excluded.
    step : float
        Base pixels per pixel of the raster, a power of two.
    shift, reach : float
        Place of column 0, and largest place; beyond it the border is repeated.
    ys : (m,) float64 array
        Places of the rows.
    across : (right - left,) float32 array
        Weights of its columns.
    down : (m,) float32 array
        Weights of the rows.
    share : (m, W) float32 array, or (0, 0)
        Factor of its weights; where it is 0, the region is hidden.
    """

    left: int
    right: int
    own_left: int
    own_right: int
    first_own: int
    last_own: int
    step: float
    shift: float
    reach: float
    ys: NDArray[np.float64]
    across: NDArray[np.float32]
    down: NDArray[np.float32]
    share: NDArray[np.float32]


class Spans(NamedTuple):
    """Room for the spans of a region in the rows of a band.

    Attributes
    ----------
    first : (m + 1,) int32 array
        Number of each row's first span; its last one only tells where the row ends.
    start : (s,) int32 array
        First column.
    quad : (s,) int32 array
        Number of the quad, or ``-1 - class`` of several that share it.
    """

    first: NDArray[np.int32]
    start: NDArray[np.int32]
    quad: NDArray[np.int32]

    @classmethod
    def empty(cls, rows: int, most: int) -> "Spans":
        """Room for so many spans of so many rows."""
        return cls(*(np.empty(n, np.int32) for n in (rows + 1, most, most)))


@compiled
def lay_region(mesh: Mesh, place: Place, spans: Spans, band: NDArray[np.uint8]) -> bool:
    """Cut a region into spans and lay their classes over a band of pixels.

    Parameters
    ----------
    mesh : Mesh
    place : Place
    spans : Spans
        Gets the spans.
    band : (m, W) uint8 array
        OFF_TISSUE stays; NO_REGION becomes the class; what differs becomes MIXED.

    Returns
    -------
    bool
        False if there is no room for the spans: lay it once more with twice as much,
        which changes no pixel that was laid.
    """
    w = mesh.nodes.shape[2]
    rows = np.zeros(w, np.int64)  # of quads, in which each column of nodes is crossed
    until = np.full(w, -np.inf)
    n = 0
    for m in range(len(place.ys)):
        spans.first[m] = n
        most = _advance(mesh.nodes[1], place.ys[m], rows, until)
        if n + most > len(spans.start):
            return False
        n = _cut_row(mesh, place, place.ys[m], rows, spans, n)
        spans.start[n] = place.right
        for k in range(spans.first[m], n):
            quad, begin, end = spans.quad[k], spans.start[k], spans.start[k + 1]
            new = mesh.pure[quad] if quad >= 0 else np.uint8(-1 - quad)
            row = band[m, begin:end]
            if place.share.size:
                share = place.share[m, begin:end]
                for x in range(len(row)):
                    if row[x] != _OFF and share[x] > 0:
                        same = row[x] == _NONE or row[x] == new
                        row[x] = new if same else _MIXED
            else:
                for x in range(len(row)):
                    old = row[x]
                    laid = new if (old == _NONE) | (old == new) else _MIXED
                    row[x] = old if old == _OFF else laid
        n += 1
    spans.first[len(place.ys)] = n
    return True


@compiled
def _advance(
    ys: NDArray[np.float64],
    y: float,
    rows: NDArray[np.int64],
    until: NDArray[np.float64],
) -> int:
    """Move on to the rows of quads in which y crosses the columns of nodes.

    Returns how many spans there are at most, with the one that ends the row.
    """
    h, w = ys.shape
    most: int = w
    for j in range(w):
        if until[j] <= y:
            i = rows[j]
            while i < h - 2 and ys[i + 1, j] <= y:
                i += 1
            rows[j] = i
            until[j] = ys[i + 1, j] if i < h - 2 else np.inf
        if j:
            most += int(abs(rows[j] - rows[j - 1]))
    return most


@compiled
def _cut_row(
    mesh: Mesh, place: Place, y: float, rows: NDArray[np.int64], spans: Spans, n: int
) -> int:
    """Write the spans of one row from number n on; returns the next number."""
    w = mesh.nodes.shape[2]
    begin, common = place.left, -1  # of a span that is still open, and its class
    for j in range(w - 1):
        i, last = rows[j], rows[j + 1]
        here = int(mesh.pure[i * (w - 1) + j])
        if i != last:
            for k in range(min(i, last), max(i, last) + 1):
                if mesh.pure[k * (w - 1) + j] != here:
                    here = MIXED
        if here == common and j < place.last_own:
            continue
        if common >= 0:
            stop = _column(place, mesh.lines[0, i, j] + mesh.lines[1, i, j] * y)
            if stop > begin:
                spans.start[n], spans.quad[n] = begin, -1 - common
                n, begin = n + 1, stop
            common = -1
        if begin >= place.right:
            break
        if here != MIXED and place.first_own <= j < place.last_own:
            common = here
            continue
        stop = place.right
        if j < w - 2:
            x = mesh.lines[0, last, j + 1] + mesh.lines[1, last, j + 1] * y
            stop = _column(place, x)
        while begin < stop:
            cut = stop
            if i != last:
                side = i + 1 if last > i else i
                cut = min(stop, _column(place, _cross(mesh.nodes, side, j, y)))
            if cut > begin:
                spans.start[n], spans.quad[n] = begin, i * (w - 1) + j
                n, begin = n + 1, cut
            i += 1 if last > i else -1
    if common >= 0 and begin < place.right:
        spans.start[n], spans.quad[n] = begin, -1 - common
        n += 1
    return n


@compiled
def _cross(nodes: NDArray[np.float64], i: int, j: int, y: float) -> float:
    """Where the side from node (i, j) to (i, j + 1) has a given y."""
    begin = nodes[1, i, j]
    rise = nodes[1, i, j + 1] - begin
    part = (y - begin) / rise if abs(rise) > LEAST else 0.0
    x: float = nodes[0, i, j] + part * (nodes[0, i, j + 1] - nodes[0, i, j])
    return x


@compiled
def _column(place: Place, x: float) -> int:
    """First column at or right of a place, kept on the region."""
    column = int(np.ceil((x - place.shift) / place.step))
    return min(max(column, place.left), place.right)
