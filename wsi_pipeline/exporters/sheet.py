"""What every exporter is told about the file it writes, besides the objects."""

from dataclasses import dataclass

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.geometry import Box, Scale


@dataclass(frozen=True)
class Frame:
    """Where an export's coordinates start and end.

    Parameters
    ----------
    name : str
        "qupath" (the scan's bounds) or "level0".
    box : Box
        Level-0 pixels that the frame shows; its corner becomes (0, 0).
    """

    name: str
    box: Box

    @property
    def offset_px(self) -> tuple[int, int]:
        """x, y to add to a coordinate of the frame to get level-0 pixels."""
        return self.box.x, self.box.y


@dataclass(frozen=True)
class Sheet:
    """What a file says about itself, besides its objects.

    Parameters
    ----------
    slide_id : str
        Name of the slide in the results.
    frame : Frame
        Where coordinates start.
    scale : Scale
        um/px of level 0.
    pixel_um2 : float
        Area of one pixel of the mask, um2.
    classes : tuple of MaskClass
        Names and colours.
    run : tuple of (str, str)
        Short facts (model, version, run) that go with every object.
    gzip : bool
        Compress.
    """

    slide_id: str
    frame: Frame
    scale: Scale
    pixel_um2: float
    classes: tuple[MaskClass, ...]
    run: tuple[tuple[str, str], ...]
    gzip: bool = False
