"""Layouts of whole slides: pieces of tissue on glass, lesions inside them."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from wsi_pipeline.synthesis.glands import LARGEST_GLAND_UM
from wsi_pipeline.synthesis.layout import (
    BENIGN,
    GLASS,
    GLEASON_3,
    GLEASON_5,
    STROMA,
    Survey,
    Values,
    wander,
)
from wsi_pipeline.synthesis.painting import WARP_UM

SlideKind = Literal["strip", "section"]
LesionPlan = Literal["random", "none", "one"]
SMALLEST_LESION_UM = 220.0
"""Radius below which a lesion could hold no gland of some patterns."""


@dataclass(frozen=True)
class Blob:
    """A rounded piece of plane: a tissue piece or a lesion, um.

    Parameters
    ----------
    x, y : float
        Centre.
    radius_x, radius_y : float
        Half axes.
    power : float
        2 is an ellipse, more is boxier.
    pattern : int
        What grows there.
    """

    x: float
    y: float
    radius_x: float
    radius_y: float
    power: float
    pattern: int

    def depth_um(self, x: Values, y: Values) -> Values:
        """Roughly the distance from the border, above 0 inside."""
        u = np.abs(x - x.dtype.type(self.x)) * x.dtype.type(1 / self.radius_x)
        v = np.abs(y - y.dtype.type(self.y)) * x.dtype.type(1 / self.radius_y)
        reach = (u**self.power + v**self.power) ** (1 / self.power)
        return (1 - reach) * x.dtype.type(min(self.radius_x, self.radius_y))

    @property
    def area_um2(self) -> float:
        """Area, exact for an ellipse."""
        return float(np.pi * self.radius_x * self.radius_y)


@dataclass(frozen=True)
class SectionLayout:
    """Pieces of tissue on glass, benign but for their lesions.

    Parameters
    ----------
    key : int
        64-bit key of the borders' course.
    pieces, lesions : tuple of Blob
    """

    key: int
    pieces: tuple[Blob, ...]
    lesions: tuple[Blob, ...]

    @property
    def piece_wander_um(self) -> float:
        """Amplitude of the outer border's course."""
        return 0.05 * min(min(p.radius_x, p.radius_y) for p in self.pieces)

    @staticmethod
    def lesion_wander_um(lesion: Blob) -> float:
        """Amplitude of a lesion border's course."""
        return 0.09 * min(lesion.radius_x, lesion.radius_y)

    def reach_um(self, lesion: Blob) -> tuple[float, float, float, float]:
        """A box (left, top, right, bottom) that nothing of a lesion leaves."""
        pad = 2 * self.lesion_wander_um(lesion) + WARP_UM + LARGEST_GLAND_UM
        rx, ry = lesion.radius_x + pad, lesion.radius_y + pad
        return lesion.x - rx, lesion.y - ry, lesion.x + rx, lesion.y + ry

    def survey(self, x: Values, y: Values) -> Survey:
        """Tissue and pattern at places in um; any shape of arrays."""
        amplitude = self.piece_wander_um
        bent = wander(self.key, 22 * amplitude, amplitude, x, y)
        tissue = self.pieces[0].depth_um(*bent)
        for piece in self.pieces[1:]:
            np.maximum(tissue, piece.depth_um(*bent), out=tissue)
        pattern = np.full(x.shape, BENIGN, np.uint8)
        depth = np.array(tissue)
        # zones without glands, a third of the tissue, follow slow waves
        zone_x, zone_y = wander(self.key ^ 0x77, 2600, 2, x, y)
        pattern[(zone_x - x) + (zone_y - y) > 1.2] = STROMA
        box = float(x.min()), float(y.min()), float(x.max()), float(y.max())
        for n, lesion in enumerate(self.lesions):
            left, top, right, bottom = self.reach_um(lesion)
            if right < box[0] or left > box[2] or bottom < box[1] or top > box[3]:
                continue
            amplitude = self.lesion_wander_um(lesion)
            bent = wander(self.key + 101 + n, 9 * amplitude, amplitude, x, y)
            inside = lesion.depth_um(*bent)
            own = inside > 0
            pattern[own] = lesion.pattern
            depth = np.where(own, inside, np.minimum(depth, -inside))
        pattern[tissue <= 0] = GLASS
        return Survey(tissue, pattern, depth)


