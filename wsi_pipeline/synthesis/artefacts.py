"""What spoils real slides: pen, folds, air bubbles and dust, drawn over the tissue.

Truth under artefacts: the class of the tissue stays wherever a person could still
see it (green and blue pen, folds, bubbles, dust). Under black pen nothing can be
seen; there the truth is background.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.synthesis.noise import Floats, smooth_field

Kind = Literal["pen", "fold", "bubble", "dust"]
_INKS = ((0.13, 0.47, 0.28), (0.16, 0.24, 0.62), (0.05, 0.05, 0.06))
_BLACK = 2


@dataclass(frozen=True)
class Artefact:
    """One artefact along a line.

    Parameters
    ----------
    kind : str
        "pen", "fold", "bubble" (a ring around the first point) or "dust".
    points_um : tuple of (float, float)
        The line's corners.
    width_um : float
        Width of the line; radius of a bubble.
    ink : int
        Pen only: 0 green, 1 blue, 2 black.
    """

    kind: Kind
    points_um: tuple[tuple[float, float], ...]
    width_um: float
    ink: int = 0

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether a box (um) may show something of it."""
        xs, ys = zip(*self.points_um, strict=True)
        pad = 2 * self.width_um + 40
        return bool(
            min(xs) - pad < right
            and max(xs) + pad > left
            and min(ys) - pad < bottom
            and max(ys) + pad > top
        )


@dataclass(frozen=True)
class Effects:
    """What artefacts do to a grid.

    Parameters
    ----------
    thickness : (h, w) float32 array
        Layers of tissue: 1, more in a fold.
    light : (h, w, 3) float32 array
        Light that gets through, 0 to 1.
    hidden : (h, w) float32 array
        Above 0.5 where nothing can be seen.
    """

    thickness: Floats
    light: Floats
    hidden: Floats


def overlay(
    artefacts: tuple[Artefact, ...],
    key: int,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> Effects | None:
    """Effects of the artefacts that touch a grid; None where there are none.

    Parameters
    ----------
    x, y : (w,) and (h,) float64 arrays
        Columns and rows, um.
    """
    box = float(x[0]), float(y[0]), float(x[-1]), float(y[-1])
    near = [one for one in artefacts if one.touches(*box)]
    if not near:
        return None
    shape = (len(y), len(x))
    thickness = np.ones(shape, np.float32)
    light = np.ones((*shape, 3), np.float32)
    hidden = np.zeros(shape, np.float32)
    wobble = smooth_field(key, 130, x, y)
    streak = smooth_field(key ^ 0x33, 30, x * 0.25, y)
    grid_x, grid_y = x[None, :].astype(np.float32), y[:, None].astype(np.float32)
    for one in near:
        distance = _to_line(one, grid_x, grid_y)
        if one.kind == "pen":
            cover = np.clip((one.width_um / 2 + 6 * wobble - distance) / 9 + 0.5, 0, 1)
            if one.ink == _BLACK:
                np.maximum(hidden, cover, out=hidden)
            else:
                cover *= np.clip(0.86 + 0.06 * streak, 0.7, 1)
            for c in range(3):
                light[..., c] *= 1 - cover * (1 - np.float32(_INKS[one.ink][c]))
        elif one.kind == "fold":
            half = one.width_um / 2 * (1 + 0.2 * wobble)
            cover = np.clip((half - distance) / 4 + 0.5, 0, 1)
            np.maximum(thickness, 1 + 0.95 * cover, out=thickness)
        elif one.kind == "bubble":
            rim = np.exp(-(((distance - one.width_um - 4 * wobble) / 9) ** 2))
            light *= (1 - 0.55 * rim)[..., None]
        else:
            cover = np.clip((one.width_um / 2 - distance) / 1.5 + 0.5, 0, 1)
            light *= (1 - 0.6 * cover)[..., None]
    return Effects(thickness, light, hidden)


def scatter_artefacts(
    key: int, size_um: tuple[float, float], amount: float
) -> tuple[Artefact, ...]:
    """Artefacts as found on a slide of a given size.

    Parameters
    ----------
    size_um : tuple of float
        (width, height) of the slide; its corner is at (0, 0).
    amount : float
        1 is a badly kept slide, 0 a clean one.
    """
    generator = np.random.Generator(np.random.PCG64(key))
    w, h = size_um
    reach = min(w, h)
    found: list[Artefact] = []
    for _ in range(
        int(generator.random() < 0.75 * amount) * int(generator.integers(1, 4))
    ):
        ink = int(generator.integers(0, 3))
        width = float(np.clip(reach * generator.uniform(0.02, 0.07), 30, 900))
        found.append(Artefact("pen", _stroke(generator, w, h, 0.45), width, ink))
    for _ in range(int(generator.integers(0, 3) * amount + 0.5)):
        width = float(np.clip(reach * generator.uniform(0.008, 0.03), 12, 150))
        found.append(Artefact("fold", _stroke(generator, w, h, 0.3), width))
    for _ in range(int(generator.integers(0, 3) * amount + 0.5)):
        centre = (float(generator.uniform(0, w)), float(generator.uniform(0, h)))
        radius = float(np.clip(reach * generator.uniform(0.02, 0.1), 20, 1500))
        found.append(Artefact("bubble", (centre,), radius))
    for _ in range(min(400, int(generator.poisson(amount * w * h / 1.5e6)))):
        at = np.array([generator.uniform(0, w), generator.uniform(0, h)])
        end = at + generator.normal(0, 9, 2)
        line = ((float(at[0]), float(at[1])), (float(end[0]), float(end[1])))
        found.append(Artefact("dust", line, float(generator.uniform(2, 7))))
    return tuple(found)


def _stroke(
    generator: np.random.Generator, w: float, h: float, part: float
) -> tuple[tuple[float, float], ...]:
    """A gently bent line about `part` of the slide long."""
    at = np.array([generator.uniform(0, w), generator.uniform(0, h)])
    heading = generator.uniform(0, 2 * np.pi)
    bend = generator.normal(0, 0.11)
    step = part * min(w, h) * generator.uniform(0.6, 1.4) / 16
    points = []
    for _ in range(17):
        points.append((float(at[0]), float(at[1])))
        at = at + step * np.array([np.cos(heading), np.sin(heading)])
        heading += bend + generator.normal(0, 0.06)
    return tuple(points)


def _to_line(one: Artefact, x: Floats, y: Floats) -> Floats:
    """Distance to the line (to the centre, for a bubble)."""
    (ax, ay), *rest = one.points_um
    if not rest:
        return np.asarray(np.hypot(x - np.float32(ax), y - np.float32(ay)))
    best = np.full((y.shape[0], x.shape[1]), np.inf, np.float32)
    for bx, by in rest:
        ux, uy = bx - ax, by - ay
        length = max(ux * ux + uy * uy, 1e-6)
        t = np.clip(((x - ax) * ux + (y - ay) * uy) / length, 0, 1)
        d = (x - ax - t * ux) ** 2 + (y - ay - t * uy) ** 2
        np.minimum(best, d.astype(np.float32), out=best)
        ax, ay = bx, by
    return np.asarray(np.sqrt(best))
