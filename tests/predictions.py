"""Made-up predictions of regions, of a smooth field or at random."""

import numpy as np
from numpy.typing import NDArray

from tests.grids import random_unit
from wsi_pipeline.geometry import Box
from wsi_pipeline.regions import DETAIL, RegionPrediction


def even_grid(nodes: int) -> NDArray[np.float32]:
    steps = np.linspace(0, 1, nodes)
    return np.stack(np.meshgrid(steps, steps)).astype(np.float32)


def bent_grid(nodes: int) -> NDArray[np.float32]:
    """Denser in the middle, borders pinned, no folds."""
    steps = np.linspace(0, 1, nodes)
    bent = steps + 0.1 * np.sin(2 * np.pi * steps) / (2 * np.pi) * 3
    return np.stack(np.meshgrid(bent, bent)).astype(np.float32)


def field(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth probabilities (3, ...) of a place in base pixels."""
    logits = np.stack(
        [np.sin(x / 61) + np.cos(y / 47), np.cos(x / 53 + 1), np.sin(y / 59 - x / 83)]
    )
    raised = np.exp(2 * logits)
    return np.asarray(raised / raised.sum(0))


def region(
    box: Box, grid: NDArray[np.float32], base: int = 1, kind: int = DETAIL
) -> RegionPrediction:
    """The field sampled where the grid's nodes lie."""
    x = box.x / base + grid[0] * (box.w / base - 1)
    y = box.y / base + grid[1] * (box.h / base - 1)
    return RegionPrediction(box, field(x, y).astype(np.float16), grid, kind)


def laid(
    side: int, step: int, size: int = 512, shift: int = 0
) -> list[RegionPrediction]:
    """Regions of the field, `step` pixels apart, over a square and beyond its edges."""
    grid = bent_grid(side // 4)
    starts = range(-shift, size, step)
    return [region(Box(x, y, side, side), grid) for y in starts for x in starts]


def random_region(
    random: np.random.Generator,
    box: Box,
    kind: int = DETAIL,
    *,
    classes: int = 4,
    nodes: tuple[int, int] = (6, 7),
    levels: int = 0,
    std: float = 2.0,
) -> RegionPrediction:
    """Random probabilities on a random grid.

    With `levels` they are multiples of 1 / levels, so that many are tied, 0 or 1.
    """
    h, w = nodes
    if levels:
        values = random.multinomial(levels, np.full(classes, 1 / classes), (h, w))
        values = values / levels
    else:
        values = random.dirichlet(np.full(classes, 0.4), (h, w))
    values = np.moveaxis(values, -1, 0).astype(np.float16)
    return RegionPrediction(
        box, values, random_unit(h, w, int(random.integers(1 << 30)), std), kind
    )