def lay_section(
    key: int, size_um: tuple[float, float], kind: SlideKind, lesions: LesionPlan
) -> SectionLayout:
    """Lay out pieces and lesions on a slide.

    Parameters
    ----------
    size_um : tuple of float
        (width, height).
    kind : str
        "strip": pieces side by side, as cut for PCa-Histo; "section": one round piece.
    lesions : str
        "random": up to five; "one": a single one of about 0.6 % of the tissue, but at
        least 220 um in radius; "none".
    """
    generator = np.random.Generator(np.random.PCG64(key))
    w, h = size_um
    pieces: list[Blob] = []
    if kind == "section":
        pieces.append(Blob(w / 2, h / 2, 0.41 * w, 0.41 * h, 2.2, BENIGN))
    else:
        cuts = _cuts(generator, w / h)
        for left, right in pairwise(cuts):
            rx = 0.44 * w * (right - left) * generator.uniform(0.92, 1.0)
            ry = 0.41 * h * generator.uniform(0.8, 1.0)
            y = h / 2 + h * generator.uniform(-0.03, 0.03)
            pieces.append(Blob(w * (left + right) / 2, y, rx, ry, 3.0, BENIGN))
    area = sum(piece.area_um2 for piece in pieces)
    if lesions == "none":
        shares = []
    elif lesions == "one":
        shares = [0.006]
    else:
        count = int(generator.choice(6, p=(0.08, 0.22, 0.25, 0.2, 0.15, 0.1)))
        shares = [float(generator.uniform(0.02, 0.1)) for _ in range(count)]
    found: list[Blob] = []
    for share in shares:
        # a few tries to keep lesions apart; a crowded slide may have them touch
        for _ in range(25):
            lesion = _plant(generator, pieces, area * share)
            if not any(_touch(lesion, other) for other in found):
                break
        found.append(lesion)
    return SectionLayout(key, tuple(pieces), tuple(found))


def _touch(one: Blob, other: Blob) -> bool:
    far_x = abs(one.x - other.x) > 1.2 * (one.radius_x + other.radius_x)
    return not (far_x or abs(one.y - other.y) > 1.2 * (one.radius_y + other.radius_y))


def _cuts(generator: np.random.Generator, aspect: float) -> list[float]:
    """Borders between the pieces of a strip, parts of its width."""
    count = max(1, round(aspect / generator.uniform(1.2, 2.2)))
    widths = generator.uniform(0.7, 1.3, count)
    edges = np.concatenate([[0.0], np.cumsum(widths) / widths.sum()])
    return [float(edge) for edge in edges]


def _plant(generator: np.random.Generator, pieces: list[Blob], area_um2: float) -> Blob:
    """A lesion well inside a piece chosen by its area."""
    areas = np.array([piece.area_um2 for piece in pieces])
    piece = pieces[int(generator.choice(len(pieces), p=areas / areas.sum()))]
    stretch = generator.uniform(0.75, 1.35)
    radius = max(SMALLEST_LESION_UM, float(np.sqrt(area_um2 / np.pi)))
    rx, ry = radius * np.sqrt(stretch), radius / np.sqrt(stretch)
    limit = 0.7 * min(piece.radius_x, piece.radius_y)
    rx, ry = min(rx, 0.7 * piece.radius_x), min(ry, max(limit, 60.0))
    turn = generator.uniform(0, 2 * np.pi)
    off = np.sqrt(generator.uniform(0, 1))
    x = piece.x + off * np.cos(turn) * max(0.0, 0.8 * piece.radius_x - rx)
    y = piece.y + off * np.sin(turn) * max(0.0, 0.8 * piece.radius_y - ry)
    pattern = int(generator.integers(GLEASON_3, GLEASON_5 + 1))
    return Blob(float(x), float(y), float(rx), float(ry), 2.0, pattern)
