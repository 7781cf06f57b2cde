"""Turns pyramids, masks and selections into small pictures for people."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.geometry import Box
from wsi_pipeline.pictures.drawing import (
    Colour,
    Picture,
    outline,
    placed,
    whole_slide,
)
from wsi_pipeline.pictures.legend import (
    LEAST_WIDTH_PX,
    Entry,
    plain,
    scale_bar,
    with_legend,
)
from wsi_pipeline.places import Place
from wsi_pipeline.publishing import publish_bytes
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.regions import Selection

_FILL, _HEAT = 0.35, 0.5  # opacity of class colours and of the heat map
_HATCH_GREY, _HATCH_PX = 128, 10
# nine even steps of viridis (Smith & van der Walt 2015): evenly spaced to the eye
_VIRIDIS: tuple[Colour, ...] = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)


def thumbnail(pyramid: Pyramid) -> Image.Image:
    """The whole slide, its longest side 1024 px at most.

    Parameters
    ----------
    pyramid : Pyramid
        Image pyramid of the slide.

    Returns
    -------
    RGB image

    Notes
    -----
    Memory: one level of up to 2048 px, 12 MB.
    """
    return Image.fromarray(whole_slide(pyramid))


def overlay(pyramid: Pyramid, masks: MaskPyramid) -> Image.Image:
    """The slide with its classes in colour, what was not computed hatched, a legend.

    Parameters
    ----------
    pyramid : Pyramid
        Image pyramid of the slide.
    masks : MaskPyramid
        Masks of the same slide; value 0 stays uncoloured.

    Returns
    -------
    RGB image
        The slide, and a legend with a scale bar below it.
    """
    picture = whole_slide(pyramid)
    values = _whole_mask(masks, picture.shape[:2])
    table = np.zeros((256, 3), np.uint8)
    for row in masks.classes:
        table[row.value] = row.rgb
    coloured = (values > 0) & (values != NOT_COMPUTED)
    picture = _blend(picture, table[values], coloured, _FILL)
    edges = coloured & _edges(values)
    picture[edges] = table[values][edges]
    missing = values == NOT_COMPUTED
    picture = _hatched(picture, missing)
    entries = [Entry(plain(c.rgb), c.name) for c in masks.classes if c.value > 0]
    if missing.any():
        entries.append(Entry(_swatch(), "Not computed"))
    return _with_legend(picture, pyramid, entries)


def attention(pyramid: Pyramid, selection: Selection) -> Image.Image:
    """The slide under a heat map of attention, with the chosen patches outlined.

    Colours show the rank of a patch among all patches, not its score: attention is so
    uneven that most patches would look alike. After a screening the rank is estimated,
    and patches that were not examined are hatched.

    Parameters
    ----------
    pyramid : Pyramid
        Image pyramid of the slide.
    selection : Selection
        Scores of all patches.

    Returns
    -------
    RGB image
        The slide, and a legend with a scale bar below it.
    """
    picture = whole_slide(pyramid)
    grid = selection.grid
    boxes = [placed(grid.box(patch), pyramid, picture) for patch in range(len(grid))]
    heat = np.full(picture.shape[:2], -1, np.int16)
    left_out = np.zeros(heat.shape, np.bool_)
    last = max(1, len(grid) - 1)
    seen, places = selection.examined, selection.rank.astype(np.float64)
    if selection.weight is not None:
        places = len(grid) * (1 - selection.percentile)
    for patch in np.argsort(-selection.rank, kind="stable"):  # the best on top
        box = boxes[patch]
        if seen[patch]:
            heat[box.rows, box.columns] = 255 - round(255 * float(places[patch]) / last)
        else:
            left_out[box.rows, box.columns] = True
    colours = _ramp()
    picture = _blend(picture, colours[np.maximum(heat, 0)], heat >= 0, _HEAT)
    picture = _hatched(picture, left_out & (heat < 0))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for patch in np.flatnonzero(selection.chosen):
        outline(draw, boxes[patch])
    return _with_legend(np.asarray(image), pyramid, _attention_entries(selection))


def publish_picture(path: Place, image: Image.Image) -> None:
    """Write a PNG under its final name once it is complete.

    Raises
    ------
    ExportError
        If it cannot be written.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    publish_bytes(path, buffer.getvalue())


def _attention_entries(selection: Selection) -> list[Entry]:
    count, chosen = len(selection.grid), int(selection.chosen.sum())
    if not count:
        return [Entry(plain((255, 255, 255)), "No tissue, so there is no patch")]
    ramp = np.tile(_ramp()[np.linspace(0, 255, 120).astype(np.int64)], (14, 1, 1))
    frame = Image.new("RGB", (22, 14), (255, 255, 255))
    outline(ImageDraw.Draw(frame), Box(1, 0, 20, 14))
    share = 100 * selection.captured_mass
    entries = [
        Entry(ramp, f"attention, from the least to the most of {count} patches"),
        Entry(
            np.asarray(frame),
            f"{chosen} chosen patches, which hold {share:.0f} % of the attention",
            framed=False,
        ),
    ]
    others = count - int(selection.examined.sum())
    if others:
        entries.append(Entry(_swatch(), f"{others} not examined after a coarse look"))
    return entries


def _with_legend(
    picture: Picture, pyramid: Pyramid, entries: Sequence[Entry]
) -> Image.Image:
    """The whole slide with its legend and a scale bar."""
    w = picture.shape[1]
    um_per_px = pyramid.source.size_px[0] * pyramid.source.scale.x / w
    bar = scale_bar(um_per_px, max(w, LEAST_WIDTH_PX) / 4)
    return with_legend(picture, [*entries, bar])


def _whole_mask(masks: MaskPyramid, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(h, w) values of a mask by nearest pixel, from the smallest fitting level."""
    h, w = shape[:2]
    fits = [
        index
        for index, level in enumerate(masks.levels)
        if level.size_px[0] >= w and level.size_px[1] >= h
    ]
    level = masks.levels[fits[-1] if fits else 0]
    values = masks.read_level(level.box, fits[-1] if fits else 0)
    columns, rows = (
        np.minimum(((np.arange(n) + 0.5) * (whole / n / level.downsample)), m - 1)
        for n, whole, m in zip((w, h), masks.source.size_px, level.size_px, strict=True)
    )
    return np.asarray(values[np.ix_(rows.astype(np.int64), columns.astype(np.int64))])


def _blend(
    picture: Picture, colours: Picture, where: NDArray[np.bool_], opacity: float
) -> Picture:
    mixed = picture * (1 - opacity) + colours * opacity
    return np.where(where[..., None], np.round(mixed), picture).astype(np.uint8)


def _hatched(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """Thin diagonal lines over a part of the picture."""
    h, w = where.shape
    lines = where & ((np.arange(h)[:, None] + np.arange(w)) % _HATCH_PX == 0)
    grey = np.full_like(picture, _HATCH_GREY)
    return _blend(picture, grey, lines, 0.7)


def _swatch() -> Picture:
    """What is hatched, for a legend."""
    return _hatched(plain((255, 255, 255)), np.ones((14, 22), np.bool_))


def _edges(values: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose right, left, upper or lower neighbour has another value."""
    edges = np.zeros(values.shape, np.bool_)
    down, across = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    return edges


def _ramp() -> Picture:
    """(256, 3) colours, dark for the least."""
    steps = np.array(_VIRIDIS)
    places = np.linspace(0, 255, len(steps))
    channels = [np.interp(np.arange(256), places, steps[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)
