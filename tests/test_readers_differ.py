"""Where OpenSlide gives other pixels than the native reader, why, and who is right."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from tests.test_readers_equal import (
    HALVES,
    LOSSLESS,
    RGB,
    UNEVEN,
    check_pixels,
    check_tiles,
    open_both,
)
from tests.tiff_files import HALF_UM, Make, Pixels, tissue_like, write_make
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import choose_backends, open_slide


def test_levels_of_uneven_ratio_are_interpolated_by_openslide(tmp_path: Path) -> None:
    """OpenSlide takes corners in level-0 pixels: no corner of such a level is whole.

    It is off by at most half a level-0 pixel, and each pixel is a mean of neighbours;
    the native reader gives the pixels as they are stored.
    """
    write_make(tmp_path / "a.tif", Make(sizes=UNEVEN, **LOSSLESS))
    native, other = open_both(tmp_path / "a.tif")
    rng = np.random.default_rng(0)
    different = 0
    for level in (1, 2, 3):
        w, h = native.info.levels[level].size_px
        whole = native.read(native.info.box, level)[:h, :w]
        square = np.ones((3, 3), np.uint8)
        low, high = cv2.erode(whole, square), cv2.dilate(whole, square)
        for _ in range(20):
            x, y = int(rng.integers(1, w - 5)), int(rng.integers(1, h - 5))
            box = Box(x, y, int(rng.integers(1, w - x)), int(rng.integers(1, h - y)))
            area = box.scaled_up(native.info.levels[level].downsample)
            mine, theirs = native.read(area, level), other.read(area, level)
            part = np.s_[box.y : box.bottom, box.x : box.right]
            assert np.array_equal(mine, whole[part])
            assert np.all(theirs >= np.maximum(low[part], 1) - 1)  # 1: rounding
            assert np.all(theirs <= np.minimum(high[part], 254) + 1)
            different += not np.array_equal(mine, theirs)
    assert different > 40


@pytest.mark.parametrize("inside", ["rgb", "ycbcr"])
def test_tiles_marked_jfif_are_ycbcr_where_the_tag_says_rgb(
    tmp_path: Path, inside: str
) -> None:
    """Bio-Formats and QuPath export such files, and JFIF means YCbCr.

    OpenSlide goes by the tag and shows false colours, which the warning says.
    """
    write_make(tmp_path / "a.tif", Make(tagged="rgb", inside=inside, marker="jfif"))
    write_make(tmp_path / "b.tif", Make(tagged="ycbcr", inside=inside))
    write_make(tmp_path / "c.tif", Make(tagged="rgb", inside=inside))
    native, other = open_both(tmp_path / "a.tif")
    box = native.info.box
    assert np.array_equal(native.read(box), open_both(tmp_path / "b.tif")[1].read(box))
    assert np.array_equal(other.read(box), open_both(tmp_path / "c.tif")[1].read(box))
    check_tiles(native)
    assert (
        native.info.warnings
        == other.info.warnings
        == (
            "says that its colours are RGB, its JPEG tiles (JFIF) that they are YCbCr; "
            "YCbCr is taken, viewers that use OpenSlide show false colours",
        )
    )


def test_the_first_tile_with_bytes_says_whether_tiles_are_jfif(tmp_path: Path) -> None:
    make = Make(tagged="rgb", marker="jfif")
    write_make(tmp_path / "whole.tif", make)
    write_make(tmp_path / "holes.tif", replace(make, holes=((0, 0), (0, 1))))
    box = Box(0, 64, 330, 186)
    whole, holes = (open_both(tmp_path / f"{n}.tif")[0] for n in ("whole", "holes"))
    assert np.array_equal(whole.read(box), holes.read(box))


def test_tiles_that_are_not_square_believe_their_own_marker(tmp_path: Path) -> None:
    """They go through tifffile, which asks the JPEG; OpenSlide asks the TIFF.

    Only where the two contradict each other: no scanner is known that writes such.
    """
    make = Make(tile=(128, 64), inside="rgb", marker="adobe")
    write_make(tmp_path / "a.tif", make)
    write_make(tmp_path / "b.tif", replace(make, tagged="rgb"))
    native, other = open_both(tmp_path / "a.tif")
    right = open_both(tmp_path / "b.tif")[1].read(native.info.box)
    assert np.array_equal(native.read(native.info.box), right)
    assert not np.array_equal(other.read(native.info.box), right)


@pytest.mark.parametrize("codec", ["jpeg", "lzw"])
def test_openslide_knows_no_big_endian_tiff_but_bigtiff(
    tmp_path: Path, codec: str
) -> None:
    make = Make(sizes=HALVES, codec=codec, **RGB)
    write_make(tmp_path / "little.tif", make)
    write_make(tmp_path / "big.tif", replace(make, byteorder=">"))
    head = (tmp_path / "big.tif").read_bytes()[:512]
    assert choose_backends(tmp_path / "big.tif", head) == ("tiff",)
    with pytest.raises(SlideError, match="no slide format that this program knows"):
        open_both(tmp_path / "big.tif")
    little = open_slide(tmp_path / "little.tif")
    big = open_slide(tmp_path / "big.tif")
    assert big.info.levels == little.info.levels
    for level in range(4):
        mine = big.read(big.info.box, level)
        assert np.array_equal(mine, little.read(big.info.box, level))


# what libtiff does inside each tile
TURNS = {2: np.s_[:, ::-1], 3: np.s_[::-1, ::-1], 4: np.s_[::-1]}
TURNS |= {6: TURNS[2], 7: TURNS[3], 8: TURNS[4]}


@pytest.mark.parametrize("orientation", TURNS)
def test_turned_tiles_of_other_codecs_are_torn_by_openslide(
    tmp_path: Path, orientation: int
) -> None:
    """libtiff turns each tile in its place: no reading of the tag means that.

    Read as stored, as JPEG files are by both; refused with OpenSlide.
    """
    path = tmp_path / "turned.tif"
    make = Make(sizes=((256, 128),), **LOSSLESS, orientation=orientation)
    (image,) = write_make(path, make)
    slide = open_slide(path)
    assert slide.info.backend == "tiff"
    assert np.array_equal(slide.read(slide.info.box), image)
    assert slide.info.warnings == (
        f"is stored turned or mirrored (TIFF orientation {orientation}) and read as it "
        "is stored; viewers that use OpenSlide mirror each of its tiles",
    )
    with openslide.OpenSlide(path) as torn:
        for box in slide.info.box.blocks(64):
            region = torn.read_region((box.x, box.y), 0, (box.w, box.h))
            tile = image[box.rows, box.columns]
            assert np.array_equal(np.asarray(region)[..., :3], tile[TURNS[orientation]])
    with pytest.raises(SlideError, match=r"mirrors each of its tiles; open it with"):
        open_slide(path, backend="openslide")


@pytest.mark.parametrize("orientation", range(10))
def test_a_turned_jpeg_slide_is_read_as_openslide_shows_it(
    tmp_path: Path, orientation: int
) -> None:
    write_make(tmp_path / "a.tif", Make())
    write_make(tmp_path / "b.tif", Make(orientation=orientation))
    upright, turned = (open_slide(tmp_path / name) for name in ("a.tif", "b.tif"))
    assert np.array_equal(upright.read(upright.info.box), turned.read(turned.info.box))
    wanted = (
        f"is stored turned or mirrored (TIFF orientation {orientation}) and read as it "
        "is stored; viewers that use OpenSlide show it so too",
    )
    for slide in open_both(tmp_path / "b.tif"):
        assert slide.info.warnings == (wanted if 2 <= orientation <= 8 else ())


def write_fourth(path: Path, kind: int, image: Pixels, fourth: Pixels) -> None:
    tifffile.imwrite(
        path,
        np.dstack([image, fourth]),
        photometric="rgb",
        extrasamples=[kind],
        tile=(64, 64),
        metadata=None,
        **HALF_UM,
    )


@pytest.mark.parametrize("kind", [1, 2])
def test_alpha_is_laid_on_white_in_both(tmp_path: Path, kind: int) -> None:
    image = tissue_like(200, 150)
    alpha = np.random.default_rng(0).integers(0, 256, (150, 200), np.uint8)
    if kind == 1:  # multiplied
        image = (image.astype(int) * alpha[..., None] // 255).astype(np.uint8)
    write_fourth(tmp_path / "a.tif", kind, image, alpha)
    native, other = open_both(tmp_path / "a.tif")
    check_pixels(native, other, seed=0, boxes=9)


def test_a_fourth_sample_of_no_kind_is_left_out(tmp_path: Path) -> None:
    """TIFF 6.0, ExtraSamples 0: unspecified. OpenSlide's libtiff guesses alpha."""
    image = tissue_like(200, 150)
    fourth = np.full((150, 200), 255, np.uint8)
    write_fourth(tmp_path / "full.tif", 0, image, fourth)
    check_pixels(*open_both(tmp_path / "full.tif"), seed=0, boxes=2)
    write_fourth(tmp_path / "half.tif", 0, image, fourth // 2)
    native, other = open_both(tmp_path / "half.tif")
    assert np.array_equal(native.read(native.info.box), image)
    assert other.read(native.info.box).min() > image.min() + 100


@pytest.mark.parametrize("hole", [(0, 3), (1, 1)])
def test_aperio_pyramids_with_holes_go_to_openslide(
    tmp_path: Path, hole: tuple[int, int]
) -> None:
    """It fills a hole from the level below, and mistrusts the tile above a hole.

    The native reader would show white, or that tile.
    """
    path = tmp_path / "a.svs"
    sizes = ((512, 384), (256, 192))
    write_make(path, Make(aperio=True, sizes=sizes, holes=(hole,)))
    slide = open_slide(path)
    assert slide.info.backend == "openslide"
    native, other = open_both(path)
    mine, theirs = (s.read(native.info.box, 1) for s in (native, other))
    differs = np.any(mine != theirs, axis=-1)
    tile = Box(64, 0, 64, 64)
    assert differs[tile.rows, tile.columns].mean() > 0.9
    differs[tile.rows, tile.columns] = False
    assert not differs.any()
    under = slide.read(Box(128, 0, 128, 128)).astype(int)
    if hole[0] == 0:
        assert np.all(under[:64, 64:] == 255)
    reduced = under.reshape(64, 2, 64, 2, 3).mean((1, 3))
    # interpolated, not averaged: the noise of two pixels is left
    assert np.abs(theirs[tile.rows, tile.columns] - reduced)[4:-4, 4:-4].mean() < 20


@pytest.mark.parametrize("lost", [b"\0", b"\xff", b""])
def test_a_tile_that_is_cut_short_fails_in_both(tmp_path: Path, lost: bytes) -> None:
    path = tmp_path / "cut.tif"
    write_make(path, Make())
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        start, count = page.dataoffsets[4], page.databytecounts[4]
        if not lost:
            counts = list(page.tags["TileByteCounts"].value)
            counts[4] = count - 200
            page.tags["TileByteCounts"].overwrite(counts)
    with path.open("r+b") as file:
        file.seek(start + count - 200)
        file.write(lost * 200)
    for slide in open_both(path):
        slide.read(Box(0, 0, 256, 64))
        with pytest.raises(SlideError, match="cannot be read at level 0"):
            slide.read(Box(256, 0, 64, 64))


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0\0\0", b"\xff"])
def test_a_tile_without_an_end_marker_is_read(tmp_path: Path, padding: bytes) -> None:
    path = tmp_path / "endless.tif"
    write_make(path, Make())
    wanted = open_slide(path).read(Box(0, 0, 330, 250))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for start, count in places:
            file.seek(start + count - 2)
            file.write((padding + b"\0\0")[:2])
    assert np.array_equal(open_slide(path).read(Box(0, 0, 330, 250)), wanted)
