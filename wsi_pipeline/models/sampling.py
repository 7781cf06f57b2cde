"""Samples regions on a grid of nodes without aliasing, and reads nodes back as pixels.

It sees stacks of mip levels, never a pyramid. Coordinates: a region's unit coordinate 0
is the centre of its first base pixel, 1 the centre of its last (align corners); pixel k
of level l has its centre at base pixel ``(k + 0.5) * 2**l - 0.5``.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.models.inverse import invert_grid

TAPS = 4
"""Samples per side that are averaged in a node's cell, for every strategy."""

_IDENTITY_TOLERANCE = 1e-6


def identity_grid(h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Grid of evenly spread nodes: (1, 2, h, w), x and y in [0, 1]."""
    rows, columns = (torch.linspace(0, 1, n, dtype=dtype) for n in (h, w))
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([u, v])[None]


def quad_areas(grid: Tensor) -> Tensor:
    """Signed area of the quads between nodes, 1 on an evenly spread grid.

    Parameters
    ----------
    grid : (n, 2, h, w) float tensor
        x and y of the nodes, unit coordinates.

    Returns
    -------
    (n, 1, h - 1, w - 1) float tensor
        Sums to ``(h - 1) * (w - 1)`` when the border nodes sit on the border.
    """
    h, w = grid.shape[-2:]
    falling = grid[..., 1:, 1:] - grid[..., :-1, :-1]
    rising = grid[..., :-1, 1:] - grid[..., 1:, :-1]
    cross = rising[:, :1] * falling[:, 1:] - rising[:, 1:] * falling[:, :1]
    return cross * (0.5 * (h - 1) * (w - 1))


def cell_areas(grid: Tensor) -> Tensor:
    """Area that each node stands for, |det J|: mean of the quads around it.

    Parameters
    ----------
    grid : (n, 2, h, w) float tensor
        x and y of the nodes, unit coordinates.

    Returns
    -------
    (n, 1, h, w) float tensor
        1 on an evenly spread grid; below 1 where nodes are dense.
    """
    quads = functional.pad(quad_areas(grid).abs(), (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(quads, 2, stride=1)


def mip_levels(image: Tensor, count: int) -> list[Tensor]:
    """Reduce an image to a stack of levels, each the 2 x 2 mean of the last.

    Parameters
    ----------
    image : (n, c, h, w) float tensor
        Level 0.
    count : int
        Levels to return, the image included.
    """
    levels = [image]
    while len(levels) < count:
        levels.append(functional.avg_pool2d(levels[-1], 2, ceil_mode=True))
    return levels


def sample_levels(
    levels: Sequence[Tensor], grid: Tensor, *, first: int = 0, taps: int = TAPS
) -> Tensor:
    """Sample a region at its nodes, each the mean of its cell.

    Parameters
    ----------
    levels : sequence of (n, c, h_l, w_l) float tensors
        The region on consecutive levels, each half the one before.
    grid : (n, 2, h, w) float tensor
        x and y of the nodes in [0, 1] of the region.
    first : int
        Level that ``levels[0]`` is; the region's base is ``2**first`` times larger.
    taps : int
        Samples per side and cell.

    Returns
    -------
    (n, c, h, w) float tensor
    """
    h, w = levels[0].shape[-2:]
    span = grid.new_tensor([w * 2**first - 1, h * 2**first - 1])
    areas = cell_areas(grid) * (
        span.prod() / ((grid.shape[-1] - 1) * (grid.shape[-2] - 1))
    )
    places = grid * span[:, None, None]
    return sample_places(levels, places, areas, first=first, taps=taps)


def sample_places(
    levels: Sequence[Tensor],
    places: Tensor,
    areas: Tensor,
    *,
    first: int = 0,
    taps: int = TAPS,
    outside: Literal["border", "reflection"] = "border",
) -> Tensor:
    """Sample at places given in base pixels; see `sample_levels`.

    Parameters
    ----------
    levels : sequence of (n, c, h_l, w_l) float tensors
        Consecutive levels, ``levels[0]`` being level `first`.
    places : (n, 2, h, w) float tensor
        x and y of the nodes, base pixels.
    areas : (n, 1, h, w) float tensor
        Area of each node's cell, base pixels squared; decides the level of detail.
    first, taps : int
        As in `sample_levels`.
    outside : str
        What lies beyond the image: its border repeated, or its mirror image.

    Returns
    -------
    (n, c, h, w) float tensor
        Differentiable in `places`, through the bilinear weights.

    References
    ----------
    Williams 1983, "Pyramidal parametrics": trilinear reading of a mip pyramid. The
    taps keep its blur at a fraction of a cell, whatever the reduction factor.
    """
    detail = 0.5 * torch.log2(areas.detach().clamp_min(1e-12)) - float(np.log2(taps))
    detail = detail.clamp(first, first + len(levels) - 1)
    low, high = float(detail.min()), float(detail.max())
    if taps > 1:
        places = functional.interpolate(
            places, scale_factor=taps, mode="bilinear", align_corners=False
        )  # (n, 2, h * taps, w * taps)
    total: Tensor | None = None
    for level, pixels in enumerate(levels, start=first):
        if not low - 1 < level < high + 1:
            continue
        weight = (1 - (detail - level).abs()).clamp_min(0)
        sampled = _read_bilinear(pixels, places, level, outside)
        if taps > 1:
            sampled = functional.avg_pool2d(sampled, taps)  # (n, c, h, w)
        part = sampled * weight
        total = part if total is None else total + part
    if total is None:
        raise ValueError("sample_places needs at least one level")
    return total


def _read_bilinear(pixels: Tensor, places: Tensor, level: int, outside: str) -> Tensor:
    """Read a level at base-pixel places, (n, 2, h, w) to (n, c, h, w)."""
    h, w = pixels.shape[-2:]
    # from edge to edge of the level is -1 to 1: its pixel centres then lie where the
    # module docstring says, whatever the level
    span = places.new_tensor([w, h])[:, None, None] * 2**level
    target = ((places + 0.5) * (2 / span) - 1).permute(0, 2, 3, 1)  # (n, h, w, 2)
    return functional.grid_sample(
        pixels, target, mode="bilinear", padding_mode=outside, align_corners=False
    )


def sample_at(
    probabilities: NDArray[np.floating],
    grid: NDArray[np.floating],
    xs: NDArray[np.floating],
    ys: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Class probabilities at places of a region, through the exact inverse of its grid.

    Parameters
    ----------
    probabilities : (c, h, w) float array
        One vector per node.
    grid : (2, h, w) float array
        x and y of the nodes, unit coordinates of the region.
    xs : (m_x,) float array, ascending
        Unit coordinates of the columns wanted; beyond 0 and 1 the border is repeated.
    ys : (m_y,) float array, ascending
        Unit coordinates of the rows wanted.

    Returns
    -------
    (c, m_y, m_x) float32 array
        Bilinear in node coordinates; sums to 1 over c where the nodes do.

    Notes
    -----
    Memory: the output, 16 bytes per place, and about 10 MB. Runs on the CPU.
    """
    h, w = probabilities.shape[1:]
    if grid.shape != (2, h, w):
        raise ValueError(
            f"grid must be (2, {h}, {w}) like the probabilities, got {grid.shape}"
        )
    xs = np.clip(np.asarray(xs, np.float64), 0, 1)
    ys = np.clip(np.asarray(ys, np.float64), 0, 1)
    even = identity_grid(h, w)[0].numpy()
    if np.abs(grid - even).max() <= _IDENTITY_TOLERANCE:
        shape = len(ys), len(xs)
        columns = np.broadcast_to((xs * (w - 1)).astype(np.float32), shape)
        rows = np.broadcast_to((ys * (h - 1)).astype(np.float32)[:, None], shape)
    else:
        rows, columns = invert_grid(grid, xs, ys)
    places = np.empty((1, *rows.shape, 2), np.float32)
    places[0, ..., 0] = columns * np.float32(2 / max(w - 1, 1)) - 1
    places[0, ..., 1] = rows * np.float32(2 / max(h - 1, 1)) - 1
    values = torch.from_numpy(np.asarray(probabilities, np.float32))[None]
    read = functional.grid_sample(
        values,
        torch.from_numpy(places),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    out: NDArray[np.float32] = read[0].numpy()
    return out
