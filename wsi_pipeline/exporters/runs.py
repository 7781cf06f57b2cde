"""Finds what is at the left end of runs of pixels: the walk around their object."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.corners import DOWN, STRIP_ROWS, UP, Corners
from wsi_pipeline.exporters.measuring import Layers, Measured
from wsi_pipeline.exporters.outlines import Ints, offsets_of
from wsi_pipeline.exporters.scores import NO_SCORE
from wsi_pipeline.exporters.walks import Walks

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
_WINDOW = 32  # pixels looked at together, to the left

BEYOND = -1
"""Stands for a walk: the run starts in the block on the left."""


@dataclass(frozen=True)
class Runs:
    """Rows of a block as runs of equal pixels.

    Parameters
    ----------
    pixels : (h + 2, w + 2) uint8 array
        The block and the pixels around it.
    corners : Corners
    walks : Walks
    """

    pixels: Pixels
    corners: Corners
    walks: Walks

    def walk_before(self, columns: Ints, rows: Ints) -> Ints:
        """The walk at the left end of the run that ends before a column.

        Parameters
        ----------
        columns, rows : (q,) int64 arrays
            Of the block, columns from 1 to its width; the pixel on the left is in an
            object.

        Returns
        -------
        (q,) int64 array
            Walks, or `BEYOND`.
        """
        value = self.pixels[rows + 1, columns]
        start = np.full(len(columns), BEYOND, np.int64)
        open_, at = np.arange(len(columns)), columns - 1
        while len(open_):
            near = np.maximum(at[:, None] - np.arange(_WINDOW), 0)
            differs = self.pixels[rows[open_, None] + 1, near] != value[open_, None]
            found, where = differs.any(axis=1), differs.argmax(axis=1)
            start[open_[found]] = near[found, where[found]]
            at = at - _WINDOW
            goes_on = ~found & (at >= 0)
            open_, at = open_[goes_on], at[goes_on]
        inside = start != BEYOND
        walk = np.full(len(columns), BEYOND, np.int64)
        walk[inside] = self._walk_at(start[inside], rows[inside])
        return walk

    def _walk_at(self, x: Ints, rows: Ints) -> Ints:
        """The walk that goes up along the left side of the pixels at x."""
        corners, h = self.corners, self.corners.size_px[1]
        keys = corners.x.astype(np.int64) * (h + 1) + corners.y
        wanted = np.searchsorted(keys[corners.columns], x * (h + 1) + rows, "right")
        bottom = corners.toward[DOWN, corners.columns[wanted - 1]]
        return np.asarray(self.walks.of_arm[UP, bottom], np.int64)

    def measure(self, layers: Layers) -> tuple[Measured, Ints, Measured]:
        """Measure what lies over the pixels of runs.

        Returns
        -------
        of_walks : Measured
            Over the runs whose left end is on each of the r walks.
        rows : (k,) int64 array
            Rows whose first run started in the block on the left, in an object.
        of_rows : Measured
            Over the first run of these rows.
        """
        w, h = self.corners.size_px
        found = [self._sums(layers.confidence, top) for top in range(0, h, STRIP_ROWS)]
        starts, sums, peaks = (
            np.concatenate(part) for part in zip(*found, strict=True)
        )
        ends = np.append(starts[1:], h * w) - 1

        def measured(run: Ints) -> Measured:
            if layers.scores is None:
                return Measured(sums[run], peaks[run], np.full(len(run), NO_SCORE))
            row, first = np.divmod(starts[run], w)
            score = layers.scores.over(row, first, ends[run] - row * w)
            return Measured(sums[run], peaks[run], score)

        beyond, first = self.pixels[1:-1, 0], self.pixels[1:-1, 1]
        rows = np.flatnonzero((first == beyond) & (first > 0))
        of_rows = measured(np.searchsorted(starts, rows * w))
        # the pixels on the right of steps up are where runs start
        steps = np.flatnonzero(self.walks.heading == UP)
        low = self.walks.corner[steps]
        high = self.corners.toward[UP, low]
        rise = (self.corners.y[low] - self.corners.y[high]).astype(np.int64)
        offsets = offsets_of(rise)
        step = np.repeat(np.arange(len(steps)), rise)
        row = self.corners.y[high][step] + np.arange(offsets[-1]) - offsets[step]
        run = np.searchsorted(starts, row * w + self.corners.x[low][step])
        walk = self.walks.of_step[steps][step]
        return measured(run).grouped(walk, len(self.walks)), rows, of_rows

    def _sums(
        self, confidence: Pixels | None, top: int
    ) -> tuple[Ints, Floats | Ints, Pixels]:
        """Where runs start in the flat block, in some rows of it; sums and peaks."""
        rows = self.pixels[1:-1][top : top + STRIP_ROWS]
        changes = rows[:, 1:-1] != rows[:, :-2]
        changes[:, 0] = True
        starts = np.flatnonzero(changes)
        first = top * changes.shape[1]
        if confidence is None:
            nothing = Measured.nothing(len(starts))
            return starts + first, nothing.weight, nothing.peak
        sure = confidence[top : top + STRIP_ROWS].ravel()
        sums = np.add.reduceat(sure.astype(np.int64), starts)
        return starts + first, sums, np.maximum.reduceat(sure, starts)
