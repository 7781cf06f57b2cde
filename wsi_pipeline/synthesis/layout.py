"""Where what grows: a layout turns places (um) into tissue and growth pattern."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.synthesis.noise import hashed

Values = NDArray[np.floating]
GLASS, STROMA, BENIGN, GLEASON_3, GLEASON_4, GLEASON_5 = range(6)


@dataclass(frozen=True)
class Survey:
    """What a layout says about places.

    Parameters
    ----------
    tissue_um : float array
        Roughly the distance to the edge of the tissue, above 0 inside.
    pattern : uint8 array
        Growth pattern, 0 (glass) to 5.
    depth_um : float array
        Roughly the distance to the edge of the area of that pattern.
    """

    tissue_um: Values
    pattern: NDArray[np.uint8]
    depth_um: Values


class Layout(Protocol):
    """A plane of tissue."""

    def survey(self, x: Values, y: Values) -> Survey:
        """Tissue and pattern at places in um; any shape of arrays."""
        ...


def wander(
    key: int, wavelength_um: float, amplitude_um: float, x: Values, y: Values
) -> tuple[Values, Values]:
    """Bend places by a few plane waves, so that borders are not straight.

    Notes
    -----
    Works on places in any arrangement, which lattice noise does not; a place moves by
    at most twice the amplitude.
    """
    generator = np.random.Generator(np.random.PCG64(key ^ 0x1234))
    moved = [x, y]
    for n in range(8):
        heading = generator.uniform(0, 2 * np.pi)
        wave = 2 * np.pi / (wavelength_um * generator.uniform(0.35, 1.3))
        phase = generator.uniform(0, 2 * np.pi)
        angle = x * x.dtype.type(wave * np.cos(heading)) + phase
        angle = angle + y * x.dtype.type(wave * np.sin(heading))
        moved[n % 2] = moved[n % 2] + x.dtype.type(amplitude_um / 2) * np.sin(angle)
    return moved[0], moved[1]


@dataclass(frozen=True)
class Mosaic:
    """An endless plane of patches of growth patterns: for training and tests.

    Parameters
    ----------
    key : int
        64-bit key of the randomness.
    patch_um : float
        Mean side of a patch of one pattern.
    weights : tuple of float
        Share of each pattern 0..5. Equal shares are dealt in turn, so that each
        pattern occurs in every few patches; others are drawn by lot.
    """

    key: int
    patch_um: float
    weights: tuple[float, ...]

    def survey(self, x: Values, y: Values) -> Survey:
        """Tissue and pattern at places in um; any shape of arrays."""
        s = self.patch_um
        x, y = wander(self.key, 0.9 * s, 0.16 * s, x, y)
        columns = np.arange(np.floor(x.min() / s) - 2, np.floor(x.max() / s) + 3)
        rows = np.arange(np.floor(y.min() / s) - 2, np.floor(y.max() / s) + 3)
        i, j = (v.ravel().astype(np.int64) for v in np.meshgrid(columns, rows))
        site_x = (i + 0.2 + 0.6 * hashed(self.key, i, j, 0)) * s
        site_y = (j + 0.2 + 0.6 * hashed(self.key, i, j, 1)) * s
        pattern = self._deal(i, j)
        reach: dict[int, Values] = {}
        for value in np.unique(pattern):
            near = np.full(x.shape, np.inf, np.float32)
            for k in np.flatnonzero(pattern == value):
                distance = (x - site_x[k]) ** 2 + (y - site_y[k]) ** 2
                np.minimum(near, distance, out=near)
            reach[int(value)] = np.sqrt(near)
        values = np.array(sorted(reach), np.uint8)
        stack = np.stack([reach[int(v)] for v in values])
        best = np.argmin(stack, axis=0)
        if len(values) == 1:
            depth = np.full(x.shape, s)
        else:
            two = np.partition(stack, 1, axis=0)
            depth = (two[1] - two[0]) / 2
        tissue = np.where(values[best] == GLASS, -depth, s)
        if GLASS in reach and len(values) > 1:
            tissue = (reach[GLASS] - stack[values != GLASS].min(axis=0)) / 2
        return Survey(tissue, values[best], depth)

    def _deal(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.uint8]:
        shares = np.asarray(self.weights, np.float64)
        wanted = np.flatnonzero(shares)
        if np.ptp(shares[wanted]) == 0:
            zero = np.zeros(len(wanted), np.int64)
            order = np.argsort(hashed(self.key, wanted.astype(np.int64), zero, 7))
            # a step of 2 per row (3 where 2 would repeat it) spreads the turn
            step = 2 if len(wanted) != 2 else 1
            start = int(hashed(self.key, zero[:1], zero[:1], 8)[0] * len(wanted))
            turn = (i + step * j + start) % len(wanted)
            return np.asarray(wanted[order][turn], np.uint8)
        edges = np.cumsum(shares) / shares.sum()
        lot = np.searchsorted(edges, hashed(self.key, i, j, 2), side="right")
        return np.asarray(np.minimum(lot, len(shares) - 1), np.uint8)
