"""Moves a drawing from the frame of the program that wrote it to a slide's level 0."""

from dataclasses import replace
from pathlib import PurePath
from typing import Literal, Protocol, get_args

import numpy as np
import shapely

from wsi_pipeline.annotations.record import Annotation, Drawing
from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.geometry import Box

Frame = Literal["auto", "qupath", "level0", "halo"]
"""Where coordinates start: as the file or its format says; at the corner of the scan's
bounds; at that of level 0; or at the bounds' corner rounded down to whole tiles of 256
px, as HALO was seen to count on MIRAX slides (dlup, ``from_halo_xml``).
"""
FRAMES: tuple[Frame, ...] = get_args(Frame)
_HALO_TILE_PX = 256
_HALO_FRAMES: dict[str, Frame] = {".mrxs": "halo", ".tif": "level0", ".tiff": "level0"}
"""Where HALO starts to count, by kind of slide. Bounds of a plain TIFF are OpenSlide's
own: it leaves out missing tiles, which other programs show. Of Leica's and Argos's
slides, the others with bounds, nobody has told.
"""


def check_frame(text: str) -> Frame:
    """A frame by its name.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    for frame in FRAMES:
        if frame == text:
            return frame
    raise ConfigError(f"frame {text!r}: expected one of {', '.join(FRAMES)}")


class Extent(Protocol):
    """What placing asks of a slide: `SlideInfo` and `Source` have it."""

    @property
    def name(self) -> str:
        """File name, without its folder."""
        ...

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        ...

    @property
    def bounds(self) -> Box:
        """The scan's part of level 0."""
        ...


def find_offset(
    drawing: Drawing, slide: Extent | None, frame: Frame = "auto"
) -> tuple[int, int]:
    """x, y to add to a drawing's coordinates for level-0 pixels.

    Parameters
    ----------
    drawing : Drawing
    slide : Extent, optional
        The slide that was drawn on; left out, its bounds count as all of it.
    frame : str
        What to go by; "auto": what the file states, else its format's frame.

    Raises
    ------
    RegionError
        If the file states the size of its frame and the slide has another, or HALO's
        frame is not known for this kind of slide and would make a difference.
    """
    whole = Box(0, 0, *slide.size_px) if slide else Box(0, 0, 0, 0)
    scan = slide.bounds.intersect(whole) if slide else whole
    corner = scan.x, scan.y
    if frame != "auto":
        return _corner_of(frame, corner)
    if slide and drawing.size_px:
        places = {(scan.w, scan.h): corner, slide.size_px: (0, 0)}
        if drawing.size_px not in places:
            raise RegionError(
                f"drawn on an image of {drawing.size_px} px; the slide has "
                f"{slide.size_px} px, its bounds {(scan.w, scan.h)}: another slide?"
            )
        return drawing.offset_px or places[drawing.size_px]
    if drawing.offset_px:
        return drawing.offset_px
    if drawing.frame is not None:
        return _corner_of(drawing.frame, corner)
    if slide is None or corner == (0, 0):
        return 0, 0
    kind = PurePath(slide.name).suffix.lower()
    if kind not in _HALO_FRAMES:
        raise RegionError(
            f"the scan's bounds start at {corner} and it is not known whether HALO "
            f"counts from there on {kind} slides; say so by a frame: halo, qupath or "
            "level0"
        )
    return _corner_of(_HALO_FRAMES[kind], corner)


def _corner_of(frame: Frame, corner: tuple[int, int]) -> tuple[int, int]:
    """Where a frame starts on a slide whose bounds start at a corner."""
    tile = _HALO_TILE_PX if frame == "halo" else 1
    x, y = (0, 0) if frame == "level0" else corner
    return x - x % tile, y - y % tile


def move(drawing: Drawing, offset_px: tuple[int, int]) -> list[Annotation]:
    """The annotations with x, y added to every coordinate."""
    shift = np.array(offset_px)
    shapes = np.array([one.geometry for one in drawing.annotations], dtype=object)
    if shift.any():
        shapes = shapely.transform(shapes, lambda points: points + shift)
    return [
        replace(one, geometry=shape)
        for one, shape in zip(drawing.annotations, shapes.tolist(), strict=True)
    ]
