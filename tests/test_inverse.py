"""The exact inverse of a grid, and its gradient."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.grids import SIGMA, place_of, random_density, random_grid
from wsi_pipeline.models import inverse
from wsi_pipeline.models.density import density_to_grid
from wsi_pipeline.models.inverse import invert_grid
from wsi_pipeline.models.quads import Quads
from wsi_pipeline.models.raster import invert_raster
from wsi_pipeline.models.sampling import identity_grid, to_unit


def raster_inverse(grid: Tensor, h: int, w: int) -> Tensor:
    """The NumPy solver's answer for one (1, h, w, 2) grid, in [-1, 1]."""
    unit = to_unit(grid.double())[0].numpy()
    rows, columns = invert_raster(unit, np.linspace(0, 1, w), np.linspace(0, 1, h))
    found = torch.from_numpy(np.stack([columns, rows], axis=-1)).double()
    return found * 2 / (torch.tensor(unit.shape[:0:-1]) - 1) - 1


@pytest.fixture
def without_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a regular grid went to the slow solver")

    monkeypatch.setattr(inverse, "_invert_irregular", refuse)


@given(
    h=st.integers(2, 40),
    w=st.integers(2, 40),
    seed=st.integers(0, 1000),
    std=st.floats(0, 3),
)
@example(h=10, w=17, seed=4, std=3.0)  # irregular: the slow solver's
@settings(max_examples=40)
def test_every_pixel_maps_back_onto_itself(
    h: int, w: int, seed: int, std: float
) -> None:
    places = identity_grid(90, 111, torch.float64)[0]
    # float32 in source pixels of a 512 px region, its rounding included
    for dtype, limit in ((torch.float32, 1e-3), (torch.float64, 1e-9)):
        grid = random_grid(h, w, seed, std, dtype)
        found = invert_grid(grid, (90, 111))
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert found.abs().max() <= 1
        missed = (place_of(grid[0], found[0]) - places).abs().max()
        assert missed * 511 / 2 < limit


@pytest.mark.parametrize("std", [0.5, 2.0, 3.0, 5.0])
@pytest.mark.usefixtures("without_fallback")
def test_both_solvers_agree(std: float) -> None:
    grid = random_grid(48, 64, std=std)
    expected = raster_inverse(grid, 150, 200)
    found = invert_grid(grid, (150, 200))[0]
    places = place_of(grid[0], found) - place_of(grid[0], expected)
    assert places.abs().max() < 1e-6
    # collapsed cells hold a pixel at any of their nodes
    if std <= 3:
        assert (found - expected).abs().max() * 63 / 2 < 1e-2


@pytest.mark.usefixtures("without_fallback")
def test_float32_loses_only_its_rounding() -> None:
    exact = random_grid(64, 64, std=1.0, dtype=torch.float32).double()
    double, single = (invert_grid(g, (700, 900)) for g in (exact, exact.float()))
    # 3e-8 is half the last bit at 1; three roundings, and cells stretched to 2
    assert (double - single).abs().max() < 5e-7


def test_inverse_of_a_node_is_the_node() -> None:
    grid = random_grid(64, 64, dtype=torch.float64)
    even = identity_grid(64, 64, torch.float64)[0]
    random = np.random.default_rng(0)
    for i, j in random.integers(64, size=(60, 2)):
        found = torch.empty(1, 1, 2, dtype=torch.float64)
        x, y = grid[0, i, j].unbind()
        inverse.invert_places(grid[0], x[None], y[None], found)
        assert (found[0, 0] - even[i, j]).abs().max() * 63 / 2 < 0.05


@given(h=st.integers(2, 60), w=st.integers(2, 60))
@settings(max_examples=25)
def test_identity_inverts_exactly(h: int, w: int) -> None:
    found = invert_grid(identity_grid(h, w), (97, 129))
    assert (found - identity_grid(97, 129)).abs().max() < 2e-7
    found = invert_grid(identity_grid(h, w, torch.float64), (97, 129))
    assert (found - identity_grid(97, 129, torch.float64)).abs().max() < 1e-14


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (0, 4), (2, 2)])
def test_regions_of_any_size_are_inverted(size: tuple[int, int]) -> None:
    found = invert_grid(random_grid(9, 12), size)
    assert found.shape == (1, *size, 2)
    if found.numel():
        assert found[0, 0, 0].tolist() == [-1, -1]


