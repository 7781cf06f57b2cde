"""Looks at a slide's overview and refuses what is no brightfield colour slide."""

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import NotASlideError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.slide import Slide

VIEW_PX = 1024  # an overview up to this side is read whole
WINDOW_PX, WINDOWS = 128, 5  # else a 5 x 5 lattice of windows
LARGE_PIECE_PX = 2**24  # else one: each window decodes the pieces under it
LIT, PALE = 32, 64  # grey values: above LIT is not black, all channels above PALE
DARK_SHARE, PALE_SHARE, LIT_SHARE = 0.5, 0.02, 0.001
GREY_STEP, MIDTONE_SHARE = 4, 0.05


def check_content(slide: Slide) -> None:
    """Refuse fluorescence and grey images by their overview.

    Raises
    ------
    NotASlideError
        If `not_brightfield` or `not_coloured` says so.
    SlideError
        If no part of the overview can be read.
    """
    pixels = overview_pixels(slide)
    reason = not_brightfield(pixels) or not_coloured(pixels)
    if reason:
        raise NotASlideError(f"{slide.info.path.name}: {reason}")


def overview_pixels(slide: Slide) -> NDArray[np.uint8]:
    """Pixels of the coarsest level that can be read: all of it, or windows over it.

    Returns
    -------
    (n, 3) uint8 array

    Raises
    ------
    SlideError
        If nothing can be read; a window that cannot is left out.

    Notes
    -----
    Memory: at most 1024 x 1024 pixels, and the tiles under 25 windows.
    """
    for index in range(len(slide.info.levels) - 1, 0, -1):
        with suppress(SlideError):  # damage there is no matter: level 0 is what is used
            return _view(slide, index)
    return _view(slide, 0)


def _view(slide: Slide, index: int) -> NDArray[np.uint8]:
    """(n, 3) uint8 pixels of a level; see `overview_pixels`."""
    level = slide.info.levels[index]
    w, h = level.size_px
    found: list[NDArray[np.uint8]] = []
    failure: SlideError | None = None
    if max(w, h) <= VIEW_PX:
        try:
            return slide.read(slide.info.box, index).reshape(-1, 3)
        except SlideError as error:
            failure = error  # one bad tile must not refuse the slide
    tile = slide.info.tile_px
    steps = WINDOWS if tile[0] * tile[1] <= LARGE_PIECE_PX else 1
    for row in range(steps):
        for column in range(steps):
            x = max(0, w - WINDOW_PX) * (2 * column + 1) // (2 * steps)
            y = max(0, h - WINDOW_PX) * (2 * row + 1) // (2 * steps)
            window = Box(x, y, min(w, WINDOW_PX), min(h, WINDOW_PX))
            try:
                area = window.scaled_up(level.downsample).intersect(slide.info.box)
                found.append(slide.read(area, index).reshape(-1, 3))
            except SlideError as error:
                failure = error
    if not found and failure is not None:
        raise failure
    return np.concatenate(found)


def not_brightfield(pixels: NDArray[np.uint8]) -> str | None:
    """Reason why an overview is no brightfield slide, or None.

    Parameters
    ----------
    pixels : (n, 3) uint8 array
        RGB of an overview.

    Notes
    -----
    Light goes through a brightfield slide: glass and pale tissue are bright in all
    three channels. Refused is what is black (max of RGB at most 32) over more than half
    and, where it is lit, is lit in single channels: under 2 % of the lit pixels have
    all channels above 64; or what is lit nowhere (under 0.1 %). A section cut out on
    black passes: its lit pixels are pink and pale. Dark tissue that fills the view
    passes: it is not black. Measured: DAPI (NDPI) has 0 % pale; 31 prostate
    whole-mounts on black have over 94 %.
    """
    low, high = _extremes(pixels)
    lit = high > LIT
    if np.mean(lit) < LIT_SHARE:
        return (
            "is black all over, so it is no brightfield slide (dark fluorescence, or "
            "an empty scan); brightfield slides only, such as H&E"
        )
    pale = low[lit] > PALE
    if np.mean(lit) < 1 - DARK_SHARE and np.mean(pale) < PALE_SHARE:
        return (
            "looks like a fluorescence image (single colours on black, no bright "
            "glass); brightfield slides only, such as H&E"
        )
    return None


def not_coloured(pixels: NDArray[np.uint8]) -> str | None:
    """Reason why an overview is a grey image, or None.

    Notes
    -----
    Grey is what differs by at most 4 between channels in 99.9 % of the pixels and has
    midtones (40 to 200) on at least 5 %: blank glass, a black border or dust do not.
    """
    low, high = _extremes(pixels)
    spread = high - low
    midtone = (pixels[:, 1] > 40) & (pixels[:, 1] < 200)
    if np.mean(spread > GREY_STEP) < 0.001 and np.mean(midtone) > MIDTONE_SHARE:
        return "is a grey image, not a colour slide; scan or export it in colour (RGB)"
    return None


def _extremes(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Smallest and largest channel of (n, 3) pixels; by axis takes 60 times as long."""
    red, green, blue = pixels.T
    low = np.minimum(np.minimum(red, green), blue)
    return low, np.maximum(np.maximum(red, green), blue)
