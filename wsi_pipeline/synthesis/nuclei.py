"""Nuclei: where they sit in each architecture, and their stamps."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.synthesis.glands import GlandFields
from wsi_pipeline.synthesis.layout import BENIGN, GLEASON_3, GLEASON_4, GLEASON_5
from wsi_pipeline.synthesis.noise import Floats, lattice

SPACING_UM = 6.2
LARGEST_UM = 14.0
"""No stamp is longer."""
_TURNS, _VARIANTS = 12, 6
SPINDLE, ROUND, BASAL, LARGE, LYMPHOCYTE = range(5)


@dataclass(frozen=True)
class _Family:
    """Range of a family's diameters (um), elongation, darkness and coarseness."""

    diameter_um: tuple[float, float]
    elongation: tuple[float, float]
    density: float
    coarse: float


_FAMILIES = (
    _Family((4.2, 5.6), (2.2, 3.6), 1.0, 0.2),
    _Family((6.0, 7.6), (1.0, 1.35), 0.95, 0.45),
    _Family((4.4, 5.4), (1.4, 2.2), 1.05, 0.2),
    _Family((7.0, 11.0), (1.0, 1.7), 1.0, 0.6),
    _Family((4.2, 5.0), (1.0, 1.15), 1.25, 0.15),
)


