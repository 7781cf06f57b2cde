"""The table of strategies: how nodes are placed, and what teaches the placing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from wsi_pipeline.errors import UnknownNameError
from wsi_pipeline.models.density import DensityNet, density_to_grid
from wsi_pipeline.models.marginals import marginal_grid, zoomed_grid
from wsi_pipeline.models.placing import (
    DensityPlacer,
    EvenPlacer,
    FieldPlacer,
    FixedPlacer,
    GivenPlacer,
)
from wsi_pipeline.models.spec import SegmenterSpec


@dataclass(frozen=True)
class Strategy:
    """One way to place nodes.

    Parameters
    ----------
    summary : str
        What it does, one line.
    placer : callable
        Builds its module for a spec.
    teacher : str
        What the placing learns from before the segmenter: "edges" (the density of
        class boundaries), "field" (places near boundaries), "mean" (the mean of all
        boundary densities), or "none".
    joint : bool
        Whether the segmenter's loss moves nodes too; else they are frozen by then.
    edge_loss : float
        Weight of the teacher in the joint loss.
    edge_error : str
        "kl", or "minmax": the squared error of densities that are each scaled to
        0 ... 1, as released by Jin et al.
    in_turns : bool
        Whether placer and segmenter learn in turns, each while the other is frozen.
    by_area : bool
        Whether a node counts by the area that it stands for, so that the loss is that
        of the full resolution.
    taps : bool
        Whether nodes average their cell; else they sample one point.
    needs_truth : bool
        Whether it can only be evaluated, not used.
    """

    summary: str
    placer: Callable[[SegmenterSpec], nn.Module]
    teacher: Literal["none", "edges", "field", "mean"] = "none"
    joint: bool = False
    edge_loss: float = 0.0
    edge_error: Literal["kl", "minmax"] = "kl"
    in_turns: bool = False
    by_area: bool = True
    taps: bool = True
    needs_truth: bool = False


def _even(_: SegmenterSpec) -> nn.Module:
    return EvenPlacer()


def _density(spec: SegmenterSpec) -> nn.Module:
    return DensityPlacer(_net(spec), partial(density_to_grid, sigma=spec.sigma))


def _zoomed(spec: SegmenterSpec) -> nn.Module:
    return DensityPlacer(_net(spec), partial(zoomed_grid, sigma=spec.sigma))


def _marginals(spec: SegmenterSpec) -> nn.Module:
    return DensityPlacer(_net(spec), marginal_grid)


def _field(spec: SegmenterSpec) -> nn.Module:
    return FieldPlacer(spec.density_widths)


def _fixed(spec: SegmenterSpec) -> nn.Module:
    return FixedPlacer(spec.sigma, *spec.shape)


def _given(spec: SegmenterSpec) -> nn.Module:
    return GivenPlacer(spec.sigma)


def _net(spec: SegmenterSpec) -> DensityNet:
    return DensityNet(spec.density_widths, spec.floor, spec.temperature)


STRATEGIES: dict[str, Strategy] = {
    "learned": Strategy(
        "density net, joint with the segmenter; area-weighted loss, KL to boundaries",
        _density,
        teacher="edges",
        joint=True,
        edge_loss=0.1,
    ),
    "uniform": Strategy("nodes spread evenly, each the mean of its cell", _even),
    "point": Strategy("nodes spread evenly, one point each", _even, taps=False),
    "edge": Strategy(
        "nodes near class boundaries, regressed by a small net (Marin 2019)",
        _field,
        teacher="field",
        by_area=False,
    ),
    "saliency": Strategy(
        "density net taught by the segmenter alone (Recasens 2018)",
        _density,
        joint=True,
        by_area=False,
    ),
    "jin": Strategy(
        "density net, joint, with the published edge loss (Jin 2022)",
        _density,
        joint=True,
        edge_loss=100.0,
        edge_error="minmax",
        by_area=False,
    ),
    "staged": Strategy(
        "density net taught by boundaries alone, then frozen", _density, teacher="edges"
    ),
    "alternating": Strategy(
        "as `learned`, but density net and segmenter learn in turns",
        _density,
        teacher="edges",
        joint=True,
        edge_loss=0.1,
        in_turns=True,
    ),
    "separable": Strategy(
        "density net, joint; rows and columns spread by its marginals",
        _marginals,
        teacher="edges",
        joint=True,
        edge_loss=0.1,
    ),
    "zoomed": Strategy(
        "as `learned`, but rows and columns spread by the marginals first: for tissue "
        "that fills a part of its region",
        _zoomed,
        teacher="edges",
        joint=True,
        edge_loss=0.1,
    ),
    "fixed": Strategy(
        "one density for all regions: the mean of the boundaries",
        _fixed,
        teacher="mean",
    ),
    "oracle": Strategy(
        "density of the true boundaries: the bound, for evaluation only",
        _given,
        needs_truth=True,
    ),
}
"""By name; `learned` and `uniform` are what models ship with."""


def find_strategy(name: str) -> Strategy:
    """A row of the table.

    Raises
    ------
    UnknownNameError
        If there is none of that name.
    """
    if name not in STRATEGIES:
        raise UnknownNameError(
            f"unknown strategy {name!r}; there are: {', '.join(STRATEGIES)}"
        )
    return STRATEGIES[name]
