"""The segmenter: placing, sampling and segmentation as one net per strategy."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.bodies import build_body
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.models.placing import Placement
from wsi_pipeline.models.resizer import Resizer
from wsi_pipeline.models.sampling import identity_grid
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.models.strategies import find_strategy
from wsi_pipeline.models.weights import check_fit, load_state

_FINER = 2
"""How many times as many samples per side the resizer is given."""

type Sampler = Callable[[Tensor, int], Tensor]
"""(n, h, w, 2) grid, and samples per side and cell (1 = one point, not averaged), to
(n, 3, h, w) pixels, 0 to 1."""


class Segmented(NamedTuple):
    """What a `SegmentNet` makes of a batch of n regions.

    Parameters
    ----------
    logits : (n, classes, h, w) tensor
        Per node.
    grid : (n, h, w, 2) float32 tensor
        x and y of the nodes in [-1, 1].
    density : (n, 1, h, w) float32 tensor or None
        None where the grid was not made from one.
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
        A name in the table of strategies.

    Raises
    ------
    UnknownNameError
        If there is no such strategy or body.
    ModelError
        If the body does not take its options.
    """

    def __init__(self, spec: SegmenterSpec, strategy: str) -> None:
        super().__init__()
        self.spec = spec
        self.strategy = find_strategy(strategy)
        self.placer = self.strategy.placer(spec)
        self.resizer = Resizer(base=spec.resizer) if spec.resizer else None
        options = spec.body_options
        if spec.body == "unet":
            options = {"widths": list(spec.widths)} | options
        self.body = build_body(spec.body, classes=spec.classes, options=options)

    @property
    def taps(self) -> int:
        """Samples per side that are averaged in a cell; 1 where nodes are points."""
        return self.spec.taps if self.strategy.taps else 1

    def place(
        self,
        sample: Sampler,
        n: int,
        *,
        nodes: tuple[int, int] | None = None,
        given: Tensor | None = None,
    ) -> Placement:
        """Place the nodes of n regions; see `forward`."""
        wanted = nodes or self.spec.shape
        if self.strategy.needs_truth:
            if given is None:
                raise ModelError(
                    "this strategy needs the true boundaries: it is for evaluation only"
                )
            view = given
        elif any(True for _ in self.placer.parameters()):
            view = self.view(sample, n, wanted)
        else:
            view = next(self.parameters()).new_zeros(n)  # it looks at nothing
        placement: Placement = self.placer(view, wanted)
        return placement

    def view(self, sample: Sampler, n: int, nodes: tuple[int, int]) -> Tensor:
        """What the placer sees of n regions: even samples, (n, 3, h', w')."""
        stride = self.spec.view_stride
        h, w = (max(2, -(-count // stride)) for count in nodes)
        even = identity_grid(h, w).to(next(self.parameters()).device)
        return centred(sample(even.expand(n, -1, -1, -1), self.taps))

    def classify(self, sample: Sampler, grid: Tensor) -> Tensor:
        """(n, h, w, 2) grid to (n, classes, h, w) logits of its nodes."""
        if self.resizer is None:
            pixels = centred(sample(grid, self.taps))
        else:
            h, w = grid.shape[1:3]
            dense = functional.interpolate(
                grid.permute(0, 3, 1, 2),
                (h * _FINER, w * _FINER),
                mode="bilinear",
                align_corners=True,
            ).permute(0, 2, 3, 1)
            finer = sample(dense, max(1, self.taps // _FINER))
            pixels = self.resizer(centred(finer), (h, w))
        logits: Tensor = self.body(pixels)
        return logits

    def forward(
        self,
        sample: Sampler,
        n: int,
        nodes: tuple[int, int] | None = None,
        given: Tensor | None = None,
    ) -> Segmented:
        """Place, sample, classify.

        Parameters
        ----------
        sample : callable
            Grid and samples per side of a cell, to pixels; see `Sampler`.
        n : int
            Regions in the batch.
        nodes : (int, int), optional
            Rows and columns of nodes; left out, the spec's.
        given : (n, 1, h, w) float tensor, optional
            Density made from the truth, for strategies that need one.

        Raises
        ------
        ModelError
            If the strategy needs the truth and none is given.
        """
        grid, density = self.place(sample, n, nodes=nodes, given=given)
        return Segmented(self.classify(sample, grid), grid, density)


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
    card = model.card.need_segmenter()
    file = model.weights(card)
    spec = SegmenterSpec.from_card(card, file)
    if strategy not in spec.strategies:
        raise UnknownNameError(
            f"{file}: no weights for strategy {strategy!r}; it has: "
            f"{', '.join(spec.strategies)}"
        )
    square = card.nodes, card.nodes
    if spec.classes != len(model.card.classes) or spec.shape != square:
        raise ModelError(
            f"{file}: architecture has {spec.classes} classes and {spec.nodes} nodes, "
            f"the card {len(model.card.classes)} and {card.nodes}"
        )
    with torch.device("meta"):  # a card may ask for more memory than there is
        check_fit(SegmentNet(spec, strategy), file, prefix=f"{strategy}.")
    net = SegmentNet(spec, strategy)
    load_state(net, file, prefix=f"{strategy}.")
    return net.eval().to(device)
