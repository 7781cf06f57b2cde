"""The separable map: quantiles of the marginals, and their inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grids import place_of, random_density
from wsi_pipeline.models.inverse import invert_grid
from wsi_pipeline.models.marginals import invert_marginal_grid, marginal_grid
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
