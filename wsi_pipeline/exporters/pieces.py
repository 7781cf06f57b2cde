"""What is looked for in a block of a mask, and what was found there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.exporters.measuring import Measured
from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.outlines import Ints
from wsi_pipeline.geometry import Box

NOBODY, SAME = -1, -2
"""For a piece at the right edge: nothing goes on there; that of the left edge does."""


@dataclass(frozen=True)
class Rules:
    """What is kept of objects, in pixels of the mask.

    Parameters
    ----------
    min_pixels : int
        Smaller objects are counted, not returned.
    min_hole_pixels : float
        Smaller holes are filled, unless an object that is kept lies in them.
    simplify_px : float
        Corners go as long as the triangle with their neighbours is no larger than the
        square of this; 0 keeps pixel edges.
    """

    min_pixels: int = 1
    min_hole_pixels: float = 0.0
    simplify_px: float = 0.0

    @property
    def may_fill_objects(self) -> bool:
        """Whether an object that is kept fits into a hole that is filled."""
        return self.min_hole_pixels > self.min_pixels

    @property
    def limit(self) -> int:
        """Twice the area of the largest triangle that goes."""
        # 1e-9 absorbs the rounding of a tolerance that is a whole number of pixels
        return int(2 * self.simplify_px**2 + 1e-9)


@dataclass(frozen=True)
class Fragments:
    """Open walks along the border of objects, from block edge to block edge.

    Parameters
    ----------
    points : (k, 2) int32 array
        x, y of vertices on the mask; the end is the start of the next fragment.
    swept : (k,) int64 array
        Square pixels between the y axis and the border up to the next vertex.
    may_meet : (k,) bool array
        The border may pass this vertex twice.
    starts : (r + 1,) int64 array
        Where each fragment starts in them.
    owner : (r,) int64 array
        Piece that each belongs to.
    begin, end : (r,) int64 arrays
        Names of the places where it begins and ends; the next begins where it ends.
    """

    points: NDArray[np.int32]
    swept: Ints
    may_meet: NDArray[np.bool_]
    starts: Ints
    owner: Ints
    begin: Ints
    end: Ints


@dataclass(frozen=True)
class Pieces:
    """Parts of objects that go on in other blocks.

    Parameters
    ----------
    value, pixels, first : (k,) arrays
        Class, pixels, and reading order of the first pixel.
    measured : Measured
    holes, filled : (k,) int64 arrays
        Holes that were filled, and their pixels.
    left_row : (k,) int64 array
        Row whose pixel in the block on the left belongs to the same object, or -1.
    points, rings : arrays
        Rings of holes, as of `Outlines`, those of a piece after each other.
    holes_of : (k + 1,) int64 array
        Where the holes of each piece start in `rings`.
    fragments : Fragments
    """

    value: NDArray[np.uint8]
    pixels: Ints
    first: Ints
    measured: Measured
    holes: Ints
    filled: Ints
    left_row: Ints
    points: NDArray[np.int32]
    rings: Ints
    holes_of: Ints
    fragments: Fragments


@dataclass(frozen=True)
class BlockTrace:
    """What was found in a block.

    Parameters
    ----------
    box : Box
    objects : Objects
        Objects that lie in the block and are kept.
    tally : (256, 6) int64 array
        Counts of all objects that lie in the block, see `ClassCount`.
    pieces : Pieces
    at_right : (h,) int64 array
        Piece of each row that goes on in the block on the right, `NOBODY` or `SAME`.
    left_rows : (k,) int64 array
        Rows whose first run came from the block on the left.
    from_left : Measured
        Over these runs.
    """

    box: Box
    objects: Objects
    tally: Ints
    pieces: Pieces
    at_right: Ints
    left_rows: Ints
    from_left: Measured
