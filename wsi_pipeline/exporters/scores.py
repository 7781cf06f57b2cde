"""Brings the scores of a slide's patches to the pixels of a mask."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.outlines import Ints, offsets_of, per_part
from wsi_pipeline.geometry import Box
from wsi_pipeline.regions import Selection

Floats = NDArray[np.float64]

NO_SCORE = -1.0
"""Stands for the score where no patch lies; below any."""


@dataclass(frozen=True)
class BlockScores:
    """Highest score of a patch at each pixel of a block, as cells of one score each.

    Parameters
    ----------
    best : (r, c) float64 array
        Scores of the cells, `NO_SCORE` where no patch lies.
    rows, columns : (h,) and (w,) int64 arrays
        The cells' row of each row of pixels, and their column of each column.
    """

    best: Floats
    rows: Ints
    columns: Ints

    def crop(self, box: Box) -> Self:
        """Those of a part of the block."""
        return replace(
            self, rows=self.rows[box.rows], columns=self.columns[box.columns]
        )

    def over(self, rows: Ints, first: Ints, last: Ints) -> Floats:
        """(q,) highest scores over runs of pixels, each in one row, ends included."""
        cell = self.columns[first]
        sizes = self.columns[last] - cell + 1
        starts = offsets_of(sizes)
        cells = np.arange(starts[-1]) + np.repeat(cell - starts[:-1], sizes)
        return per_part(
            np.maximum, self.best[np.repeat(self.rows[rows], sizes), cells], starts
        )


@dataclass(frozen=True)
class PatchScores:
    """Scores of patches on the grid of a mask.

    Parameters
    ----------
    edges : (n, 4) int64 array
        Left, top, right, bottom in pixels of the mask, half open; a pixel of which any
        part lies in the patch is one of its pixels.
    scores : (n,) float64 array
        0 or more.
    """

    edges: Ints
    scores: Floats

    @classmethod
    def of(cls, selection: Selection, downsample: float) -> Self:
        """Those of the patches that were examined.

        Parameters
        ----------
        selection : Selection
        downsample : float
            Level-0 pixels per pixel of the mask, a whole number.
        """
        seen, step = selection.examined, round(downsample)
        start = selection.grid.corners[seen]
        end = start + selection.grid.size_px
        edges = np.concatenate([start // step, -(-end // step)], axis=1)
        return cls(edges, selection.score[seen])

    def read(self, box: Box) -> BlockScores:
        """Those of a block of the mask."""
        left, top, right, bottom = self.edges.T
        hit = (left < box.right) & (right > box.x)
        hit &= (top < box.bottom) & (bottom > box.y)
        corner, end = [box.x, box.y] * 2, [box.w, box.h] * 2
        edges = np.clip(self.edges[hit] - corner, 0, end)
        xs = np.unique([0, box.w, *edges[:, 0::2].flat])
        ys = np.unique([0, box.h, *edges[:, 1::2].flat])
        best = np.full((len(ys) - 1, len(xs) - 1), NO_SCORE)
        columns, rows = (
            np.searchsorted(xs, edges[:, 0::2]),
            np.searchsorted(ys, edges[:, 1::2]),
        )
        cells = zip(
            rows.tolist(), columns.tolist(), self.scores[hit].tolist(), strict=True
        )
        for (y, bottom_y), (x, right_x), score in cells:
            part = best[y:bottom_y, x:right_x]
            np.maximum(part, score, out=part)
        each = (np.repeat(np.arange(len(at) - 1), np.diff(at)) for at in (ys, xs))
        return BlockScores(best, *each)
