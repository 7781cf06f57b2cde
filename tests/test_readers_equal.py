"""What the native reader and OpenSlide both open has the same pixels in both.

Where they differ, and why, is in `test_readers_differ`.
"""

from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecodecs.zarr import Jpeg as ZarrJpeg

from tests.tiff_files import Make, write_make
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.base import GivenScale
from wsi_pipeline.readers.openslide import open_with_openslide
from wsi_pipeline.readers.tiff import open_tiff
from wsi_pipeline.slide import Slide

RGB = {"tagged": "rgb", "inside": "rgb"}
LOSSLESS = {"tagged": "rgb", "codec": "lzw"}
HALVES = ((832, 640), (416, 320), (208, 160), (104, 80))
UNEVEN = ((801, 601), (400, 300), (267, 200), (100, 75))  # 2.003, 3.002, 8.01
APERIO = {"aperio": True, "tile": (240, 240), "thumbnail": True, "tables": "all"}

SAME = {
    "4:2:0": Make(),
    "4:2:2": Make(chroma="422"),
    "4:4:4": Make(chroma="444"),
    "quality-1": Make(quality=1),
    "quality-100": Make(quality=100, chroma="444"),
    "jfif": Make(marker="jfif"),
    "adobe-ycbcr": Make(marker="adobe"),
    "rgb-unmarked": Make(**RGB),
    "rgb-adobe": Make(**RGB, marker="adobe"),
    # the tag decides, not the JPEG: so do libtiff and OpenSlide
    "ycbcr-tag-over-rgb-adobe": Make(inside="rgb", marker="adobe"),
    "ycbcr-tag-over-rgb-unmarked": Make(inside="rgb"),
    "rgb-tag-over-ycbcr-unmarked": Make(tagged="rgb"),
    "rgb-tag-over-ycbcr-adobe": Make(tagged="rgb", marker="adobe"),
    "tables-4:2:0": Make(tables="all"),
    "tables-4:2:2": Make(tables="all", chroma="422", marker="jfif"),
    "tables-rgb": Make(tables="all", **RGB),
    "tables-huffman": Make(tables="huffman"),
    "tile-16": Make(tile=(16, 16)),
    "tile-48": Make(tile=(48, 48)),
    "tile-240": Make(tile=(240, 240)),
    "tile-512": Make(tile=(512, 512)),
    "tile-1024": Make(tile=(1024, 1024)),
    "tile-wide": Make(tile=(128, 64)),
    "whole-tiles": Make(sizes=((256, 192),)),
    "one-pixel-over": Make(sizes=((257, 193),)),
    "bigtiff": Make(bigtiff=True),
    "bigtiff-big-endian": Make(bigtiff=True, byteorder=">"),
    "halves": Make(sizes=HALVES),
    "uneven": Make(sizes=UNEVEN),
    "uneven-lzw": Make(sizes=UNEVEN, **LOSSLESS),
    "factor-3": Make(sizes=((900, 600), (300, 200), (100, 67))),
    "factors-4-and-2": Make(sizes=((1600, 800), (400, 200), (100, 50), (50, 25))),
    "aperio": Make(**APERIO, sizes=((1600, 800), (400, 200), (100, 50), (50, 25))),
    "aperio-rgb": Make(**APERIO, **RGB, sizes=UNEVEN),
    "aperio-without-thumbnail": Make(aperio=True, sizes=HALVES),
    "holes": Make(sizes=HALVES, holes=((0, 5), (1, 0), (3, 1))),
    "holes-lzw": Make(sizes=HALVES, **LOSSLESS, holes=((0, 0), (1, 3))),
    "aperio-hole": Make(aperio=True, holes=((0, 0), (0, 7))),
    "lzw": Make(**LOSSLESS),
    "lzw-predictor": Make(**LOSSLESS, predictor=True),
    "lzw-bigtiff-big-endian": Make(**LOSSLESS, bigtiff=True, byteorder=">"),
    "deflate": Make(tagged="rgb", codec="deflate", sizes=HALVES),
    "deflate-predictor": Make(tagged="rgb", codec="deflate", predictor=True),
    "packbits": Make(tagged="rgb", codec="packbits"),
    "uncompressed": Make(tagged="rgb", codec="none"),
    "planar": Make(**LOSSLESS, planar=True),
    **{f"turned-{n}-jpeg": Make(orientation=n) for n in range(1, 9)},
    "turned-1-lzw": Make(**LOSSLESS, orientation=1),
    "turned-5-lzw": Make(**LOSSLESS, orientation=5),
}


