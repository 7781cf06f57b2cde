"""Raster to polygons on 1000 masks: exact, whatever the blocks and the workers."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from tests.tracing import Mask, check_exact, trace
from wsi_pipeline.synthetic import paint_region

pytestmark = pytest.mark.slow

MANY = settings(
    max_examples=490,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check(mask: Mask, across: int, workers: int) -> None:
    found = trace(mask)
    check_exact(mask, found)
    block = max(1, -(-max(mask.shape) // across))
    assert trace(mask, block, workers=workers) == found


@MANY
@given(st.data())
def test_masks_that_hypothesis_makes(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 64)] * 2))
    values = st.sampled_from([0, 1, 2, 3, 255])
    mask = data.draw(arrays(np.uint8, shape, elements=values))
    check(mask, data.draw(st.integers(2, 7)), data.draw(st.integers(1, 2)))


@pytest.mark.parametrize("seed", range(400))
def test_noise_of_all_grains_and_sizes(seed: int) -> None:
    lot = np.random.default_rng(seed)
    shape = tuple(np.exp(lot.uniform(0, np.log(512), 2)).astype(int) + 1)
    noise = lot.normal(size=(int(lot.integers(2, 5)), *shape))
    grain = lot.choice([0.0, 0.5, 1.0, 3.0])
    mask = gaussian_filter(noise, (0, grain, grain)).argmax(0).astype(np.uint8)
    mask[lot.random(shape) < lot.choice([0, 0.01, 0.3])] = 255
    check(mask, int(lot.integers(2, 9)), 2)


@pytest.mark.parametrize("seed", range(100))
def test_chequer_boards(seed: int) -> None:
    lot = np.random.default_rng(seed)
    rows, columns = np.indices(lot.integers(1, 257, 2))
    field, classes = lot.integers(1, 9), lot.integers(2, 4)
    mask = ((rows // field + columns // field) % classes).astype(np.uint8)
    check(mask, int(lot.integers(2, 9)), 2)


def glands(seed: int) -> Mask:
    """4096 x 4096 pixels: glands, and in them what is hard to trace."""
    lot = np.random.default_rng(seed)
    tile = paint_region(seed, (1024, 1024), 1.0)[1]
    turned = [[np.rot90(tile, lot.integers(4)) for _ in range(4)] for _ in range(4)]
    mask = np.block(turned)
    for x, y in lot.integers(0, 4000, (400, 2)).tolist():
        size = int(lot.integers(3, 60))
        part, value = mask[y : y + size, x : x + size], int(lot.integers(0, 6))
        match lot.integers(6):
            case 0:  # a spike
                part[size // 2, :] = value
            case 1:  # lines that cross
                part[size // 2, :] = part[:, size // 2] = value
            case 2:  # pixels that touch at corners
                np.fill_diagonal(part, value)
            case 3:  # rings in rings
                rows, columns = np.indices(part.shape)
                edge = np.minimum(rows, columns)
                edge = np.minimum(edge, np.minimum(rows[::-1], columns[:, ::-1]))
                part[:] = np.where(edge % 4 < 2, value, (value + 1) % 6)
            case 4:  # a chequer board
                part[np.indices(part.shape).sum(0) % 2 == 0] = value
            case _:  # noise
                part[lot.random(part.shape) < 0.4] = value
    return mask


@pytest.mark.parametrize("seed", range(10))
def test_gland_like_masks(seed: int) -> None:
    mask = glands(seed)
    found = trace(mask)
    check_exact(mask, found)
    for block, workers in ((1024, 2), (1500, 1)):
        assert trace(mask, block, workers=workers) == found
