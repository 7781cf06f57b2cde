"""Turns a selection into a heat map: an OME-Zarr image with one pixel per patch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import halved
from wsi_pipeline.layout import create_heat_level
from wsi_pipeline.ngff import Source, Version, heat_map_documents, level_sizes
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import create_group
from wsi_pipeline.regions import PatchGrid, Selection

UNEXAMINED = -1.0
"""Value of patches that a screening left out."""
_FINEST = 8  # a pixel is never smaller than this part of a patch's side

Heat = NDArray[np.float32]


def export_heat_map(
    selection: Selection, source: Source, path: Path, version: Version = "0.5"
) -> None:
    """Publish the attention as an image that lies over the slide's pyramid.

    Parameters
    ----------
    selection : Selection
        Scores of all patches.
    source : Source
        The slide.
    path : Path
        Folder of the image; replaced if it is there.
    version : "0.5" or "0.4"
        OME-Zarr version, that of the pyramid.

    Raises
    ------
    ExportError
        If it cannot be written.

    Notes
    -----
    Memory: 4 bytes per patch position on the slide, twice.
    """
    levels = paint_heat_map(selection, source.size_px)
    sizes = [(heat.shape[1], heat.shape[0]) for heat in levels]
    grid = selection.grid
    step_px = lattice_step_px(grid, source.size_px)
    documents = heat_map_documents(
        version,
        source,
        step_px,
        (grid.size_px - 1) / 2,
        sizes,
        screened=selection.weight is not None,
    )
    with staged(path) as temporary:
        group = create_group(temporary, documents)
        for index, (heat, size) in enumerate(zip(levels, sizes, strict=True)):
            create_heat_level(group, version, index, size)[:] = heat[None]


def paint_heat_map(selection: Selection, slide_size_px: tuple[int, int]) -> list[Heat]:
    """Pixels of the heat map, finest level first.

    Parameters
    ----------
    selection : Selection
        Scores of all patches.
    slide_size_px : tuple of int
        (width, height) of the slide's level 0.

    Returns
    -------
    list of (h, w) float32 array
        The percentile of each patch, above 0 to 1: the share of the slide's patches
        that score no more. Where there is no patch it is 0, where one was not examined
        `UNEXAMINED`. Coarser levels average the patches that were.

    Notes
    -----
    Percentiles, since scores span orders of magnitude and get smaller the more patches
    a slide has: any viewer shows them well from 0 to 1, and the same colour means the
    same on all slides; the scores are in selection.parquet. 0 instead of NaN, which few
    viewers draw and which spreads when they blend pixels; no patch ever has it.

    A pixel's centre is that of its patch, and patches that overlap are not averaged, so
    that every pixel of the finest level is the number of one patch. A patch of the last
    row or column, which was moved inside the slide, keeps the place that it was moved
    from: there it alone covers the slide. Where two patches fall on one pixel, as
    can happen off a lattice, the better one shows.
    """
    grid = selection.grid
    step_px = lattice_step_px(grid, slide_size_px)
    w, h = (max(0, -(-(n - grid.size_px) // step_px)) + 1 for n in slide_size_px)
    columns, rows = np.clip(-(-grid.corners.T // step_px), 0, [[w - 1], [h - 1]])
    levels = [np.zeros((h, w), np.float32)]
    seen, values = selection.examined, selection.percentile.astype(np.float32)
    np.maximum.at(levels[0], (rows[seen], columns[seen]), values[seen])
    others = rows[~seen], columns[~seen]
    levels[0][others] = np.where(levels[0][others] > 0, levels[0][others], UNEXAMINED)
    for _ in level_sizes((w, h), 1)[1:]:
        levels.append(_halved(levels[-1]))
    return levels


def lattice_step_px(grid: PatchGrid, slide_size_px: tuple[int, int]) -> int:
    """Level-0 pixels from a patch to the next: less than its side if they overlap."""
    steps = [grid.size_px]
    for starts, length in zip(grid.corners.T, slide_size_px, strict=True):
        # those at the far edge were moved there, off the lattice
        inner = np.unique(starts[starts + grid.size_px < length])
        steps += np.diff(inner).tolist()
    return max(min(steps), -(-grid.size_px // _FINEST))


def _halved(heat: Heat) -> Heat:
    """Mean of the examined patches in each 2 x 2 pixels; 0 where there is none."""
    h, w = heat.shape
    padded = np.pad(heat, ((0, h % 2), (0, w % 2)))
    w, h = halved((w, h))
    cells = padded.reshape(h, 2, w, 2)
    found = cells > 0
    count = found.sum(axis=(1, 3))
    means = (cells * found).sum(axis=(1, 3)) / np.maximum(count, 1)
    unseen = (count == 0) & (cells < 0).any(axis=(1, 3))
    return np.where(unseen, UNEXAMINED, means).astype(np.float32)
