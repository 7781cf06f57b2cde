"""The sheet of the top patches: which, in what order, with which words."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source
from wsi_pipeline.pictures import publish_picture
from wsi_pipeline.pictures.top_patches import MOST_SHOWN, top_patches
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection

SIDE = 16


def colour_of(patch: int) -> tuple[int, int, int]:
    return 10 + 6 * (patch % 36), 40, 200 - patch // 36


def slide_of(
    tmp_path: Path, columns: int, rows: int, bounds: Box | None = None
) -> tuple[Pyramid, NDArray[np.int64]]:
    """A slide of squares, each of its own colour, and their corners."""
    w, h = columns * SIDE, rows * SIDE
    source = Source("t", (w, h), Scale(0.5, 0.5), "t", bounds or Box(0, 0, w, h))
    pyramid = Pyramid.create(tmp_path / "t.zarr", source, 1, Layout(chunk_px=64))
    y, x = np.mgrid[:rows, :columns]
    corners = np.stack([x.ravel(), y.ravel()], axis=1) * SIDE
    pixels = np.empty((3, h, w), np.uint8)
    for patch, (left, top) in enumerate(corners.tolist()):
        where = slice(top, top + SIDE), slice(left, left + SIDE)
        pixels[:, *where] = np.array(colour_of(patch))[:, None, None]
    for index, level in enumerate(pyramid.levels):
        pyramid.put(index, level.box, np.ascontiguousarray(pixels))
        pixels = pixels[:, ::2, ::2]
    return pyramid, corners


def selection_of(
    corners: NDArray[np.int64], score: list[float], top_m: int
) -> Selection:
    n = len(corners)
    grid = PatchGrid(corners, SIDE, SIDE, 0.5, np.ones(n, np.float32))
    scores = np.array(score)
    rank = np.empty(n, np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(n)
    return Selection(grid, np.zeros((n, 1), np.float32), scores, rank, rank < top_m)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on pictures from here on."""
    found: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: object, text: str, *a: object, **k: object):
        found.append(text)
        return draw(self, xy, text, *a, **k)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def cells_of(image: Image.Image, patches: int) -> list[int]:
    """Patches that fill a cell of 256 px, in reading order."""
    pixels = np.asarray(image)
    places = {}
    for patch in range(patches):
        rows, columns = np.nonzero((pixels == colour_of(patch)).all(axis=2))
        if len(rows) > 200 * 200:
            # on the map the colour shows too, on a far smaller area
            places[int(np.median(rows)) // 100, int(np.median(columns))] = patch
    return [patch for _, patch in sorted(places.items())]


def test_patches_stand_in_the_order_of_their_ranks(
    tmp_path: Path, words: list[str]
) -> None:
    pyramid, corners = slide_of(tmp_path, 5, 2, Box(8, 4, 60, 20))
    score = [0.01, 0.02, 0.03, 0.04, 0.2, 0.3, 0.05, 0.15, 0.1, 0.1]
    image = top_patches(pyramid, selection_of(corners, score, 8))
    # 8 and 9 are equal: the lower patch id first
    assert cells_of(image, 10) == [5, 4, 7, 8, 9, 6, 3, 2]
    assert words[:2] == ["1", "30.00 % of attention"]
    # patch 5: (0, 16) to (16, 32), from the corner of the bounds, 0.5 um/px
    assert words[2] == "x 0.000, y 0.010 mm"
    assert words[21:24] == ["8", "3.00 % of attention", "x 0.016, y 0.002 mm"]
    title, line, bar = words[-3:]
    assert title == "Patches with the most attention: 8 of 8 chosen"
    assert line == (
        "Attention on those shown: 97 %, on the chosen: 97 %; patches in all: 10, "
        "each 8 um wide. Research use only, not for diagnosis."
    )
    assert bar == "2 um on a patch"


def test_of_many_chosen_patches_the_best_24_are_shown(
    tmp_path: Path, words: list[str]
) -> None:
    pyramid, corners = slide_of(tmp_path, 8, 8)
    image = top_patches(pyramid, selection_of(corners, [1 / 64] * 64, 40))
    assert cells_of(image, 64) == list(range(MOST_SHOWN))
    title, line = (text for text in words if "ttention on" in text or "chosen" in text)
    assert title.endswith("24 of 40 chosen")
    assert line.startswith("Attention on those shown: 38 %, on the chosen: 62 %;")


def test_the_map_numbers_patches_where_there_is_room(
    tmp_path: Path, words: list[str]
) -> None:
    pyramid, _ = slide_of(tmp_path, 20, 20)
    # the second lies half over the first, the third at the other end
    some = np.array([[0, 0], [8, 0], [304, 304]])
    top_patches(pyramid, selection_of(some, [0.5, 0.3, 0.2], 3))
    assert words[9:-3] == ["1", "3"]


def test_no_patch_is_shown_that_was_not_chosen(tmp_path: Path) -> None:
    pyramid, corners = slide_of(tmp_path, 5, 2)
    image = top_patches(pyramid, selection_of(corners, [0.1] * 10, 3))
    assert cells_of(image, 10) == [0, 1, 2]


def test_a_tiny_share_is_not_written_as_nothing(
    tmp_path: Path, words: list[str]
) -> None:
    pyramid, corners = slide_of(tmp_path, 2, 1)
    top_patches(pyramid, selection_of(corners, [0.99995, 0.00005], 2))
    assert words[4] == "< 0.01 % of attention"


def test_what_lies_outside_the_slide_is_white(tmp_path: Path) -> None:
    pyramid, _ = slide_of(tmp_path, 1, 1)
    corners = np.array([[SIDE // 2, 0]], np.int64)
    pixels = np.asarray(top_patches(pyramid, selection_of(corners, [1.0], 1)))
    rows, columns = np.nonzero((pixels == colour_of(0)).all(axis=2))
    cell = columns > 12 + SIDE + 6  # right of the map, which is not enlarged
    assert np.ptp(rows[cell]) > 250
    # half of the patch, less what blends into the white when 16 px become 256
    assert 128 - 2 * 16 < np.ptp(columns[cell]) < 128


def test_a_large_patch_is_read_no_larger_than_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyramid, _ = slide_of(tmp_path, 40, 40)
    asked: list[object] = []
    read = Pyramid.read

    def noted(self: Pyramid, box: Box, mpp: float, size_px: tuple[int, int]) -> object:
        asked.append((box.w, mpp, size_px))
        return read(self, box, mpp, size_px)

    monkeypatch.setattr(Pyramid, "read", noted)
    one, rank = np.ones(1, np.float32), np.zeros(1, np.int64)
    grid = PatchGrid(np.zeros((1, 2), np.int64), 640, 640, 0.5, one)
    top_patches(pyramid, Selection(grid, one[:, None], np.ones(1), rank, rank < 1))
    assert (640, 1.25, (256, 256)) in asked


def test_a_slide_without_patches_says_so(tmp_path: Path, words: list[str]) -> None:
    pyramid, _ = slide_of(tmp_path, 3, 3)
    image = top_patches(pyramid, selection_of(np.empty((0, 2), np.int64), [], 4))
    assert words == ["No tissue, so there is no patch", ""]
    assert image.width > 300


@pytest.mark.parametrize("shape", [(12, 2), (2, 12)])
def test_the_sheet_stays_in_its_bounds_and_has_the_same_bytes_twice(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    pyramid, corners = slide_of(tmp_path, *shape)
    selection = selection_of(corners, [1 / 24] * 24, 24)
    for name in ("a.png", "b.png"):
        publish_picture(tmp_path / name, top_patches(pyramid, selection))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.width * image.height < 2100 * 1800
