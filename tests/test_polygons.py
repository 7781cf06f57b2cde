"""Raster to polygons: exact, valid, the same whatever the blocks."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter

from wsi_pipeline.exporters.outlines import fill_holes, pixel_tolerance, place
from wsi_pipeline.exporters.polygons import Trace, trace_objects
from wsi_pipeline.exporters.sheet import Frame
from wsi_pipeline.geometry import Box

Mask = NDArray[np.uint8]
SIDES = st.integers(1, 64)
MASKS = st.tuples(SIDES, SIDES).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))
)


def trace(mask: Mask, block_px: int = 4096, min_pixels: int = 1) -> Trace:
    return trace_objects(
        lambda box: mask[box.rows, box.columns],
        Box(0, 0, mask.shape[1], mask.shape[0]),
        block_px=block_px,
        min_pixels=min_pixels,
    )


def drawn(found: Trace, shape: tuple[int, ...]) -> Mask:
    rows = [(o.outline, o.value) for o in found.objects]
    return (
        rasterize(rows, out_shape=shape, dtype="uint8")
        if rows
        else np.zeros(shape, np.uint8)
    )


def blobs(seed: int, side: int, classes: int = 3) -> Mask:
    """A smooth random mask with objects of all sizes and shared borders."""
    noise = np.random.default_rng(seed).normal(size=(classes, side, side))
    return gaussian_filter(noise, (0, 3, 3)).argmax(0).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_outlines_drawn_again_give_the_mask_to_the_pixel(mask: Mask) -> None:
    found = trace(mask)
    objects = np.where(mask == 255, 0, mask)
    assert (drawn(found, mask.shape) == objects).all()
    for item in found.objects:
        assert item.outline.is_valid
        assert item.outline.area == item.pixels
    for count in found.counts:
        assert count.pixels == (mask == count.value).sum()
    outlines = [o.outline for o in found.objects]
    assert shapely.set_precision(outlines, 0.01) is not None
    assert shapely.is_valid(shapely.set_precision(outlines, 0.01)).all()


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(1, 20), st.integers(1, 6))
def test_size_of_blocks_changes_nothing(mask: Mask, block: int, least: int) -> None:
    whole, split = trace(mask, 64, least), trace(mask, block, least)
    assert whole.counts == split.counts
    assert [o.outline.wkb for o in whole.objects] == [
        o.outline.wkb for o in split.objects
    ]
    assert [(o.value, o.pixels) for o in whole.objects] == [
        (o.value, o.pixels) for o in split.objects
    ]


@settings(max_examples=30, deadline=None)
@given(MASKS, st.integers(1, 20))
def test_neighbours_form_a_coverage_that_shares_every_corner(
    mask: Mask, block: int
) -> None:
    assert shapely.coverage_is_valid([o.outline for o in trace(mask, block).objects])


@pytest.mark.parametrize("block", [3, 4, 64])
def test_nested_rings_keep_their_holes(block: int) -> None:
    mask = np.zeros((13, 13), np.uint8)
    for step, value in enumerate((1, 2, 1, 0, 2)):
        mask[step : 13 - step, step : 13 - step] = value
    found = trace(mask, block)
    sizes = [(o.value, o.pixels, len(o.outline.interiors)) for o in found.objects]
    assert sizes == [(1, 48, 1), (1, 32, 1), (2, 40, 1), (2, 25, 0)]


@pytest.mark.parametrize("block", [1, 2, 5, 64])
def test_chequer_board_gives_single_pixels_that_touch_at_corners(block: int) -> None:
    mask = (np.indices((8, 8)).sum(0) % 2).astype(np.uint8)
    found = trace(mask, block)
    assert [o.pixels for o in found.objects] == [1] * 32
    assert shapely.union_all([o.outline for o in found.objects]).area == 32


@pytest.mark.parametrize("block", [2, 3, 64])
def test_spikes_one_pixel_wide_and_pinched_holes_stay_valid(block: int) -> None:
    mask = np.ones((7, 9), np.uint8)
    mask[2, 2] = mask[3, 3] = mask[4, 4] = 0  # holes that touch at corners
    mask[0, 8] = mask[1, 7] = 0  # a bay that touches itself at a corner
    mask[6, :8] = 0  # leaves a spike at the right edge
    found = trace(mask, block)
    (item,) = found.objects
    assert item.outline.is_valid
    assert item.outline.area == item.pixels == mask.sum()
    assert (drawn(found, mask.shape) == mask).all()


def test_mask_without_objects_gives_none() -> None:
    for value in (0, 255):
        found = trace(np.full((9, 9), value, np.uint8), 4)
        assert found == Trace((), ())


def test_whole_slide_of_one_class_is_one_rectangle() -> None:
    found = trace(np.full((10, 20), 3, np.uint8), 4)
    (item,) = found.objects
    assert item.outline.equals(shapely.box(0, 0, 20, 10))
    assert len(shapely.get_coordinates(item.outline)) == 5


def test_mean_confidence_is_that_of_the_objects_pixels() -> None:
    mask = np.zeros((6, 6), np.uint8)
    mask[1:3, 1:5] = 1
    certain = np.full((6, 6), 127, np.uint8)
    certain[1, 1:5] = 254
    found = trace_objects(
        lambda box: mask[box.rows, box.columns],
        Box(0, 0, 6, 6),
        block_px=4,
        read_confidence=lambda box: certain[box.rows, box.columns],
    )
    assert [o.confidence for o in found.objects] == [0.75]


def placed(mask: Mask, **changes: object) -> list[shapely.Geometry]:
    size = Box(0, 0, mask.shape[1], mask.shape[0])
    options: dict = {
        "downsample": 1.0,
        "frame": Frame("level0", size),
        "tolerance_px": 0.0,
        "min_hole_px": 0.0,
    } | changes
    return place(trace(mask).objects, **options).tolist()


def test_simplified_neighbours_still_share_their_borders() -> None:
    mask = blobs(1, 128) + 1  # no background: the whole square is covered
    exact, simple = placed(mask), placed(mask, tolerance_px=2.0)
    assert shapely.coverage_is_valid(simple)
    assert shapely.is_valid(simple).all()
    points = [shapely.get_num_coordinates(x).sum() for x in (exact, simple)]
    assert points[1] < points[0] / 2
    # borders inside move, but nothing is lost or covered twice
    assert shapely.area(simple).sum() == pytest.approx(128 * 128, rel=0.01)
    overlap = shapely.area(simple).sum() - shapely.union_all(simple).area
    assert abs(overlap) < 1e-6


def test_outline_that_simplification_would_break_keeps_its_pixel_edges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[1:4, 1:4] = mask[6:8, 6:8] = 1
    bow = shapely.Polygon([(0, 0), (5, 5), (5, 0), (0, 5)])

    def broken(outlines: NDArray[np.object_], _: float) -> NDArray[np.object_]:
        return np.array([bow, outlines[1]])

    monkeypatch.setattr(shapely, "coverage_simplify", broken)
    first, second = placed(mask, tolerance_px=2.0)
    assert first.equals(shapely.box(1, 1, 4, 4))
    assert second.equals(shapely.box(6, 6, 8, 8))


@settings(max_examples=40, deadline=None)
@given(
    MASKS,
    st.sampled_from([0.0, 1.0, 3.0]),
    st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 200)] * 2),
)
def test_placed_outlines_lie_in_the_frame_and_on_the_grid(
    mask: Mask, tolerance: float, window: tuple[int, int, int, int]
) -> None:
    frame = Frame("qupath", Box(*window))
    for shape in placed(mask, tolerance_px=tolerance, frame=frame, downsample=2.0):
        assert shape.geom_type in ("Polygon", "MultiPolygon")
        if shape.is_empty:
            continue
        assert shape.is_valid
        again = shapely.set_precision(shape, 0.01)
        assert again.is_valid
        assert again.area == shape.area
        x0, y0, x1, y1 = shape.bounds
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= frame.box.w
        assert y1 <= frame.box.h


def test_pixels_that_reach_over_the_slides_edge_are_cut() -> None:
    mask = np.ones((3, 3), np.uint8)  # covers 12 px of a slide of 10 x 11
    (shape,) = placed(mask, downsample=4.0, frame=Frame("level0", Box(0, 0, 10, 11)))
    assert shape.equals(shapely.box(0, 0, 10, 11))


def test_small_holes_are_filled_unless_an_object_lies_in_them() -> None:
    ring = (
        shapely.box(0, 0, 40, 20) - shapely.box(2, 2, 5, 5) - shapely.box(9, 9, 12, 12)
    )
    inner = shapely.box(9, 9, 12, 12)
    filled = fill_holes(np.array([ring, inner]), 10.0)
    assert [len(p.interiors) for p in filled] == [1, 0]
    assert filled[0].area == 800 - 9
    assert [len(p.interiors) for p in fill_holes(np.array([ring]), 10.0)] == [0]
    assert [len(p.interiors) for p in fill_holes(np.array([ring]), 9.0)] == [2]


def test_tolerance_below_one_pixels_corner_means_pixel_edges() -> None:
    assert pixel_tolerance(1.0, 0.5) == 2.0
    assert pixel_tolerance(1.0, 2.0) == 0.0
    assert pixel_tolerance(0.0, 0.5) == 0.0
