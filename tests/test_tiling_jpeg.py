"""Copying the JPEG tiles of a slide into a pyramid, and what to do where it fails."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import google_crc32c
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tests.slides import NumberSlide
from tests.test_tiling import plain_halve
from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ConfigError, ExportError, PyramidError
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout
from wsi_pipeline.readers.base import GivenScale
from wsi_pipeline.readers.tiff import TiffSlideReader, open_tiff
from wsi_pipeline.shards import BlockLevel
from wsi_pipeline.slide import JpegTiles
from wsi_pipeline.tiling import halve, tile_slide
from wsi_pipeline.tiling.planning import check_room, forecast_bytes, plan_tiling

COPY = TileOptions(codec="jpeg", block_px=1024, workers=2, target_mpp="native")


def picture(w: int, h: int) -> np.ndarray:
    """Smooth colours with a little noise, as JPEG likes them."""
    y, x = np.mgrid[:h, :w]
    noise = np.random.default_rng(1).integers(0, 12, (h, w, 3))
    waves = [np.sin(x / 17), np.cos(y / 23), np.sin((x + y) / 29)]
    smooth = np.stack([170 + 60 * wave for wave in waves], axis=-1)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def slide_of(
    path: Path, w: int, h: int, tile: int = 256, holes: tuple[int, ...] = (), **how
) -> TiffSlideReader:
    """A JPEG TIFF; the tiles in `holes` have no bytes, as scanners leave glass out."""
    tifffile.imwrite(path, picture(w, h), tile=(tile, tile), compression="jpeg", **how)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        counts = [0 if i in holes else n for i, n in enumerate(tag.value)]
        tag.overwrite(counts)
    return open_tiff(path, GivenScale(0.5))


def coded(colours: str, subsampling: tuple[int, int] = (1, 1)) -> dict:
    """How tifffile stores RGB pixels as JPEG of a colour space."""
    return {
        "photometric": "rgb",
        "subsampling": subsampling,
        "compressionargs": {"level": 85, "outcolorspace": colours},
    }


YCBCR = coded("ycbcr", (2, 2))
KINDS = [
    pytest.param(YCBCR, id="4:2:0"),
    pytest.param(coded("ycbcr", (2, 1)), id="4:2:2"),
    pytest.param(coded("ycbcr"), id="4:4:4"),
    pytest.param(coded("rgb"), id="rgb"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [240, 256, 512])
def test_copied_tiles_read_as_the_reader_reads_them(tmp_path, kind, tile):
    slide = slide_of(tmp_path / "s.tif", 1501, 1207, tile, **kind)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", COPY)
    found = pyramid.read_level(pyramid.levels[0].box, 0)
    np.testing.assert_array_equal(found, slide.read_planes(slide.info.box))
    array = zarr.open_array(pyramid.path / "0", mode="r")
    assert array.chunks == (3, tile, tile)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_level_0_are_the_bytes_of_the_slide(tmp_path, kind):
    slide = slide_of(tmp_path / "s.tif", 1000, 700, **kind)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", COPY)
    shard = (pyramid.path / "0" / "c" / "0" / "0" / "0").read_bytes()
    index = np.frombuffer(shard[-(16 * 16 + 4) : -4], "<u8").reshape(4, 4, 2)
    _, tiles = slide.read_jpeg(Box(0, 0, 1000, 700))
    assert len(tiles) == 12
    for number, tile in enumerate(tiles):
        start, count = map(int, index[number // 4, number % 4])
        assert shard[start : start + count] == tile + crc32c(tile)
    sizes = slide.stored_bytes(slide.info.box)
    assert sizes == sum(map(len, tiles))
    assert len(shard) == sizes + 12 * 4 + 16 * 16 + 4
    # a place behind the image's edge is marked as empty
    assert (index[3] == 2**64 - 1).all()


def crc32c(data: bytes) -> bytes:
    return google_crc32c.value(data).to_bytes(4, "little")


def test_tables_that_the_tiles_leave_out_are_kept_once(tmp_path):
    path = tmp_path / "s.tif"
    whole = picture(512, 512)
    blocks = [
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(whole[y : y + 256, x : x + 256]), level=80
        )
        for y in (0, 256)
        for x in (0, 256)
    ]
    tables, short = abbreviate(blocks)
    tifffile.imwrite(
        path,
        iter(short),
        shape=whole.shape,
        dtype=np.uint8,
        tile=(256, 256),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(2, 2),
        extratags=[(347, 7, len(tables), tables, True)],
    )
    slide = open_tiff(path, GivenScale(0.5))
    assert slide.info.jpeg.tables == tables
    pyramid = tile_slide(slide, tmp_path / "a.zarr", COPY)
    found = pyramid.read_level(pyramid.levels[0].box, 0)
    np.testing.assert_array_equal(found, slide.read_planes(slide.info.box))
    decoded = [imagecodecs.jpeg8_decode(block) for block in blocks]
    np.testing.assert_array_equal(found[:, :256, :256], decoded[0].transpose(2, 0, 1))


def abbreviate(blocks: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Move the DQT and DHT segments of equal JPEGs into a tables-only stream."""
    tables, short = b"", []
    for block in blocks:
        place, kept, moved = 2, b"\xff\xd8", b"\xff\xd8"
        while block[place + 1] != 0xDA:
            size = 2 + int.from_bytes(block[place + 2 : place + 4], "big")
            segment = block[place : place + size]
            if segment[1] in (0xDB, 0xC4):
                moved += segment
            else:
                kept += segment
            place += size
        tables = moved + b"\xff\xd9"
        short.append(kept + block[place:])
    return tables, short


