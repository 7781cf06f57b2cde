"""Draws what several pictures share: the whole slide, and boxes on it."""

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import Multiscale, Pyramid

LONGEST_PX = 1024
"""Longest side of the slide in a picture; smaller slides are not enlarged."""

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]


def whole_slide(pyramid: Pyramid, longest_px: int = LONGEST_PX) -> Picture:
    """(h, w, 3) picture of the slide, its longest side as stated or shorter."""
    w, h = pyramid.levels[0].size_px
    shrink = max(1.0, max(w, h) / longest_px)
    size_px = max(1, round(w / shrink)), max(1, round(h / shrink))
    slide = Box(0, 0, *pyramid.source.size_px)
    mpp = pyramid.scale.mean * shrink
    return np.ascontiguousarray(pyramid.read(slide, mpp, size_px).transpose(1, 2, 0))


def placed(box: Box, pyramid: Multiscale, picture: Picture) -> Box:
    """A level-0 box on the picture, at least one pixel, inside it."""
    slide_w, slide_h = pyramid.source.size_px
    h, w = picture.shape[:2]
    left, right = (round(x * w / slide_w) for x in (box.x, box.right))
    top, bottom = (round(y * h / slide_h) for y in (box.y, box.bottom))
    left, top = min(left, w - 1), min(top, h - 1)
    right, bottom = min(max(right, left + 1), w), min(max(bottom, top + 1), h)
    return Box(left, top, right - left, bottom - top)


def outline(draw: ImageDraw.ImageDraw, box: Box) -> None:
    """White inside black: it shows on any colour; tiny boxes get the black alone."""
    corners = [box.x, box.y, box.right - 1, box.bottom - 1]
    draw.rectangle(corners, outline=(0, 0, 0))
    if min(box.w, box.h) >= 6:
        inner = [box.x + 1, box.y + 1, box.right - 2, box.bottom - 2]
        width = 1 if min(box.w, box.h) < 20 else 2
        draw.rectangle(inner, outline=(255, 255, 255), width=width)
