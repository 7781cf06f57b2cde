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


def density_to_grid(density: Tensor, sigma: float, *, window: float = 4.0) -> Tensor:
    """Grid of nodes that is dense where the density is high.

    Parameters
    ----------
    density : (n, 1, h, w) float tensor
        Positive; its scale does not matter.
    sigma : float
        Standard deviation of the kernel as a share of the short side.
    window : float
        Half width of the kernel in sigmas, at least 3.

    Returns
    -------
    (n, 2, h, w) tensor of the same dtype
        x and y in [0, 1]; an even density gives `identity_grid`, and the border nodes
        stay on the border.

    Raises
    ------
    ValueError
        If the window is so narrow that the map can fold.

    Notes
    -----
    Per axis the folded kernel is a matrix, so the map is four small products. Moves are
    summed relative to each node, which keeps the identity and the border exact.

    References
    ----------
    Jin et al. 2022, eq. 2 and 3 (after Recasens et al. 2018); reflect padding as in
    Thavamani et al. 2023, "Learning to Zoom and Unzoom".
    """
    if window < _LEAST_WINDOW:
        raise ValueError(f"window is {window} sigmas, expected {_LEAST_WINDOW} or more")
    h, w = density.shape[-2:]
    deviation = sigma * (min(h, w) - 1)
    weigh_y, move_y = _folded_kernel(h, deviation, window, density)
    weigh_x, move_x = _folded_kernel(w, deviation, window, density)
    with torch.autocast(density.device.type, enabled=False):
        rows = weigh_y @ density
        total = rows @ weigh_x.T
        dx = rows @ move_x.T / total / (w - 1)
        dy = move_y @ density @ weigh_x.T / total / (h - 1)
    even = identity_grid(h, w, density.dtype).to(density.device)
    return (even + torch.cat([dx, dy], dim=1)).clamp(0, 1)


def _folded_kernel(
    n: int, sigma: float, window: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Kernel along one axis with mirrored borders: (n, n) weights, and weights x move.

    Row i holds, per source node, the weight of the node and its mirror images, and the
    same times how far each lies from node i.
    """
    reach = min(n - 1, max(1, math.ceil(window * sigma)))
    steps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    target = torch.arange(n)[:, None].expand(n, len(steps))
    source = (torch.arange(n)[:, None] + steps).abs()
    source = torch.where(source >= n, 2 * (n - 1) - source, source)
    weights, moves = torch.zeros(2, n, n, dtype=torch.float64)
    weights.index_put_((target, source), kernel.expand(n, -1), accumulate=True)
    moves.index_put_((target, source), (kernel * steps).expand(n, -1), accumulate=True)
    return weights.to(like), moves.to(like)
