"""Writes blocks of labels, each with the coarser levels that it fills."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Level
from wsi_pipeline.layout import Layout
from wsi_pipeline.places import Place
from wsi_pipeline.shards import BlockLevel

type Values = NDArray[np.uint8]


def write_block(
    path: Place,
    levels: Sequence[Level],
    layout: Layout,
    first: int,
    block: Box,
    values: Values,
) -> NDArray[np.int64]:
    """Write a block of one level of a label and its share of the levels above it.

    Parameters
    ----------
    path : Path or UPath
        Folder of the label.
    levels : sequence of Level
        All of its levels.
    layout : Layout
        How its arrays lie on disk; levels are written up to the end of a round.
    first : int
        Level of the block.
    block : Box
        One of ``levels[first].box.blocks(layout.shard_px(first))``.
    values : (h, w) uint8 array

    Returns
    -------
    (256,) int64 array
        Pixels of the block per value.

    Notes
    -----
    Blosc, of OME-Zarr 0.4, wants to be called in another thread than the main one.
    Memory: a third of the block, and a chunk.
    """
    last = min(first - first % layout.depth + layout.depth, len(levels)) - 1
    counts = np.zeros(256, np.int64)
    with ThreadPoolExecutor(1) as disk:
        for level in range(first, last + 1):
            coarser = np.empty([-(-side // 2) for side in values.shape], np.uint8)
            with BlockLevel(path / str(level), layout, level, block, disk) as share:
                for chunk in block.blocks(layout.chunk_px):
                    place = chunk.shift(-block.x, -block.y)
                    half = place.scaled_down(2)
                    part = values[place.rows, place.columns]
                    value = int(part[0, 0])
                    if (part == value).all():
                        data = _one_value(layout, level, value)
                        share.put_encoded(chunk.x, chunk.y, data)
                        coarser[half.rows, half.columns] = value
                        counts[value] += part.size * (level == first)
                        continue
                    share.put(chunk.x, chunk.y, part)
                    coarser[half.rows, half.columns] = halve_values(part)
                    if level == first:
                        counts += count_values(part)
            block, values = block.scaled_down(2), coarser
    return counts


def coarsen(
    levels: Sequence[Level],
    layout: Layout,
    first: int,
    workers: int,
    read: Callable[[Box, int], Values],
    write: Callable[[int, Box, Values], object],
) -> None:
    """Write levels from `first` on, each from the one below, round by round.

    Parameters
    ----------
    levels : sequence of Level
        All of the label.
    layout : Layout
    first : int
    workers : int
        Threads.
    read : callable
        Reads a box of a level.
    write : callable
        Writes a block of a level, and what it fills; see `write_block`.

    Notes
    -----
    Memory: per worker six label shards (96 MB), kept by going block by block.
    """

    def halve(level: int, block: Box) -> None:
        finer = Box(block.x * 2, block.y * 2, block.w * 2, block.h * 2)
        write(level, block, halve_values(read(finer, level - 1)))

    with ThreadPoolExecutor(workers) as pool:
        while first < len(levels):
            blocks = levels[first].box.blocks(layout.shard_px(first))
            list(pool.map(functools.partial(halve, first), blocks))
            first += layout.depth - first % layout.depth


@functools.lru_cache(maxsize=64)
def _one_value(layout: Layout, level: int, value: int) -> bytes:
    """A chunk that holds one value only, compressed."""
    side = layout.chunk_px
    return layout.codec_of(level).encode(np.full((side, side), value, np.uint8))


def count_values(values: Values) -> NDArray[np.int64]:
    """Pixels per value, (256,) int64, of at most 2**24: OpenCV counts in float32."""
    whole = np.ascontiguousarray(values)
    counts = cv2.calcHist([whole], [0], None, [256], [0, 256])
    return np.asarray(counts).ravel().astype(np.int64)


def halve_values(values: Values) -> Values:
    """Half the size: the commonest value of each 2 x 2, the upper left's if two are.

    Parameters
    ----------
    values : (h, w) uint8 array
        Where a side is odd, its last row or column counts twice.

    Returns
    -------
    (ceil(h / 2), ceil(w / 2)) uint8 array
    """
    h, w = values.shape
    if h % 2 or w % 2:
        values = np.pad(values, ((0, h % 2), (0, w % 2)), mode="edge")
    # two neighbours as one number: most pairs of pairs are four times the same value
    pairs = np.ascontiguousarray(values).view("<u2")
    upper, lower = pairs[::2], pairs[1::2]
    out: Values = upper.astype(np.uint8)
    odd = (upper != lower) | (upper >> 8 != (upper & 255))
    at = np.unravel_index(np.flatnonzero(odd), odd.shape)  # faster than nonzero
    a, b, c, d = (
        part.astype(np.uint8) for n in (upper, lower) for part in (n[at], n[at] >> 8)
    )
    other = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    out[at] = np.where((a == b) | (a == c) | (a == d), a, other)
    return out
