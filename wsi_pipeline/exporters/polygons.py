"""Turns the base of a mask into polygons: one per 4-connected component of equal value.

Outlines follow pixel edges exactly, block by block, and are joined across the seams.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.exporters.blocks import trace_block
from wsi_pipeline.exporters.joining import Joiner, Traced
from wsi_pipeline.exporters.measuring import Layers
from wsi_pipeline.exporters.pieces import BlockTrace, Rules
from wsi_pipeline.exporters.scores import BlockScores
from wsi_pipeline.geometry import Box

BLOCK_PX = 4096
"""Side of a block. Simplified outlines keep the points where they cross its edges."""


class Source(Protocol):
    """A mask to trace, read by several threads."""

    def read(self, box: Box) -> NDArray[np.uint8]:
        """(h, w) values; 0 and 255 are no objects."""
        ...

    def read_confidence(self, box: Box) -> NDArray[np.uint8] | None:
        """(h, w) 254 * probability, or None if it is not known."""
        ...

    def read_scores(self, box: Box) -> BlockScores | None:
        """Scores of the patches there, or None if they are not known."""
        ...

    def is_blank(self, box: Box) -> bool:
        """Whether it costs little to tell that there is no object in a box."""
        ...


def trace_objects(
    source: Source,
    whole: Box,
    rules: Rules = Rules(),  # noqa: B008  # frozen
    *,
    block_px: int = BLOCK_PX,
    workers: int = 1,
) -> Generator[Traced, None, None]:
    """Find the outline of every object in a mask.

    Parameters
    ----------
    source : Source
        The mask.
    whole : Box
        Its grid; starts at (0, 0).
    rules : Rules
        Smallest sizes, simplification.
    block_px : int
        Side of a block, at most 16384 pixels. Exact outlines are the same for any;
        simplified ones keep the points where they cross from block to block.
    workers : int
        Threads that trace blocks.

    Yields
    ------
    Traced
        Objects as they are complete, in an order that does not depend on the workers.
        No area is lost or covered twice.

    Notes
    -----
    Memory: per worker 100 MB for a block of 4096 px, up to 400 MB where it holds a
    million corners; and 30 bytes per vertex of objects that are not complete.
    """
    blocks = (box for box in whole.blocks(block_px) if not source.is_blank(box))
    trace = partial(_trace, source, whole, rules)
    joiner = Joiner(whole, rules)
    for found in _in_order(trace, blocks, workers):
        for block in found:
            yield from joiner.add(block)


def _trace(source: Source, whole: Box, rules: Rules, box: Box) -> list[BlockTrace]:
    """Read and trace a block."""
    around = Box(box.x - 1, box.y - 1, box.w + 2, box.h + 2)
    inside = around.intersect(whole)
    pixels = np.zeros((around.h, around.w), np.uint8)
    place = inside.shift(-around.x, -around.y)
    pixels[place.rows, place.columns] = source.read(inside)
    np.multiply(pixels, pixels != NOT_COMPUTED, out=pixels)
    if not pixels[1:-1, 1:-1].max():
        return []
    layers = Layers(source.read_confidence(box), source.read_scores(box))
    return list(trace_block(box, pixels, layers, rules, whole.w + 1))


def _in_order[T, R](
    work: "partial[R]", items: Iterator[T], workers: int
) -> Iterator[R]:
    """Results in the order of the items; few wait at a time."""
    if workers == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    # an error or an interrupt waits for those under way, which is a second at most
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
