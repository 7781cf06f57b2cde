"""Draws what was added to a mask and removed from it, over the slide."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsi_pipeline.geometry import Box
from wsi_pipeline.pictures.drawing import Colour, outline
from wsi_pipeline.pictures.legend import (
    LEAST_WIDTH_PX,
    Entry,
    plain,
    scale_bar,
    with_legend,
)
from wsi_pipeline.pyramid import Pyramid

# Okabe & Ito 2008: told apart by colour-blind eyes
_COLOURS: dict[str, Colour] = {
    "agreed": (0, 158, 115),
    "added": (230, 159, 0),
    "removed": (0, 114, 178),
    "not computed": (150, 150, 150),
}
_MEANINGS = {
    "agreed": "in both, of one class",
    "added": "added, or of another class",
    "removed": "removed",
    "not computed": "not computed",
}
_OPACITY = 0.7
_SMALL_PX = 24
_MARKS = 50


def changes(
    pyramid: Pyramid | None,
    shares: NDArray[np.float32],
    downsample: int,
    mpp: float,
    marks: Sequence[Box] = (),
) -> Image.Image:
    """The slide with agreement and changes in colour, small regions framed, a legend.

    Parameters
    ----------
    pyramid : Pyramid or None
        The slide's pixels; without them it is white.
    shares : (4, h, w) float32 array
        Share of each pixel that is agreed, added, removed and not computed, 0 to 1.
    downsample : int
        Level-0 pixels per pixel of the picture.
    mpp : float
        um/px of level 0.
    marks : sequence of Box
        Level-0 boxes of regions, the largest first; of the first 50 those that would
        be overlooked are framed.

    Returns
    -------
    RGB image
        A colour is as strong as its share: thin edges are pale.
    """
    h, w = shares.shape[1:]
    picture = np.full((h, w, 3), 255, np.uint8)
    if pyramid is not None:
        place = Box(0, 0, w * downsample, h * downsample)
        found = pyramid.read(place, mpp * downsample, (w, h))
        picture = np.ascontiguousarray(found.transpose(1, 2, 0))
    mixed = picture.astype(np.float32)
    for share, colour in zip(shares, _COLOURS.values(), strict=True):
        weight = (_OPACITY * share)[..., None]
        mixed += weight * (np.array(colour, np.float32) - picture)
    image = Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for box in marks[:_MARKS]:
        small = box.scaled_down(downsample)
        if max(small.w, small.h) < _SMALL_PX:
            outline(draw, Box(small.x - 4, small.y - 4, small.w + 8, small.h + 8))
    seen = (shares > 0).any(axis=(1, 2))
    entries = [
        Entry(plain(colour), _MEANINGS[name])
        for (name, colour), there in zip(_COLOURS.items(), seen, strict=True)
        if there
    ]
    bar = scale_bar(mpp * downsample, max(w, LEAST_WIDTH_PX) / 4)
    return with_legend(np.asarray(image), [*entries, bar])
