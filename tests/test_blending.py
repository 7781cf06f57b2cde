"""Choosing classes: what nodes tell is not solved, and no pixel is another for it."""

import importlib.util
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.predictions import bent_grid, laid, random_region, region
from wsi_pipeline.classes import CERTAIN
from wsi_pipeline.geometry import Box
from wsi_pipeline.models.blending import Blender
from wsi_pipeline.models.footprints import BAND_PX, MIN_WEIGHT, RAMP, Raster, Side
from wsi_pipeline.models.meshes import NO_REGION, OFF_TISSUE
from wsi_pipeline.models.sampling import sample_at
from wsi_pipeline.regions import COARSE, DETAIL, RegionPrediction

type Labels = NDArray[np.uint8]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def choose(
    regions: Sequence[RegionPrediction],
    box: Box,
    *,
    step: int = 1,
    glass: Labels | None = None,
    every: bool = False,
    device: str = "cpu",
    walked: bool = True,
) -> tuple[Labels, Labels, Labels]:
    """Classes, kinds where a class is, and 254 * probability (0 if not asked for)."""
    blender = Blender(regions, device)
    if not walked:
        blender._meshes = None
    best = np.full((box.h, box.w), NO_REGION, np.uint8) if glass is None else +glass
    kinds, sure = np.zeros_like(best), np.zeros_like(best)
    blender.choose(Raster(box, step), best, kinds, sure if every else None)
    return best, kinds * (best < OFF_TISSUE), sure


def scattered(
    seed: int, *, classes: int = 4, levels: int = 0, kinds: Sequence[int] = (DETAIL,)
) -> list[RegionPrediction]:
    """A few regions that overlap at random."""
    random = np.random.default_rng(seed)
    found = []
    for kind in kinds:
        x, y = (int(v) for v in random.integers(-20, 50, 2))
        side = 64 if kind == COARSE else 40
        nodes = int(random.integers(2, 9)), int(random.integers(2, 9))
        nodes = (6, 7) if found or len(kinds) > 1 else nodes
        box = Box(x, y, side, side - 3)
        found.append(
            random_region(
                random, box, kind, classes=classes, nodes=nodes, levels=levels
            )
        )
    return found


KINDS = st.lists(st.sampled_from([DETAIL, DETAIL, COARSE]), min_size=1, max_size=5)


@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(1, 9),
    levels=st.sampled_from([0, 1, 2, 4]),
    kinds=KINDS,
    step=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=60)
