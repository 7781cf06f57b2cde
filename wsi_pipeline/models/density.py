"""Predicts where a region needs samples, and turns that density into a grid of nodes.

The map is the Gaussian-weighted mean of coordinates (Jin et al. 2022), with reflect
padding about the border nodes so that the border stays where it is, and a window wide
enough that it cannot fold.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsi_pipeline.models.sampling import identity_grid
from wsi_pipeline.models.unet import UNet

_LEAST_WINDOW = 3.0
_DEFAULT_WINDOW = 4.0
# Share of the mean that every node keeps; what a window holds is never 0.
_NOTHING = 1e-12


class DensityNet(nn.Module):
    """Sampling density of a region from its evenly sampled view.

    Parameters
    ----------
    widths : sequence of int
        Channels per scale of the U-Net.
    floor : float
        Share of the samples that is spread evenly, 0 to 1.
    temperature : float
        Divides the logits before the softmax.

    References
    ----------
    Jin et al. 2022, "Learning to Downsample for Segmentation of Ultra-High Resolution
    Images", section 3.1; the even floor keeps cells from collapsing.
    """

    def __init__(
        self, widths: Sequence[int], floor: float = 0.2, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.net = UNet(3, 1, widths)
        self.floor = floor
        self.temperature = temperature
        # start from an even density: the map begins as the identity
        nn.init.zeros_(self.net.head.weight)

    def forward(self, view: Tensor) -> Tensor:
        """(n, 3, h, w) view to an (n, 1, h, w) float32 density that sums to 1."""
        logits: Tensor = self.net(view).float() / self.temperature
        even = 1 / (logits.shape[-1] * logits.shape[-2])
        peaked = logits.flatten(1).softmax(dim=1).reshape(logits.shape)
        return (1 - self.floor) * peaked + self.floor * even


def density_to_grid(
    density: Tensor, sigma: float, radius: float | None = None, *, floor: float = 0.0
) -> Tensor:
    """Grid of nodes that is dense where the density is high.

    Parameters
    ----------
    density : (n, 1, h, w) float tensor
        0 or more, not 0 everywhere; its scale does not matter. h and w at least 2.
    sigma : float
        Standard deviation of the kernel as a share of the short side.
    radius : float, optional
        Half width of the window as a share of the short side, at least 3 sigma; left
        out, 4 sigma.
    floor : float
        Share of even density mixed in, 0 to 1.

    Returns
    -------
    (n, h, w, 2) float32 tensor, float64 for a float64 density
        x and y in [-1, 1]; an even density gives `identity_grid`, and the border nodes
        stay on the border.

    Raises
    ------
    ValueError
        If sigma is not positive, the window so narrow that the map can fold, or there
        are fewer than 2 nodes along a side.

    Notes
    -----
    Per axis the folded kernel is a matrix, so the map is five small products. Moves are
    summed relative to each node, which keeps the identity and the border exact. Nodes
    whose window holds no density stay evenly spread.

    References
    ----------
    Jin et al. 2022, eq. 2 and 3 (after Recasens et al. 2018); reflect padding as in
    Thavamani et al. 2023, "Learning to Zoom and Unzoom".
    """
    reach = _DEFAULT_WINDOW * sigma if radius is None else radius
    if sigma <= 0 or reach < _LEAST_WINDOW * sigma:
        raise ValueError(
            f"sigma is {sigma} and radius {reach}, expected a positive sigma and a "
            f"radius of {_LEAST_WINDOW} sigma or more: narrower windows fold"
        )
    h, w = density.shape[-2:]
    if min(h, w) < 2:
        raise ValueError(f"the density is {h} x {w}, expected 2 x 2 or more")
    values = with_floor(density, floor)
    side = min(h, w) - 1
    weigh_y, move_y = _folded_kernel(h, sigma * side, reach * side, values)
    weigh_x, move_x = _folded_kernel(w, sigma * side, reach * side, values)
    with torch.autocast(density.device.type, enabled=False):
        rows = weigh_y @ values
        total = rows @ weigh_x.T
        dx = rows @ move_x.T / total * (2 / (w - 1))
        dy = move_y @ values @ weigh_x.T / total * (2 / (h - 1))
    even = identity_grid(h, w, values.dtype).to(density.device)
    return (even + torch.stack([dx[:, 0], dy[:, 0]], dim=-1)).clamp(-1, 1)


def with_floor(density: Tensor, floor: float) -> Tensor:
    """Density scaled to mean 1 per image, with a share of even density mixed in.

    Parameters
    ----------
    density : (n, 1, h, w) float tensor
        0 or more.
    floor : float
        Share of even density, 0 to 1.

    Returns
    -------
    (n, 1, h, w) float32 tensor, float64 for a float64 density
        Positive: where there is nothing, too little remains to move a node that sees
        any density.
    """
    values = density.to(torch.promote_types(density.dtype, torch.float32))
    even = values / values.mean(dim=(2, 3), keepdim=True)
    return even * (1 - floor) + max(floor, _NOTHING)


def _folded_kernel(
    n: int, sigma: float, radius: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Kernel along one axis with mirrored borders: (n, n) weights, and weights x move.

    Row i holds, per source node, the weight of the node and its mirror images, and the
    same times how far each lies from node i. `sigma` and `radius` are in nodes.
    """
    reach = max(1, math.ceil(radius))
    steps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    target = torch.arange(n)[:, None].expand(n, len(steps))
    # mirrored at both ends as often as the window needs: a triangle wave
    source = (n - 1) - (
        (torch.arange(n)[:, None] + steps) % (2 * (n - 1)) - (n - 1)
    ).abs()
    weights, moves = torch.zeros(2, n, n, dtype=torch.float64)
    weights.index_put_((target, source), kernel.expand(n, -1), accumulate=True)
    moves.index_put_((target, source), (kernel * steps).expand(n, -1), accumulate=True)
    return weights.to(like), moves.to(like)
