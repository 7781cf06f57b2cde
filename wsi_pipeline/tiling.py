"""Turns a slide into an OME-Zarr pyramid, one task per shard-aligned block."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import Client, as_completed
from numpy.typing import NDArray

from wsi_pipeline.config import TileOptions
from wsi_pipeline.geometry import Box
from wsi_pipeline.ngff import Source, block_levels
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import printable, staged
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.slide import Slide

Progress = Callable[[int, int], None]
_READ_PX = 2048  # side of what is read at once, px of the finer grid: 12 MB


def tile_slide(
    slide: Slide,
    path: Path,
    options: TileOptions | None = None,
    *,
    base_mpp: float | None = None,
    client: Client | None = None,
    progress: Progress | None = None,
) -> Pyramid:
    """Write the pyramid of a slide; its name appears when it is complete.

    Parameters
    ----------
    slide : Slide
        Open slide.
    path : Path
        Folder of the OME-Zarr to make; replaced if it is there.
    options : TileOptions, optional
        Block, chunk, codec, workers.
    base_mpp : float, optional
        um/px the base must not be coarser than, used where `options.target_mpp` is
        left out; None keeps level 0.
    client : distributed.Client, optional
        Runs the blocks on a Dask cluster; left out, on threads of this process.
    progress : callable, optional
        Called with (blocks done, blocks in all).

    Returns
    -------
    Pyramid

    Raises
    ------
    SlideError
        If a block cannot be read.
    ExportError
        If the folder cannot be written.

    Notes
    -----
    Memory: workers x 3 x block (150 MB each at 4096 px): the block, its reductions
    (a third) and the encoder's copy. Each task reads its pixels in pieces of 2048 px
    and writes whole shards, so the size of the slide does not matter. The bytes do not
    depend on the scheduler or the number of workers.
    """
    options = options or TileOptions()
    info = slide.info
    target = base_mpp if options.target_mpp is None else options.target_mpp
    base = base_downsample(info.scale.mean, None if target == "native" else target)
    source = Source(
        printable(info.path.name),
        info.size_px,
        info.scale,
        info.scale_source,
        info.bounds,
    )
    with staged(path) as temporary:
        pyramid = Pyramid.create(
            temporary,
            source,
            base,
            chunk_px=options.chunk_px,
            block_px=options.block_px,
            zstd_level=options.zstd_level,
        )
        rounds = list(_rounds(pyramid, options))
        total = sum(len(blocks) for _, blocks in rounds)
        ended = itertools.count(1)

        def tick() -> None:
            if progress:
                progress(next(ended), total)

        for first, blocks in rounds:
            write = partial(
                _write_block, slide if first == 0 else None, pyramid, first, options
            )
            _run(write, blocks, options.workers or cpu_count(), client, tick)
    return Pyramid(path)


def base_downsample(mpp: float, target_mpp: float | None) -> int:
    """Largest power of two that leaves the base not coarser than the target.

    Parameters
    ----------
    mpp : float
        um/px of the slide's level 0.
    target_mpp : float or None
        um/px wanted; 1 % coarser still passes, as scanners round. None keeps level 0.
    """
    if target_mpp is None:
        return 1
    base = 1
    while mpp * base * 2 <= target_mpp * 1.01:
        base *= 2
    return base


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of each 2 x 2, rounded half up; an odd last row or column counts twice.

    Parameters
    ----------
    pixels : (h, w, 3) uint8 array

    Returns
    -------
    (ceil(h / 2), ceil(w / 2), 3) uint8 array
    """
    h, w = pixels.shape[:2]
    if h % 2 or w % 2:
        pixels = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    rows = pixels[0::2].astype(np.uint16)
    rows += pixels[1::2]
    total = rows[:, 0::2]
    total += rows[:, 1::2]
    total += 2
    total >>= 2
    return total.astype(np.uint8)


def _rounds(pyramid: Pyramid, options: TileOptions) -> Iterator[tuple[int, list[Box]]]:
    """First level and blocks of each round: a block fills several levels."""
    depth = block_levels(options.chunk_px, options.block_px)
    for first in range(0, len(pyramid.levels), depth):
        yield first, list(pyramid.levels[first].box.blocks(options.block_px))


def _write_block(
    slide: Slide | None,
    pyramid: Pyramid,
    first: int,
    options: TileOptions,
    block: Box,
) -> None:
    """Write one block of level `first` and its share of the levels above it."""
    pixels = _gather(slide, pyramid, first, block)
    last = min(
        first + block_levels(options.chunk_px, options.block_px), len(pyramid.levels)
    )
    for level in range(first, last):
        if level > first:
            pixels = halve(pixels)
        step = 2 ** (level - first)
        place = Box(block.x // step, block.y // step, pixels.shape[1], pixels.shape[0])
        pyramid.put(level, place, np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _gather(
    slide: Slide | None, pyramid: Pyramid, first: int, block: Box
) -> NDArray[np.uint8]:
    """Pixels of a block, (h, w, 3), from the slide or from the level below."""
    factor = int(pyramid.levels[0].downsample) if slide is not None else 2
    out = np.empty((block.h, block.w, 3), np.uint8)
    for piece in block.blocks(max(1, _READ_PX // factor)):
        finer = Box(
            piece.x * factor, piece.y * factor, piece.w * factor, piece.h * factor
        )
        if slide is not None:
            pixels = slide.read(slide.info.box.intersect(finer))
        else:
            pixels = pyramid.read_level(finer, first - 1).transpose(1, 2, 0)
        for _ in range(factor.bit_length() - 1):
            pixels = halve(pixels)
        place = piece.shift(-block.x, -block.y)
        out[place.rows, place.columns] = pixels
    return out


def _run(
    write: Callable[[Box], None],
    blocks: list[Box],
    workers: int,
    client: Client | None,
    tick: Callable[[], None],
) -> None:
    """Run one task per block; `tick` is called as each ends."""
    if client is not None:
        for future in as_completed(client.map(write, blocks, pure=False)):
            future.result()
            future.release()
            tick()
        return
    tasks = [delayed(write, pure=False)(block) for block in blocks]
    # leaving the pool waits for blocks under way: none writes into a folder that an
    # error or an interrupt is about to remove
    with ThreadPoolExecutor(workers) as pool, Callback(posttask=lambda *_: tick()):
        compute(*tasks, scheduler="threads", pool=pool)
