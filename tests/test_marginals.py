"""The separable map: quantiles of the marginals, and their inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grids import SIGMA, place_of, random_density
from wsi_pipeline.models.density import density_to_grid
from wsi_pipeline.models.inverse import invert_grid
from wsi_pipeline.models.marginals import (
    invert_marginal_grid,
    marginal_grid,
    zoomed_grid,
)
from wsi_pipeline.models.sampling import identity_grid, quad_areas


@given(
    h=st.integers(2, 70), w=st.integers(2, 70), scale=st.sampled_from([1e-9, 1, 1e9])
)
@settings(max_examples=25)
def test_even_density_of_any_size_and_scale_gives_the_identity(
    h: int, w: int, scale: float
) -> None:
    for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        grid = marginal_grid(torch.full((1, 1, h, w), scale, dtype=dtype))
        assert grid.dtype == dtype
        halves = torch.tensor([w - 1, h - 1], dtype=dtype) / 2
        assert ((grid - identity_grid(h, w, dtype)).abs() * halves).max() < limit


def test_nodes_lie_at_the_quantiles_of_the_marginal() -> None:
    """Marginal 1, 3, 1: masses 2 and 2 on the two halves; then 1, 1, 3."""
    density = torch.tensor([[[[1.0, 3, 1]] * 2]]).double()
    assert marginal_grid(density)[0, 0, :, 0].tolist() == [-1, 0, 1]
    density = torch.tensor([[[[1.0, 1, 3]] * 2]]).double()
    # masses 1 and 2: half of 3 is reached a quarter into the second half
    expected = torch.tensor([-1, 0.25, 1]).double()
    torch.testing.assert_close(marginal_grid(density)[0, 0, :, 0], expected)
    torch.testing.assert_close(
        marginal_grid(density.mT.contiguous())[0, :, 0, 1], expected
    )


@given(seed=st.integers(0, 999), std=st.floats(0, 8))
@settings(max_examples=25)
def test_separable_grids_are_pinned_and_never_fold(seed: int, std: float) -> None:
    grid = marginal_grid(random_density(20, 31, seed=seed, std=std))
    x, y = grid[0].unbind(-1)
    for edge, place in ((x[:, 0], -1), (x[:, -1], 1), (y[0], -1), (y[-1], 1)):
        assert (edge - place).abs().max() < 1e-12
    assert quad_areas(grid).min() > 0
    assert float(quad_areas(grid).sum()) == pytest.approx(19 * 30, abs=1e-6)


@given(seed=st.integers(0, 999), std=st.floats(0, 3))
@settings(max_examples=25)
def test_zoomed_grids_are_pinned_and_never_fold(seed: int, std: float) -> None:
    grid = zoomed_grid(random_density(20, 31, seed=seed, std=std), SIGMA)
    x, y = grid[0].unbind(-1)
    for edge, place in ((x[:, 0], -1), (x[:, -1], 1), (y[0], -1), (y[-1], 1)):
        assert (edge - place).abs().max() < 1e-9
    assert quad_areas(grid).min() > 0
    even = zoomed_grid(torch.ones(1, 1, 20, 31).double(), SIGMA)
    torch.testing.assert_close(even, identity_grid(20, 31, torch.float64))


def test_zooming_frames_tissue_that_fills_a_part_and_follows_what_is_in_it() -> None:
    """Tissue on a quarter of the region, with one spot of interest."""
    density = torch.full((1, 1, 36, 48), 0.05).double()
    density[..., 4:22, 20:44] = 1.0
    density[..., 8:11, 26:30] = 4.0

    def inside(grid: torch.Tensor) -> float:
        column, row = (grid[0, ..., 0] + 1) / 2 * 47, (grid[0, ..., 1] + 1) / 2 * 35
        return float(
            ((row > 3.5) & (row < 21.5) & (column > 19.5) & (column < 43.5))
            .double()
            .mean()
        )

    zoomed, kernel = zoomed_grid(density, SIGMA), density_to_grid(density, SIGMA)
    assert inside(identity_grid(36, 48)) == pytest.approx(0.25, abs=0.01)
    assert inside(kernel) < 0.4
    assert inside(zoomed) > 0.7
    # the spot draws nodes beyond what the frame alone gives it
    spot = torch.tensor([28 / 47 * 2 - 1, 9 / 35 * 2 - 1]).double()
    near = [
        int(((grid[0] - spot).abs() < 0.06).all(dim=-1).sum())
        for grid in (zoomed, marginal_grid(density))
    ]
    assert near[0] > 1.2 * near[1] > 0


def test_a_separable_density_leaves_the_kernel_little_to_do() -> None:
    x = torch.linspace(-3, 3, 48).double()
    bump = 0.1 + torch.exp(-(x**2))
    density = (torch.ones(36, 1).double() * bump)[None, None]
    zoomed, framed = zoomed_grid(density, SIGMA), marginal_grid(density)
    assert (framed - identity_grid(36, 48, torch.float64)).abs().max() > 0.2
    assert (zoomed - framed).abs().max() < 0.03


def test_separable_maps_follow_flips_and_the_floor() -> None:
    density = random_density(12, 17, n=2)
    grid = marginal_grid(density)
    flipped = marginal_grid(density.flip(-1)).flip(2)
    assert (flipped[..., 0] + grid[..., 0]).abs().max() < 1e-12
    assert (marginal_grid(9 * density) - grid).abs().max() < 1e-12
    mixed = marginal_grid(0.6 * density + 0.4 / (12 * 17))
    assert (marginal_grid(density, floor=0.4) - mixed).abs().max() < 1e-12


def test_empty_rows_and_columns_are_skipped() -> None:
    density = torch.zeros(1, 1, 9, 9)
    density[..., 4, 4] = 1.0
    grid = marginal_grid(density)
    assert grid.isfinite().all()
    assert quad_areas(grid).min() > 0
    assert grid[0, 4, 1:-1].abs().max() < 0.25


@given(h=st.integers(2, 30), w=st.integers(2, 30), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_both_inverses_of_a_separable_grid_agree(h: int, w: int, seed: int) -> None:
    grid = marginal_grid(random_density(h, w, seed=seed, n=2))
    closed = invert_marginal_grid(grid, (41, 57))
    assert closed.shape == (2, 41, 57, 2)
    places = identity_grid(41, 57, torch.float64)[0]
    for one, found in zip(grid, closed, strict=True):
        assert (place_of(one, found) - places).abs().max() < 1e-9
    assert (closed - invert_grid(grid, (41, 57))).abs().max() < 1e-6


def test_gradients_are_those_of_finite_differences() -> None:
    def both(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = marginal_grid(logits.exp())
        return grid, invert_marginal_grid(grid, (7, 9))

    logits = random_density(5, 6, seed=2).log().requires_grad_()
    assert torch.autograd.gradcheck(both, logits)


def test_a_single_row_of_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 x 2 or more"):
        marginal_grid(torch.ones(1, 1, 1, 8))
