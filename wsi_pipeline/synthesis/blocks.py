"""Paints a slide block by block, here or in more processes, into spool and truth."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box
from wsi_pipeline.process import listen, undisturbed
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.synthesis.boxes import paint_box
from wsi_pipeline.synthesis.painting import BLOCK_PX, World
from wsi_pipeline.synthesis.spooling import SUPER_PX, Spool


@dataclass(frozen=True)
class BlockTask:
    """All that a worker needs to paint one block: the part that one truth shard covers.

    Parameters
    ----------
    reaches : tuple of Box
        Per lesion, a box of level-0 pixels that nothing of it leaves.
    patterns : tuple of int
        Per lesion, what grows there.
    block : Box
        Level-0 pixels.
    """

    world: World
    spool: Spool
    truth_path: Path
    mpp: float
    levels: int
    truth_downsample: int
    reaches: tuple[Box, ...]
    patterns: tuple[int, ...]
    block: Box


@contextmanager
def run_tasks(
    tasks: list[BlockTask], workers: int
) -> Iterator[Iterator[tuple[Box, ...]]]:
    """Give the results of the tasks in order, from this process or from several.

    Yields
    ------
    iterator of tuple of Box
        Per task and lesion, where the lesion shows in the block; empty boxes where it
        does not.
    """
    if workers == 1 or len(tasks) == 1:
        yield map(paint_task, tasks)
        return
    # spawn: forking a process that runs threads can lock up
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    count = min(workers, len(tasks))
    with ProcessPoolExecutor(count, context, initializer=listen) as pool:
        try:
            with undisturbed():
                results = pool.map(paint_task, tasks)
            yield results
        except BaseException:
            # a failure or Ctrl-C: what is under way will be thrown away
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def paint_task(task: BlockTask) -> tuple[Box, ...]:
    """Paint, encode and store one block; return where each lesion shows in it."""
    base, outer = task.truth_downsample, task.block
    truth = np.empty((-(-outer.h // base), -(-outer.w // base)), np.uint8)
    for part in outer.blocks(SUPER_PX):
        size = tuple(-(-side // BLOCK_PX) * BLOCK_PX for side in (part.w, part.h))
        rgb, classes = paint_box(
            task.world, (part.x, part.y), (size[0], size[1]), task.mpp
        )
        task.spool.add_block(part.x // SUPER_PX, part.y // SUPER_PX, rgb, task.levels)
        x, y = (part.x - outer.x) // base, (part.y - outer.y) // base
        kept = classes[: part.h : base, : part.w : base]
        truth[y : y + kept.shape[0], x : x + kept.shape[1]] = kept
    place = Box(outer.x // base, outer.y // base, truth.shape[1], truth.shape[0])
    MaskPyramid(task.truth_path).put(0, place, truth)
    return tuple(
        _extent(truth == pattern, outer, base, reach)
        for reach, pattern in zip(task.reaches, task.patterns, strict=True)
    )


def _extent(grown: NDArray[np.bool_], outer: Box, base: int, reach: Box) -> Box:
    """Box around what has grown in a block within a lesion's reach."""
    inside = outer.intersect(reach)
    if inside.area_px == 0:
        return Box(0, 0, 0, 0)
    part = inside.shift(-outer.x, -outer.y).scaled_down(base)
    grown = grown[part.rows, part.columns]
    rows, columns = np.flatnonzero(grown.any(1)), np.flatnonzero(grown.any(0))
    if len(rows) == 0:
        return Box(0, 0, 0, 0)
    x, y = part.x + int(columns[0]), part.y + int(rows[0])
    w, h = int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1
    return Box(x, y, w, h).scaled_up(base).shift(outer.x, outer.y)


def join_boxes(one: Box, other: Box) -> Box:
    """Smallest box around two; an empty one counts for nothing."""
    if one.area_px == 0 or other.area_px == 0:
        return other if one.area_px == 0 else one
    x, y = min(one.x, other.x), min(one.y, other.y)
    right, bottom = max(one.right, other.right), max(one.bottom, other.bottom)
    return Box(x, y, right - x, bottom - y)
