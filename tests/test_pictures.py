"""Thumbnail, overlay, attention: sizes, colours, places, the same bytes twice."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.pictures import attention, overlay, publish_picture, thumbnail
from wsi_pipeline.pyramid import MaskPyramid, Pyramid, Source
from wsi_pipeline.regions import PatchGrid, Selection

GREY = 200
CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Benign", (0, 158, 115)),
    MaskClass(2, "Gleason 4\nwith a break", (213, 94, 0)),
)
# the darkest and brightest ends of viridis
LEAST, MOST = (68, 1, 84), (253, 231, 37)


def pyramid_of(tmp_path: Path, w: int, h: int) -> Pyramid:
    """A grey slide of w x h px at 0.5 um/px."""
    source = Source("t", (w, h), Scale(0.5, 0.5), "test", Box(0, 0, w, h))
    pyramid = Pyramid.create(tmp_path / "t.zarr", source, 1, Layout(chunk_px=64))
    for index, level in enumerate(pyramid.levels):
        shape = (3, level.size_px[1], level.size_px[0])
        pyramid.put(index, level.box, np.full(shape, GREY, np.uint8))
    return pyramid


def masks_of(pyramid: Pyramid, values: NDArray[np.uint8], base: int = 1) -> MaskPyramid:
    path = pyramid.labels_path / "m"
    masks = MaskPyramid.create(path, pyramid.source, base, CLASSES)
    masks.put(0, masks.levels[0].box, values)
    masks.write_coarser()
    return masks


def selection_of(corners: list[list[int]], side: int, score: list[float]) -> Selection:
    n = len(corners)
    places = np.array(corners, np.int64).reshape(n, 2)
    grid = PatchGrid(places, side, side, 0.5, np.ones(n, np.float32))
    scores = np.array(score, np.float64)
    rank = np.empty(n, np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(n)
    return Selection(grid, np.zeros((n, 1), np.float32), scores, rank, rank < 1)


def mixed(rgb: tuple[int, ...], opacity: float) -> tuple[int, ...]:
    return tuple(round(GREY * (1 - opacity) + part * opacity) for part in rgb)


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("w", "h", "expected"),
    [
        (1, 1, (1, 1)),
        (16, 9, (16, 9)),
        (1024, 700, (1024, 700)),
        (2048, 1000, (1024, 500)),
        (900, 3000, (307, 1024)),
        (5000, 1, (1024, 1)),
    ],
)
def test_a_thumbnail_has_1024_px_at_most_and_is_never_enlarged(
    tmp_path: Path, w: int, h: int, expected: tuple[int, int]
) -> None:
    image = thumbnail(pyramid_of(tmp_path, w, h))
    assert image.size == expected
    assert image.mode == "RGB"
    # up to the edge: nothing of what lies outside is mixed in
    assert image.getextrema() == ((GREY, GREY),) * 3


def test_an_overlay_colours_classes_outlines_them_and_leaves_background(
    tmp_path: Path,
) -> None:
    pyramid = pyramid_of(tmp_path, 2048, 1024)
    values = np.zeros((1024, 2048), np.uint8)
    values[200:400, 200:600] = 1
    values[200:400, 600:800] = 2
    image = overlay(pyramid, masks_of(pyramid, values))
    assert image.width == 1024
    assert image.height > 512  # the legend lies below the slide
    assert pixel(image, 50, 50) == (GREY,) * 3
    assert pixel(image, 200, 150) == mixed(CLASSES[1].rgb, 0.35)
    assert pixel(image, 350, 150) == mixed(CLASSES[2].rgb, 0.35)
    assert pixel(image, 100, 150) == CLASSES[1].rgb
    assert pixel(image, 300, 150) == CLASSES[2].rgb
    assert pixel(image, 99, 150) == (GREY,) * 3
    legend = np.asarray(image)[512:].reshape(-1, 3).tolist()
    assert list(CLASSES[1].rgb) in legend
    assert list(CLASSES[2].rgb) in legend


def test_what_was_not_computed_is_hatched_and_named(tmp_path: Path) -> None:
    pyramid = pyramid_of(tmp_path, 600, 300)
    values = np.zeros((300, 600), np.uint8)
    whole = overlay(pyramid, masks_of(pyramid, values))
    values[:, 300:] = 255
    (pyramid.labels_path / "m").rename(tmp_path / "aside")
    part = overlay(pyramid, masks_of(pyramid, values))
    left, right = np.asarray(part)[:300, :300], np.asarray(part)[:300, 300:]
    assert (left == GREY).all()
    lines = (right != GREY).any(axis=2)
    assert lines.mean() == pytest.approx(0.1)
    legends = [np.asarray(image)[300:] for image in (whole, part)]
    assert legends[0].shape[0] > 0
    assert not np.array_equal(*legends)


def test_a_mask_on_a_coarser_base_lies_on_the_same_place(tmp_path: Path) -> None:
    pyramid = pyramid_of(tmp_path, 800, 400)
    values = np.zeros((100, 200), np.uint8)
    values[25:50, 50:100] = 2
    image = np.asarray(overlay(pyramid, masks_of(pyramid, values, base=4)))[:400]
    rows, columns = np.nonzero((image != GREY).any(axis=2))
    assert (rows.min(), rows.max()) == (100, 199)
    assert (columns.min(), columns.max()) == (200, 399)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (16, 16)])
def test_a_tiny_slide_has_a_legend_wide_enough_to_read(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    w, h = size
    pyramid = pyramid_of(tmp_path, w, h)
    image = overlay(pyramid, masks_of(pyramid, np.full((h, w), 1, np.uint8)))
    assert image.width == 480
    assert pixel(image, 0, 0) == mixed(CLASSES[1].rgb, 0.35)


def test_attention_colours_patches_by_rank_and_frames_the_chosen(
    tmp_path: Path,
) -> None:
    pyramid = pyramid_of(tmp_path, 400, 300)
    corners = [[0, 0], [100, 0], [300, 200]]
    image = attention(pyramid, selection_of(corners, 100, [0.04, 0.06, 0.9]))
    assert pixel(image, 50, 50) == mixed(LEAST, 0.5)
    assert pixel(image, 150, 50) == mixed((33, 144, 141), 0.5)
    assert pixel(image, 350, 250) == mixed(MOST, 0.5)
    assert pixel(image, 250, 50) == (GREY,) * 3
    assert pixel(image, 300, 250) == (0, 0, 0)
    assert pixel(image, 301, 250) == (255, 255, 255)
    assert pixel(image, 0, 50) == mixed(LEAST, 0.5)


def test_where_patches_overlap_the_better_one_is_on_top(tmp_path: Path) -> None:
    pyramid = pyramid_of(tmp_path, 150, 100)
    selection = selection_of([[0, 0], [50, 0], [50, 0]], 100, [0.1, 0.6, 0.3])
    assert pixel(attention(pyramid, selection), 75, 50) == mixed(MOST, 0.5)


def test_patches_that_stick_out_or_vanish_are_drawn_inside(tmp_path: Path) -> None:
    small = pyramid_of(tmp_path, 20, 20)
    image = attention(small, selection_of([[0, 0]], 100, [1.0]))
    assert pixel(image, 0, 0) == (0, 0, 0)
    (tmp_path / "t.zarr").rename(tmp_path / "aside")
    large = pyramid_of(tmp_path, 8000, 100)
    image = attention(large, selection_of([[7999, 99]], 1, [1.0]))
    assert pixel(image, 1023, 12) == (0, 0, 0)


def test_attention_without_patches_says_so(tmp_path: Path) -> None:
    pyramid = pyramid_of(tmp_path, 400, 300)
    image = attention(pyramid, selection_of([], 100, []))
    assert (np.asarray(image)[:300, :400] == GREY).all()


def test_a_picture_is_published_with_the_same_bytes_twice(tmp_path: Path) -> None:
    pyramid = pyramid_of(tmp_path, 400, 300)
    masks = masks_of(pyramid, np.full((300, 400), 2, np.uint8))
    for name in ("a.png", "b.png"):
        publish_picture(tmp_path / name, overlay(pyramid, masks))
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.asarray(overlay(pyramid, masks)))
