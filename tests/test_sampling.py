"""Checks 1-10 of the method: the map, the sampler and the exact inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.models.density import DensityNet, density_to_grid
from wsi_pipeline.models.inverse import invert_grid
from wsi_pipeline.models.sampling import (
    cell_areas,
    identity_grid,
    mip_levels,
    quad_areas,
    sample_at,
    sample_levels,
    sample_places,
)

SIGMA = 0.05


def random_density(
    h: int, w: int, *, seed: int = 0, std: float = 2.0, n: int = 1
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = std * torch.randn(n, h * w, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=1).view(n, 1, h, w)


def random_grid(h: int, w: int, seed: int = 0, std: float = 2.0) -> NDArray[np.float32]:
    grid: NDArray[np.float32] = (
        density_to_grid(random_density(h, w, seed=seed, std=std), SIGMA)[0]
        .float()
        .numpy()
    )
    return grid


def forward(
    grid: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Places of fractional nodes, bilinear in the quad: (2, m_y, m_x)."""
    g = grid.astype(np.float64)
    i = np.minimum(rows.astype(int), grid.shape[1] - 2)
    j = np.minimum(columns.astype(int), grid.shape[2] - 2)
    t, s = rows - i, columns - j
    upper = g[:, i, j] * (1 - s) + g[:, i, j + 1] * s
    lower = g[:, i + 1, j] * (1 - s) + g[:, i + 1, j + 1] * s
    out: NDArray[np.float64] = upper * (1 - t) + lower * t
    return out


# 1


@given(h=st.integers(4, 70), w=st.integers(4, 70))
@settings(max_examples=30, deadline=None)
def test_even_density_gives_the_identity(h: int, w: int) -> None:
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        even = torch.full((1, 1, h, w), 1 / (h * w), dtype=dtype)
        exact = torch.stack(
            torch.meshgrid(
                torch.linspace(0, 1, h, dtype=dtype),
                torch.linspace(0, 1, w, dtype=dtype),
                indexing="ij",
            )[::-1]
        )
        grid = density_to_grid(even, SIGMA)[0]
        assert grid.dtype == dtype
        spans = torch.tensor([w - 1, h - 1], dtype=dtype)[:, None, None]
        assert float(((grid - exact).abs() * spans).max()) < limit


# 2


def test_map_ignores_the_density_scale_and_follows_flips() -> None:
    density = random_density(24, 40)
    grid = density_to_grid(density, SIGMA)
    assert (density_to_grid(7.5 * density, SIGMA) - grid).abs().max() < 1e-12
    flipped = density_to_grid(density.flip(-1), SIGMA).flip(-1)
    assert (1 - flipped[:, 0] - grid[:, 0]).abs().max() < 1e-12
    assert (flipped[:, 1] - grid[:, 1]).abs().max() < 1e-12


# 3


@given(seed=st.integers(0, 10_000), std=st.floats(0, 5))
@settings(max_examples=25, deadline=None)
def test_border_nodes_stay_on_the_border(seed: int, std: float) -> None:
    x, y = density_to_grid(random_density(20, 28, seed=seed, std=std).float(), SIGMA)[0]
    for edge, place in ((x[:, 0], 0), (x[:, -1], 1), (y[0], 0), (y[-1], 1)):
        assert (edge - place).abs().max() < 1e-6


# 4


def test_grid_never_folds() -> None:
    for std in (1.0, 2.0, 3.0):
        density = random_density(64, 64, seed=int(std), std=std, n=20)
        grid = density_to_grid(density, SIGMA)
        a, b = grid[..., :-1, :-1], grid[..., :-1, 1:]
        c, d = grid[..., 1:, :-1], grid[..., 1:, 1:]
        # both ways of cutting a quad: all four triangles
        for p, q, r in ((a, b, c), (b, d, c), (a, b, d), (a, d, c)):
            u, v = q - p, r - p
            assert (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).min() > 0


def test_slices_are_strictly_increasing() -> None:
    grid = density_to_grid(random_density(48, 64, std=3.0, n=5), SIGMA)
    assert grid[:, 0].diff(dim=-1).min() > 0
    assert grid[:, 1].diff(dim=-2).min() > 0