@dataclass(frozen=True)
class Nuclei:
    """Nuclei to stamp: places in um, family and angle (radians)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    family: NDArray[np.int64]
    angle: NDArray[np.float64]
    lot: NDArray[np.float64]


def place_nuclei(
    key: int,
    bounds_um: tuple[float, float, float, float],
    glands: GlandFields,
    tissue_um: Floats,
    fibre_angle: Floats,
    node_um: float,
) -> Nuclei:
    """Choose nuclei from a jittered lattice by what grows at each of its points.

    Parameters
    ----------
    bounds_um : tuple of float
        (left, top, right, bottom) of the fields; node (0, 0) sits at left, top.
    glands, tissue_um, fibre_angle : fields on nodes `node_um` apart
    """
    x, y, (lot, other, pick) = lattice(key, SPACING_UM, 0.38, bounds_um, 3)
    left, top = bounds_um[:2]
    h, w = tissue_um.shape
    column = np.rint((x - left) / node_um).astype(np.int64)
    row = np.rint((y - top) / node_um).astype(np.int64)
    inside = (column > 0) & (column < w - 1) & (row > 0) & (row < h - 1)
    inside[inside] &= tissue_um[row[inside], column[inside]] > 2
    x, y, lot, other, pick, row, column = (
        v[inside] for v in (x, y, lot, other, pick, row, column)
    )
    depth, lumen = glands.depth_um[row, column], glands.lumen_um[row, column]
    kind = np.where(depth > 0, glands.kind[row, column], 1)
    slope_x = glands.depth_um[row, column + 1] - glands.depth_um[row, column - 1]
    slope_y = glands.depth_um[row + 1, column] - glands.depth_um[row - 1, column]
    length = np.hypot(slope_x, slope_y) + 1e-3
    along = np.arctan2(slope_y, slope_x)

    family = np.full(len(x), -1)
    target = np.full(len(x), np.nan)
    angle = np.where(other < 0.5, along, other * 12.0)
    benign, third = kind == BENIGN, kind == GLEASON_3
    wall = lumen < -3
    rows_of = (
        (benign & (depth < 4.5) & (lot < 0.75), BASAL, 2.4, np.pi / 2),
        (benign & (depth >= 4.5) & (depth < 11.5), ROUND, 8.5, 0.0),
        (third & (depth > 0.5) & (depth < 7.5), ROUND, 4.6, 0.0),
    )
    for chosen, which, level, turn in rows_of:
        family[chosen] = which
        target[chosen] = level
        angle[chosen] = along[chosen] + turn
    papilla = benign & (depth > 15) & (lumen < -5) & (lot < 0.4)
    family[papilla] = ROUND
    fused = (kind == GLEASON_4) & (depth > 2.5) & wall & (lot < 0.5)
    family[fused] = np.where(pick[fused] < 0.15, LARGE, ROUND)
    # a row of cells around each punched-out lumen
    ring = (kind == GLEASON_4) & (lumen > -9) & (lumen < -4) & (lot < 0.75)
    family[ring] = ROUND
    loose = (kind == GLEASON_5) & (depth > 1.5) & (lot < 0.42)
    family[loose] = np.where(pick[loose] < 0.75, LARGE, ROUND)
    stroma = (kind == 1) & (depth < -2.5)
    spindle = stroma & (lot < 0.075)
    family[spindle] = np.where(pick[spindle] < 0.1, LYMPHOCYTE, SPINDLE)
    angle[spindle] = fibre_angle[row, column][spindle] + 0.5 * (other[spindle] - 0.5)

    # rows: a point slides along the slope of the depth to the level of its row
    move = np.where(np.isnan(target), 0, np.clip(target - depth, -4, 4))
    move += np.where(np.isnan(target), 0, (pick - 0.5) * 2.0)
    x, y = x + move * slope_x / length, y + move * slope_y / length
    kept = family >= 0
    return Nuclei(x[kept], y[kept], family[kept], angle[kept], pick[kept])


def stamp_nuclei(
    canvas: Floats, nuclei: Nuclei, origin_um: tuple[float, float], mpp: float
) -> None:
    """Draw nuclei into a field of haematoxylin by taking the larger amount.

    Parameters
    ----------
    canvas : (h, w) float32 array
        Changed in place; pixel (0, 0) has its centre at `origin_um`.
    """
    stamps = nucleus_stamps(mpp)
    side = stamps.shape[-1]
    half = side // 2
    h, w = canvas.shape
    column = np.rint((nuclei.x - origin_um[0]) / mpp).astype(np.int64) - half
    row = np.rint((nuclei.y - origin_um[1]) / mpp).astype(np.int64) - half
    turn = np.rint(nuclei.angle * (_TURNS / np.pi)).astype(np.int64) % _TURNS
    variant = (nuclei.lot * 997).astype(np.int64) % _VARIANTS
    seen = (column > -side) & (row > -side) & (column < w) & (row < h)
    rows = zip(
        column[seen].tolist(),
        row[seen].tolist(),
        nuclei.family[seen].tolist(),
        turn[seen].tolist(),
        variant[seen].tolist(),
        strict=True,
    )
    for x, y, family, angle, look in rows:
        stamp = stamps[family, angle, look]
        x0, y0 = max(x, 0), max(y, 0)
        place = canvas[y0 : y + side, x0 : x + side]
        cut = stamp[y0 - y :, x0 - x :][: place.shape[0], : place.shape[1]]
        np.maximum(place, cut, out=place)


@lru_cache(maxsize=16)
def nucleus_stamps(mpp: float) -> Floats:
    """Amounts of haematoxylin of each family, turn and variant.

    Returns
    -------
    (families, turns, variants, side, side) float32 array
    """
    half = int(np.ceil(LARGEST_UM / 2 / mpp)) + 1
    generator = np.random.Generator(np.random.PCG64(41))
    axis = np.arange(-half, half + 1) * mpp
    dx, dy = np.meshgrid(axis, axis)
    shape = (len(_FAMILIES), _TURNS, _VARIANTS, len(axis), len(axis))
    out = np.zeros(shape, np.float32)
    for f, family in enumerate(_FAMILIES):
        for v in range(_VARIANTS):
            part = (v + 0.5) / _VARIANTS
            low, high = family.diameter_um
            size = (low + (high - low) * part) / 2
            stretch = generator.uniform(*family.elongation)
            long = min(size * np.sqrt(stretch), LARGEST_UM / 2 - 0.3)
            short = size / np.sqrt(stretch)
            grain = generator.standard_normal((_TURNS, *dx.shape)).astype(np.float32)
            for t in range(_TURNS):
                angle = np.pi * t / _TURNS
                u = (dx * np.cos(angle) + dy * np.sin(angle)) / long
                w = (dy * np.cos(angle) - dx * np.sin(angle)) / short
                r = np.sqrt(u * u + w * w)
                # soft edge of about 0.8 um, never sharper than a pixel
                edge = (1 - r) * short / max(0.8, mpp) + 0.5
                rim = np.exp(-(((r - 0.85) / 0.22) ** 2))
                chromatin = ndimage.gaussian_filter(grain[t], 0.55 / mpp)
                chromatin /= chromatin.std() + 1e-6
                body = 0.6 + 0.3 * rim + 0.36 * family.coarse * chromatin
                body -= 0.22 * family.coarse * (r < 0.75)
                if family.coarse > 0.5:
                    spot = np.exp(-((u - 0.2) ** 2 + w**2) / 0.03)
                    body = body + 0.3 * spot
                out[f, t, v] = np.clip(edge, 0, 1) * np.clip(body, 0.25, 1.3)
                out[f, t, v] *= family.density
    return out
