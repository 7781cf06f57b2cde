"""Outlines as they are written: simplified with shared borders, placed, on the grid."""

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tests.tracing import ArraySource, Found, Mask, blobs, items_of, trace
from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.outlines import Outlines
from wsi_pipeline.exporters.pieces import Rules
from wsi_pipeline.exporters.placing import place
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.sheet import Frame
from wsi_pipeline.geometry import Box

TOLERANCES = st.sampled_from([0.71, 1.0, 2.0, 5.0, 40.0])


def masks(largest: int) -> st.SearchStrategy[Mask]:
    sides = st.tuples(*[st.integers(1, largest)] * 2)
    values = st.sampled_from([0, 1, 2])
    return sides.flatmap(lambda shape: arrays(np.uint8, shape, elements=values))


def text(*rows: str) -> Mask:
    return np.array([[int(c) for c in row.replace(".", "0")] for row in rows], np.uint8)


ACROSS = text("......", ".2222.", "......")


def check_coverage(mask: Mask, exact: Found, simple: Found) -> None:
    """Nothing is lost, broken, covered twice or moved off the pixels' corners."""
    outlines = simple.outlines
    assert [(o.value, o.pixels, o.first) for o in simple.items] == [
        (o.value, o.pixels, o.first) for o in exact.items
    ]
    assert shapely.is_valid(outlines).all()
    assert (shapely.get_type_id(outlines) == shapely.GeometryType.POLYGON).all()
    assert shapely.coverage_is_valid(outlines)
    overlap = shapely.area(outlines).sum() - shapely.union_all(outlines).area
    assert abs(overlap) < 1e-6
    holes = [
        [shapely.get_num_interior_rings(g) for g in f.outlines] for f in (exact, simple)
    ]
    assert holes[0] == holes[1]
    assert shapely.get_num_coordinates(outlines).sum() <= (
        shapely.get_num_coordinates(touched(exact.outlines)).sum()
    )


def touched(outlines: NDArray[np.object_]) -> NDArray[np.object_]:
    """Outlines with a vertex at every corner of a pixel that they pass."""
    return np.asarray(shapely.segmentize(outlines, 1.0), object)


@settings(max_examples=150, deadline=None)
@given(masks(14), TOLERANCES)
@example(text("1111", "1..1", "1111"), 40.0)  # a hole
@example(text("1122", "1122"), 40.0)  # two arcs between the same corners
@example(text("1.....", "11....", ".11...", "2.11..", "22.11.", ".22.11"), 5.0)
def test_simplified_outlines_are_valid_and_touch_where_they_did(
    mask: Mask, tolerance: float
) -> None:
    exact, simple = trace(mask), trace(mask, rules=Rules(simplify_px=tolerance))
    if exact.items:
        check_coverage(mask, exact, simple)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.8, 1.5, 3.0]), TOLERANCES)
def test_simplified_blobs_are_valid_and_touch_where_they_did(
    seed: int, sigma: float, tolerance: float
) -> None:
    mask = blobs(seed, 48, sigma=sigma)
    exact = trace(mask)
    check_coverage(mask, exact, trace(mask, rules=Rules(simplify_px=tolerance)))


@settings(max_examples=30, deadline=None)
@given(masks(14), TOLERANCES, st.integers(3, 9), st.integers(0, 20))
@example(ACROSS, 5.0, 3, 0)  # either side may draw a straight line along the edge
@example(ACROSS.T.copy(), 5.0, 3, 0)
def test_blocks_fit_together_after_simplification(
    mask: Mask, tolerance: float, block: int, hole: int
) -> None:
    found = trace(mask, block, Rules(3, hole, tolerance))
    assert found == trace(mask, block, Rules(3, hole, tolerance), workers=2)
    outlines = found.outlines
    if len(outlines):
        assert shapely.is_valid(outlines).all()
        assert shapely.coverage_is_valid(outlines)
        overlap = shapely.area(outlines).sum() - shapely.union_all(outlines).area
        assert abs(overlap) < 1e-6