def test_what_nodes_tell_is_what_solving_every_pixel_finds(
    seed: int, classes: int, levels: int, kinds: list[int], step: int
) -> None:
    """To the pixel: with classes that tie, certain nodes, and detail over coarse."""
    regions = scattered(seed, classes=classes, levels=levels, kinds=kinds)
    glass = np.full((70 // step, 80 // step), NO_REGION, np.uint8)
    glass[:, :: 7 + seed % 5] = OFF_TISSUE
    box = Box(0, 0, 80 // step, 70 // step)
    told, how, _ = choose(regions, box, step=step, glass=glass)
    solved, same, _ = choose(regions, box, step=step, glass=glass, every=True)
    np.testing.assert_array_equal(told, solved)
    np.testing.assert_array_equal(how, same)
    assert ((told == OFF_TISSUE) == (glass == OFF_TISSUE)).all()


@pytest.mark.parametrize("device", DEVICES)
@given(seed=st.integers(0, 10**6), kinds=KINDS, step=st.sampled_from([1, 4]))
@settings(max_examples=30)
def test_walking_along_meshes_finds_what_their_inverse_does(
    device: str, seed: int, kinds: list[int], step: int
) -> None:
    regions = scattered(seed, kinds=kinds)
    box = Box(0, 0, 80 // step, 70 // step)
    best, how, sure = choose(regions, box, step=step, every=True)
    plain, same, share = choose(
        regions, box, step=step, every=True, device=device, walked=False
    )
    # rounding decides where two classes are as likely to the sixth digit
    assert (best != plain).mean() < 2e-3
    np.testing.assert_array_equal(how, same)
    assert np.abs(sure.astype(int) - share).max() <= 1


def test_regular_meshes_are_walked_and_others_are_not() -> None:
    random = np.random.default_rng(0)
    one = random_region(random, Box(0, 0, 32, 32))
    folded = random_region(random, Box(0, 0, 32, 32))
    folded.grid[0, 2, 3], folded.grid[0, 2, 4] = 0.9, 0.1
    assert Blender([one])._meshes is not None
    assert Blender([one, folded])._meshes is None
    best, *_ = choose([folded], Box(0, 0, 32, 32))
    unit = np.arange(32) / 31
    expected = sample_at(folded.probabilities, folded.grid, unit, unit).argmax(0)
    np.testing.assert_array_equal(best, expected)


def test_without_numba_every_pixel_is_solved_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one = random_region(np.random.default_rng(0), Box(0, 0, 32, 32))
    assert Blender([one])._meshes is None
    assert "numba" in caplog.text


def test_one_region_is_read_through_the_inverse_of_its_grid() -> None:
    """On the base and in the middles of a coarser raster's pixels."""
    one = region(Box(64, 128, 200, 120), bent_grid(40))
    for step in (1, 4):
        box = Box(64 // step, 128 // step, 200 // step, 120 // step)
        best, _, sure = choose([one], box, step=step, every=True)
        xs, ys = (
            ((np.arange(n // step) + 0.5) * step - 0.5) / (n - 1) for n in (200, 120)
        )
        found = sample_at(one.probabilities, one.grid, xs, ys)
        assert (best != found.argmax(0)).mean() < 1e-3
        share = CERTAIN * found.max(0) / found.sum(0)
        assert np.abs(sure - share).max() <= 0.51


def test_pieces_of_a_raster_fit_together() -> None:
    regions = laid(64, 56, size=150, shift=9)
    regions.append(region(Box(10, 10, 128, 128), bent_grid(16), kind=COARSE))
    whole = choose(regions, Box(0, 0, 150, BAND_PX + 30))
    for part in (Box(0, 0, 70, 50), Box(70, 50, 80, 108), Box(33, 120, 9, 38)):
        for found, all_ in zip(choose(regions, part), whole, strict=True):
            np.testing.assert_array_equal(found, all_[part.rows, part.columns])


def test_lines_that_zigzag_are_followed_row_by_row() -> None:
    """Each row of pixels crosses far more quads than a mesh has columns."""
    nodes = 40
    t = np.linspace(0, 1, nodes)
    way = np.where(np.arange(nodes) % 2, 0.3, -0.3)
    y = t[:, None] + way * np.sin(np.pi * t)[:, None] / 1.1
    grid = np.stack([np.broadcast_to(t, y.shape), y]).astype(np.float32)
    random = np.random.default_rng(0)
    values = random.dirichlet(np.ones(3), (nodes, nodes)).transpose(2, 0, 1)
    one = RegionPrediction(Box(0, 0, 400, 130), values.astype(np.float16), grid)
    assert Blender([one])._meshes is not None
    best, *_ = choose([one], Box(0, 0, 400, 130))
    plain, *_ = choose([one], Box(0, 0, 400, 130), walked=False)
    assert (best != plain).mean() < 1e-3


@given(
    side=st.sampled_from([64, 128, 512]),
    step=st.sampled_from([1, 2, 4]),
    origin=st.integers(0, 100),
)
def test_weights_of_regions_that_overlap_by_their_ramp_sum_to_one(
    side: int, step: int, origin: int
) -> None:
    total = np.zeros(200)
    stride = round(side * (1 - RAMP))
    starts = range(-stride, step * 400, stride)
    for start in starts:
        found = Side.of(start, side, (origin, 200), step)
        total[found.first : found.end] += found.weights
        assert (found.weights >= np.float32(MIN_WEIGHT)).all()
    np.testing.assert_allclose(total, 1, atol=2 * MIN_WEIGHT)


def test_a_region_alone_counts_up_to_its_corner() -> None:
    one = Side.of(5, 1, (0, 10), 1)
    assert (one.first, one.end) == (5, 6)
    assert one.weights > 0
    assert one.places(slice(0, 10), 1).tolist() == [0] * 10


def test_without_regions_nothing_is_told() -> None:
    glass = np.full((5, 7), NO_REGION, np.uint8)
    glass[2] = OFF_TISSUE
    best, *_ = choose([], Box(0, 0, 7, 5), glass=glass)
    np.testing.assert_array_equal(best, glass)
