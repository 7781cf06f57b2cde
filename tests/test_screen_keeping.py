"""Which patches a screen keeps by its scores, and what it may be told."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.pyramids import grid_of, noise_pyramid
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.screening import keep_best, reach

PX = 32


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """640 x 480 px at 0.5 um/px."""
    return noise_pyramid(tmp_path_factory.mktemp("pyramid") / "slide.ome.zarr")


def brute_reach(score: NDArray[np.float64], grid: PatchGrid) -> list[int]:
    """By its definition, one patch at a time."""
    order = sorted(range(len(score)), key=lambda i: (-score[i], i))
    found = []
    for i in range(len(score)):
        near = [
            j for j in range(len(score))
            if j != i and abs(grid.corners[i] - grid.corners[j]).max() <= grid.size_px
        ]  # fmt: skip
        places = [order.index(i), *(8 * (order.index(j) + 1) - 1 for j in near)]
        found.append(min(places))
    return found


@pytest.mark.parametrize("step", [32, 16, 33])
def test_a_halo_lies_around_the_best_eighth(pyramid: Pyramid, step: int) -> None:
    grid = grid_of(pyramid, PX, step, 150)
    shifted = grid.corners.copy()
    shifted[-10:, 1] -= 7  # as those of a last row are, moved inside
    grid = replace(grid, corners=shifted)
    score = np.random.default_rng(step).permutation(150) // 2.0  # some are equal
    found = reach(score, grid)
    assert found.tolist() == brute_reach(score, grid)
    order = np.lexsort((np.arange(150), -score))
    kept = found < 40
    assert kept[order[:40]].all()
    centres = grid.corners[order[:5]]
    apart = abs(grid.corners[:, None] - centres).max(axis=2).min(axis=1)
    assert (kept == (np.isin(np.arange(150), order[:40]) | (apart <= PX))).all()


def test_more_is_kept_the_larger_the_fraction_and_never_less_than_m(
    pyramid: Pyramid,
) -> None:
    grid = grid_of(pyramid, PX, 32, 200)
    found = reach(np.random.default_rng(0).normal(size=200), grid)
    last = np.zeros(200, np.bool_)
    for fraction in (0.0, 0.01, 0.03, 0.1, 0.3, 0.9, 1.0):
        kept = keep_best(found, fraction, 12)
        assert kept.sum() >= max(12, fraction * 200)
        assert not (last & ~kept).any()
        last = kept
    assert last.all()
    assert keep_best(found, 0.0, 12).sum() < 12 + 9
    assert keep_best(found, 0.0, 500).all()


# what it may be told


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mode": "full", "screen": 0.9}, "mode full judges the slide by all patches"),
        ({"audit": 5}, "audit belongs to a screen"),
        ({"screen": 0.9, "audit": 0}, "audit"),
        ({"screen": 1}, "above 0 and below 1"),
        ({"screen": "0%"}, "above 0 and below 1"),
        ({"screen": "on"}, "expected 'off'"),
        ({"screen": 0.9, "chunk": 3}, "chunk and seed belong to mode ips"),
        ({"seed": 3}, "chunk and seed belong to mode ips"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    given: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        SelectOptions(**given)


@pytest.mark.parametrize(
    ("given", "meant"), [("off", "off"), ("0.95", 0.95), ("95%", 0.95), (0.5, 0.5)]
)
def test_a_recall_is_read_as_people_write_it(given: object, meant: object) -> None:
    made = SelectOptions(screen=given)
    assert made.screen == meant
    assert SelectOptions(**made.model_dump(mode="json")) == made
