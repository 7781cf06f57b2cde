"""Gland architecture: fields of depth, lumen and kind from seeded gland shapes.

The kinds differ in their shapes only; colours are given later and are the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.synthesis.layout import (
    BENIGN,
    GLEASON_3,
    GLEASON_4,
    GLEASON_5,
    STROMA,
    Layout,
    Survey,
)
from wsi_pipeline.synthesis.noise import Floats, lattice, smooth_field

ANGLES = 1024
FAR_UM = np.float32(-60)


@dataclass(frozen=True)
class GlandKind:
    """How the glands of one pattern are shaped, lengths in um.

    Parameters
    ----------
    spacing_um, jitter : float
        Lattice of the centres.
    radius_um : tuple of float
        Smallest and largest mean radius.
    density : float
        Share of the lattice cells that hold a gland.
    bumps : tuple of float
        Amplitudes of the outline's harmonics 2, 3, ..., as parts of the radius.
    wall_um : tuple of float
        Thinnest and thickest epithelium; 0, 0 means no lumen of its own.
    papillae : int
        Most folds of epithelium that reach into the lumen.
    """

    pattern: int
    spacing_um: float
    jitter: float
    radius_um: tuple[float, float]
    density: float
    bumps: tuple[float, ...]
    wall_um: tuple[float, float]
    papillae: int


KINDS = (
    GlandKind(
        BENIGN, 190, 0.4, (52, 118), 0.86, (0.2, 0.13, 0.09, 0.08, 0.06), (17, 28), 9
    ),
    GlandKind(GLEASON_3, 72, 0.3, (20, 36), 0.88, (0.13, 0.06, 0.03), (11, 15), 0),
    GlandKind(
        GLEASON_4, 165, 0.3, (75, 130), 0.95, (0.2, 0.16, 0.1, 0.07, 0.06), (0, 0), 0
    ),
)
LARGEST_GLAND_UM = 300.0
"""No gland reaches further from its centre, warping left out."""


@dataclass(frozen=True)
class GlandFields:
    """Glands on a grid.

    Parameters
    ----------
    depth_um : (h, w) float32 array
        Distance into a gland from its outline; below 0 outside.
    lumen_um : (h, w) float32 array
        Distance into a lumen; below 0 in epithelium and stroma.
    kind : (h, w) uint8 array
        Pattern of the nearest gland.
    """

    depth_um: Floats
    lumen_um: Floats
    kind: NDArray[np.uint8]


class _Canvas:
    """Nearest and second nearest gland per node, while glands are added."""

    def __init__(self, x: Floats, y: Floats, node_um: float) -> None:
        self.x, self.y, self.node_um = x, y, node_um
        self.best = np.full(x.shape, FAR_UM, np.float32)
        self.second = np.full(x.shape, FAR_UM, np.float32)
        self.lumen = np.full(x.shape, FAR_UM, np.float32)
        self.kind = np.full(x.shape, STROMA, np.uint8)

    def reach(
        self, left: float, top: float, cx: float, cy: float, r: float
    ) -> tuple[slice, slice]:
        """Nodes around a place, on the unwarped grid."""
        h, w = self.x.shape
        x0 = min(w, max(0, int((cx - r - left) / self.node_um)))
        y0 = min(h, max(0, int((cy - r - top) / self.node_um)))
        x1 = min(w, max(0, int((cx + r - left) / self.node_um) + 2))
        y1 = min(h, max(0, int((cy + r - top) / self.node_um) + 2))
        return slice(y0, y1), slice(x0, x1)

    def add(
        self,
        part: tuple[slice, slice],
        place: tuple[float, float],
        outline: Floats,
        inner: Floats | None,
        pattern: int,
    ) -> None:
        """Add one gland given by its radii per angle."""
        dx = self.x[part] - np.float32(place[0])
        dy = self.y[part] - np.float32(place[1])
        turn = np.arctan2(dy, dx) * np.float32(ANGLES / (2 * np.pi))
        index = turn.astype(np.int32) & (ANGLES - 1)
        radius = np.sqrt(dx * dx + dy * dy)
        depth = outline[index] - radius
        best, second = self.best[part], self.second[part]
        nearer = depth > best
        np.maximum(second, np.minimum(best, depth), out=second)
        np.maximum(best, depth, out=best)
        lumen = FAR_UM if inner is None else (inner[index] - radius)[nearer]
        self.lumen[part][nearer] = lumen
        self.kind[part][nearer] = pattern


def grow_glands(
    keys: tuple[int, ...],
    layout: Layout,
    bounds_um: tuple[float, float, float, float],
    grid: tuple[Floats, Floats],
    survey: Survey,
    axes_um: tuple[NDArray[np.float64], NDArray[np.float64]],
    slack_um: float,
) -> GlandFields:
    """Fields of all glands that touch a grid.

    Parameters
    ----------
    keys : tuple of int
        At least six 64-bit keys.
    bounds_um : tuple of float
        (left, top, right, bottom) of the grid before warping.
    grid : tuple of (h, w) float32 arrays
        Warped x and y of the nodes, um.
    survey : Survey
        The layout on the grid.
    axes_um : tuple of float64 arrays
        Unwarped columns (w,) and rows (h,), um.
    slack_um : float
        The furthest that warping moves a node.
    """
    node_um = float(axes_um[0][1] - axes_um[0][0])
    canvas = _Canvas(*grid, node_um)
    for key, shape in zip(keys, KINDS, strict=False):
        _add_kind(canvas, key, shape, layout, bounds_um, slack_um)
    septum = np.where(canvas.kind == GLEASON_4, np.float32(-6), np.float32(2.5))
    depth = np.minimum(canvas.best, (canvas.best - canvas.second) * 0.5 - septum)
    present = np.unique(survey.pattern)
    if (canvas.kind == GLEASON_4).any():
        _punch_lumina(canvas, keys[4], bounds_um, slack_um, depth)
    kind, lumen = canvas.kind, np.minimum(canvas.lumen, depth - 6)
    if GLEASON_5 in present:
        loose = _loose_cells(keys[3], axes_um, survey)
        wins = loose > depth
        depth = np.where(wins, loose, depth)
        lumen = np.where(wins, FAR_UM, lumen)
        kind = np.where(wins, np.uint8(GLEASON_5), kind)
    return GlandFields(depth, lumen, kind)


def _add_kind(
    canvas: _Canvas,
    key: int,
    kind: GlandKind,
    layout: Layout,
    bounds_um: tuple[float, float, float, float],
    slack_um: float,
) -> None:
    left, top, right, bottom = bounds_um
    reach = kind.radius_um[1] * (1 + sum(kind.bumps) * 0.85)
    pad = reach + slack_um
    x, y, numbers = lattice(
        key,
        kind.spacing_um,
        kind.jitter,
        (left - pad, top - pad, right + pad, bottom + pad),
        4 + 2 * len(kind.bumps) + 3 * kind.papillae,
    )
    found = layout.survey(x, y)
    keep = (found.pattern == kind.pattern) & (numbers[0] < kind.density)
    for n in np.flatnonzero(keep & (found.tissue_um > 0.6 * kind.radius_um[1])):
        part = canvas.reach(left, top, x[n], y[n], pad)
        if part[0].start >= part[0].stop or part[1].start >= part[1].stop:
            continue
        draws = np.array([column[n] for column in numbers[1:]])
        outline, inner = _radii(kind, draws)
        canvas.add(part, (x[n], y[n]), outline, inner, kind.pattern)


def _radii(kind: GlandKind, draws: NDArray[np.float64]) -> tuple[Floats, Floats | None]:
    """Radii of the outline and of the lumen per angle, um."""
    angle = np.arange(ANGLES) * (2 * np.pi / ANGLES)
    low, high = kind.radius_um
    mean = low + (high - low) * draws[0]
    shape = np.ones(ANGLES)
    count = len(kind.bumps)
    for k, amplitude in enumerate(kind.bumps):
        size = amplitude * (0.4 + 0.6 * draws[3 + k])
        shape += size * np.cos((k + 2) * angle + 2 * np.pi * draws[3 + count + k])
    # never a waist so thin that opposite walls touch
    outline = mean * np.maximum(shape, 0.45)
    if kind.wall_um[1] == 0:
        return outline.astype(np.float32), None
    wall = kind.wall_um[0] + (kind.wall_um[1] - kind.wall_um[0]) * draws[1]
    inner = outline - wall
    folds = draws[3 + 2 * count :].reshape(-1, 3)
    for place, height, width in folds[
        : round((0.35 + 0.65 * draws[2]) * kind.papillae)
    ]:
        turn = (angle - 2 * np.pi * place + np.pi) % (2 * np.pi) - np.pi
        part = 0.15 + 0.4 * height
        # wide enough at its tip, where the same angle spans less
        half = (8 + 8 * width) / (mean * (1 - part))
        inner = inner - part * mean * np.exp(-((turn / half) ** 4))
    if kind.papillae:
        # the scalloped inner edge of benign epithelium
        waves = round(mean * 0.14)
        inner = inner - 3.5 * (1 - np.cos(waves * angle + 6 * draws[1]))
    return outline.astype(np.float32), np.maximum(inner, 3.5).astype(np.float32)


def _punch_lumina(
    canvas: _Canvas,
    key: int,
    bounds_um: tuple[float, float, float, float],
    slack_um: float,
    depth: Floats,
) -> None:
    """Round small lumina in cribriform masses."""
    left, top, right, bottom = bounds_um
    box = (left - slack_um, top - slack_um, right + slack_um, bottom + slack_um)
    x, y, (present, size) = lattice(key, 31, 0.3, box, 2)
    mass = canvas.kind == GLEASON_4
    for n in np.flatnonzero(present < 0.78):
        r = 3.5 + 7.5 * size[n]
        part = canvas.reach(left, top, x[n], y[n], r + slack_um)
        if not mass[part].any():
            continue
        near = np.hypot(
            canvas.x[part] - np.float32(x[n]), canvas.y[part] - np.float32(y[n])
        )
        own = canvas.lumen[part]
        hole = np.where(mass[part], np.float32(r) - near, own)
        np.maximum(own, hole, out=own)
    canvas.lumen[mass] = np.minimum(canvas.lumen, depth - 9)[mass]


def _loose_cells(
    key: int, axes_um: tuple[NDArray[np.float64], NDArray[np.float64]], survey: Survey
) -> Floats:
    """Depth into sheets, cords and single cells, without any lumen."""
    x, y = axes_um
    sheet = smooth_field(key, 75, x, y)
    cord = smooth_field(key ^ 0x5555, 26, x, y * 1.0)
    cell = smooth_field(key ^ 0xAAAA, 9, x, y)
    ridge = 0.55 - np.abs(cord)
    level = np.maximum(sheet * 0.8 + 0.05, ridge + 0.3 * sheet)
    depth = 14 * level + 3.5 * cell
    inside = np.where(survey.pattern == GLEASON_5, survey.depth_um, FAR_UM)
    return np.asarray(np.minimum(depth, inside), np.float32)