def test_derivative_is_the_variance_over_sigma_squared() -> None:
    n = 401
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    profile = 1.5 + torch.sin(9 * x) + 0.4 * torch.cos(31 * x + 1)
    sigma = 0.1
    grid = density_to_grid(profile.expand(n, n)[None, None], sigma, window=8)
    u = grid[0, 0, n // 2]
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


def test_a_window_that_could_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3"):
        density_to_grid(random_density(8, 8), SIGMA, window=2.355)


# 5


def test_nodes_gather_where_the_density_is_high() -> None:
    h, w = 33, 49
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    bump = torch.exp(-((y - 16) ** 2 + (x - 24) ** 2) / (2 * 2.0**2)).double()
    grid = density_to_grid((0.02 + bump)[None, None], 0.1)
    areas = cell_areas(grid)[0, 0]
    assert areas[16, 24] < 0.5
    assert areas[16, 14] > 1.1
    assert float(quad_areas(grid).sum()) == pytest.approx((h - 1) * (w - 1), abs=1e-6)


# 6


def ramp(h: int, w: int) -> Tensor:
    """Each pixel holds its own x and y."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([x, y])[None].float()


def test_sampling_a_ramp_gives_the_places() -> None:
    h, w = 96, 128
    grid = torch.from_numpy(random_grid(24, 32))[None]
    places = grid * torch.tensor([w - 1, h - 1.0])[:, None, None]
    sampled = sample_levels([ramp(h, w)], grid, taps=1)
    assert (sampled - places).abs().max() < 1e-3


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_and_tap_lies_where_it_should(level: int) -> None:
    h, w = 96, 128
    levels = mip_levels(ramp(h, w), level + 1)[level:]
    grid = identity_grid(12, 16)
    for taps in (1, 2, 4):
        sampled = sample_levels(levels, grid, first=level, taps=taps)
        places = grid * torch.tensor([w - 1, h - 1.0])[:, None, None]
        inner = (sampled - places)[..., 1:-1, 1:-1]
        assert inner.abs().max() < 1e-3


def test_constant_image_stays_constant_up_to_the_border() -> None:
    levels = mip_levels(torch.full((2, 3, 75, 101), 0.7), 4)
    grid = density_to_grid(random_density(16, 20, n=2), SIGMA).float()
    assert (sample_levels(levels, grid) - 0.7).abs().max() < 1e-6


def test_level_of_detail_follows_the_cell() -> None:
    """Fine stripes: gone where a tap spans many pixels, kept where it spans one."""
    stripes = (torch.arange(256) % 2).float().expand(1, 1, 256, 256)
    levels = mip_levels(stripes, 4)
    coarse = sample_levels(levels, identity_grid(16, 16), taps=1)
    assert (coarse[..., 1:-1] - 0.5).abs().max() < 1e-6
    places = torch.stack(
        torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")[::-1]
    )[None]
    fine = sample_places(levels, places, torch.ones(1, 1, 8, 8), taps=1)
    assert torch.equal(fine, stripes[..., :8, :8])


# 8


@given(
    h=st.integers(4, 40),
    w=st.integers(4, 40),
    seed=st.integers(0, 1000),
    std=st.floats(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_inverse_hits_every_pixel(h: int, w: int, seed: int, std: float) -> None:
    grid = random_grid(h, w, seed, std)
    xs, ys = np.linspace(0, 1, 111), np.linspace(0, 1, 90)
    rows, columns = invert_grid(grid, xs, ys)
    assert np.isfinite([rows, columns]).all()
    x, y = forward(grid, rows, columns)
    # in source pixels of a 512 px region; the rounding of float32 nodes included
    assert np.abs(x - xs).max() * 511 < 1e-3
    assert np.abs(y - ys[:, None]).max() * 511 < 1e-3


def test_inverse_of_a_node_is_the_node() -> None:
    grid = random_grid(64, 64, std=2.0)
    random = np.random.default_rng(0)
    for i, j in random.integers(64, size=(60, 2)):
        rows, columns = invert_grid(grid, grid[0, i, j, None], grid[1, i, j, None])
        assert abs(rows[0, 0] - i) < 0.05
        assert abs(columns[0, 0] - j) < 0.05


def test_identity_inverts_exactly() -> None:
    grid = identity_grid(33, 65)[0].numpy()
    xs, ys = np.linspace(0, 1, 129), np.linspace(0, 1, 97)
    rows, columns = invert_grid(grid, xs, ys)
    np.testing.assert_allclose(columns, np.broadcast_to(xs * 64, (97, 129)), atol=1e-5)
    np.testing.assert_allclose(
        rows, np.broadcast_to(ys[:, None] * 32, (97, 129)), atol=1e-5
    )


def test_hostile_grids_leave_no_hole() -> None:
    """Collapsed, folded and shrunken meshes: nearest node instead of nothing."""
    collapsed = np.zeros((2, 5, 5), np.float32)
    folded = np.random.default_rng(0).random((2, 9, 9)).astype(np.float32)
    shrunken = (0.25 + 0.5 * identity_grid(5, 7)[0].numpy()).astype(np.float32)
    xs = np.linspace(0, 1, 40)
    for grid in (collapsed, folded, shrunken):
        rows, columns = invert_grid(grid, xs, xs)
        assert np.isfinite([rows, columns]).all()
        assert 0 <= rows.min() <= rows.max() <= grid.shape[1] - 1
        assert 0 <= columns.min() <= columns.max() <= grid.shape[2] - 1
    rows, columns = invert_grid(shrunken, np.array([0.0]), np.array([1.0]))
    assert (rows[0, 0], columns[0, 0]) == (4, 0)


def test_no_places_give_an_empty_answer() -> None:
    grid = random_grid(6, 6)
    values = np.ones((2, 6, 6), np.float16)
    out = sample_at(values, grid, np.zeros(0), np.linspace(0, 1, 4))
    assert out.shape == (2, 4, 0)


# sample_at


def test_reading_the_grid_at_places_gives_the_places() -> None:
    grid = random_grid(32, 48)
    xs, ys = np.linspace(0, 1, 200), np.linspace(0, 1, 150)
    x, y = sample_at(grid, grid, xs, ys)
    assert np.abs(x - xs).max() * 511 < 1e-3
    assert np.abs(y - ys[:, None]).max() * 511 < 1e-3


def test_shares_stay_shares_and_nodes_keep_their_values() -> None:
    random = np.random.default_rng(1)
    values = random.dirichlet(np.ones(5), (16, 16)).transpose(2, 0, 1)
    for grid in (random_grid(16, 16), identity_grid(16, 16)[0].numpy()):
        out = sample_at(
            values.astype(np.float16), grid, np.linspace(0, 1, 77), np.linspace(0, 1, 5)
        )
        assert out.dtype == np.float32
        assert np.abs(out.sum(axis=0) - 1).max() < 2e-3
    corners = sample_at(values, grid, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(corners, values[:, ::15, ::15], atol=1e-6)


def test_places_beyond_the_region_repeat_its_border() -> None:
    grid = random_grid(12, 12)
    values = np.random.default_rng(0).random((3, 12, 12))
    inside = sample_at(values, grid, np.array([0.0, 1.0]), np.array([0.5]))
    beyond = sample_at(values, grid, np.array([-0.1, 1.2]), np.array([0.5]))
    np.testing.assert_array_equal(inside, beyond)


def test_the_fast_path_agrees_with_the_inverse() -> None:
    values = np.random.default_rng(0).random((3, 20, 24))
    even = identity_grid(20, 24)[0].numpy()
    # inside, so that nothing leaves the region; too far off for the fast path
    nudged = even.copy()
    nudged[:, 1:-1, 1:-1] += 2e-6
    xs, ys = np.linspace(0, 1, 130), np.linspace(0, 1, 90)
    fast, slow = (sample_at(values, g, xs, ys) for g in (even, nudged))
    assert np.abs(fast - slow).max() < 2e-4


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid must be \(2, 8, 8\)"):
        sample_at(np.ones((2, 8, 8)), random_grid(8, 9), np.ones(1), np.ones(1))


# 9


def smooth_image() -> Tensor:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    waves = torch.stack([torch.sin(x / 9 + y / 13), torch.cos(x / 11 - y / 7)])
    return waves[None].double()


def test_gradient_reaches_the_logits() -> None:
    # level 0 only and one tap: what remains is the map and bilinear reading
    logits = torch.zeros(1, 144, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(3))
    image = functional.interpolate(smooth_image(), scale_factor=4, mode="bicubic")

    def loss(values: Tensor) -> Tensor:
        grid = density_to_grid(values.softmax(dim=1).view(1, 1, 12, 12), 0.1)
        sampled = sample_levels([image], grid, taps=1)
        return (sampled * weights).sum() + (cell_areas(grid) * weights[:, :1]).sum()

    start = 0.3 * torch.randn(
        1, 144, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    logits = start.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1e-4
    direction = torch.randn(
        1, 144, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    step = 1e-6
    with torch.no_grad():
        change = loss(start + step * direction) - loss(start - step * direction)
    expected = float((gradient * direction).sum())
    assert float(change) / (2 * step) == pytest.approx(expected, rel=1e-4)


def test_an_untrained_density_is_even_and_sums_to_one() -> None:
    torch.manual_seed(0)
    net = DensityNet((8, 16), floor=0.2).eval()
    density = net(torch.randn(2, 3, 20, 24))
    assert density.shape == (2, 1, 20, 24)
    torch.testing.assert_close(density, torch.full_like(density, 1 / 480))
    torch.nn.init.normal_(net.net.head.weight, std=5.0)
    peaked = net(torch.randn(2, 3, 20, 24))
    torch.testing.assert_close(peaked.sum(dim=(1, 2, 3)), torch.ones(2))
    assert peaked.min() >= 0.2 / 480
    assert peaked.max() > 1.2 / 480