def test_tiles_without_bytes_are_white_and_the_rest_is_copied(tmp_path):
    slide = slide_of(tmp_path / "s.tif", 1000, 700, holes=(0, 6), **YCBCR)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", COPY)
    found = pyramid.read_level(pyramid.levels[0].box, 0)
    np.testing.assert_array_equal(found, slide.read_planes(slide.info.box))
    assert (found[:, :256, :256] == 255).all()
    assert (found[:, 256:512, 512:768] == 255).all()


def test_coarser_levels_are_near_the_exact_means(tmp_path):
    slide = slide_of(tmp_path / "s.tif", 1500, 1200, **YCBCR)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", COPY)
    exact = slide.read(slide.info.box)
    for index in range(1, len(pyramid.levels)):
        exact = plain_halve(exact)
        found = pyramid.read_level(pyramid.levels[index].box, index)
        error = np.abs(found.transpose(1, 2, 0).astype(int) - exact)
        assert error.mean() < 3.0  # quality 80 rounds to about 2 of 255


def test_quality_decides_the_size_of_coarser_levels(tmp_path):
    slide = slide_of(tmp_path / "s.tif", 1500, 1200, **YCBCR)
    sizes = []
    for quality in (40, 95):
        options = COPY.model_copy(update={"jpeg_quality": quality})
        pyramid = tile_slide(slide, tmp_path / f"{quality}.zarr", options)
        files = (pyramid.path / "1").rglob("*")
        sizes.append(sum(f.stat().st_size for f in files if f.is_file()))
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_mpp": 1.0}, "base is 2 times coarser"),
        ({"chunk_px": 128}, "its tiles have 256 px, chunk_px asks for 128"),
    ],
)
def test_what_cannot_be_copied_is_encoded_anew_and_said(
    tmp_path, caplog, change, reason
):
    slide = slide_of(tmp_path / "s.tif", 1500, 1200, **YCBCR)
    options = COPY.model_copy(update=change)
    with caplog.at_level(logging.INFO, "wsi_pipeline"):
        pyramid = tile_slide(slide, tmp_path / "a.zarr", options)
    assert reason in caplog.text
    assert "encoded anew as JPEG of quality 80" in caplog.text
    base = slide.read(slide.info.box)
    if pyramid.levels[0].downsample == 2:
        base = plain_halve(base)
    found = pyramid.read_level(pyramid.levels[0].box, 0).transpose(1, 2, 0)
    assert np.abs(found.astype(int) - base).mean() < 3.0


def test_a_slide_without_jpeg_tiles_is_encoded_anew(tmp_path, caplog):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, picture(600, 600), tile=(256, 256), compression="zlib")
    with caplog.at_level(logging.INFO, "wsi_pipeline"):
        tile_slide(open_tiff(path, GivenScale(0.5)), tmp_path / "a.zarr", COPY)
    assert "tiles cannot be copied (adobe_deflate compression" in caplog.text


