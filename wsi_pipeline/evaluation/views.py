"""What can be compared: label pyramids and drawn areas, both read block by block."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.geometry import Box
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid


class MaskView(Protocol):
    """A mask of a slide that can be read at some scales."""

    @property
    def path(self) -> Path:
        """Where it lies, for messages."""
        ...

    @property
    def source(self) -> Source:
        """The slide."""
        ...

    @property
    def classes(self) -> tuple[MaskClass, ...]:
        """All values besides 255."""
        ...

    @property
    def downsamples(self) -> tuple[int, ...] | None:
        """Level-0 pixels per pixel of each level, finest first; None: any will do."""
        ...

    def read(self, box: Box, downsample: int) -> NDArray[np.uint8]:
        """(h, w) values under a box on the grid of a downsample."""
        ...


@dataclass(frozen=True)
class PyramidView:
    """A label pyramid.

    Parameters
    ----------
    masks : MaskPyramid
    """

    masks: MaskPyramid

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path(str(self.masks.path))

    @property
    def source(self) -> Source:
        """The slide that it was made from."""
        return self.masks.source

    @property
    def classes(self) -> tuple[MaskClass, ...]:
        """As the label states them."""
        return self.masks.classes

    @property
    def downsamples(self) -> tuple[int, ...]:
        """Those of its levels."""
        return tuple(int(level.downsample) for level in self.masks.levels)

    def read(self, box: Box, downsample: int) -> NDArray[np.uint8]:
        """See `MaskView.read`."""
        return self.masks.read_level(box, self.downsamples.index(downsample))


@dataclass(frozen=True)
class DrawnView:
    """Drawn areas on a slide; what nobody drew is background.

    Parameters
    ----------
    path : Path
        Where they were read from.
    source : Source
        The slide.
    classes : tuple of MaskClass
    areas : Areas
        With values of the classes.
    within : Areas, optional
        Where the drawing says something; elsewhere it holds 255.
    """

    path: Path
    source: Source
    classes: tuple[MaskClass, ...]
    areas: Areas
    within: Areas | None = None

    @property
    def downsamples(self) -> None:
        """Drawings have no levels."""
        return

    def read(self, box: Box, downsample: int) -> NDArray[np.uint8]:
        """See `MaskView.read`."""
        place, size_px = box.scaled_up(downsample), (box.w, box.h)
        values = self.areas.paint(place, size_px)
        if self.within is not None:
            inside = self.within.paint(place, size_px)
            values[inside == 0] = NOT_COMPUTED
        return values

    def limited(self, within: Areas) -> "DrawnView":
        """The same where some areas are; elsewhere it says nothing."""
        return replace(self, within=within)
