"""Turns a slide into an OME-Zarr pyramid, one task per shard-aligned block."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore

from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import Client, as_completed

from wsi_pipeline.codecs import BloscLz4, Jpeg, Zstd
from wsi_pipeline.config import TileOptions
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import printable, staged, sync_files
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.slide import Slide, SlideInfo
from wsi_pipeline.tiling.blocks import fill_block
from wsi_pipeline.tiling.halving import halve
from wsi_pipeline.tiling.sources import CopiedSource, LevelSource, SlideSource
from wsi_pipeline.tiling.sources import Source as BlockSource

__all__ = ["base_downsample", "halve", "plan_layout", "tile_slide"]

Progress = Callable[[int, int], None]
_CHUNK_PX, _LARGEST_CHUNK_PX = 512, 2048


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
    layout = plan_layout(info, base, options)
    source = Source(
        printable(info.path.name),
        info.size_px,
        info.scale,
        info.scale_source,
        info.bounds,
    )
    with staged(path) as temporary:
        pyramid = Pyramid.create(temporary, source, base, layout)
        rounds = list(_rounds(pyramid, layout))
        total = sum(len(blocks) for _, blocks in rounds)
        ended = itertools.count(1)

        def tick() -> None:
            if progress:
                progress(next(ended), total)

        for first, blocks in rounds:
            task = _Task(slide if first == 0 else None, pyramid, layout, first)
            _run(task, blocks, options.workers or cpu_count(), client, tick)
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


def plan_layout(info: SlideInfo, base: int, options: TileOptions) -> Layout:
    """Chunks, shards and codecs for a slide.

    Parameters
    ----------
    info : SlideInfo
        The slide's facts: chunks are whole tiles of it, so that each is decoded once.
    base : int
        Level-0 pixels per pixel of the pyramid's base.
    options : TileOptions
        What was asked for.
    """
    if options.ome_zarr == "0.4":
        return Layout("0.4", 1024, _block(1024, options), BloscLz4())
    if options.codec == "zstd":
        chunk = options.chunk_px or _whole_tiles(info.tile_px)
        return Layout("0.5", chunk, _block(chunk, options), Zstd(options.zstd_level))
    jpeg = Jpeg(options.jpeg_quality)
    tiles = info.jpeg if base == 1 else None
    if tiles and options.chunk_px in (None, tiles.side_px):
        copied = Jpeg(options.jpeg_quality, tiles.colour, tiles.tables)
        block = _block(tiles.side_px, options)
        return Layout("0.5", tiles.side_px, block, jpeg, copied)
    chunk = options.chunk_px or _whole_tiles(info.tile_px)
    return Layout("0.5", chunk, _block(chunk, options), jpeg)


def _whole_tiles(tile_px: tuple[int, int]) -> int:
    """Side of a chunk: whole tiles, about 512 px; 512 where tiles are no help."""
    w, h = tile_px
    if w != h or w % 2 or w > _LARGEST_CHUNK_PX or w % _CHUNK_PX == 0:
        return _CHUNK_PX
    return w * max(1, _CHUNK_PX // w)


def _block(chunk_px: int, options: TileOptions) -> int:
    """Largest power of two times a chunk within `block_px`; one chunk at least."""
    return chunk_px << max(0, (options.block_px // chunk_px).bit_length() - 1)


def _rounds(pyramid: Pyramid, layout: Layout) -> Iterator[tuple[int, list[Box]]]:
    """First level and blocks of each round: a block fills several levels."""
    for first in range(0, len(pyramid.levels), layout.depth):
        yield first, list(pyramid.levels[first].box.blocks(layout.block_px))


@dataclass(frozen=True)
class _Task:
    """One round's work, block by block; it travels to workers."""

    slide: Slide | None
    pyramid: Pyramid
    layout: Layout
    first: int

    def __call__(self, block: Box) -> list[Path]:
        """Write a block; returns its files, not yet flushed."""
        source = self._source(block)
        return fill_block(source, self.pyramid, self.layout, self.first, block)

    def _source(self, block: Box) -> BlockSource:
        if self.slide is None:
            return LevelSource(self.pyramid, self.first)
        kind = CopiedSource if self.layout.base_codec else SlideSource
        base = int(self.pyramid.levels[0].downsample)
        return kind(self.slide, base, block, self.layout.chunk_px)


def _run(
    task: _Task,
    blocks: list[Box],
    workers: int,
    client: Client | None,
    tick: Callable[[], None],
) -> None:
    """Run one task per block; `tick` is called as each ends."""
    if client is not None:

        def write(block: Box) -> None:
            sync_files(task(block))

        for future in as_completed(client.map(write, blocks, pure=False)):
            future.result()
            future.release()
            tick()
        return
    # A thread that waits for the disk lends its turn to another.
    turns = BoundedSemaphore(workers)

    def write_in_turn(block: Box) -> None:
        with turns:
            files = task(block)
        sync_files(files)

    tasks = [delayed(write_in_turn, pure=False)(block) for block in blocks]
    # leaving the pool waits for blocks under way: none writes into a folder that an
    # error or an interrupt is about to remove
    with (
        ThreadPoolExecutor(workers * 2) as pool,
        Callback(posttask=lambda *_: tick()),
    ):
        compute(*tasks, scheduler="threads", pool=pool)