@pytest.mark.parametrize("band", [1, 300, 1 << 20])
def test_bands_do_not_change_the_answer(
    band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = random_grid(20, 30, std=3.0, dtype=torch.float64).requires_grad_()
    expected = invert_grid(grid, (80, 100))
    (slope,) = torch.autograd.grad(expected.square().sum(), grid)
    monkeypatch.setitem(inverse._BAND, "cpu", band)
    found = invert_grid(grid, (80, 100))
    assert torch.equal(found, expected)
    (banded,) = torch.autograd.grad(found.square().sum(), grid)
    torch.testing.assert_close(banded, slope, rtol=1e-9, atol=1e-9)


def test_images_of_a_batch_are_inverted_one_by_one() -> None:
    grid = torch.cat([random_grid(12, 16, seed) for seed in (1, 2, 3)])
    found = invert_grid(grid, (40, 50))
    for one, part in zip(grid, found, strict=True):
        assert torch.equal(invert_grid(one[None], (40, 50))[0], part)


@pytest.mark.usefixtures("without_fallback")
def test_collapsed_cells_of_a_regular_mesh_leave_no_hole() -> None:
    for dtype in (torch.float32, torch.float64):
        grid = identity_grid(5, 7, dtype).clone()
        grid[:, :, 2] = grid[:, :, 3]  # a column of quads without area
        grid[:, 1, 4] = grid[:, 1, 5]  # quads that are triangles
        found = invert_grid(grid, (81, 97))
        assert found.isfinite().all()
        missed = place_of(grid[0], found[0]) - identity_grid(81, 97, torch.float64)[0]
        assert missed.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("without_fallback")
def test_pixels_on_a_collapsed_corner_of_the_border_are_solved(
    dtype: torch.dtype,
) -> None:
    grid = identity_grid(5, 5, dtype).clone()
    grid[:, 1, 3] = grid[:, 1, 4]  # a triangle whose tip lies on the right border
    grid[:, 3, 2] = grid[:, 4, 2]  # two whose tip lies on the lower border
    found = invert_grid(grid, (65, 65))
    missed = place_of(grid[0], found[0]) - identity_grid(65, 65, torch.float64)[0]
    assert missed.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("bend", "place"), [((0.0, 0.5), (-1.5, 0.0)), ((0.25, 0.25), (-1.0, -1.0))]
)
def test_places_just_outside_a_quad_are_pulled_to_its_side(
    bend: tuple[float, float], place: tuple[float, float]
) -> None:
    """Beyond the tip of a triangle, where the root or the divisor is not positive."""
    one, none = torch.ones(1), torch.zeros(1)
    quads = Quads(
        (none, none),
        (one, none, none, one),
        [torch.tensor([b]) for b in bend],
        (1, 1),
    )
    found = torch.empty(1, 1, 2)
    first = torch.zeros(1, 1, dtype=torch.int16)
    x, y = (torch.tensor([value]) for value in place)
    quads.solve(first, first.clone(), x, y[:, None], found)
    assert found.isfinite().all()
    assert found[0, 0, 0] == -1


def test_a_quad_that_is_a_line_answers_along_it() -> None:
    nodes = identity_grid(2, 3, torch.float64)[0] * torch.tensor([2.0, 1.0])
    nodes[:, 1, 0] = nodes[:, 2, 0]  # the right quad has no width
    found = torch.empty(1, 1, 2, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.int16)
    Quads.of(nodes, torch.float64).solve(
        0 * one, one, torch.tensor([2.0]), torch.tensor([[-0.5]]), found
    )
    # the middle of its width, a quarter of its height
    torch.testing.assert_close(found[0, 0], torch.tensor([0.5, -0.5]).double())


