"""The density net and the map from densities to grids."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.grids import SIGMA, random_density
from wsi_pipeline.models.density import DensityNet, density_to_grid
from wsi_pipeline.models.sampling import (
    cell_areas,
    identity_grid,
    quad_areas,
    sample_image,
)


def slow_grid(density: Tensor, sigma: float, radius: float) -> Tensor:
    """The map of one (h, w) density node by node, source by mirrored source."""
    h, w = density.shape
    values = density.double().tolist()
    side = min(h, w) - 1
    reach = math.ceil(radius * side)

    def mirrored(k: int, n: int) -> int:
        while not 0 <= k < n:
            k = -k if k < 0 else 2 * (n - 1) - k
        return k

    out = torch.zeros(h, w, 2, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            total = x = y = 0.0
            for p in range(i - reach, i + reach + 1):
                for q in range(j - reach, j + reach + 1):
                    squared = ((p - i) ** 2 + (q - j) ** 2) / side**2
                    weight = math.exp(-squared / (2 * sigma**2))
                    weight *= values[mirrored(p, h)][mirrored(q, w)]
                    total += weight
                    x += weight * q
                    y += weight * p
            out[i, j, 0] = 2 * x / total / (w - 1) - 1
            out[i, j, 1] = 2 * y / total / (h - 1) - 1
    return out


@given(
    h=st.integers(2, 70), w=st.integers(2, 70), scale=st.sampled_from([1e-9, 1, 1e9])
)
@settings(max_examples=30)
def test_even_density_of_any_size_and_scale_gives_the_identity(
    h: int, w: int, scale: float
) -> None:
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        grid = density_to_grid(torch.full((1, 1, h, w), scale, dtype=dtype), SIGMA)
        assert grid.dtype == dtype
        assert grid.shape == (1, h, w, 2)
        halves = torch.tensor([w - 1, h - 1], dtype=dtype) / 2
        assert ((grid - identity_grid(h, w, dtype)).abs() * halves).max() < limit


@pytest.mark.parametrize(("h", "w", "sigma"), [(9, 12, 0.1), (13, 8, 0.2), (5, 5, 0.6)])
def test_map_agrees_with_the_plain_sum_over_mirrored_sources(
    h: int, w: int, sigma: float
) -> None:
    density = random_density(h, w, seed=3)
    for radius in (3 * sigma, 4 * sigma):
        expected = slow_grid(density[0, 0], sigma, radius)
        exact = density_to_grid(density, sigma, radius)[0]
        assert (exact - expected).abs().max() < 1e-9
        single = density_to_grid(density.float(), sigma, radius)[0]
        assert (single - expected).abs().max() < 1e-5


def test_window_is_four_sigma_unless_said() -> None:
    density = random_density(24, 30)
    default = density_to_grid(density, SIGMA)
    assert torch.equal(default, density_to_grid(density, SIGMA, 4 * SIGMA))
    assert not torch.equal(default, density_to_grid(density, SIGMA, 3 * SIGMA))


def test_map_ignores_the_scale_of_each_density() -> None:
    density = random_density(24, 40, n=2)
    scaled = density * torch.tensor([7.5, 1e-6]).double()[:, None, None, None]
    for floor in (0.0, 0.3):
        grid = density_to_grid(density, SIGMA, floor=floor)
        moved = density_to_grid(scaled, SIGMA, floor=floor) - grid
        assert moved.abs().max() < 1e-12


@pytest.mark.parametrize("axis", [0, 1])
def test_map_of_a_flipped_density_is_the_flipped_map(axis: int) -> None:
    density = random_density(24, 40)
    grid = density_to_grid(density, SIGMA)
    flipped = density_to_grid(density.flip(-1 - axis), SIGMA).flip(2 - axis)
    flipped[..., axis] *= -1
    assert (flipped - grid).abs().max() < 1e-12


@given(seed=st.integers(0, 10_000), std=st.floats(0, 5))
@settings(max_examples=25)
def test_border_nodes_stay_on_the_border(seed: int, std: float) -> None:
    density = random_density(20, 28, seed=seed, std=std).float()
    x, y = density_to_grid(density, SIGMA)[0].unbind(-1)
    for edge, place in ((x[:, 0], -1), (x[:, -1], 1), (y[0], -1), (y[-1], 1)):
        assert (edge - place).abs().max() < 1e-6


@pytest.mark.parametrize("std", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("window", [3, 4])
def test_windows_of_three_sigma_never_fold(std: float, window: float) -> None:
    density = random_density(48, 64, seed=int(std), std=std, n=20)
    grid = density_to_grid(density, SIGMA, window * SIGMA)
    a, b = grid[:, :-1, :-1], grid[:, :-1, 1:]
    c, d = grid[:, 1:, :-1], grid[:, 1:, 1:]
    # both ways of cutting a quad: all four triangles
    for p, q, r in ((a, b, c), (b, d, c), (a, b, d), (a, d, c)):
        u, v = q - p, r - p
        assert (u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]).min() > 0
    assert grid[..., 0].diff(dim=2).min() > 0
    assert grid[..., 1].diff(dim=1).min() > 0


def test_derivative_is_the_variance_over_sigma_squared() -> None:
    n = 401
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    profile = 1.5 + torch.sin(9 * x) + 0.4 * torch.cos(31 * x + 1)
    sigma = 0.1
    grid = density_to_grid(profile.expand(n, n)[None, None], sigma, 8 * sigma)
    u = (grid[0, n // 2, :, 0] + 1) / 2
    slope = (u[:-4] - 8 * u[1:-3] + 8 * u[3:-1] - u[4:]) / 12 * (n - 1)
    sources = torch.arange(-(n - 1), 2 * n - 1)
    mirrored = (n - 1) - ((n - 1) - sources.abs()).abs()
    q = sources.double() / (n - 1)
    for node in (40, 100, 200, 333):
        weight = profile[mirrored] * torch.exp(-0.5 * ((q - x[node]) / sigma) ** 2)
        weight = weight / weight.sum()
        mean = (weight * q).sum()
        variance = (weight * (q - mean) ** 2).sum()
        assert float(slope[node - 2]) == pytest.approx(
            float(variance / sigma**2), abs=1e-6
        )


@pytest.mark.parametrize(
    ("sigma", "radius"), [(0.05, 0.149), (0.05, 0.0), (0.0, None), (-0.1, None)]
)
def test_windows_that_could_fold_are_refused(
    sigma: float, radius: float | None
) -> None:
    with pytest.raises(
        ValueError, match=r"expected a positive sigma and a radius of 3"
    ):
        density_to_grid(random_density(8, 8), sigma, radius)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_a_single_row_of_nodes_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected 2 x 2 or more"):
        density_to_grid(torch.ones(1, 1, *shape), SIGMA)


def test_nodes_gather_where_the_density_is_high() -> None:
    h, w = 33, 49
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    bump = torch.exp(-((y - 16) ** 2 + (x - 24) ** 2) / (2 * 2.0**2)).double()
    grid = density_to_grid((0.02 + bump)[None, None], 0.1)
    areas = cell_areas(grid)[0, 0]
    assert areas[16, 24] < 0.5
    assert areas[16, 14] > 1.1
    assert float(quad_areas(grid).sum()) == pytest.approx((h - 1) * (w - 1), abs=1e-6)


def test_nodes_that_see_no_density_stay_evenly_spread() -> None:
    spike = torch.zeros(1, 1, 41, 41)
    spike[..., 20, 20] = 3.0
    grid = density_to_grid(spike, 0.05)
    assert grid.isfinite().all()
    assert quad_areas(grid).min() > -1e-6
    even = identity_grid(41, 41)
    # the window is 8 nodes: what lies beyond keeps its place, what lies inside goes
    assert (grid - even)[:, :12].abs().max() < 1e-6
    assert grid[0, 14:27, 14:27].abs().max() < 1e-6


def test_floor_is_the_share_of_even_density() -> None:
    density = random_density(20, 24, n=2)
    mixed = 0.7 * density + 0.3 / (20 * 24)
    floored = density_to_grid(5 * density, SIGMA, floor=0.3)
    assert (floored - density_to_grid(mixed, SIGMA)).abs().max() < 1e-12
    even = density_to_grid(density, SIGMA, floor=1.0)
    assert (even - identity_grid(20, 24, torch.float64)).abs().max() < 1e-12


def test_half_densities_and_autocast_give_float32_grids() -> None:
    density = random_density(24, 24).float()
    expected = density_to_grid(density, SIGMA)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(density_to_grid(density, SIGMA), expected)
    half = density_to_grid(density.bfloat16(), SIGMA)
    assert half.dtype == torch.float32
    assert torch.equal(half, density_to_grid(density.bfloat16().float(), SIGMA))


def test_gradient_through_map_and_sampling_is_that_of_finite_differences() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    waves = torch.stack([torch.sin(x / 9 + y / 13), torch.cos(x / 11 - y / 7)])
    image = functional.interpolate(waves[None].double(), scale_factor=4, mode="bicubic")

    def normal(*shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = normal(1, 2, 12, 12, seed=3)

    def loss(logits: Tensor) -> Tensor:
        grid = density_to_grid(logits.softmax(dim=1).view(1, 1, 12, 12), 0.1)
        # one tap and one level: what remains is the map and bilinear reading
        sampled = sample_image(image, grid, taps=1, mip=False)
        return (sampled * weights).sum() + (cell_areas(grid) * weights[:, :1]).sum()

    start = (0.3 * normal(1, 144, seed=4)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1e-4
    direction, step = normal(1, 144, seed=5), 1e-6
    with torch.no_grad():
        change = loss(start + step * direction) - loss(start - step * direction)
    expected = float((gradient * direction).sum())
    assert float(change) / (2 * step) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("h", "w"), [(20, 24), (33, 7), (2, 2), (5, 130)])
def test_an_untrained_density_is_even_and_sums_to_one(h: int, w: int) -> None:
    torch.manual_seed(0)
    net = DensityNet((8, 16, 24), floor=0.2).eval()
    density = net(torch.randn(2, 3, h, w))
    assert density.shape == (2, 1, h, w)
    torch.testing.assert_close(density, torch.full_like(density, 1 / (h * w)))


def test_floor_and_temperature_bound_the_predicted_density() -> None:
    torch.manual_seed(0)
    net = DensityNet((8, 16), floor=0.2).eval()
    torch.nn.init.normal_(net.net.head.weight, std=5.0)
    view = torch.randn(2, 3, 20, 24)
    peaked = net(view)
    torch.testing.assert_close(peaked.sum(dim=(1, 2, 3)), torch.ones(2))
    assert peaked.min() >= 0.2 / 480
    assert peaked.max() > 1.2 / 480
    net.temperature = 10.0
    assert net(view).max() < peaked.max()
