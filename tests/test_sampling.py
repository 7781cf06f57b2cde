"""Grids, sampling without aliasing, labels, and reading nodes back as pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.grids import SIGMA, random_density, random_grid, random_unit
from wsi_pipeline.models.density import density_to_grid
from wsi_pipeline.models.sampling import (
    cell_areas,
    from_unit,
    identity_grid,
    mip_levels,
    quad_areas,
    sample_at,
    sample_image,
    sample_labels,
    sample_places,
    sample_shares,
    to_unit,
)

# grids


@given(h=st.integers(2, 40), w=st.integers(2, 40))
def test_even_nodes_stand_for_equal_areas(h: int, w: int) -> None:
    grid = identity_grid(h, w, torch.float64)
    assert grid.shape == (1, h, w, 2)
    assert grid[0, 0, -1].tolist() == [1, -1]
    assert quad_areas(grid).shape == (1, 1, h - 1, w - 1)
    assert cell_areas(grid).shape == (1, 1, h, w)
    assert (quad_areas(grid) - 1).abs().max() < 1e-9
    assert (cell_areas(grid) - 1).abs().max() < 1e-9


def test_areas_follow_the_nodes() -> None:
    grid = identity_grid(2, 3).clone()
    grid[..., 1, 0] = -0.5
    assert quad_areas(grid).flatten().tolist() == [0.5, 1.5]
    assert cell_areas(grid)[0, 0, 0].tolist() == [0.5, 1.0, 1.5]
    # a mirrored grid has negative quads, but its cells keep their size
    assert quad_areas(grid.flip(2)).flatten().tolist() == [-1.5, -0.5]
    assert cell_areas(grid.flip(2))[0, 0, 0].tolist() == [1.5, 1.0, 0.5]


def test_unit_coordinates_are_the_same_grid_for_numpy() -> None:
    grid = random_grid(9, 12)
    unit = to_unit(grid)
    assert unit.shape == (1, 2, 9, 12)
    assert unit[0, :, 0, -1].tolist() == [1, 0]
    assert torch.equal(unit[:, 1], (grid[..., 1] + 1) / 2)
    assert unit.is_contiguous()
    assert (from_unit(unit) - grid).abs().max() < 2e-7


# images


def ramp(h: int, w: int) -> Tensor:
    """Each pixel holds its own x and y."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([x, y])[None].float()


def test_sampling_a_ramp_gives_the_places() -> None:
    h, w = 96, 128
    grid = random_grid(24, 32)
    sampled = sample_image(ramp(h, w), grid, taps=1, mip=False)
    assert (sampled - places_px(grid, h, w)).abs().max() < 1e-3


def places_px(grid: Tensor, h: int, w: int) -> Tensor:
    """Base pixels of the nodes: (n, 2, h, w)."""
    return to_unit(grid) * torch.tensor([w - 1, h - 1.0])[:, None, None]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_and_tap_lies_where_it_should(level: int) -> None:
    h, w = 96, 128
    levels = mip_levels(ramp(h, w), level + 1)[level:]
    grid = identity_grid(12, 16)
    for taps in (1, 2, 4):
        sampled = sample_image(levels, grid, first=level, taps=taps)
        inner = (sampled - places_px(grid, h, w))[..., 1:-1, 1:-1]
        assert inner.abs().max() < 1e-3


def test_constant_image_stays_constant_up_to_the_border() -> None:
    levels = mip_levels(torch.full((2, 3, 75, 101), 0.7), 4)
    grid = density_to_grid(random_density(16, 20, n=2), SIGMA).float()
    for mip in (True, False):
        assert (sample_image(levels, grid, mip=mip) - 0.7).abs().max() < 1e-6
        assert (sample_image(levels[0], grid, mip=mip) - 0.7).abs().max() < 1e-6