@pytest.mark.usefixtures("without_fallback")
def test_extreme_densities_leave_no_hole() -> None:
    spike = torch.full((1, 1, 33, 33), 1e-9)
    spike[..., 7, 20] = 1
    grid = density_to_grid(spike, 0.05)
    found = invert_grid(grid, (129, 129))
    missed = place_of(grid[0], found[0]) - identity_grid(129, 129, torch.float64)[0]
    assert missed.abs().max() * 128 / 2 < 1e-3


def test_hostile_grids_leave_no_hole() -> None:
    """Collapsed, folded and shrunken meshes: nearest node instead of nothing."""
    collapsed = torch.zeros(1, 5, 5, 2)
    generator = torch.Generator().manual_seed(0)
    folded = torch.rand(1, 9, 9, 2, generator=generator) * 2 - 1
    shrunken = identity_grid(5, 7) / 2
    for grid in (collapsed, folded, shrunken):
        found = invert_grid(grid.requires_grad_(), (40, 40))
        assert found.abs().max() <= 1
        (gradient,) = torch.autograd.grad(found.sum(), grid)
        assert gradient.isfinite().all()
    inside = invert_grid(shrunken, (41, 41))[0]
    assert inside[0, -1].tolist() == [1, -1]
    torch.testing.assert_close(
        inside[10:31, 10:31], identity_grid(41, 41)[0][10:31, 10:31] * 2
    )


def test_folds_are_solved_exactly_where_one_quad_answers() -> None:
    grid = identity_grid(9, 9).clone()
    grid[0, 4, 4] += torch.tensor([0.4, 0.0])  # beyond its right neighbour
    found = invert_grid(grid, (65, 65))
    missed = place_of(grid[0], found[0]) - identity_grid(65, 65, torch.float64)[0]
    assert missed.abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (8, 8, 2), (1, 1, 8, 2), (1, 8, 1, 2)])
def test_grids_of_another_layout_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"grid must be \(n, h, w, 2\)"):
        invert_grid(torch.zeros(shape), (4, 4))


def test_gradient_of_the_inverse_is_that_of_finite_differences() -> None:
    # sides that share no factor: no pixel lies on a line of nodes
    grid = random_grid(5, 6, std=1.5, dtype=torch.float64)
    grid = grid + 0.01 * torch.sin(torch.arange(60.0)).view(1, 5, 6, 2)
    inner = grid[:, 1:-1, 1:-1].clone().requires_grad_()

    def found(moved: Tensor) -> Tensor:
        whole = identity_grid(5, 6, torch.float64).clone()
        whole[:, 1:-1, 1:-1] = moved
        return invert_grid(whole, (8, 12))

    assert torch.autograd.gradcheck(found, inner)


def test_gradient_through_map_inverse_and_logits_is_that_of_finite_differences() -> (
    None
):
    generator = torch.Generator().manual_seed(1)
    nodes = torch.randn(1, 3, 7, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 3, 20, 23, generator=generator, dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        grid = density_to_grid(logits.exp(), 0.2)
        read = functional.grid_sample(
            nodes, invert_grid(grid, (20, 23)), align_corners=True
        )
        return (read * weight).sum()

    start = random_density(7, 8, std=0.5).log().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        change = loss(start + step * direction) - loss(start - step * direction)
    assert float(change) / (2 * step) == pytest.approx(
        float((gradient * direction).sum()), rel=1e-4
    )


def test_even_density_through_map_and_inverse_is_plain_upsampling() -> None:
    logits = torch.randn(2, 4, 16, 20, generator=torch.Generator().manual_seed(0))
    grid = density_to_grid(torch.ones(2, 1, 16, 20), SIGMA)
    found = invert_grid(grid, (64, 90))
    read = functional.grid_sample(logits, found, align_corners=True)
    plain = functional.interpolate(
        logits, (64, 90), mode="bilinear", align_corners=True
    )
    assert (read - plain).abs().max() < 1e-4
