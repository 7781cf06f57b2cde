"""What every exporter is told about the file it writes, besides the objects."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.ngff import Source

NOTICE = "For research use only. Not for use in diagnostic procedures."


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

    @classmethod
    def of(cls, name: Literal["qupath", "level0"], source: Source) -> Self:
        """The frame of a slide that has this name."""
        whole = Box(0, 0, *source.size_px)
        return cls(name, source.bounds.intersect(whole) if name == "qupath" else whole)

    @property
    def offset_px(self) -> tuple[int, int]:
        """x, y to add to a coordinate of the frame to get level-0 pixels."""
        return self.box.x, self.box.y


def packed_name(path: Path, options: ExportOptions) -> Path:
    """The name of a file with the ending that the options ask for, where it lacks."""
    ending = options.ending
    return path if path.name.endswith(ending) else path.with_name(path.name + ending)


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
    objects : str
        What QuPath makes of the objects: "annotation" or "detection".
    group : str
        What is a feature: each "object", or all of a "class".
    """

    slide_id: str
    frame: Frame
    scale: Scale
    pixel_um2: float
    classes: tuple[MaskClass, ...]
    run: tuple[tuple[str, str], ...]
    objects: str = "annotation"
    group: str = "object"

    def header(self) -> dict[str, Any]:
        """JSON values that a file states of itself, in its frame's pixels."""
        return {
            "slide_id": self.slide_id,
            "frame": self.frame.name,
            "offset_px": list(self.frame.offset_px),
            "frame_size_px": [self.frame.box.w, self.frame.box.h],
            "unit": "pixels of level 0; add offset_px for the full slide",
            "mpp": [self.scale.x, self.scale.y],
            "notice": NOTICE,
            **dict(self.run),
        }