def open_both(path: Path) -> tuple[Slide, Slide]:
    """In both readers, whatever the colours look like (`open_slide` looks at them)."""
    scale = GivenScale(0.5)
    return open_tiff(path, scale), open_with_openslide(path, scale)


def path_of(folder: Path, make: Make) -> Path:
    return folder / ("slide.svs" if make.aperio else "slide.tif")


def random_box(slide: Slide, level: int, rng: np.random.Generator) -> Box:
    """Any box, half of it outside at times; on the pixels of a level."""
    w, h = slide.info.levels[level].size_px
    x, y = int(rng.integers(-w // 2, w + 9)), int(rng.integers(-h // 2, h + 9))
    box = Box(x, y, int(rng.integers(1, w)), int(rng.integers(1, h)))
    return box.scaled_up(slide.info.levels[level].downsample)


def whole_steps(slide: Slide, level: int) -> bool:
    """Whether a level's downsample is a whole number in OpenSlide too."""
    (w0, h0), (w, h) = slide.info.size_px, slide.info.levels[level].size_px
    return w0 % w == 0 and w0 // w * h == h0


def check_pixels(native: Slide, other: Slide, seed: int, boxes: int) -> None:
    assert native.info.levels == other.info.levels
    rng = np.random.default_rng(seed)
    for level in range(len(native.info.levels)):
        mine = native.read_planes(native.info.box, level)
        assert np.array_equal(mine, other.read_planes(other.info.box, level))
        for _ in range(boxes if whole_steps(native, level) else 0):
            box = random_box(native, level, rng)
            mine = native.read_planes(box, level)
            assert np.array_equal(mine, other.read_planes(box, level))


def check_tiles(slide: Slide) -> None:
    """Each tile that is copied says, through Zarr's codec, what was read."""
    jpeg = slide.info.jpeg
    if jpeg is None:
        return
    planes, tiles = slide.read_jpeg(slide.info.box)
    assert np.array_equal(planes, slide.read_planes(slide.info.box))
    codec = ZarrJpeg(
        colorspace_data="RGB", colorspace_jpeg=jpeg.colour, tables=jpeg.tables
    )
    places = list(slide.info.box.blocks(jpeg.side_px))
    for place, data in zip(places, tiles, strict=True):
        part = planes[:, place.rows, place.columns]
        if data is None:
            assert np.all(part == 255)
            continue
        decoded = imagecodecs.jpeg8_decode(
            data,
            tables=codec.tables,
            colorspace=codec.colorspace_jpeg,
            outcolorspace=codec.colorspace_data,
        )
        assert decoded.shape == (jpeg.side_px, jpeg.side_px, 3)
        cut = decoded[: place.h, : place.w].transpose(2, 0, 1)
        assert np.array_equal(cut, part)


@pytest.mark.parametrize("name", SAME)
def test_the_same_pixels_in_both(tmp_path: Path, name: str) -> None:
    make = SAME[name]
    path = path_of(tmp_path, make)
    levels = write_make(path, make)
    native, other = open_both(path)
    check_pixels(native, other, seed=len(name), boxes=6)
    check_tiles(native)
    sizes = [level.size_px for level in native.info.levels]
    assert sizes == list(make.sizes)
    if make.codec != "jpeg" and not make.holes:
        for number, level in enumerate(levels):
            w, h = sizes[number]
            read = native.read(native.info.box, number)[:h, :w]
            assert np.array_equal(read, level)


def test_copied_tiles_are_the_tiles_but_holes_and_foreign_ones(tmp_path: Path) -> None:
    make = Make(sizes=((256, 64),), holes=((0, 2),))
    write_make(tmp_path / "a.tif", make)
    slide = open_slide(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages[0]
        places = zip(page.dataoffsets, page.databytecounts, strict=True)
        data = (tmp_path / "a.tif").read_bytes()
        wanted = [data[start : start + count] or None for start, count in places]
    assert slide.read_jpeg(slide.info.box)[1] == wanted
    assert [tile is None for tile in wanted] == [False, False, True, False]


MAKES = st.builds(
    Make,
    sizes=st.tuples(st.tuples(st.integers(33, 300), st.integers(33, 300))),
    tile=st.sampled_from([(16, 16), (64, 64), (80, 80), (240, 240), (256, 128)]),
    codec=st.sampled_from(["jpeg", "jpeg", "jpeg", "lzw", "deflate", "none"]),
    chroma=st.sampled_from(["444", "422", "420"]),
    inside=st.sampled_from(["rgb", "ycbcr"]),
    tagged=st.sampled_from(["rgb", "ycbcr"]),
    marker=st.sampled_from(["", "adobe", "jfif"]),
    quality=st.integers(1, 100),
    tables=st.sampled_from(["", "all", "huffman"]),
    predictor=st.booleans(),
    bigtiff=st.booleans(),
    orientation=st.integers(0, 8),
    aperio=st.booleans(),
    holes=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 400)), max_size=4, unique=True
    ).map(tuple),
)


