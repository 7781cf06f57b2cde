"""Any slide, tiled any way, against a direct NumPy computation of every level."""

import tempfile
from pathlib import Path

import numpy as np
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_tiling import plain_halve
from wsi_pipeline.config import TileOptions
from wsi_pipeline.readers.base import GivenScale
from wsi_pipeline.readers.tiff import open_tiff
from wsi_pipeline.tiling import base_downsample, tile_slide


@st.composite
def slides(draw):
    w, h = draw(st.integers(1, 1400)), draw(st.integers(1, 1100))
    tile = draw(st.sampled_from([16, 48, 112, 240, 256, 512, 1024]))
    other = draw(st.sampled_from([tile, tile, tile, 64]))
    return w, h, (other, tile), draw(st.integers(0, 99))


@st.composite
def ways(draw):
    version = draw(st.sampled_from(["0.5", "0.5", "0.4"]))
    chunk = draw(st.sampled_from([None, None, 64, 128])) if version == "0.5" else None
    return TileOptions(
        ome_zarr=version,
        chunk_px=chunk,
        block_px=draw(st.sampled_from([512, 1024])) if version == "0.5" else 1024,
        workers=draw(st.integers(1, 3)),
        target_mpp=draw(st.sampled_from(["native", 0.4, 0.5, 1.0, 3.0])),
    )


@settings(max_examples=40, deadline=None)
@given(slides(), st.floats(0.1, 1.0), ways())
def test_every_level_is_what_numpy_makes_of_it(slide, mpp, options):
    w, h, tile, seed = slide
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        tifffile.imwrite(path, pixels, tile=tile, compression="zlib", photometric="rgb")
        with open_tiff(path, GivenScale(mpp)) as opened:
            pyramid = tile_slide(opened, Path(folder) / "a.zarr", options)
        target = None if options.target_mpp == "native" else options.target_mpp
        base = base_downsample(mpp, target)
        assert pyramid.levels[0].downsample == base
        for _ in range(base.bit_length() - 1):
            pixels = plain_halve(pixels)
        for index in range(len(pyramid.levels)):
            # plain zarr, which fills what was never written with 0
            found = zarr.open_array(pyramid.path / str(index), mode="r")[...]
            np.testing.assert_array_equal(found.transpose(1, 2, 0), pixels)
            pixels = plain_halve(pixels)
        assert max(pyramid.levels[-1].size_px) <= 512
