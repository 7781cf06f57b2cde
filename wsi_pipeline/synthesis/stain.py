"""Stain: amounts of haematoxylin and eosin to the RGB of a brightfield scanner."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.synthesis.noise import Floats

# Optical density per channel of unit amounts; Macenko et al. (ISBI 2009), whose
# reference vectors are the usual start for H&E.
_HAEMATOXYLIN = (0.5626, 0.7201, 0.4062)
_EOSIN = (0.2159, 0.8012, 0.5581)


@dataclass(frozen=True)
class Stain:
    """One laboratory's stain on one day.

    Parameters
    ----------
    haematoxylin, eosin : tuple of float
        Optical density (base e) of R, G, B per unit amount.
    glass : tuple of float
        R, G, B of empty glass.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[float, float, float]

    def mix(self, haematoxylin: Floats, eosin: Floats, light: Floats) -> Floats:
        """RGB of amounts of the two stains.

        Parameters
        ----------
        haematoxylin, eosin : (h, w) float32 arrays
            Amounts, 1 = a dense nucleus or dense collagen.
        light : (h, w, 3) float32 array
            Light that gets through pen, dust and glass, 0 to 1; changed in place.

        References
        ----------
        Beer-Lambert law: I = I0 exp(-sum of amount x density); Ruifrok and Johnston
        (2001).
        """
        for c in range(3):
            density = haematoxylin * np.float32(-self.haematoxylin[c])
            density -= eosin * np.float32(self.eosin[c])
            np.exp(density, out=density)
            density *= np.float32(self.glass[c])
            light[..., c] *= density
        return light


def draw_stain(key: int, variation: float) -> Stain:
    """A stain near the reference.

    Parameters
    ----------
    variation : float
        0 gives the reference itself, 1 the spread seen between laboratories.
    """
    generator = np.random.Generator(np.random.PCG64(key))
    shift = generator.normal(0, 1, 10) * variation
    h = np.array(_HAEMATOXYLIN) + 0.035 * shift[:3]
    e = np.array(_EOSIN) + 0.035 * shift[3:6]
    h *= 1.85 * np.exp(0.14 * shift[6]) / np.linalg.norm(h)
    e *= 1.12 * np.exp(0.14 * shift[7]) / np.linalg.norm(e)
    glass = 243 + np.clip(3 * shift[8], -6, 7) + np.array([0, 0, -1.5 * abs(shift[9])])
    return Stain(_triple(h), _triple(e), _triple(glass))


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b
