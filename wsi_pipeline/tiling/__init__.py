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
from distributed import Client, Future, KilledWorker, as_completed, wait
from distributed.client import FutureCancelledError

from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ExportError
from wsi_pipeline.geometry import Box
from wsi_pipeline.journal import BlockJournal
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source
from wsi_pipeline.places import Place, as_place
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import list_files, printable, staged
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
from wsi_pipeline.tiling.unreadable import gather_unreadable
from wsi_pipeline.tiling.watching import Watchdog
from wsi_pipeline.written import Upload, Written, settle

__all__ = ["base_downsample", "halve", "plan_tiling", "tile_slide"]

Progress = Callable[[int, int], None]
type Files = list[Written | Upload]
type _Keep = Callable[[Box, Files], None]
"""Called with each block and its files when they are on the disk, one at a time."""
_log = logging.getLogger(__name__)
_REPLACED = 3  # times that stalled workers are replaced for one slide
_RESTART_S = 60


def tile_slide(
    slide: Slide,
    path: Place | str,
    options: TileOptions | None = None,
    *,
    base_mpp: float | None = None,
    pool: Client | ProcessPoolExecutor | None = None,
    progress: Progress | None = None,
    key: str = "",
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
    key : str, optional
        Digest of the slide and all else that decides the bytes. With it, a call after
        a kill goes on with the blocks that are whole. Not where the pyramid is remote.

    Returns
    -------
    Pyramid

    Raises
    ------
    SlideError
        If the slide cannot be read any more. What cannot be decoded is no error: the
        tiles are listed in `Pyramid.unreadable`, and white in the image.
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
    with staged(path, key) as temporary:
        kept = None
        if key and isinstance(temporary, Path):
            kept = BlockJournal(temporary)
        whole = kept.resume() if kept else []
        needed = forecast_bytes(slide, plan)
        _log.info("%s: its pyramid takes about %s", source.name, gigabytes(needed))
        if plan.note:
            _log.warning("%s: %s", source.name, plan.note)
        if whole:
            pyramid = Pyramid(temporary)
            _log.info("%s: goes on behind %d blocks", source.name, len(whole) - 1)
        else:
            check_room(temporary, needed)
            pyramid = Pyramid.create(temporary, source, plan.base, layout)
            if kept:
                files = list_files(kept.folder)
                kept.add("", [Written.of(file) for file in files])
        rounds = list(_rounds(pyramid, layout))
        total = sum(len(blocks) for _, blocks in rounds)
        ended = itertools.count(max(1, len(whole)))
        done = frozenset(whole)

        workers = options.workers or cpu_count()
        if not isinstance(info.path, Path):
            workers *= 2  # half of them wait for the network
        for first, blocks in rounds:
            names = {block: f"{first}/{block.x},{block.y}" for block in blocks}
            left = [block for block, name in names.items() if name not in done]

            def keep(block: Box, files: Files, names: dict[Box, str] = names) -> None:
                if kept:
                    kept.add(names[block], [f for f in files if isinstance(f, Written)])
                if progress:
                    progress(next(ended), total)

            task = _Task(slide if first == 0 else None, pyramid, layout, first)
            _run(task, left, workers, options.patience, pool, keep)
        lost = gather_unreadable(pyramid)
        if lost:
            _log.warning(
                "%s: %d of %d tiles cannot be decoded",
                source.name,
                len(lost),
                info.tile_count,
            )
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

    def __call__(self, block: Box) -> Files:
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


def _stop(client: Client, futures: list[Future[tuple[Box, Files]]]) -> None:
    """Cancel what has not started and wait for the rest: see `_run`."""
    running = {key for keys in client.processing().values() for key in keys}
    client.cancel([future for future in futures if future.key not in running])
    wait([future for future in futures if future.key in running])


def _run(
    task: _Task,
    blocks: list[Box],
    workers: int,
    patience_s: float,
    pool: Client | ProcessPoolExecutor | None,
    keep: _Keep,
) -> None:
    """Run one task per block; `keep` is called as each ends.

    An error or an interrupt waits for the blocks under way: none writes into a folder
    that is about to be removed.
    """
    if isinstance(pool, Client):
        _run_on_cluster(task, blocks, patience_s, pool, keep)
    elif pool is not None:
        _run_in_processes(task, blocks, patience_s, pool, keep)
    else:
        _run_in_threads(task, blocks, workers, keep)


def _run_on_cluster(
    task: _Task, blocks: list[Box], patience_s: float, client: Client, keep: _Keep
) -> None:
    def write(block: Box) -> tuple[Box, Files]:
        files = task(block)
        settle(files)
        return block, [file for file in files if isinstance(file, Written)]

    futures = client.map(write, blocks, pure=False)
    slide, barks = task.pyramid.source.name, itertools.count(1)

    def replace_stalled() -> None:
        """End the workers that hold its blocks; give up where that does not help."""
        ours = {future.key for future in futures}
        busy = [name for name, keys in client.processing().items() if ours & {*keys}]
        _log.warning("%s: no block ended for %g s on %s", slide, patience_s, busy)
        try:
            if next(barks) <= _REPLACED:
                client.restart_workers(busy, timeout=_RESTART_S)
                return
        except (OSError, RuntimeError, ValueError) as error:  # no nanny, or no answer
            _log.warning("%s: workers cannot be replaced: %s", slide, error)
        client.cancel(futures, force=True)

    try:
        with Watchdog(patience_s, replace_stalled) as watchdog:
            for future in as_completed(futures):
                keep(*future.result())
                watchdog.tell()
    except BaseException as error:
        _stop(client, futures)
        if not isinstance(error, (KilledWorker, FutureCancelledError)):
            raise
        raise ExportError(
            f"{slide}: workers died or stalled over its blocks; if memory ran out, "
            "give them more; if they wait for a disk or a network, raise patience in "
            "the config's table tile"
        ) from error


def _run_in_processes(
    task: _Task,
    blocks: list[Box],
    patience_s: float,
    pool: ProcessPoolExecutor,
    keep: _Keep,
) -> None:
    def end_stalled() -> None:
        name = task.pyramid.source.name
        _log.warning("%s: no block ended for %g s", name, patience_s)
        for process in list(pool._processes.values()):
            process.kill()

    packed = pickle.dumps(task)
    try:
        futures = {pool.submit(_write_packed, packed, block): block for block in blocks}
        try:
            with Watchdog(patience_s, end_stalled) as watchdog:
                for future in concurrent.futures.as_completed(futures):
                    settle(future.result())  # beside the blocks under way
                    keep(futures[future], future.result())
                    watchdog.tell()
        except BaseException:
            concurrent.futures.wait([f for f in futures if not f.cancel()])
            raise
    except BrokenExecutor as error:
        raise ExportError(
            f"{task.pyramid.path.name}: a process that tiled it died or stalled; if "
            "memory ran out, fewer --workers help"
        ) from error


def _write_packed(packed: bytes, block: Box) -> Files:
    """Write a block; returns local files, which any process can flush."""
    files = _unpacked(packed)(block)
    settle(file for file in files if isinstance(file, Upload))
    return [file for file in files if isinstance(file, Written)]


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> _Task:
    """A task that is kept from block to block, with its slide open."""
    task: _Task = pickle.loads(packed)  # noqa: S301  # from the parent process
    return task


def _run_in_threads(task: _Task, blocks: list[Box], workers: int, keep: _Keep) -> None:
    # A thread that waits for the disk or the network lends its turn to another.
    turns = BoundedSemaphore(workers)

    def write_in_turn(block: Box) -> tuple[Box, Files]:
        with turns:
            files = task(block)
        settle(files)
        return block, files

    tasks = [delayed(write_in_turn, pure=False)(block) for block in blocks]
    with (
        ThreadPoolExecutor(workers * 2) as pool,
        Callback(posttask=lambda _, found, *__: keep(*found)),
    ):
        compute(*tasks, scheduler="threads", pool=pool)