def test_simplified_neighbours_still_share_their_borders() -> None:
    mask = blobs(1, 128) + 1  # no background: the whole square is covered
    exact, simple = trace(mask).outlines, trace(mask, rules=Rules(1, 0, 2.0)).outlines
    points = [shapely.get_num_coordinates(x).sum() for x in (exact, simple)]
    assert points[1] < points[0] / 2
    # borders inside move, but nothing is lost or covered twice; the frame stays
    assert shapely.area(simple).sum() == 128 * 128
    assert shapely.union_all(simple).equals(shapely.box(0, 0, 128, 128))


def test_simplified_outlines_are_like_those_of_geos() -> None:
    mask = blobs(2, 256, sigma=6)
    exact = trace(mask).outlines
    simple = trace(mask, rules=Rules(1, 0, 2.0)).outlines
    peer = shapely.coverage_simplify(touched(exact), 2.0)
    count, other = (int(shapely.get_num_coordinates(x).sum()) for x in (simple, peer))
    assert count == pytest.approx(other, rel=0.1)
    far = shapely.hausdorff_distance(exact, simple).max()
    assert far <= 1.5 * shapely.hausdorff_distance(exact, peer).max()
    assert shapely.area(simple).sum() == pytest.approx(
        shapely.area(exact).sum(), rel=2e-3
    )


def test_stairs_of_single_pixels_become_straight() -> None:
    mask = np.tri(40, dtype=np.uint8)
    (item,) = trace(mask, rules=Rules(simplify_px=0.8)).items
    assert len(shapely.get_coordinates(item.outline)) <= 6
    assert item.outline.area == pytest.approx(item.pixels, rel=0.03)


def test_corner_goes_as_long_as_its_triangle_is_within_the_tolerance() -> None:
    mask = np.zeros((12, 20), np.uint8)
    mask[6:, :] = mask[5, 8:10] = 1  # a step of 2 x 1: triangles of 1 square pixel
    flat = 20 * 6
    for tolerance, area in ((0.99, flat + 2), (1.0, flat)):
        (item,) = trace(mask, rules=Rules(simplify_px=tolerance)).items
        assert item.outline.area == pytest.approx(area, abs=0.5 if area > flat else 0)
        assert item.pixels == flat + 2


def test_tolerance_below_one_pixels_corner_means_pixel_edges() -> None:
    assert [Rules(simplify_px=t).limit for t in (0.0, 0.7, 0.71, 1.0, 2.0)] == [
        0, 0, 1, 2, 8,
    ]  # fmt: skip
    mask = blobs(3, 40)
    assert trace(mask, rules=Rules(simplify_px=0.7)) == trace(mask)


def test_objects_that_are_dropped_leave_no_mark_on_borders() -> None:
    clean = np.zeros((30, 60), np.uint8)
    clean[15:] = 1
    noisy = clean.copy()
    noisy[14, 10:50:7] = 2
    noisy[20:22, 30:32] = 0
    rules = Rules(5, 5, 0.8)
    first, second = (trace(mask, rules=rules).outlines[0] for mask in (noisy, clean))
    assert first.normalize() == second.normalize()


def test_outlines_keep_the_points_where_they_cross_from_block_to_block() -> None:
    mask = np.tri(40, dtype=np.uint8)
    (whole,) = trace(mask, rules=Rules(simplify_px=3.0)).outlines
    (split,) = trace(mask, 16, Rules(simplify_px=3.0)).outlines
    points = shapely.get_coordinates(split)
    crossing = points[(points % 16 == 0).any(axis=1)]
    on_border = [p for p in crossing.tolist() if min(p) > 0 and max(p) < 40]
    assert len(on_border) >= 4
    assert shapely.hausdorff_distance(whole, split) <= 3


def placed(
    mask: Mask, frame: Box, downsample: float = 1.0, tolerance: float = 0.0
) -> list[shapely.Geometry]:
    source = ArraySource(mask)
    return [
        item.outline
        for batch in trace_objects(source, source.whole, Rules(1, 0, tolerance))
        for objects in place(batch.objects, downsample, Frame("qupath", frame))
        for item in items_of(objects)
    ]


