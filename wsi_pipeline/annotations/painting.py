"""Turns drawn areas into values of pixels: of a whole slide, a block, or a patch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize

from wsi_pipeline.annotations.shapes import areas_of
from wsi_pipeline.geometry import Box

_MANY_POINTS = 500
"""Areas with more are cut to what is painted, since painting takes rows x points."""
_MARGIN_PX = 2
_ALL = 1 - 1e-12  # an area's rounding


@dataclass(frozen=True)
class Areas:
    """Areas with values, in the order in which they are painted: the last one wins.

    Parameters
    ----------
    geometries : (n,) array of shapely.Geometry
        Level-0 pixels, valid.
    values : (n,) uint8 array
        What their pixels become.
    """

    geometries: NDArray[np.object_]
    values: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.values)

    def __bool__(self) -> bool:
        return len(self.values) > 0

    def paint(
        self, box: Box, size_px: tuple[int, int], background: int = 0
    ) -> NDArray[np.uint8]:
        """Paint a box of the slide.

        Parameters
        ----------
        box : Box
            Level-0 pixels; may reach beyond the slide.
        size_px : tuple of int
            (width, height) of the result, which decides its scale.
        background : int
            Value where there is no area.

        Returns
        -------
        (h, w) uint8 array
            A pixel has the value of the last area that its centre lies in.

        Notes
        -----
        Memory: the result, and the outlines of the areas in the box. Boxes beside each
        other give the same pixels as one box around both, but for centres that lie on
        an outline to the last bit.
        """
        w, h = size_px
        scale = np.array([w / box.w, h / box.h])
        margin_x, margin_y = _MARGIN_PX / scale
        window = shapely.box(
            box.x - margin_x,
            box.y - margin_y,
            box.right + margin_x,
            box.bottom + margin_y,
        )
        shapes: list[tuple[shapely.Geometry, int]] = []
        for index in np.sort(self._tree.query(window, predicate="intersects")):
            area = self.geometries[index]
            if shapely.get_num_coordinates(area) > _MANY_POINTS:
                area = areas_of(shapely.intersection(area, window))
                if shapely.area(area) >= window.area * _ALL:  # hides what came before
                    shapes, background = [], int(self.values[index])
                    continue
                if shapely.is_empty(area):
                    continue
            shapes.append((area, int(self.values[index])))
        if not shapes:
            return np.full((h, w), background, np.uint8)
        corner = np.array([box.x, box.y])
        placed = shapely.transform(
            [s for s, _ in shapes], lambda p: (p - corner) * scale
        )
        found = rasterize(
            zip(placed, [value for _, value in shapes], strict=True),
            out_shape=(h, w),
            fill=background,
            dtype="uint8",
        )
        return np.asarray(found, np.uint8)

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.geometries)
