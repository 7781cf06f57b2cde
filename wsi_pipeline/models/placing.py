"""Places the nodes of a region: one small module per way of doing it.

Each takes an evenly sampled view of n regions, which may be coarser than the grid that
it gives, and the (h, w) nodes wanted.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline.models.density import DensityNet, density_to_grid
from wsi_pipeline.models.sampling import identity_grid
from wsi_pipeline.models.unet import UNet


class Placement(NamedTuple):
    """Where the nodes of n regions lie.

    Parameters
    ----------
    grid : (n, h, w, 2) float32 tensor
        x and y in [-1, 1].
    density : (n, 1, h, w) float32 tensor or None
        What the grid was made from, sum 1; None where there is no density.
    """

    grid: Tensor
    density: Tensor | None = None


class EvenPlacer(nn.Module):
    """Spreads nodes evenly, whatever the view shows."""

    def forward(self, view: Tensor, nodes: tuple[int, int]) -> Placement:
        """(n, ...) view to h x w nodes."""
        even = identity_grid(*nodes).to(view.device)
        return Placement(even.expand(len(view), -1, -1, -1))


class DensityPlacer(nn.Module):
    """Predicts a density and spreads nodes by it.

    Parameters
    ----------
    net : DensityNet
        View to density.
    spread : callable
        (n, 1, h, w) density to (n, h, w, 2) grid.

    References
    ----------
    Recasens et al. 2018; Jin et al. 2022, eq. 2 and 3.
    """

    def __init__(self, net: DensityNet, spread: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.spread = spread

    def forward(self, view: Tensor, nodes: tuple[int, int]) -> Placement:
        """(n, 3, h', w') view to h x w nodes."""
        density = resized(self.net(view), nodes)
        return Placement(self.spread(density), density)


class FixedPlacer(nn.Module):
    """The same density for every region: the mean over a dataset.

    Parameters
    ----------
    sigma : float
        Kernel of the map as a share of the short side.
    h, w : int
        Nodes of the stored density; it is resized where others are asked for.
    """

    density: Tensor

    def __init__(self, sigma: float, h: int, w: int) -> None:
        super().__init__()
        self.sigma = sigma
        self.register_buffer("density", torch.full((1, 1, h, w), 1 / (h * w)))

    def forward(self, view: Tensor, nodes: tuple[int, int]) -> Placement:
        """(n, ...) view to h x w nodes."""
        density = resized(self.density, nodes).expand(len(view), -1, -1, -1)
        return Placement(density_to_grid(density, self.sigma), density)


class GivenPlacer(nn.Module):
    """Follows a density that the caller makes from the truth: a bound, not a method.

    Parameters
    ----------
    sigma : float
        Kernel of the map as a share of the short side.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, density: Tensor, nodes: tuple[int, int]) -> Placement:
        """(n, 1, h', w') density to h x w nodes."""
        density = resized(density, nodes)
        return Placement(density_to_grid(density, self.sigma), density)


class FieldPlacer(nn.Module):
    """Regresses the places themselves on a coarse lattice.

    Parameters
    ----------
    widths : sequence of int
        Channels per scale of the U-Net.
    lattice : int
        Places along the short side; the long side has as many more as it is longer.

    Notes
    -----
    Border nodes stay on the border, and places on the region.

    References
    ----------
    Marin et al. 2019, "Efficient Segmentation: Learning Downsampling Near Semantic
    Boundaries", section 3: an 8 x 8 tensor, resized to the nodes.
    """

    def __init__(self, widths: tuple[int, ...], lattice: int = 8) -> None:
        super().__init__()
        self.net = UNet(3, 2, widths)
        self.lattice = lattice
        # start from evenly spread places
        for parameter in self.net.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, view: Tensor, nodes: tuple[int, int]) -> Placement:
        """(n, 3, h', w') view to h x w nodes."""
        field = self.field(view, nodes)
        grid = functional.interpolate(field, nodes, mode="bilinear", align_corners=True)
        return Placement(grid.permute(0, 2, 3, 1))  # (n, h, w, 2)

    def field(self, view: Tensor, nodes: tuple[int, int]) -> Tensor:
        """(n, 3, h', w') view to places in [-1, 1], (n, 2, rows, columns)."""
        rows, columns = self.lattice_of(*nodes)
        moves = functional.adaptive_avg_pool2d(self.net(view), (rows, columns)).float()
        even = identity_grid(rows, columns).to(view.device).permute(0, 3, 1, 2)
        return pinned((even + moves).clamp(-1, 1))

    def lattice_of(self, h: int, w: int) -> tuple[int, int]:
        """Rows and columns of the lattice for h x w nodes."""
        short = min(h, w)
        rows, columns = (round(self.lattice * n / short) for n in (h, w))
        return rows, columns


def pinned(field: Tensor) -> Tensor:
    """Places with the border's own coordinate set to -1 and 1, (n, 2, h, w)."""
    x, y = field[:, 0], field[:, 1]
    columns = torch.linspace(-1, 1, x.shape[-1], device=field.device)
    rows = torch.linspace(-1, 1, y.shape[-2], device=field.device)[:, None]
    across = torch.where(columns.abs() == 1, columns, x)
    down = torch.where(rows.abs() == 1, rows, y)
    return torch.stack([across, down], dim=1)


def resized(density: Tensor, nodes: tuple[int, int]) -> Tensor:
    """A density on other nodes, sum 1; itself on its own."""
    if density.shape[-2:] == nodes:
        return density
    finer = functional.interpolate(density, nodes, mode="bilinear", align_corners=True)
    return finer / finer.sum(dim=(2, 3), keepdim=True)
