"""Turns a slide into an OME-Zarr pyramid, one task per shard-aligned block."""

import concurrent.futures
import functools
import itertools
import logging
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore

from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import Client, Future, as_completed, wait

from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ExportError
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source
from wsi_pipeline.places import Place, as_place
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import Upload, printable, settle, staged
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.slide import Slide
from wsi_pipeline.tiling.blocks import fill_block
from wsi_pipeline.tiling.halving import halve
from wsi_pipeline.tiling.planning import (
    base_downsample,
    check_room,
    forecast_bytes,
    gigabytes,
    plan_tiling,
)
from wsi_pipeline.tiling.sources import CopiedSource, LevelSource, SlideSource
from wsi_pipeline.tiling.sources import Source as BlockSource

__all__ = ["base_downsample", "halve", "plan_tiling", "tile_slide"]

Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


def tile_slide(
    slide: Slide,
    path: Place | str,
    options: TileOptions | None = None,
    *,
    base_mpp: float | None = None,
    pool: Client | ProcessPoolExecutor | None = None,
    progress: Progress | None = None,
) -> Pyramid:
    """Write the pyramid of a slide; its name appears when it is complete.

    Parameters
    ----------
    slide : Slide
        Open slide.
    path : Path, UPath or str
        Folder of the OME-Zarr to make, or its URL (``s3://``, ``gs://``); replaced if
        it is there.
    options : TileOptions, optional
        Block, chunk, codec, workers.
    base_mpp : float, optional
        um/px the base must not be coarser than, used where `options.target_mpp` is
        left out; None keeps level 0.
    pool : distributed.Client or ProcessPoolExecutor, optional
        Tiles the blocks; left out, threads of this process do.
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
        If the folder cannot be written, the disk is too small for the forecast, or a
        process of the pool dies.

    Notes
    -----
    Logs the size to expect, and what could not be done as asked.
    Memory: workers x 30 MB (60 MB where the slide is read through OpenSlide, in strips
    or from a store), kept by going piece by piece, depth first; the size of the slide
    does not matter. Whole shards are written, past the page cache. Where the slide is
    remote, twice as many blocks are under way; where the pyramid is, each holds its
    shards, compressed, until they are sent (at most 67 MB of 4096 px). The bytes do not
    depend on the scheduler, the number of workers or the place.
    """
    options = options or TileOptions()
    path = as_place(path)
    info = slide.info
    plan = plan_tiling(info, options, base_mpp)
    layout = plan.layout
    source = Source(
        printable(info.path.name),
        info.size_px,
        info.scale,
        info.scale_source,
        info.bounds,
    )
    with staged(path) as temporary:
        needed = forecast_bytes(slide, plan)
        _log.info("%s: its pyramid takes about %s", source.name, gigabytes(needed))
        if plan.note:
            _log.warning("%s: %s", source.name, plan.note)
        check_room(temporary, needed)
        pyramid = Pyramid.create(temporary, source, plan.base, layout)
        rounds = list(_rounds(pyramid, layout))
        total = sum(len(blocks) for _, blocks in rounds)
        ended = itertools.count(1)

        def tick() -> None:
            if progress:
                progress(next(ended), total)

        workers = options.workers or cpu_count()
        if not isinstance(info.path, Path):
            workers *= 2  # half of them wait for the network
        for first, blocks in rounds:
            task = _Task(slide if first == 0 else None, pyramid, layout, first)
            _run(task, blocks, workers, pool, tick)
    return Pyramid(path)


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

    def __call__(self, block: Box) -> list[Path | Upload]:
        """Write a block; returns its files, for `settle`."""
        source = self._source()
        return fill_block(source, self.pyramid, self.layout, self.first, block)

    def _source(self) -> BlockSource:
        chunk = self.layout.chunk_px
        if self.slide is None:
            return LevelSource(self.pyramid, self.first, chunk)
        kind = CopiedSource if self.layout.base_codec else SlideSource
        base = int(self.pyramid.levels[0].downsample)
        return kind(self.slide, base, chunk, self.layout.block_px)


def _stop(client: Client, futures: list[Future[None]]) -> None:
    """Cancel what has not started and wait for the rest: see `_run`."""
    running = {key for keys in client.processing().values() for key in keys}
    client.cancel([future for future in futures if future.key not in running])
    wait([future for future in futures if future.key in running])


def _run(
    task: _Task,
    blocks: list[Box],
    workers: int,
    pool: Client | ProcessPoolExecutor | None,
    tick: Callable[[], None],
) -> None:
    """Run one task per block; `tick` is called as each ends.

    An error or an interrupt waits for the blocks under way: none writes into a folder
    that is about to be removed.
    """
    if isinstance(pool, Client):
        _run_on_cluster(task, blocks, pool, tick)
    elif pool is not None:
        _run_in_processes(task, blocks, pool, tick)
    else:
        _run_in_threads(task, blocks, workers, tick)


def _run_on_cluster(
    task: _Task, blocks: list[Box], client: Client, tick: Callable[[], None]
) -> None:
    def write(block: Box) -> None:
        settle(task(block))

    futures = client.map(write, blocks, pure=False)
    try:
        for future in as_completed(futures):
            future.result()
            tick()
    except BaseException:
        _stop(client, futures)
        raise


def _run_in_processes(
    task: _Task, blocks: list[Box], pool: ProcessPoolExecutor, tick: Callable[[], None]
) -> None:
    packed = pickle.dumps(task)
    try:
        futures = [pool.submit(_write_packed, packed, block) for block in blocks]
        try:
            for future in concurrent.futures.as_completed(futures):
                settle(future.result())  # beside the blocks under way
                tick()
        except BaseException:
            concurrent.futures.wait([f for f in futures if not f.cancel()])
            raise
    except BrokenExecutor as error:
        raise ExportError(
            f"{task.pyramid.path.name}: a process that tiled it died; if memory ran "
            "out, fewer --workers help"
        ) from error


def _write_packed(packed: bytes, block: Box) -> list[Path]:
    """Write a block; returns local files, which any process can flush."""
    files = _unpacked(packed)(block)
    settle(file for file in files if not isinstance(file, Path))
    return [file for file in files if isinstance(file, Path)]


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> _Task:
    """A task that is kept from block to block, with its slide open."""
    task: _Task = pickle.loads(packed)  # noqa: S301  # from the parent process
    return task


def _run_in_threads(
    task: _Task, blocks: list[Box], workers: int, tick: Callable[[], None]
) -> None:
    # A thread that waits for the disk or the network lends its turn to another.
    turns = BoundedSemaphore(workers)

    def write_in_turn(block: Box) -> None:
        with turns:
            files = task(block)
        settle(files)

    tasks = [delayed(write_in_turn, pure=False)(block) for block in blocks]
    with (
        ThreadPoolExecutor(workers * 2) as pool,
        Callback(posttask=lambda *_: tick()),
    ):
        compute(*tasks, scheduler="threads", pool=pool)
