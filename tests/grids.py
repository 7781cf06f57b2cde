"""Densities and grids that several test files sample with."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.models.density import density_to_grid
from wsi_pipeline.models.sampling import to_unit

SIGMA = 0.05


def random_density(
    h: int, w: int, *, seed: int = 0, std: float = 2.0, n: int = 1
) -> Tensor:
    """Softmax of normal logits: (n, 1, h, w) float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = std * torch.randn(n, h * w, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=1).view(n, 1, h, w)


def random_grid(
    h: int, w: int, seed: int = 0, std: float = 2.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Grid of a random density: (1, h, w, 2)."""
    return density_to_grid(random_density(h, w, seed=seed, std=std), SIGMA).to(dtype)


def random_unit(h: int, w: int, seed: int = 0, std: float = 2.0) -> NDArray[np.float32]:
    """The same in unit coordinates: (2, h, w)."""
    grid: NDArray[np.float32] = to_unit(random_grid(h, w, seed, std))[0].numpy()
    return grid


def place_of(grid: Tensor, found: Tensor) -> Tensor:
    """Places of (H, W, 2) grid coordinates on a (h, w, 2) mesh, in float64.

    Bilinear in the quad, written corner by corner.
    """
    h, w = grid.shape[:2]
    g = grid.double()
    column = (found[..., 0].double() + 1) / 2 * (w - 1)
    row = (found[..., 1].double() + 1) / 2 * (h - 1)
    j, i = column.long().clamp(0, w - 2), row.long().clamp(0, h - 2)
    s, t = (column - j)[..., None], (row - i)[..., None]
    upper = g[i, j] * (1 - s) + g[i, j + 1] * s
    lower = g[i + 1, j] * (1 - s) + g[i + 1, j + 1] * s
    return upper * (1 - t) + lower * t