@settings(max_examples=40, deadline=None)
@given(
    masks(40),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 200)] * 2),
)
def test_placed_outlines_lie_in_the_frame_and_on_the_grid(
    mask: Mask, tolerance: float, window: tuple[int, int, int, int]
) -> None:
    frame = Box(*window)
    whole = trace(mask, rules=Rules(1, 0, tolerance)).outlines
    shapes = placed(mask, frame, 2.0, tolerance)
    for shape in shapes:
        assert shape.geom_type in ("Polygon", "MultiPolygon")
        assert not shape.is_empty
        assert shape.is_valid
        again = shapely.set_precision(shape, 0.01)
        assert again.geom_type == shape.geom_type
        assert again.area == pytest.approx(shape.area, rel=1e-12)
        x0, y0, x1, y1 = shape.bounds
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= frame.w
        assert y1 <= frame.h
    moved = shapely.transform(whole, lambda p: p * 2 - (frame.x, frame.y))
    inside = shapely.intersection(moved, shapely.box(0, 0, frame.w, frame.h))
    assert shapely.area(shapes).sum() == pytest.approx(
        shapely.area(inside).sum(), abs=0.1
    )


def test_pixels_that_reach_over_the_slides_edge_are_cut() -> None:
    mask = np.ones((3, 3), np.uint8)  # covers 12 px of a slide of 10 x 11
    (shape,) = placed(mask, Box(0, 0, 10, 11), 4.0)
    assert shape.equals(shapely.box(0, 0, 10, 11))


def objects_of(*rings: list[tuple[int, int]]) -> Objects:
    count = len(rings)
    starts = np.cumsum([0, *map(len, rings)])
    points = np.array([p for ring in rings for p in ring], np.int32)
    numbers = np.arange(count)
    return Objects(
        np.ones(count, np.uint8),
        numbers + 1,
        numbers * 0,
        numbers,
        *[numbers * np.nan] * 3,
        Outlines.of_rings(points, starts),
    )


def test_border_so_near_to_a_corner_that_rounding_joins_them_is_mended() -> None:
    # (500, 1) lies 0.001 px below the line from (0, 0) to (1001, 2)
    near = [(0, 0), (1001, 2), (1001, 50), (500, 1), (0, 50)]
    plain = [(0, 100), (9, 100), (9, 109), (0, 109)]
    first, second = place(
        objects_of(near, plain), 1.0, Frame("level0", Box(0, 0, 2000, 2000))
    )
    (kept,), (mended,) = first.outlines.to_shapely(), second.outlines.to_shapely()
    assert kept.equals(shapely.Polygon(plain))
    assert shapely.set_precision(shapely.Polygon(near), 0.01).geom_type != "Polygon"
    assert shapely.set_precision(mended, 0.01).normalize() == mended.normalize()
    assert mended.area == pytest.approx(shapely.Polygon(near).area, rel=1e-3)


def test_shell_comes_first_where_a_hole_touches_its_first_vertex() -> None:
    hole, shell = [(5, 0), (4, 8), (5, 8)], [(5, 0), (10, 10), (0, 10)]
    for rings in ((hole, shell), (shell, hole)):
        outlines = Outlines.assemble(
            np.array([point for ring in rings for point in ring], np.int32),
            np.array([0, 3, 6]),
            np.zeros(2, np.int64),
            np.array([ring is shell for ring in rings]),
        )
        assert outlines.points.tolist() == [list(point) for point in shell + hole]


def test_outlines_come_back_from_shapely_as_they_were() -> None:
    ring = shapely.box(0, 0, 9, 9) - shapely.box(2, 2, 4, 4)
    pair = shapely.MultiPolygon([shapely.box(20, 0, 22, 2), shapely.box(30, 0, 33, 3)])
    given_ = shapely.orient_polygons(np.array([ring, pair], object))
    outlines = Outlines.of(given_)
    assert shapely.equals(outlines.to_shapely(), given_).all()
    assert outlines.areas().tolist() == [77, 13]
    assert outlines.lengths((1, 2)).tolist() == [54 + 12, 12 + 18]
    assert outlines.bounds().tolist() == [[0, 0, 9, 9], [20, 0, 33, 3]]
    (only,) = outlines.take(np.array([1])).to_shapely()
    assert only.equals(pair)