def sensible(make: Make, ratios: list[float]) -> Make:
    """The make without what `test_readers_differ` lists, and with levels."""
    sizes = [make.sizes[0]]
    for ratio in ratios:
        w, h = (max(1, round(side / ratio)) for side in sizes[-1])
        if min(w, h) >= 8:
            sizes.append((w, h))
    if make.codec != "jpeg":
        plain = make.codec == "none"
        make = replace(make, tagged="rgb", orientation=0)
        # of other tiles tifffile writes byte counts that libtiff does not take
        make = replace(make, predictor=False, tile=(64, 64)) if plain else make
    else:
        make = replace(make, predictor=False)
        if make.tagged == "rgb" and make.marker == "jfif":
            make = replace(make, marker="")
        if make.tile[0] != make.tile[1]:
            make = replace(make, inside=make.tagged)
    return replace(make, sizes=tuple(sizes), holes=possible_holes(make, sizes))


def possible_holes(
    make: Make, sizes: list[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """The holes that there can be; none in Aperio's pyramids, which OpenSlide fills."""
    if make.aperio and len(sizes) > 1:
        return ()
    tw, th = make.tile
    tiles = [-(-w // tw) * -(-h // th) for w, h in sizes]
    return tuple((lv, t) for lv, t in make.holes if lv < len(tiles) and t < tiles[lv])


RATIOS = st.lists(st.sampled_from([2, 4, 3, 1.7, 2.2]), max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("makes")


@settings(max_examples=150)
@given(make=MAKES, ratios=RATIOS, seed=st.integers(0, 99))
def test_any_make_has_the_same_pixels_in_both(
    folder: Path, make: Make, ratios: list[float], seed: int
) -> None:
    check_any(folder, sensible(make, ratios), seed)


@pytest.mark.slow
@settings(max_examples=4000)
@given(make=MAKES, ratios=RATIOS, seed=st.integers(0, 10**6))
def test_very_many_makes_have_the_same_pixels_in_both(
    folder: Path, make: Make, ratios: list[float], seed: int
) -> None:
    check_any(folder, sensible(make, ratios), seed)


def check_any(folder: Path, make: Make, seed: int) -> None:
    path = path_of(folder, make)
    write_make(path, make, seed)
    native, other = open_both(path)
    check_pixels(native, other, seed, boxes=3)
    check_tiles(native)
