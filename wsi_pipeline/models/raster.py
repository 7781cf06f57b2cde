"""Inverts any sampling grid on the CPU, folded or collapsed ones too, in float64.

Every quad solves the places in its bounding box in closed form. `inverse` is faster
and falls back on this where a mesh is irregular.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_CHUNK = 1 << 15
# Two quads share an edge; a place on it must be found by at least one of them.
_EDGE = 1e-9


def invert_raster(
    grid: NDArray[np.floating],
    xs: NDArray[np.floating],
    ys: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fractional node of every place of a raster.

    Parameters
    ----------
    grid : (2, h, w) float array
        x and y of each node, unit coordinates.
    xs : (m_x,) float array, ascending
        Columns of the raster, unit coordinates.
    ys : (m_y,) float array, ascending
        Rows of the raster, unit coordinates.

    Returns
    -------
    rows, columns : two (m_y, m_x) float64 arrays
        Node coordinates, 0 to h - 1 and 0 to w - 1. Mapping them forward again
        (bilinear in the quad) misses the place by less than 1e-9.

    Notes
    -----
    Places outside the mesh, and those in cells without area, take the nearest node;
    where a mesh folds, one of the quads that hold a place answers.
    Memory: the output plus about 10 MB, kept by going through the quads in chunks.

    References
    ----------
    Closed-form inverse of a bilinear patch: Quilez, "inverse bilinear interpolation";
    the root is taken in the form that is stable for parallelograms.
    """
    mesh = _Mesh.of(np.asarray(grid, np.float64))
    across, down = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    rows = np.full((len(ys), len(xs)), np.nan)
    columns = np.full_like(rows, np.nan)
    if not rows.size:
        return rows, columns
    boxes = mesh.candidates(across, down)
    counts = boxes.counts
    edges = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < len(counts):
        stop = int(np.searchsorted(edges, edges[start] + _CHUNK, side="right")) - 1
        stop = max(start + 1, stop)
        _solve(mesh, boxes, slice(start, stop), across, down, rows, columns)
        start = stop
    _fill_missing(grid, across, down, rows, columns)
    return rows, columns


@dataclass(frozen=True)
class _Boxes:
    """Ranges of raster rows and columns that each quad's bounding box covers."""

    y0: NDArray[np.int64]
    x0: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        return self.height * self.width


@dataclass(frozen=True)
class _Mesh:
    """Quads as ``corner + along s + across t + twist s t``, each (2, k)."""

    width: int
    corner: NDArray[np.float64]
    along: NDArray[np.float64]
    across: NDArray[np.float64]
    twist: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, grid: NDArray[np.float64]) -> "_Mesh":
        a, b = grid[:, :-1, :-1], grid[:, :-1, 1:]
        c, d = grid[:, 1:, :-1], grid[:, 1:, 1:]
        corners = np.stack([a, b, c, d])
        parts = (a, b - a, c - a, a - b - c + d, corners.min(0), corners.max(0))
        flat = (np.ascontiguousarray(part.reshape(2, -1)) for part in parts)
        return cls(grid.shape[2] - 1, *flat)

    def candidates(self, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> _Boxes:
        """Raster ranges whose places may lie in each quad."""
        x0 = np.searchsorted(xs, self.low[0] - _EDGE, side="left")
        x1 = np.searchsorted(xs, self.high[0] + _EDGE, side="right")
        y0 = np.searchsorted(ys, self.low[1] - _EDGE, side="left")
        y1 = np.searchsorted(ys, self.high[1] + _EDGE, side="right")
        return _Boxes(y0, x0, y1 - y0, x1 - x0)


def _solve(
    mesh: _Mesh,
    boxes: _Boxes,
    part: slice,
    xs: NDArray[np.float64],
    ys: NDArray[np.float64],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
) -> None:
    """Solve the places in the bounding boxes of some quads and keep those inside."""
    counts = boxes.counts[part]
    total = int(counts.sum())
    if not total:
        return

    def spread(values: NDArray[Any]) -> Any:  # Any: keeps the dtype
        return np.repeat(values[..., part], counts, axis=-1)

    i, j = _raster_places(boxes, part)
    (bx, by), (cx, cy), (dx, dy) = (
        spread(v) for v in (mesh.along, mesh.across, mesh.twist)
    )
    px, py = spread(mesh.corner)
    qx, qy = xs[j] - px, ys[i] - py
    # cross(q - C t, B + D t) = 0 is quadratic in t; the wanted root has slope det J > 0
    second = cy * dx - cx * dy
    first = qx * dy - qy * dx + bx * cy - by * cx
    zeroth = qx * by - qy * bx
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.sqrt(first * first - 4 * second * zeroth)
        t = -2 * zeroth / (first + slope)
        if (first < 0).any():
            t = np.where(first < 0, (slope - first) / (2 * second), t)
        ux, uy = bx + dx * t, by + dy * t
        s = ((qx - cx * t) * ux + (qy - cy * t) * uy) / (ux * ux + uy * uy)
        inside = (np.abs(s - 0.5) <= 0.5 + _EDGE) & (np.abs(t - 0.5) <= 0.5 + _EDGE)
    quad = spread(np.arange(len(boxes.y0)))[inside]
    i, j = i[inside], j[inside]
    rows[i, j] = quad // mesh.width + np.clip(t[inside], 0, 1)
    columns[i, j] = quad % mesh.width + np.clip(s[inside], 0, 1)


def _raster_places(
    boxes: _Boxes, part: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Raster row and column of every place in the bounding boxes of some quads."""
    spans = boxes.width[part], boxes.height[part], boxes.y0[part], boxes.x0[part]
    width, height, y0, x0 = spans
    # one run of columns per quad and raster row
    runs = np.repeat(width, height)
    first = np.cumsum(height) - height
    i = np.arange(len(runs)) + np.repeat(y0 - first, height)
    start = np.cumsum(runs) - runs
    j = np.arange(int(runs.sum())) + np.repeat(np.repeat(x0, height) - start, runs)
    return np.repeat(i, runs), j


def _fill_missing(
    grid: NDArray[np.floating],
    xs: NDArray[np.float64],
    ys: NDArray[np.float64],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
) -> None:
    """Give places that no quad holds the nearest node."""
    i, j = np.nonzero(np.isnan(rows))
    if not len(i):
        return
    nodes = np.asarray(grid, np.float64).reshape(2, -1).T
    nearest = cKDTree(nodes).query(np.stack([xs[j], ys[i]], axis=1))[1]
    rows[i, j] = nearest // grid.shape[2]
    columns[i, j] = nearest % grid.shape[2]
