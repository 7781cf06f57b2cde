"""Raster to polygons: exact, valid, the same whatever the blocks and the workers."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.tracing import ArraySource, Mask, blobs, check_exact, trace
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.exporters import blocks
from wsi_pipeline.exporters.pieces import Rules
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.scores import PatchScores
from wsi_pipeline.geometry import Box


def masks(largest: int) -> st.SearchStrategy[Mask]:
    sides = st.tuples(*[st.integers(1, largest)] * 2)
    values = st.sampled_from([0, 1, 2, 255])
    return sides.flatmap(lambda shape: arrays(np.uint8, shape, elements=values))


def noise(seed: int, shape: tuple[int, int], zoom: int = 1) -> Mask:
    lot = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    return np.kron(np.where(lot == 3, 255, lot), np.ones((zoom, zoom), np.uint8))


@settings(max_examples=60, deadline=None)
@given(masks(40))
def test_outlines_drawn_again_give_the_mask_to_the_pixel(mask: Mask) -> None:
    check_exact(mask, trace(mask))


@settings(max_examples=25, deadline=None)
@given(masks(24), st.integers(2, 5), st.integers(1, 6), st.integers(0, 12))
def test_size_of_blocks_and_number_of_workers_change_nothing(
    mask: Mask, across: int, least: int, hole: int
) -> None:
    rules = Rules(least, hole)
    sure = (np.arange(mask.size).reshape(mask.shape) * 7 % 255).astype(np.uint8)
    whole = trace(mask, 64, rules, confidence=sure)
    block = -(-max(mask.shape) // across)
    for workers in (1, 3):
        assert whole == trace(mask, block, rules, confidence=sure, workers=workers)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_one_pixel_change_nothing(seed: int) -> None:
    mask = noise(seed, (6, 7))
    assert trace(mask, 1) == trace(mask)
    check_exact(mask, trace(mask, 1))


@pytest.mark.parametrize("side", [9, 40])
def test_larger_noise_is_joined_across_blocks(side: int) -> None:
    mask = noise(1, (60, 70), zoom=2)
    found = trace(mask, side)
    assert found == trace(mask)
    check_exact(mask, found)


def test_blocks_of_very_many_corners_are_traced_in_quarters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = noise(2, (33, 21))
    sure = np.full(mask.shape, 127, np.uint8)
    starts = np.arange(0, 33, 3)
    corners = np.stack([starts % 20, starts], axis=1)
    scores = PatchScores(np.hstack([corners, corners + 4]), starts / 100)
    whole = trace(mask, confidence=sure, scores=scores)
    traced = []
    trace_block = blocks._Tracer.trace

    def counted(tracer: blocks._Tracer) -> object:
        traced.append(tracer.box)
        assert len(tracer.corners) <= 60
        return trace_block(tracer)

    monkeypatch.setattr(blocks, "_MOST_CORNERS", 60)
    monkeypatch.setattr(blocks._Tracer, "trace", counted)
    assert trace(mask, confidence=sure, scores=scores) == whole
    assert sum(box.area_px for box in traced) == mask.size
    assert len(traced) > 4


@pytest.mark.parametrize("block", [3, 4, 64])
def test_nested_rings_keep_their_holes(block: int) -> None:
    mask = np.zeros((13, 13), np.uint8)
    for step, value in enumerate((1, 2, 1, 0, 2)):
        mask[step : 13 - step, step : 13 - step] = value
    found = trace(mask, block)
    sizes = [(o.value, o.pixels, len(o.outline.interiors)) for o in found.items]
    assert sizes == [(1, 48, 1), (1, 32, 1), (2, 40, 1), (2, 25, 0)]


@pytest.mark.parametrize("block", [1, 2, 5, 64])
def test_chequer_board_gives_single_pixels_that_touch_at_corners(block: int) -> None:
    mask = (np.indices((8, 8)).sum(0) % 2).astype(np.uint8)
    found = trace(mask, block)
    assert [o.pixels for o in found.items] == [1] * 32
    assert shapely.union_all(found.outlines).area == 32


@pytest.mark.parametrize("block", [2, 3, 64])
def test_spikes_one_pixel_wide_and_pinched_holes_stay_valid(block: int) -> None:
    mask = np.ones((7, 9), np.uint8)
    mask[2, 2] = mask[3, 3] = mask[4, 4] = 0  # holes that touch at corners
    mask[0, 8] = mask[1, 7] = 0  # a bay that touches itself at a corner
    mask[6, :8] = 0  # leaves a spike at the right edge
    found = trace(mask, block)
    (item,) = found.items
    assert len(item.outline.interiors) == 4  # three holes, and the end of the bay
    check_exact(mask, found)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_ring_that_meets_itself_at_the_corner_of_blocks_is_parted(block: int) -> None:
    mask = np.ones((4, 4), np.uint8)
    mask[1, 1] = mask[2, 2] = 0  # touch at (2, 2)
    found = trace(mask, block)
    (item,) = found.items
    assert len(item.outline.interiors) == 2
    assert found == trace(mask)
    check_exact(mask, found)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_lines_of_one_pixel_are_objects(block: int) -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[4, :] = 1
    mask[:, 4] = 1
    mask[0, :] = 2
    found = trace(mask, block)
    assert [(o.value, o.pixels) for o in found.items] == [(1, 16), (2, 9)]
    check_exact(mask, found)


def test_mask_without_objects_gives_none() -> None:
    for value in (0, 255):
        found = trace(np.full((9, 9), value, np.uint8), 4)
        assert found.items == found.counts == ()


@pytest.mark.parametrize("block", [4, 5, 64])
def test_whole_slide_of_one_class_is_one_rectangle(block: int) -> None:
    found = trace(np.full((10, 20), 3, np.uint8), block)
    (item,) = found.items
    assert item.outline.equals(shapely.box(0, 0, 20, 10))
    assert len(shapely.get_coordinates(item.outline)) == 5


@pytest.mark.parametrize("block", [2, 3, 64])
def test_mean_confidence_is_that_of_the_objects_pixels(block: int) -> None:
    mask = np.zeros((7, 11), np.uint8)
    mask[1:3, 1:9] = 1
    mask[3:6, 2] = mask[5, 2:10] = 1
    mask[4, 4:7] = 2
    certain = np.arange(77, dtype=np.uint8).reshape(7, 11)
    found = trace(mask, block, confidence=certain)
    for item in found.items:
        mean = certain[mask == item.value].mean() / 254
        assert item.probability == pytest.approx(mean, rel=1e-12)
    assert [item.probability for item in trace(mask, block).items] == [None, None]


def ringed(*holes: tuple[slice, slice]) -> Mask:
    mask = np.zeros((20, 20), np.uint8)
    mask[1:19, 1:19] = 1
    for hole in holes:
        mask[hole] = 0
    return mask


@pytest.mark.parametrize("block", [4, 7, 64])
def test_small_holes_are_filled_and_counted(block: int) -> None:
    mask = ringed(np.s_[3:6, 3:6], np.s_[8:12, 7:10], np.s_[14, 14:16])
    found = trace(mask, block, Rules(1, 10))
    (item,) = found.items
    assert [shapely.Polygon(r).area for r in item.outline.interiors] == [12]
    assert (item.pixels, item.filled) == (18 * 18 - 23, 11)
    assert item.outline.area == item.pixels + item.filled
    (count,) = found.counts
    assert (count.filled_holes, count.filled_pixels) == (2, 11)
    assert trace(mask, block, Rules(1, 9)).counts[0].filled_holes == 1


@pytest.mark.parametrize("block", [4, 7, 64])
def test_hole_is_not_filled_where_an_object_lies_in_it(block: int) -> None:
    mask = ringed(np.s_[3:7, 3:7], np.s_[9:13, 9:13])
    mask[5:7, 5:7] = 2
    mask[10, 10] = 2
    found = trace(mask, block, Rules(2, 100))
    ring, square = found.items
    assert [shapely.Polygon(r).bounds for r in ring.outline.interiors] == [(3, 3, 7, 7)]
    assert square.outline.bounds == (5, 5, 7, 7)
    assert found.counts[1].dropped_objects == 1


def test_holes_of_objects_that_are_dropped_are_not_counted() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[2:5, 2:5] = 1
    mask[3, 3] = 0
    for block in (3, 64):
        (count,) = trace(mask, block, Rules(20, 10)).counts
        assert (count.dropped_objects, count.dropped_pixels) == (1, 8)
        assert (count.filled_holes, count.filled_pixels) == (0, 0)


@pytest.mark.parametrize("block", [6, 64])
def test_small_objects_are_counted_and_left_out(block: int) -> None:
    mask = blobs(4, 48, sigma=1.5)
    every = trace(mask, block)
    found = trace(mask, block, Rules(30))
    assert found.items == tuple(o for o in every.items if o.pixels >= 30)
    for count in found.counts:
        mine = [o.pixels for o in every.items if o.value == count.value]
        lost = [pixels for pixels in mine if pixels < 30]
        assert (count.objects, count.pixels) == (len(mine), sum(mine))
        assert (count.dropped_objects, count.dropped_pixels) == (len(lost), sum(lost))


def test_blocks_that_are_blank_are_not_read() -> None:
    source = ArraySource(np.ones((8, 12), np.uint8))
    source.mask[:4, 4:8] = 0
    source.is_blank = lambda box: (box.x, box.y) == (4, 0)  # type: ignore[method-assign]
    found = list(trace_objects(source, source.whole, block_px=4))
    assert sum(int(t.objects.pixels.sum()) for t in found) == 8 * 12 - 16
    assert len(source.reads) == 5


@dataclass
class Damaged(ArraySource):
    """A mask whose fourth block cannot be read."""

    def read(self, box: Box) -> Mask:
        if box.x >= 20:
            raise PyramidError("lost")
        return super().read(box)


@pytest.mark.parametrize("workers", [1, 2])
def test_block_that_cannot_be_read_ends_the_work(workers: int) -> None:
    source, threads = Damaged(np.ones((8, 800), np.uint8)), threading.active_count()
    with pytest.raises(PyramidError, match="lost"):
        list(trace_objects(source, source.whole, block_px=8, workers=workers))
    assert len(source.reads) < 10
    assert threading.active_count() == threads


def test_reader_who_stops_early_stops_the_workers() -> None:
    source, threads = ArraySource(np.ones((8, 800), np.uint8)), threading.active_count()
    batches = trace_objects(source, source.whole, block_px=8, workers=2)
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            raise KeyboardInterrupt
    batches.close()
    assert len(source.reads) < 10
    assert threading.active_count() == threads