def test_level_of_detail_follows_the_cell() -> None:
    """Fine stripes: gone where a tap spans many pixels, kept where it spans one."""
    stripes = (torch.arange(256) % 2).float().expand(1, 1, 256, 256)
    levels = mip_levels(stripes, 4)
    coarse = sample_image(levels, identity_grid(16, 16), taps=1)
    assert (coarse[..., 1:-1] - 0.5).abs().max() < 1e-6
    places = torch.stack(
        torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"), dim=-1
    )[None]
    fine = sample_places(levels, places, torch.ones(1, 1, 8, 8), taps=1)
    assert torch.equal(fine, stripes[..., :8, :8])


def test_one_image_is_sampled_as_its_mip_levels() -> None:
    image = torch.rand(1, 2, 200, 160, generator=torch.Generator().manual_seed(0))
    for grid in (random_grid(12, 10), identity_grid(30, 3), identity_grid(2, 2)):
        for taps in (1, 4):
            levels = mip_levels(image, 8)
            expected = sample_image(levels, grid, taps=taps)
            assert torch.equal(sample_image(image, grid, taps=taps), expected)


def test_point_sampling_reads_the_first_level_only() -> None:
    image = torch.rand(1, 2, 65, 129, generator=torch.Generator().manual_seed(0))
    levels = mip_levels(image, 4)
    grid = identity_grid(5, 9)
    sampled = sample_image(levels, grid, taps=1, mip=False)
    torch.testing.assert_close(sampled, image[..., ::16, ::16], atol=1e-4, rtol=0)
    smooth = sample_image(levels, grid, taps=1)
    assert (sampled - smooth).abs().max() > 0.2


def test_taps_average_the_cell() -> None:
    """Four taps per side of an even cell: its mean, where one tap sees a pixel."""
    image = torch.rand(1, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    grid = identity_grid(9, 9)
    inner = sample_image(image, grid)[0, 0, 1:-1, 1:-1]
    # 64 px cells: the standard deviation of their mean is 0.29 / 64
    assert (inner - 0.5).abs().max() < 0.03


def test_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one level"):
        sample_image([], identity_grid(4, 4))
    with pytest.raises(ValueError, match="at least one level"):
        sample_places([], torch.zeros(1, 4, 4, 2), torch.ones(1, 1, 4, 4))


# labels


def test_sampled_labels_are_those_of_the_nearest_pixels() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 200, (2, 40, 60), generator=random, dtype=torch.uint8)
    grid = random_grid(11, 13).expand(2, -1, -1, -1)
    found = sample_labels(labels, grid)
    assert found.dtype == torch.int64
    assert found.shape == (2, 11, 13)
    for i, j in ((0, 0), (3, 7), (10, 12), (5, 1)):
        x = round(float((grid[0, i, j, 0] + 1) / 2) * 59)
        y = round(float((grid[0, i, j, 1] + 1) / 2) * 39)
        assert found[:, i, j].tolist() == labels[:, y, x].tolist()
    even = sample_labels(labels, identity_grid(40, 60).expand(2, -1, -1, -1))
    assert torch.equal(even, labels.long())


@given(seed=st.integers(0, 99), value=st.sampled_from([0, 7, 255]))
def test_labels_are_never_mixed_nor_shrunk(seed: int, value: int) -> None:
    grid = random_grid(9, 14, seed, 3.0)
    constant = torch.full((1, 33, 47), value, dtype=torch.uint8)
    assert (sample_labels(constant, grid) == value).all()
    mixed = torch.where(torch.arange(47) % 3 == 0, 2, 9).expand(1, 33, 47)
    assert set(sample_labels(mixed, grid).flatten().tolist()) <= {2, 9}


def test_nodes_beyond_the_region_take_its_border() -> None:
    labels = torch.arange(12).view(1, 3, 4)
    corners = sample_labels(labels, identity_grid(2, 2) * 1.5)
    assert corners.flatten().tolist() == [0, 3, 8, 11]


