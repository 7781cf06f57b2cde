"""The segmenter: density net, sampler and segmentation net as one net per strategy."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.cards import ModelFolder, SegmenterCard
from wsi_pipeline.models.density import DensityNet, density_to_grid
from wsi_pipeline.models.sampling import TAPS, identity_grid
from wsi_pipeline.models.unet import UNet
from wsi_pipeline.models.weights import load_state

STRATEGIES = ("learned", "uniform")
"""How nodes are placed: by the density net, or evenly."""


@dataclass(frozen=True)
class SegmenterSpec:
    """What a segmenter is built from; the card's ``architecture``.

    Parameters
    ----------
    classes : int
        Classes, background included.
    nodes : int
        Side of the grid of nodes.
    widths, density_widths : tuple of int
        Channels per scale of the segmentation net and of the density net.
    sigma : float
        Kernel of the map as a share of the short side.
    floor, temperature : float
        See `DensityNet`.
    taps : int
        Samples per side averaged in a cell.
    strategies : tuple of str
        Strategies whose weights the file holds.
    """

    classes: int
    nodes: int = 64
    widths: tuple[int, ...] = (32, 64, 128)
    density_widths: tuple[int, ...] = (16, 32, 48, 64)
    sigma: float = 0.05
    floor: float = 0.2
    temperature: float = 1.0
    taps: int = TAPS
    strategies: tuple[str, ...] = STRATEGIES

    def to_json(self) -> dict[str, Any]:
        """As stored in the card."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_card(cls, card: SegmenterCard, file: Path) -> Self:
        """Inverse of `to_json`.

        Raises
        ------
        ModelError
            If a field is missing or unknown.
        """
        try:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in card.architecture.items()
            }
            return cls(**values)
        except TypeError as error:
            raise ModelError(f"{file}: unknown architecture: {error}") from error


class Segmented(NamedTuple):
    """What a `SegmentNet` makes of a batch of n regions.

    Parameters
    ----------
    logits : (n, classes, h, w) tensor
        Per node.
    grid : (n, 2, h, w) float32 tensor
        x and y of the nodes in [0, 1].
    density : (n, 1, h, w) float32 tensor or None
        None for evenly spread nodes.
    """

    logits: Tensor
    grid: Tensor
    density: Tensor | None


class SegmentNet(nn.Module):
    """One strategy: places nodes in a region and classifies what they sample.

    Parameters
    ----------
    spec : SegmenterSpec
        Sizes.
    strategy : str
        One of `STRATEGIES`.
    """

    def __init__(self, spec: SegmenterSpec, strategy: str) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise UnknownNameError(
                f"unknown strategy {strategy!r}; there are: {', '.join(STRATEGIES)}"
            )
        self.spec = spec
        learned = strategy == "learned"
        self.density = (
            DensityNet(spec.density_widths, spec.floor, spec.temperature)
            if learned
            else None
        )
        self.net = UNet(3, spec.classes, spec.widths)

    def forward(self, sample: Callable[[Tensor], Tensor], n: int) -> Segmented:
        """Place, sample, classify.

        Parameters
        ----------
        sample : callable
            (n, 2, h, w) grid to (n, 3, h, w) pixels, 0 to 1.
        n : int
            Regions in the batch.
        """
        device = next(self.parameters()).device
        nodes = self.spec.nodes
        grid = identity_grid(nodes, nodes).to(device).expand(n, -1, -1, -1)
        pixels = centred(sample(grid))
        if self.density is None:
            return Segmented(self.net(pixels), grid, None)
        density = self.density(pixels)
        grid = density_to_grid(density, self.spec.sigma)
        return Segmented(self.net(centred(sample(grid))), grid, density)


def centred(pixels: Tensor) -> Tensor:
    """Pixels in 0 to 1 as the nets see them, -1 to 1."""
    return pixels * 2 - 1


def load_segmenter(model: ModelFolder, strategy: str, device: str) -> SegmentNet:
    """Load a model's net for one strategy, its file's sha256 checked.

    Raises
    ------
    ModelError
        If the file or the architecture does not fit the card.
    UnknownNameError
        If the model has no weights for the strategy.
    """
    card = model.card.segmenter
    file = model.weights(card)
    spec = SegmenterSpec.from_card(card, file)
    if strategy not in spec.strategies:
        raise UnknownNameError(
            f"{file}: no weights for strategy {strategy!r}; it has: "
            f"{', '.join(spec.strategies)}"
        )
    if spec.classes != len(model.card.classes) or spec.nodes != card.nodes:
        raise ModelError(
            f"{file}: architecture has {spec.classes} classes and {spec.nodes} nodes, "
            f"the card {len(model.card.classes)} and {card.nodes}"
        )
    net = SegmentNet(spec, strategy)
    load_state(net, file, prefix=f"{strategy}.")
    return net.eval().to(device)
