"""Samples regions on a grid of nodes without aliasing, and reads nodes back as pixels.

It sees images and stacks of mip levels, never a pyramid. A grid is (n, h, w, 2), x
first, -1 to 1: -1 is the centre of a region's first base pixel, 1 that of its last
(align corners). Pixel k of level l has its centre at base pixel
``(k + 0.5) * 2**l - 0.5``. NumPy keeps grids as (n, 2, h, w) in unit coordinates,
0 to 1.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.models.inverse import invert_places

TAPS = 4
"""Samples per side that are averaged in a node's cell, for every strategy."""


def identity_grid(h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Grid of evenly spread nodes: (1, h, w, 2), x and y in [-1, 1]."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=dtype) for n in (h, w))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)[None]


def to_unit(grid: Tensor) -> Tensor:
    """Grid as NumPy stores it: (n, h, w, 2) in [-1, 1] to (n, 2, h, w) in [0, 1]."""
    return ((grid + 1) / 2).permute(0, 3, 1, 2).contiguous()


def from_unit(grid: Tensor) -> Tensor:
    """Inverse of `to_unit`."""
    return (grid * 2 - 1).permute(0, 2, 3, 1).contiguous()


def quad_areas(grid: Tensor) -> Tensor:
    """Signed area of the quads between nodes, 1 on an evenly spread grid.

    Parameters
    ----------
    grid : (n, h, w, 2) float tensor
        x and y of the nodes, -1 to 1.

    Returns
    -------
    (n, 1, h - 1, w - 1) float tensor
        Sums to ``(h - 1) * (w - 1)`` when the border nodes sit on the border.
    """
    h, w = grid.shape[1:3]
    falling = grid[:, 1:, 1:] - grid[:, :-1, :-1]
    rising = grid[:, :-1, 1:] - grid[:, 1:, :-1]
    cross = rising[..., 0] * falling[..., 1] - rising[..., 1] * falling[..., 0]
    return cross[:, None] * ((h - 1) * (w - 1) / 8)


def cell_areas(grid: Tensor) -> Tensor:
    """Area that each node stands for, |det J|: mean of the quads around it.

    Parameters
    ----------
    grid : (n, h, w, 2) float tensor
        x and y of the nodes, -1 to 1.

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


def sample_image(
    image: Tensor | Sequence[Tensor],
    grid: Tensor,
    *,
    first: int = 0,
    taps: int = TAPS,
    mip: bool = True,
) -> Tensor:
    """Sample a region at its nodes, each the mean of its cell.

    Parameters
    ----------
    image : (n, c, h_l, w_l) float tensor, or a sequence of them
        The region on one level, or on consecutive levels, each half the one before.
        From one level the coarser ones that the cells need are made.
    grid : (n, h, w, 2) float tensor
        x and y of the nodes, -1 to 1; h and w at least 2.
    first : int
        Level of the image, or of the first of them; the region's base is ``2**first``
        times larger.
    taps : int
        Samples per side and cell; 1 is the node alone.
    mip : bool
        Whether wide cells read coarser levels; else all read level `first`, and one
        tap is plain point sampling.

    Returns
    -------
    (n, c, h, w) float tensor
        Differentiable in `grid`, through the bilinear weights.

    Notes
    -----
    Memory: `taps` squared times the output, and a third of the image for its levels.
    """
    levels = [image] if isinstance(image, Tensor) else list(image)
    if not levels:
        raise ValueError("sample_image needs at least one level")
    span = _base_span(levels[0], first, grid)
    h, w = grid.shape[1:3]
    areas = cell_areas(grid) * (span.prod() / ((h - 1) * (w - 1)))
    if not mip:
        levels = levels[:1]
    elif isinstance(image, Tensor):
        widest = float(areas.amax())
        needed = math.ceil(0.5 * math.log2(max(widest, 1)) - math.log2(taps)) - first
        most = int(math.log2(max(image.shape[-2:])))
        levels = mip_levels(image, 1 + min(max(needed, 0), most))
    places = (grid + 1) / 2 * span
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
    """Sample at places given in base pixels; see `sample_image`.

    Parameters
    ----------
    levels : sequence of (n, c, h_l, w_l) float tensors
        Consecutive levels, ``levels[0]`` being level `first`.
    places : (n, h, w, 2) float tensor
        x and y of the nodes, base pixels.
    areas : (n, 1, h, w) float tensor
        Area of each node's cell, base pixels squared; decides the level of detail.
    first, taps : int
        As in `sample_image`.
    outside : str
        What lies beyond the image: its border repeated, or its mirror image.

    Returns
    -------
    (n, c, h, w) float tensor
        Differentiable in `places`, through the bilinear weights.

    Raises
    ------
    ValueError
        If there is no level.

    References
    ----------
    Williams 1983, "Pyramidal parametrics": trilinear reading of a mip pyramid. The
    taps keep its blur at a fraction of a cell, whatever the reduction factor.
    """
    detail = 0.5 * torch.log2(areas.detach().clamp_min(1e-12)) - math.log2(taps)
    detail = detail.clamp(first, first + len(levels) - 1)
    low, high = float(detail.min()), float(detail.max())
    total: Tensor | None = None
    for level, pixels in enumerate(levels, start=first):
        if not low - 1 < level < high + 1:
            continue
        weight = (1 - (detail - level).abs()).clamp_min(0)
        sampled = _read_bilinear(pixels, places, level, outside, taps)
        if taps > 1:
            sampled = functional.avg_pool2d(sampled, taps)  # (n, c, h, w)
        part = sampled * weight
        total = part if total is None else total + part
    if total is None:
        raise ValueError("sample_places needs at least one level")
    return total


def sample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Label of the pixel nearest to each node.

    Parameters
    ----------
    labels : (n, H, W) integer tensor
        Classes of a region's base pixels.
    grid : (n, h, w, 2) float tensor
        x and y of the nodes, -1 to 1.

    Returns
    -------
    (n, h, w) int64 tensor
        Labels that the region has, never a mixture.
    """
    size = grid.new_tensor([labels.shape[-1] - 1, labels.shape[-2] - 1])
    places = ((grid.detach() + 1) / 2 * size).round().clamp_min(0).minimum(size).long()
    nth = torch.arange(len(labels), device=labels.device)[:, None, None]
    return labels[nth, places[..., 1], places[..., 0]].long()


def sample_shares(
    labels: Tensor, grid: Tensor, classes: int, *, taps: int = TAPS
) -> Tensor:
    """Share of each class in the cell of each node.

    Parameters
    ----------
    labels : (n, H, W) integer tensor
        Classes of a region's base pixels; those not below `classes`, such as 255, count
        for none.
    grid : (n, h, w, 2) float tensor
        x and y of the nodes, -1 to 1.
    classes : int
        Number of classes.
    taps : int
        Samples per side and cell, at the same places as in `sample_image`.

    Returns
    -------
    (n, classes, h, w) float32 tensor
        Sums to 1 over the classes, less where labels count for none.
    """
    return class_shares(sample_labels(labels, tap_places(grid, taps)), classes, taps)


def class_shares(labels: Tensor, classes: int, taps: int) -> Tensor:
    """Share of each class in a cell, from the labels at its taps.

    Parameters
    ----------
    labels : (n, h * taps, w * taps) integer tensor
        Those not below `classes`, such as 255, count for none.
    classes : int
        Number of classes.
    taps : int
        Samples per side and cell.

    Returns
    -------
    (n, classes, h, w) float32 tensor
    """
    planes = [(labels == value).float() for value in range(classes)]
    return functional.avg_pool2d(torch.stack(planes, dim=1), taps)


def _base_span(pixels: Tensor, level: int, like: Tensor) -> Tensor:
    """Base pixels from the first to the last centre of a level's image, x and y."""
    h, w = pixels.shape[-2:]
    return like.new_tensor([w * 2**level - 1, h * 2**level - 1])


def tap_places(places: Tensor, taps: int) -> Tensor:
    """Places of taps x taps samples in each cell.

    Parameters
    ----------
    places : (n, h, w, 2) float tensor
        x and y of the nodes, any unit.
    taps : int
        Samples per side and cell.

    Returns
    -------
    (n, h * taps, w * taps, 2) float tensor
        Those of one cell side by side; border nodes' cells end at the nodes.
    """
    if taps == 1:
        return places
    finer = functional.interpolate(
        places.permute(0, 3, 1, 2).contiguous(),  # planes: a third of the time
        scale_factor=taps,
        mode="bilinear",
        align_corners=False,
    )
    return finer.permute(0, 2, 3, 1)


def _read_bilinear(
    pixels: Tensor, places: Tensor, level: int, outside: str, taps: int
) -> Tensor:
    """Read a level at the taps of base-pixel places, (n, h, w, 2).

    Returns (n, c, h * taps, w * taps).
    """
    h, w = pixels.shape[-2:]
    # from edge to edge of the level is -1 to 1: its pixel centres then lie where the
    # module docstring says, whatever the level
    span = places.new_tensor([w, h]) * 2**level
    target = (places + 0.5) * (2 / span) - 1
    return functional.grid_sample(
        pixels,
        tap_places(target, taps),
        mode="bilinear",
        padding_mode=outside,
        align_corners=False,
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

    Raises
    ------
    ValueError
        If the grid has another size than the probabilities.

    Notes
    -----
    Memory: the output, 8 bytes per place, what `invert_grid` states for crossings, and
    about 15 MB. Runs on the CPU.
    """
    found: NDArray[np.float32]
    found = read_nodes(probabilities, grid, xs, ys, torch.device("cpu")).numpy()
    return found


def read_nodes(
    probabilities: NDArray[np.floating],
    grid: NDArray[np.floating],
    xs: NDArray[np.floating],
    ys: NDArray[np.floating],
    device: torch.device,
) -> Tensor:
    """What `sample_at` does, as a (c, m_y, m_x) tensor on a device."""
    h, w = probabilities.shape[1:]
    if grid.shape != (2, h, w):
        raise ValueError(
            f"grid must be (2, {h}, {w}) like the probabilities, got {grid.shape}"
        )
    unit = torch.from_numpy(np.asarray(grid, np.float64)).to(device)
    columns, rows = (
        torch.from_numpy(np.clip(np.asarray(v, np.float64), 0, 1) * 2 - 1).to(device)
        for v in (xs, ys)
    )
    # x and y in planes: what is written and sampled fastest
    places = torch.empty(2, len(rows), len(columns), device=device).permute(1, 2, 0)
    invert_places(from_unit(unit[None])[0], columns, rows, places)
    values = torch.from_numpy(np.asarray(probabilities, np.float32)).to(device)
    read = functional.grid_sample(
        values[None],
        places[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return read[0]