def test_shares_are_the_class_frequencies_at_the_taps() -> None:
    # even nodes 8 px apart: taps 1 and 3 px to either side of a node
    labels = torch.zeros(1, 33, 33, dtype=torch.int64)
    labels[:, :, 16:] = 2
    labels[:, 24:, :] = 255
    shares = sample_shares(labels, identity_grid(5, 5), 3)
    assert shares.dtype == torch.float32
    assert shares.shape == (1, 3, 5, 5)
    assert shares[0, :, 1, 0].tolist() == [1, 0, 0]
    assert shares[0, :, 1, 2].tolist() == [0.5, 0, 0.5]
    assert shares[0, :, 4, 4].tolist() == [0, 0, 0]
    assert shares[0, :, 3, 3].tolist() == [0, 0, 0.5]


def test_one_tap_is_the_label_itself() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (1, 50, 50), generator=random)
    grid = random_grid(16, 16)
    shares = sample_shares(labels, grid, 4, taps=1)
    nearest = functional.one_hot(sample_labels(labels, grid), 4).permute(0, 3, 1, 2)
    assert torch.equal(shares, nearest.float())


def test_shares_match_the_image_of_each_class() -> None:
    """Labels and pixels are read at the same places, up to the nearest pixel."""
    y, x = torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij")
    labels = ((x - 150) ** 2 + (y - 140) ** 2 < 90**2).long()[None]
    grid = random_grid(24, 24, std=1.0)
    shares = sample_shares(labels, grid, 2, taps=16)
    image = sample_image(labels[None].float(), grid, taps=16, mip=False)
    # a tap is a pixel or less: half of it may fall on the other side
    assert (shares[:, 1:] - image).abs().max() < 0.1
    assert (shares[:, 1:] - image).mean().abs() < 1e-3


# sample_at


def test_no_places_give_an_empty_answer() -> None:
    grid = random_unit(6, 6)
    values = np.ones((2, 6, 6), np.float16)
    out = sample_at(values, grid, np.zeros(0), np.linspace(0, 1, 4))
    assert out.shape == (2, 4, 0)


def test_reading_the_grid_at_places_gives_the_places() -> None:
    grid = random_unit(32, 48)
    xs, ys = np.linspace(0, 1, 200), np.linspace(0, 1, 150)
    x, y = sample_at(grid, grid, xs, ys)
    assert np.abs(x - xs).max() * 511 < 1e-3
    assert np.abs(y - ys[:, None]).max() * 511 < 1e-3


def test_shares_stay_shares_and_nodes_keep_their_values() -> None:
    random = np.random.default_rng(1)
    values = random.dirichlet(np.ones(5), (16, 16)).transpose(2, 0, 1)
    for grid in (random_unit(16, 16), to_unit(identity_grid(16, 16))[0].numpy()):
        out = sample_at(
            values.astype(np.float16), grid, np.linspace(0, 1, 77), np.linspace(0, 1, 5)
        )
        assert out.dtype == np.float32
        assert np.abs(out.sum(axis=0) - 1).max() < 2e-3
    corners = sample_at(values, grid, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(corners, values[:, ::15, ::15], atol=1e-6)


def test_places_beyond_the_region_repeat_its_border() -> None:
    grid = random_unit(12, 12)
    values = np.random.default_rng(0).random((3, 12, 12))
    inside = sample_at(values, grid, np.array([0.0, 1.0]), np.array([0.5]))
    beyond = sample_at(values, grid, np.array([-0.1, 1.2]), np.array([0.5]))
    np.testing.assert_array_equal(inside, beyond)


def test_even_grids_are_read_like_any_other() -> None:
    values = np.random.default_rng(0).random((3, 20, 24))
    even = to_unit(identity_grid(20, 24))[0].numpy()
    nudged = even.copy()
    nudged[:, 1:-1, 1:-1] += 2e-6
    xs, ys = np.linspace(0, 1, 130), np.linspace(0, 1, 90)
    fast, slow = (sample_at(values, g, xs, ys) for g in (even, nudged))
    assert np.abs(fast - slow).max() < 2e-4


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid must be \(2, 8, 8\)"):
        sample_at(np.ones((2, 8, 8)), random_unit(8, 9), np.ones(1), np.ones(1))
