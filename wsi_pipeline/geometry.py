"""Boxes, levels and the conversion of coordinates between them.

A bare coordinate is a level-0 pixel of the full slide, x before y, half open.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open rectangle of whole pixels: x in [x, x+w), y in [y, y+h).

    Parameters
    ----------
    x, y : int
        Left and top edge, pixels of the grid the box lives on.
    w, h : int
        Width and height in pixels, at least 0.
    """

    x: int
    y: int
    w: int
    h: int

    def __post_init__(self) -> None:
        if self.w < 0 or self.h < 0:
            raise ValueError(f"box size must not be negative, got {self.w} x {self.h}")

    @property
    def right(self) -> int:
        """First column to the right of the box."""
        return self.x + self.w

    @property
    def bottom(self) -> int:
        """First row below the box."""
        return self.y + self.h

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return self.w * self.h

    @property
    def rows(self) -> slice:
        """Rows as an array slice."""
        return slice(self.y, self.bottom)

    @property
    def columns(self) -> slice:
        """Columns as an array slice."""
        return slice(self.x, self.right)

    def intersect(self, other: "Box") -> "Box":
        """Common part; an empty box (w or h 0) where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        return Box(
            x,
            y,
            max(0, min(self.right, other.right) - x),
            max(0, min(self.bottom, other.bottom) - y),
        )

    def shift(self, dx: int, dy: int) -> "Box":
        """The same box moved by (dx, dy)."""
        return Box(self.x + dx, self.y + dy, self.w, self.h)

    def scaled_down(self, factor: float) -> "Box":
        """Smallest box on a grid `factor` times coarser that covers this one."""
        x, y = _floor(self.x / factor), _floor(self.y / factor)
        return Box(
            x, y, _ceil(self.right / factor) - x, _ceil(self.bottom / factor) - y
        )

    def scaled_up(self, factor: float) -> "Box":
        """The box on a grid `factor` times finer, edges rounded to whole pixels."""
        x, y = round(self.x * factor), round(self.y * factor)
        return Box(
            x, y, round(self.right * factor) - x, round(self.bottom * factor) - y
        )

    def blocks(self, side_px: int) -> Iterator["Box"]:
        """Yield the cells of a `side_px` lattice (anchored at 0, 0) cut by the box."""
        if not self.area_px:
            return
        for y in range(self.y // side_px * side_px, self.bottom, side_px):
            for x in range(self.x // side_px * side_px, self.right, side_px):
                yield self.intersect(Box(x, y, side_px, side_px))


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a pyramid.

    Parameters
    ----------
    size_px : tuple of int
        (width, height) in pixels of this level.
    downsample : float
        Level-0 pixels per pixel of this level, at least 1.
    """

    size_px: tuple[int, int]
    downsample: float

    def cover(self, box: Box) -> Box:
        """Box on this level's grid that covers a level-0 box."""
        return box.scaled_down(self.downsample)

    @property
    def box(self) -> Box:
        """The whole level, on its own grid."""
        return Box(0, 0, *self.size_px)


@dataclass(frozen=True, slots=True)
class Scale:
    """Pixel size in um/px along x and y.

    Parameters
    ----------
    x, y : float
        Micrometres per pixel, finite and above 0.
    """

    x: float
    y: float

    def __post_init__(self) -> None:
        for value in (self.x, self.y):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"um/px must be finite and above 0, got {value}")

    @property
    def mean(self) -> float:
        """Geometric mean of x and y: the mpp whose square is the pixel area."""
        return math.sqrt(self.x * self.y)

    @property
    def area_um2(self) -> float:
        """Area of one pixel in um2."""
        return self.x * self.y

    def coarser(self, factor: float) -> Self:
        """Scale of a grid `factor` times coarser."""
        return type(self)(self.x * factor, self.y * factor)


def halved(size_px: tuple[int, int], times: int = 1) -> tuple[int, int]:
    """(width, height) after `times` reductions by 2, each rounded up."""
    w, h = size_px
    return -(-w // 2**times), -(-h // 2**times)


def _floor(value: float) -> int:
    # 1e-6 px absorbs downsamples such as 4.0000001 that formats store
    return math.floor(value + 1e-6)


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-6)
