"""The table of strategies, what places nodes, and what it learns from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from tests.models import small_spec
from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.density import DensityNet
from wsi_pipeline.models.placing import FieldPlacer, pinned
from wsi_pipeline.models.sampling import identity_grid, quad_areas
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.strategies import STRATEGIES
from wsi_pipeline.training.fields import boundary_field
from wsi_pipeline.training.losses import boundary_density, minmax_error


def sampler(grid: Tensor, taps: int) -> Tensor:
    """Pixels that tell where, and how, they were sampled."""
    n, h, w, _ = grid.shape
    place = (grid.permute(0, 3, 1, 2) + 1) / 2
    return torch.cat([place, torch.full((n, 1, h, w), 1 / taps)], dim=1)


def shaken(net: SegmentNet) -> SegmentNet:
    """A net whose placer moves nodes: fresh ones spread them evenly."""
    for parameter in net.placer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for part in net.placer.modules():
        if isinstance(part, DensityNet):
            torch.nn.init.normal_(part.net.head.weight, std=50.0)
    return net.eval()


def squares() -> Tensor:
    labels = torch.zeros(2, 64, 96, dtype=torch.long)
    labels[0, 16:40, 30:70] = 1
    labels[1, :, 48:] = 2
    return labels


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_places_nodes_that_keep_the_border(name: str) -> None:
    torch.manual_seed(0)
    net = shaken(SegmentNet(small_spec(nodes=(16, 24)), name))
    given = boundary_density(squares(), (16, 24))
    with torch.no_grad():
        logits, grid, density = net(sampler, 2, None, given)
    assert logits.shape == (2, 3, 16, 24)
    assert grid.shape == (2, 16, 24, 2)
    for edge, wanted in (
        (grid[:, :, 0, 0], -1), (grid[:, :, -1, 0], 1),
        (grid[:, 0, :, 1], -1), (grid[:, -1, :, 1], 1),
    ):  # fmt: skip
        assert float((edge - wanted).abs().max()) < 1e-6
    even = identity_grid(16, 24)
    moved = float((grid - even).abs().max())
    assert (moved > 1e-3) == (name not in ("uniform", "point", "fixed"))
    if name != "edge":  # a regressed field may fold
        assert float(quad_areas(grid).min()) > 0
    if density is not None:
        torch.testing.assert_close(density.sum(dim=(1, 2, 3)), torch.ones(2))


def test_other_numbers_of_nodes_are_placed_by_the_same_net() -> None:
    torch.manual_seed(0)
    for name in ("learned", "uniform", "edge", "fixed", "separable", "zoomed"):
        net = shaken(SegmentNet(small_spec(nodes=16), name))
        assert net(sampler, 1, (20, 33)).logits.shape == (1, 3, 20, 33)


def test_point_samples_are_single_and_others_average() -> None:
    seen: list[int] = []

    def record(grid: Tensor, taps: int) -> Tensor:
        seen.append(taps)
        return sampler(grid, taps)

    SegmentNet(small_spec(), "point").eval()(record, 1)
    assert set(seen) == {1}
    seen.clear()
    SegmentNet(small_spec(), "learned").eval()(record, 1)
    assert set(seen) == {4}


def test_a_resizer_sees_twice_the_samples_of_the_same_cells() -> None:
    torch.manual_seed(0)
    seen: list[tuple[tuple[int, ...], int]] = []

    def record(grid: Tensor, taps: int) -> Tensor:
        seen.append((tuple(grid.shape), taps))
        return sampler(grid, taps)

    net = SegmentNet(small_spec(resizer="bilinear"), "uniform").eval()
    assert net(record, 1).logits.shape == (1, 3, 16, 16)
    assert seen == [((1, 32, 32, 2), 2)]


def test_what_needs_the_truth_says_so() -> None:
    with pytest.raises(ModelError, match="evaluation only"):
        SegmentNet(small_spec(), "oracle").eval()(sampler, 1)
    with pytest.raises(UnknownNameError, match="there are: learned, uniform"):
        SegmentNet(small_spec(), "foveal")


def test_gradients_reach_what_places_nodes() -> None:
    torch.manual_seed(0)
    for name in ("learned", "saliency", "jin", "separable", "zoomed"):
        net = SegmentNet(small_spec(), name)
        net(sampler, 2).logits.square().mean().backward()
        total = sum(
            float(p.grad.abs().sum())
            for p in net.placer.parameters()
            if p.grad is not None
        )
        assert np.isfinite(total)
        assert total > 0


def energy(
    values: NDArray[np.float64], wanted: NDArray[np.float64], smoothness: float
) -> float:
    """The published energy of one coordinate, written out."""
    total = 0.0
    h, w = wanted.shape
    for i in range(h):
        for j in range(w):
            total += (values[i, j] - wanted[i, j]) ** 2
            if i + 1 < h:
                total += smoothness * (values[i, j] - values[i + 1, j]) ** 2
            if j + 1 < w:
                total += smoothness * (values[i, j] - values[i, j + 1]) ** 2
    return total


@pytest.mark.parametrize("smoothness", [0.3, 1.0, 5.0])
def test_the_field_is_the_minimum_of_the_published_energy(smoothness: float) -> None:
    labels = torch.zeros(1, 40, 60, dtype=torch.long)
    labels[0, 9:22, 15:31] = 1
    h, w = 5, 7
    field = boundary_field(labels, (h, w), smoothness=smoothness)[0, 0].double().numpy()
    # nearest boundary samples, found by brute force
    edge = [
        (i, j)
        for i in range(40) for j in range(60)
        if any(
            0 <= i + a < 40 and 0 <= j + b < 60
            and labels[0, i + a, j + b] != labels[0, i, j]
            for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
        )
    ]  # fmt: skip
    wanted = np.empty((h, w))
    for i in range(h):
        for j in range(w):
            y, x = round(i / (h - 1) * 39), round(j / (w - 1) * 59)
            near = min(edge, key=lambda e: (e[0] - y) ** 2 + (e[1] - x) ** 2)
            wanted[i, j] = near[1] / 59 * 2 - 1

    def cost(inner: NDArray[np.float64]) -> float:
        values = np.empty((h, w))
        values[:, 0], values[:, -1] = -1, 1
        values[:, 1:-1] = inner.reshape(h, w - 2)
        return energy(values, wanted, smoothness)

    start = np.tile(np.linspace(-1, 1, w)[1:-1], h)
    best = minimize(cost, start, method="BFGS").fun
    assert cost(field[:, 1:-1].ravel()) <= best + 1e-6
    assert (field[:, 0] == -1).all()
    assert (field[:, -1] == 1).all()


def test_without_boundaries_places_stay_even() -> None:
    labels = torch.full((2, 32, 48), 3)
    labels[1, :5] = 255  # a mark is no boundary
    field = boundary_field(labels, (8, 12))
    even = identity_grid(8, 12).permute(0, 3, 1, 2).expand(2, -1, -1, -1)
    torch.testing.assert_close(field, even, atol=1e-6, rtol=0)


def test_places_come_nearer_to_boundaries_as_smoothness_falls() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[:, :, 32:] = 1
    spread = [
        float(boundary_field(labels, (8, 8), smoothness=s)[0, 0, :, 1:-1].abs().mean())
        for s in (0.01, 1.0, 100.0)
    ]
    assert spread[0] < 0.05 < spread[1] < spread[2] < 0.45


def test_borders_are_pinned_in_their_own_coordinate_only() -> None:
    field = torch.zeros(1, 2, 3, 4)
    x, y = pinned(field)[0]
    assert x[:, 0].tolist() == [-1] * 3
    assert x[:, 1:-1].abs().max() == 0
    assert y[-1].tolist() == [1] * 4


def test_a_field_placer_learns_its_target() -> None:
    torch.manual_seed(0)
    placer = FieldPlacer((4, 8), lattice=4).eval()
    assert placer.lattice_of(16, 24) == (4, 6)
    even = placer(torch.zeros(1, 3, 16, 24), (16, 24)).grid
    torch.testing.assert_close(even, identity_grid(16, 24), atol=1e-6, rtol=0)


def test_min_max_error_is_of_each_region_alone() -> None:
    target = boundary_density(squares(), (8, 12))
    assert float(minmax_error(3 * target + 1, target)) == pytest.approx(0, abs=1e-9)
    spiky = target.clone()
    spiky[1, 0, 0, 0] += 100
    alone = float(minmax_error(spiky[:1], target[:1]))
    assert alone == pytest.approx(0, abs=1e-9)


def test_a_placer_may_see_fewer_samples_than_there_are_nodes() -> None:
    torch.manual_seed(0)
    seen: list[tuple[int, ...]] = []

    def record(grid: Tensor, taps: int) -> Tensor:
        seen.append(tuple(grid.shape[1:3]))
        return sampler(grid, taps)

    for name in ("learned", "edge", "separable", "zoomed"):
        seen.clear()
        spec = replace(small_spec(nodes=(17, 24)), view_stride=2)
        found = shaken(SegmentNet(spec, name))(record, 2)
        assert seen == [(9, 12), (17, 24)]
        assert found.grid.shape == (2, 17, 24, 2)
        if found.density is not None:
            torch.testing.assert_close(found.density.sum(dim=(1, 2, 3)), torch.ones(2))
