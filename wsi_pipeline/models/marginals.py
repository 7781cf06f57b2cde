"""Spreads rows and columns by a density's marginals: the separable map, in closed form.

Each axis is a distribution of its own. Nodes lie at its quantiles, so nothing folds,
whatever the density, and the inverse is linear between neighbours. Where tissue fills
a part of the region this frames it; what is left to do there, the kernel's map does.
"""

import torch
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.models.density import density_to_grid, with_floor
from wsi_pipeline.models.sampling import cell_areas


def marginal_grid(density: Tensor, *, floor: float = 0.0) -> Tensor:
    """Grid whose rows and columns are dense where the marginals are high.

    Parameters
    ----------
    density : (n, 1, h, w) float tensor
        0 or more, not 0 everywhere; its scale does not matter. h and w at least 2.
    floor : float
        Share of even density mixed in, 0 to 1.

    Returns
    -------
    (n, h, w, 2) float32 tensor, float64 for a float64 density
        x and y in [-1, 1]; an even density gives `identity_grid`. Differentiable.

    Raises
    ------
    ValueError
        If there are fewer than 2 nodes along a side.

    Notes
    -----
    The marginal is linear between nodes for its integral, the distribution F, whose
    values are joined by lines: node j of w lies at F^-1(j / (w - 1)).

    References
    ----------
    Separable zooming after Thavamani et al. 2023, "Learning to Zoom and Unzoom";
    quantiles instead of its kernel.
    """
    n, _, h, w = density.shape
    if min(h, w) < 2:
        raise ValueError(f"the density is {h} x {w}, expected 2 x 2 or more")
    values = with_floor(density, floor)[:, 0]
    x, y = _quantiles(values.mean(dim=1)), _quantiles(values.mean(dim=2))
    return torch.stack(
        [x[:, None, :].expand(n, h, w), y[:, :, None].expand(n, h, w)], dim=-1
    )


def zoomed_grid(density: Tensor, sigma: float, *, floor: float = 0.0) -> Tensor:
    """`marginal_grid`, and `density_to_grid` of what the density is on its nodes.

    Parameters
    ----------
    density, floor
        As for `marginal_grid`.
    sigma : float
        As for `density_to_grid`.

    Returns
    -------
    (n, h, w, 2) float32 tensor, float64 for a float64 density
        x and y in [-1, 1]; an even density gives `identity_grid`, and a separable one
        nearly `marginal_grid`. Differentiable.

    Notes
    -----
    The kernel moves nodes by a few sigma; the marginals move them across the region.
    """
    values = with_floor(density, floor)
    framed = marginal_grid(values)
    seen = functional.grid_sample(
        values, framed, padding_mode="border", align_corners=True
    )
    # a node counts for the area that it has come to stand for
    near = density_to_grid(seen * cell_areas(framed), sigma)
    moved = functional.grid_sample(
        framed.permute(0, 3, 1, 2), near, padding_mode="border", align_corners=True
    )
    return moved.permute(0, 2, 3, 1)


def invert_marginal_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each pixel of a region lies in a grid from `marginal_grid`.

    Parameters
    ----------
    grid : (n, h, w, 2) float tensor
        x the same in every row, y in every column.
    size : (int, int)
        H, W of the region in pixels.

    Returns
    -------
    (n, H, W, 2) tensor of the same dtype and device
        As `invert_grid` gives it, from H + W values instead of H W. Differentiable.

    Notes
    -----
    Memory: the output.
    """
    n, (h, w) = len(grid), size
    x = _ranks(grid[:, 0, :, 0], w)[:, None, :].expand(n, h, w)
    y = _ranks(grid[:, :, 0, 1], h)[:, :, None].expand(n, h, w)
    return torch.stack([x, y], dim=-1)


def _quantiles(marginal: Tensor) -> Tensor:
    """Evenly ranked quantiles of each row, (n, k) to (n, k) in [-1, 1]."""
    pieces = (marginal[:, 1:] + marginal[:, :-1]) / 2
    sums = pieces.cumsum(dim=1)
    distribution = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
    distribution = distribution / sums[:, -1:] * 2 - 1
    return _ranks(distribution, marginal.shape[1])


def _ranks(values: Tensor, count: int) -> Tensor:
    """Inverse of rising (n, k) values in [-1, 1] at `count` even places: (n, count)."""
    k = values.shape[1]
    places = torch.linspace(-1, 1, count, dtype=values.dtype, device=values.device)
    places = places.expand(len(values), count).contiguous()
    right = torch.searchsorted(values.detach().contiguous(), places)
    right = right.clamp(1, k - 1)
    low, high = values.gather(1, right - 1), values.gather(1, right)
    share = (places - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    return ((right - 1 + share) * (2 / (k - 1)) - 1).clamp(-1, 1)
