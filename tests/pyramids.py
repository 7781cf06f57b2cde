"""Small pyramids of noise, for tests that read patches."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source
from wsi_pipeline.places import Place
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.shards import BlockLevel

SMALL = Layout(chunk_px=128, block_px=256)


def noise_pyramid(
    path: Path,
    layout: Layout = SMALL,
    size_px: tuple[int, int] = (640, 480),
    mpp: float = 0.5,
) -> Pyramid:
    """Noise that differs by place; size_px are multiples of 32."""
    source = Source("noise.tif", size_px, Scale(mpp, mpp), "test", Box(0, 0, *size_px))
    made = Pyramid.create(path, source, 1, layout)
    rng = np.random.default_rng(0)
    w, h = size_px
    coarse = rng.integers(0, 256, (3, h // 32, w // 32), dtype=np.uint8)
    pixels = coarse.repeat(32, 1).repeat(32, 2)
    pixels = (pixels // 2 + rng.integers(0, 128, pixels.shape)).astype(np.uint8)
    for index, level in enumerate(made.levels):
        view = pixels[:, :: 2**index, :: 2**index]
        for box in level.box.blocks(layout.shard_px(index)):
            _write(made, layout, index, box, view)
    return made


def _write(
    made: Pyramid, layout: Layout, index: int, box: Box, view: NDArray[np.uint8]
) -> None:
    with (
        ThreadPoolExecutor(1) as disk,
        BlockLevel(made.path / str(index), layout, index, box, disk) as block,
    ):
        for chunk in box.blocks(layout.chunk_px):
            block.put(chunk.x, chunk.y, view[:, chunk.rows, chunk.columns])


def grid_of(
    pyramid: Pyramid, patch_px: int, stride: int = 40, count: int | None = None
) -> PatchGrid:
    """Patches of level 0 in rows, all inside."""
    w, h = pyramid.levels[0].size_px
    last = patch_px - 1
    y, x = np.mgrid[0 : h - last : stride, 0 : w - last : stride]
    corners = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)[:count]
    tissue = np.ones(len(corners), np.float32)
    return PatchGrid(corners, patch_px, patch_px, pyramid.scale.mean, tissue)


def copy_files(folder: Path, place: Place) -> None:
    """Copy a pyramid, as a folder or into a store."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            target = place / file.relative_to(folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