def test_a_damaged_tile_is_not_copied(tmp_path):
    path = tmp_path / "s.tif"
    slide = slide_of(path, 1000, 700, **YCBCR)
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(data)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", COPY)
    assert pyramid.unreadable == (Box(256, 256, 256, 256),)
    shard = pyramid.path / "0" / "c" / "0" / "0" / "0"
    assert bytes(count) not in shard.read_bytes()


def test_jpeg_chunks_do_not_go_into_ome_zarr_04():
    with pytest.raises(ConfigError, match=r"codec jpeg and chunk_px belong to 0\.5"):
        TileOptions(codec="jpeg", ome_zarr="0.4")


def size_of(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    "options",
    [
        COPY,
        TileOptions(block_px=1024, target_mpp="native"),
        TileOptions(block_px=1024, target_mpp=1.0),
        TileOptions(block_px=1024, target_mpp="native", ome_zarr="0.4"),
        COPY.model_copy(update={"chunk_px": 128}),
    ],
    ids=["copied", "zstd", "coarser", "0.4", "jpeg"],
)
def test_the_forecast_is_near_what_is_written(tmp_path, options):
    half = picture(2400, 2000)
    half[:, :1300] = 250  # glass takes little
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, half, tile=(256, 256), compression="jpeg", **YCBCR)
    slide = open_tiff(path, GivenScale(0.5))
    plan = plan_tiling(slide.info, options)
    forecast = forecast_bytes(slide, plan)
    written = size_of(tile_slide(slide, tmp_path / "a.zarr", options).path)
    assert forecast == pytest.approx(written, rel=0.25)


def test_a_disk_that_is_too_small_is_refused_before_work_starts(tmp_path, monkeypatch):
    check_room(tmp_path / "a.zarr", 10)
    slide = slide_of(tmp_path / "s.tif", 1500, 1200, **YCBCR)
    forecast = forecast_bytes(slide, plan_tiling(slide.info, COPY))
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: type("Usage", (), {"free": forecast - 1})
    )
    seen = []
    with pytest.raises(ExportError, match=r"--target-mpp.*--codec jpeg"):
        tile_slide(
            slide, tmp_path / "a.zarr", COPY, progress=lambda *done: seen.append(done)
        )
    assert seen == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tif"]


def test_a_picture_of_a_copied_pyramid_looks_like_the_slide(tmp_path):
    slide = slide_of(tmp_path / "s.tif", 900, 700, **YCBCR)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", COPY)
    found = pyramid.read(Box(0, 0, 900, 700), 2.0)
    wanted = np.asarray(Image.fromarray(picture(900, 700)).resize((225, 175), 4))
    assert np.abs(found.transpose(1, 2, 0).astype(int) - wanted).mean() < 4


@pytest.mark.parametrize("side", [255, 4096])
def test_tiles_that_make_no_chunks_are_not_copied(side):
    info = replace(NumberSlide.of(5000, 5000).info, jpeg=JpegTiles(side, "RGB", None))
    plan = plan_tiling(info, COPY)
    assert plan.layout.base_codec is None
    assert f"its tiles have {side} px" in plan.note


def test_half_of_another_size_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        halve(np.zeros((3, 8, 8), np.uint8), np.zeros((3, 4, 5), np.uint8))


def share_of(folder: Path, disk: ThreadPoolExecutor) -> BlockLevel:
    layout = Layout(chunk_px=64, block_px=128)
    return BlockLevel(folder, layout, 0, Box(0, 0, 100, 100), disk)


def test_a_shard_that_lacks_a_chunk_is_not_finished(tmp_path):
    with (
        ThreadPoolExecutor(1) as disk,
        pytest.raises(PyramidError, match="1 chunks were not written"),
        share_of(tmp_path, disk) as share,
    ):
        for corner in ((0, 0), (64, 0), (0, 64)):
            share.put(*corner, np.zeros((3, 36, 36), np.uint8))


def test_a_level_that_is_not_there_is_not_made(tmp_path):
    """A worker on another machine would keep its shards to itself."""
    with (
        ThreadPoolExecutor(1) as disk,
        pytest.raises(FileNotFoundError, match="worker cannot see it"),
        share_of(tmp_path / "0", disk),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
