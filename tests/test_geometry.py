import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.geometry import Box, Level, Scale, halved

boxes = st.builds(
    Box,
    st.integers(-500, 500),
    st.integers(-500, 500),
    st.integers(0, 300),
    st.integers(0, 300),
)


@given(boxes, st.integers(1, 64))
def test_blocks_tile_a_box_exactly_once(box, side):
    cells = list(box.blocks(side))
    assert sum(cell.area_px for cell in cells) == box.area_px
    assert all(cell.intersect(box) == cell for cell in cells if cell.area_px)


@given(boxes, st.sampled_from([1, 2, 4, 8, 3.7]))
def test_scaling_down_covers_and_back_up_contains(box, factor):
    coarse = box.scaled_down(factor)
    back = coarse.scaled_up(factor)
    assert back.x <= box.x + 1
    assert back.right >= box.right - 1


@given(boxes, st.sampled_from([1, 2, 4, 8]))
def test_scaling_up_and_down_again_is_the_same(box, factor):
    assert box.scaled_up(factor).scaled_down(factor) == box


@given(boxes, st.integers(-99, 99), st.integers(-99, 99))
def test_shifting_there_and_back_is_the_same(box, dx, dy):
    assert box.shift(dx, dy).shift(-dx, -dy) == box


def test_intersection_of_strangers_is_empty():
    assert Box(0, 0, 10, 10).intersect(Box(20, 20, 5, 5)).area_px == 0


def test_level_cover_absorbs_a_downsample_that_is_almost_whole():
    assert Level((250, 250), 4.0000001).cover(Box(0, 0, 1000, 1000)).right == 250


def test_halved_rounds_up():
    assert halved((5, 8)) == (3, 4)
    assert halved((5, 8), 3) == (1, 1)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_impossible_scales_are_refused(value):
    with pytest.raises(ValueError, match="um/px"):
        Scale(value, 0.5)


def test_negative_boxes_are_refused():
    with pytest.raises(ValueError, match="negative"):
        Box(0, 0, -1, 5)


def test_pixel_area_is_the_square_of_the_mean():
    scale = Scale(0.4, 0.9)
    assert scale.mean**2 == pytest.approx(scale.area_um2)
    assert scale.coarser(2).x == 0.8
