"""Paints any box of a world out of its blocks, at any pixel size."""

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.synthesis.painting import (
    BLOCK_PX,
    COARSEST_NATIVE_MPP,
    World,
    paint_block,
)


def paint_box(
    world: World, origin_px: tuple[int, int], size_px: tuple[int, int], mpp: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Paint a box of a world; see `paint_region`.

    Notes
    -----
    Memory: 4 bytes per pixel of the box and one block; coarse pixels are painted
    finer row of blocks by row of blocks.
    """
    times = int(np.ceil(mpp / COARSEST_NATIVE_MPP - 1e-9))
    fine = mpp / times
    (x, y), (w, h) = origin_px, size_px
    rgb = np.empty((h, w, 3), np.uint8)
    truth = np.empty((h, w), np.uint8)
    # `step` coarse pixels are painted as a whole number of blocks
    step = BLOCK_PX
    for row in range(y // step, -(-(y + h) // step)):
        for column in range(x // step, -(-(x + w) // step)):
            x0, y0 = max(x, column * step), max(y, row * step)
            x1, y1 = min(x + w, (column + 1) * step), min(y + h, (row + 1) * step)
            target = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
            source = (
                slice(y0 - row * step, y1 - row * step),
                slice(x0 - column * step, x1 - column * step),
            )
            colours, classes = _coarse_block(world, column, row, fine, times, source)
            rgb[target] = colours[source]
            truth[target] = classes[source]
    return rgb, truth


def _coarse_block(
    world: World,
    column: int,
    row: int,
    fine: float,
    times: int,
    wanted: tuple[slice, slice],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A block `times` coarser: area mean of the colours, middle pixel of the truth.

    Only the wanted rows and columns are sure to be painted.
    """
    if times == 1:
        return paint_block(world, column, row, fine)
    side = BLOCK_PX * times
    rgb = np.zeros((side, side, 3), np.uint8)
    truth = np.zeros((side, side), np.uint8)
    rows, columns = (
        range(part.start * times // BLOCK_PX, -(-part.stop * times // BLOCK_PX))
        for part in wanted
    )
    for j in rows:
        for i in columns:
            place = (
                slice(j * BLOCK_PX, (j + 1) * BLOCK_PX),
                slice(i * BLOCK_PX, (i + 1) * BLOCK_PX),
            )
            rgb[place], truth[place] = paint_block(
                world, column * times + i, row * times + j, fine
            )
    folded = rgb.reshape(BLOCK_PX, times, BLOCK_PX, times, 3)
    mean = folded.mean(axis=(1, 3), dtype=np.float32)
    middle = times // 2
    return (mean + 0.5).astype(np.uint8), truth[middle::times, middle::times].copy()
