import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from ome_zarr_models.v04 import Image as ImageV04
from ome_zarr_models.v05 import Image

from tests.servers import local_client
from tests.slides import NumberSlide
from wsi_pipeline import arrays, tiling
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.cluster import processes
from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ExportError, PyramidError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid, Pyramid, open_pyramid
from wsi_pipeline.tiling import base_downsample, halve, plan_tiling, tile_slide

SMALL = TileOptions(block_px=1024, chunk_px=256, workers=2)


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def plain_halve(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[:2]
    p = np.pad(pixels.astype(int), ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    total = p[0::2, 0::2] + p[1::2, 0::2] + p[0::2, 1::2] + p[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_halving_is_the_rounded_mean_of_each_two_by_two(h, w, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    found = halve(np.ascontiguousarray(pixels.transpose(2, 0, 1))).transpose(1, 2, 0)
    np.testing.assert_array_equal(found, plain_halve(pixels))


def test_every_level_is_the_halved_level_below(tmp_path):
    slide = NumberSlide.of(5001, 2307)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", SMALL)
    expected = slide.read(slide.info.box)
    for index, level in enumerate(pyramid.levels):
        found = pyramid.read_level(level.box, index).transpose(1, 2, 0)
        np.testing.assert_array_equal(found, expected)
        assert level.downsample == 2**index
        expected = plain_halve(expected)
    assert [level.size_px for level in pyramid.levels] == [
        (5001, 2307), (2501, 1154), (1251, 577), (626, 289), (313, 145),
    ]  # fmt: skip


def test_base_follows_the_wanted_scale(tmp_path):
    slide = NumberSlide.of(900, 700)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", SMALL, base_mpp=1.1)
    base = pyramid.read_level(pyramid.levels[0].box, 0).transpose(1, 2, 0)
    np.testing.assert_array_equal(base, plain_halve(slide.read(slide.info.box)))
    assert pyramid.scale.x == 1.0


@pytest.mark.parametrize(
    ("mpp", "target", "base"),
    [(0.25, 1.0, 4), (0.252, 1.0, 4), (0.26, 1.0, 2), (1.2, 1.0, 1), (0.5, None, 1)],
)
def test_base_is_the_coarsest_power_of_two_not_coarser_than_wanted(mpp, target, base):
    assert base_downsample(mpp, target) == base


def test_native_keeps_level_0_whatever_the_model_needs(tmp_path):
    options = SMALL.model_copy(update={"target_mpp": "native"})
    pyramid = tile_slide(NumberSlide.of(300, 300), tmp_path / "a", options, base_mpp=8)
    assert pyramid.levels[0].downsample == 1


def test_bytes_do_not_depend_on_scheduler_or_workers(tmp_path):
    slide = NumberSlide.of(2600, 1900)
    one = SMALL.model_copy(update={"workers": 1})
    threads = tile_slide(slide, tmp_path / "threads.zarr", SMALL)
    single = tile_slide(slide, tmp_path / "single.zarr", one)
    with local_client(2) as client:
        cluster = tile_slide(slide, tmp_path / "cluster.zarr", SMALL, pool=client)
    with processes(2) as pool:
        apart = tile_slide(slide, tmp_path / "processes.zarr", SMALL, pool=pool)
    folders = (threads, single, cluster, apart)
    assert len({digest(folder.path) for folder in folders}) == 1


def test_ome_zarr_models_accepts_the_pyramid(tmp_path):
    pyramid = tile_slide(NumberSlide.of(1500, 800), tmp_path / "a.zarr", SMALL)
    image = Image.from_zarr(zarr.open_group(pyramid.path, mode="r"))
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == list(
        "cyx"
    )
    axis = image.attributes.ome.multiscales[0].axes[1]
    assert axis.unit == "micrometer"
    assert [c["label"] for c in image.attributes.ome.omero["channels"]] == [
        "Red", "Green", "Blue",
    ]  # fmt: skip
    array = zarr.open_array(pyramid.path / "0", mode="r")
    assert array.shards == (3, 1024, 1024)
    assert array.chunks == (3, 256, 256)
    assert "checksum=True" in str(array.compressors)


def test_nothing_appears_when_a_block_cannot_be_read(tmp_path):
    slide = NumberSlide.of(2000, 2000, broken=Box(1500, 1500, 1, 1))
    with pytest.raises(SlideError, match="damaged"):
        tile_slide(slide, tmp_path / "a.zarr", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="choose another"):
        tile_slide(NumberSlide.of(10, 10), tmp_path / "file" / "a.zarr", SMALL)


def test_a_lost_chunk_raises_instead_of_reading_black(tmp_path):
    pyramid = tile_slide(NumberSlide.of(1500, 800), tmp_path / "a.zarr", SMALL)
    (pyramid.path / "0" / "c" / "0" / "0" / "1").unlink()
    with pytest.raises(PyramidError, match="damaged"):
        pyramid.read_level(Box(1000, 0, 100, 100), 0)


def test_a_zarr_that_takes_lost_chunks_for_background_is_refused(tmp_path, monkeypatch):
    pyramid = tile_slide(NumberSlide.of(300, 200), tmp_path / "a.zarr", SMALL)
    monkeypatch.setattr(arrays, "STRICT", {"write_empty_chunks": True})
    with pytest.raises(PyramidError, match="reads lost chunks"):
        pyramid.array(0)


def test_a_flipped_bit_raises(tmp_path):
    pyramid = tile_slide(NumberSlide.of(600, 300), tmp_path / "a.zarr", SMALL)
    shard = pyramid.path / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 4
    shard.write_bytes(data)
    with pytest.raises(PyramidError, match="damaged"):
        pyramid.read_level(Box(0, 0, 256, 256), 0)


def test_half_a_shard_is_refused(tmp_path):
    pyramid = tile_slide(NumberSlide.of(3000, 3000), tmp_path / "a.zarr", SMALL)
    with pytest.raises(PyramidError, match="shard borders"):
        pyramid.put(0, Box(0, 0, 512, 1024), np.zeros((3, 1024, 512), np.uint8))


def test_progress_counts_every_block_once(tmp_path):
    seen = []
    tile_slide(
        NumberSlide.of(3000, 2000),
        tmp_path / "a.zarr",
        SMALL,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


def test_read_at_a_scale_resamples_and_pads_with_white(tmp_path):
    pyramid = tile_slide(NumberSlide.of(1000, 1000), tmp_path / "a.zarr", SMALL)
    assert open_pyramid(pyramid.path).scale == pyramid.scale
    native = pyramid.read(Box(100, 200, 64, 32), 0.5)
    np.testing.assert_array_equal(
        native.transpose(1, 2, 0),
        NumberSlide.of(1000, 1000).read(Box(100, 200, 64, 32)),
    )
    assert pyramid.read(Box(0, 0, 159, 159), 0.62, (128, 128)).shape == (3, 128, 128)
    assert (pyramid.read(Box(2000, 2000, 64, 64), 1.0) == 255).all()


def test_16_gigapixels_take_fewer_than_20_000_tasks(tmp_path):
    info = NumberSlide.of(128_000, 128_000).info
    options = TileOptions(target_mpp="native")
    layout = plan_tiling(info, options).layout
    source = Source("16 GP", info.size_px, info.scale, "test", info.box)
    pyramid = Pyramid.create(tmp_path / "a.zarr", source, 1, layout)
    tasks = sum(len(blocks) for _, blocks in tiling._rounds(pyramid, layout))
    assert tasks == 32 * 32 + 2 * 2 + 1


def test_a_chunk_is_whole_tiles_of_the_slide():
    found = {}
    for tile in [(256, 256), (240, 240), (512, 512), (1000, 1000), (1024, 1024),
                 (256, 512), (3000, 16)]:  # fmt: skip
        info = replace(NumberSlide.of(5000, 5000).info, tile_px=tile)
        layout = plan_tiling(info, TileOptions()).layout
        found[tile] = (layout.chunk_px, layout.block_px)
    assert found == {
        (256, 256): (512, 4096),
        (240, 240): (480, 3840),
        (512, 512): (512, 4096),
        (1000, 1000): (1000, 4000),
        (1024, 1024): (512, 4096),
        (256, 512): (512, 4096),
        (3000, 16): (512, 4096),
    }


@pytest.mark.parametrize("base", [1, 4])
def test_each_tile_is_read_once(tmp_path, base):
    """Reads that overlap would decode a tile twice."""
    seen = np.zeros((3000, 4000), int)

    class Counting(NumberSlide):
        def read_planes(self, box: Box, level: int = 0) -> np.ndarray:
            seen[box.rows, box.columns] += 1
            return super().read_planes(box, level)

    info = replace(NumberSlide.of(4000, 3000).info, tile_px=(240, 240), read_px=480)
    options = TileOptions(block_px=1024, workers=1, target_mpp=0.5 * base)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(tiling, "forecast_bytes", lambda *_: 0)  # it reads a few more
        tile_slide(Counting(info), tmp_path / "a.zarr", options)
    assert seen.min() == seen.max() == 1


V04 = TileOptions(ome_zarr="0.4", block_px=2048, workers=2, target_mpp="native")


def test_ome_zarr_04_is_what_its_readers_know(tmp_path):
    """Zarr v2, nested keys, Blosc-lz4, a colour per chunk: what Java readers know."""
    slide = NumberSlide.of(2500, 1300)
    pyramid = tile_slide(slide, tmp_path / "a.zarr", V04)
    image = ImageV04.from_zarr(zarr.open_group(pyramid.path, mode="r", zarr_format=2))
    assert len(image.attributes.multiscales[0].datasets) == len(pyramid.levels) == 4
    array = orjson.loads((pyramid.path / "0" / ".zarray").read_bytes())
    assert array["chunks"] == [1, 1024, 1024]
    assert array["dimension_separator"] == "/"
    assert array["compressor"]["id"] == "blosc"
    assert array["compressor"]["cname"] == "lz4"
    chunks = {p.relative_to(pyramid.path / "0") for p in pyramid.path.glob("0/?/?/?")}
    assert len(chunks) == 3 * 2 * 3
    xml = (pyramid.path / "OME" / "METADATA.ome.xml").read_text()
    assert 'SizeX="2500"' in xml
    assert 'PhysicalSizeX="0.5"' in xml
    expected = slide.read(slide.info.box)
    for index, level in enumerate(pyramid.levels):
        found = pyramid.read_level(level.box, index).transpose(1, 2, 0)
        np.testing.assert_array_equal(found, expected)
        expected = plain_halve(expected)


def test_a_lost_chunk_of_ome_zarr_04_raises(tmp_path):
    pyramid = tile_slide(NumberSlide.of(2500, 1300), tmp_path / "a.zarr", V04)
    (pyramid.path / "0" / "1" / "0" / "1").unlink()
    with pytest.raises(PyramidError, match="damaged"):
        pyramid.read_level(Box(1100, 0, 100, 100), 0)


def test_bytes_of_ome_zarr_04_do_not_depend_on_workers(tmp_path):
    slide = NumberSlide.of(2500, 1300)
    one = V04.model_copy(update={"workers": 1})
    paths = [
        tile_slide(slide, tmp_path / name, options).path
        for name, options in (("two.zarr", V04), ("one.zarr", one))
    ]
    assert digest(paths[0]) == digest(paths[1])


def test_labels_of_ome_zarr_04_lie_in_zarr_v2_too(tmp_path):
    pyramid = tile_slide(NumberSlide.of(1500, 1300), tmp_path / "a.zarr", V04)
    classes = (
        MaskClass(0, "Background", (0, 0, 0)),
        MaskClass(1, "Tumor", (200, 0, 0)),
    )
    masks = MaskPyramid.create(
        pyramid.labels_path / "m", pyramid.source, 1, classes, version=pyramid.version
    )
    values = np.arange(1500 * 1300).reshape(1300, 1500) % 2
    masks.put(0, masks.levels[0].box, values.astype(np.uint8))
    masks.write_coarser()
    pyramid.publish_labels_list()
    opened = open_pyramid(pyramid.path).masks("m")
    assert opened.classes == classes
    np.testing.assert_array_equal(opened.read_level(opened.levels[0].box, 0), values)
    listed = orjson.loads((pyramid.labels_path / ".zattrs").read_bytes())
    assert listed["labels"] == ["m"]
    assert (masks.path / "0" / ".zarray").exists()
    (masks.path / "0" / "0" / "0").unlink()
    with pytest.raises(PyramidError, match="damaged"):
        opened.read_level(opened.levels[0].box, 0)


def test_bytes_do_not_depend_on_how_much_is_read_at_once(tmp_path):
    slide = NumberSlide.of(2600, 1900)
    folders = []
    for read_px in (256, 512, 2048):
        reading = replace(slide, info=replace(slide.info, read_px=read_px))
        made = tile_slide(reading, tmp_path / f"{read_px}.zarr", SMALL)
        folders.append(digest(made.path))
    assert len(set(folders)) == 1
