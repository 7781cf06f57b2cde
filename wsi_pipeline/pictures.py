"""Turns pyramids, masks and selections into small pictures for people."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.geometry import Box
from wsi_pipeline.places import Place
from wsi_pipeline.publishing import publish_bytes
from wsi_pipeline.pyramid import MaskPyramid, Multiscale, Pyramid
from wsi_pipeline.regions import Selection

LONGEST_PX = 1024
"""Longest side of the slide in a picture; smaller slides are not enlarged."""

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]

_FILL, _HEAT = 0.35, 0.5  # opacity of class colours and of the heat map
_HATCH_GREY, _HATCH_PX = 128, 10
_INK: Colour = (40, 40, 40)
_TEXT_PX, _MARGIN_PX, _LEAST_WIDTH_PX = 15, 12, 480
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


@dataclass(frozen=True)
class _Entry:
    """One item of a legend: a swatch as wide as its columns, and what it means."""

    swatch: Picture  # (h, w, 3)
    text: str
    framed: bool = True


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
    return Image.fromarray(_whole(pyramid))


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
    picture = _whole(pyramid)
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
    entries = [_Entry(_plain(c.rgb), c.name) for c in masks.classes if c.value > 0]
    if missing.any():
        swatch = _hatched(_plain((255, 255, 255)), np.ones((14, 22), np.bool_))
        entries.append(_Entry(swatch, "Not computed"))
    return _with_legend(picture, pyramid, entries)


def attention(pyramid: Pyramid, selection: Selection) -> Image.Image:
    """The slide under a heat map of attention, with the chosen patches outlined.

    Colours show the rank of a patch among all patches, not its score: attention is so
    uneven that most patches would look alike.

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
    picture = _whole(pyramid)
    grid = selection.grid
    boxes = [_placed(grid.box(patch), pyramid, picture) for patch in range(len(grid))]
    heat = np.full(picture.shape[:2], -1, np.int16)
    last = max(1, len(grid) - 1)
    for patch in np.argsort(-selection.rank, kind="stable"):  # the best on top
        box = boxes[patch]
        heat[box.rows, box.columns] = 255 - round(
            255 * int(selection.rank[patch]) / last
        )
    colours = _ramp()
    picture = _blend(picture, colours[np.maximum(heat, 0)], heat >= 0, _HEAT)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for patch in np.flatnonzero(selection.chosen):
        _outline(draw, boxes[patch])
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


def _attention_entries(selection: Selection) -> list[_Entry]:
    count, chosen = len(selection.grid), int(selection.chosen.sum())
    if not count:
        return [_Entry(_plain((255, 255, 255)), "No tissue, so there is no patch")]
    ramp = np.tile(_ramp()[np.linspace(0, 255, 120).astype(np.int64)], (14, 1, 1))
    frame = Image.new("RGB", (22, 14), (255, 255, 255))
    _outline(ImageDraw.Draw(frame), Box(1, 0, 20, 14))
    share = 100 * selection.captured_mass
    return [
        _Entry(ramp, f"attention, from the least to the most of {count} patches"),
        _Entry(
            np.asarray(frame),
            f"{chosen} chosen patches, which hold {share:.0f} % of the attention",
            framed=False,
        ),
    ]


def _whole(pyramid: Pyramid) -> Picture:
    """(h, w, 3) picture of the slide, not enlarged."""
    w, h = pyramid.levels[0].size_px
    shrink = max(1.0, max(w, h) / LONGEST_PX)
    size_px = max(1, round(w / shrink)), max(1, round(h / shrink))
    slide = Box(0, 0, *pyramid.source.size_px)
    mpp = pyramid.scale.mean * shrink
    return np.ascontiguousarray(pyramid.read(slide, mpp, size_px).transpose(1, 2, 0))


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


def _placed(box: Box, pyramid: Multiscale, picture: Picture) -> Box:
    """A level-0 box on the picture, at least one pixel, inside it."""
    slide_w, slide_h = pyramid.source.size_px
    h, w = picture.shape[:2]
    left, right = (round(x * w / slide_w) for x in (box.x, box.right))
    top, bottom = (round(y * h / slide_h) for y in (box.y, box.bottom))
    left, top = min(left, w - 1), min(top, h - 1)
    right, bottom = min(max(right, left + 1), w), min(max(bottom, top + 1), h)
    return Box(left, top, right - left, bottom - top)


def _outline(draw: ImageDraw.ImageDraw, box: Box) -> None:
    """White inside black: it shows on any colour; tiny boxes get the black alone."""
    corners = [box.x, box.y, box.right - 1, box.bottom - 1]
    draw.rectangle(corners, outline=(0, 0, 0))
    if min(box.w, box.h) >= 6:
        inner = [box.x + 1, box.y + 1, box.right - 2, box.bottom - 2]
        width = 1 if min(box.w, box.h) < 20 else 2
        draw.rectangle(inner, outline=(255, 255, 255), width=width)


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


def _plain(rgb: Colour) -> Picture:
    return np.full((14, 22, 3), rgb, np.uint8)


def _with_legend(
    picture: Picture, pyramid: Multiscale, entries: Sequence[_Entry]
) -> Image.Image:
    """The picture with the legend and a scale bar on a white strip below."""
    font = ImageFont.load_default(_TEXT_PX)
    h, w = picture.shape[:2]
    width = max(w, _LEAST_WIDTH_PX)
    um_per_px = pyramid.source.size_px[0] * pyramid.source.scale.x / w
    length_um = _round_length(um_per_px * width / 4)
    bar = np.full((14, max(1, round(length_um / um_per_px)), 3), 255, np.uint8)
    bar[5:9] = _INK
    unit = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} um"
    items = [*entries, _Entry(bar, unit, framed=False)]
    rows: list[list[tuple[int, _Entry]]] = [[]]
    x = _MARGIN_PX
    for item in items:
        need = item.swatch.shape[1] + 6 + math.ceil(font.getlength(_line(item.text)))
        if rows[-1] and x + need + _MARGIN_PX > width:
            rows.append([])
            x = _MARGIN_PX
        rows[-1].append((x, item))
        x += need + 2 * _MARGIN_PX
    step = _TEXT_PX + 11
    canvas = Image.new(
        "RGB", (width, h + 2 * _MARGIN_PX + step * len(rows) - 8), (255, 255, 255)
    )
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        y = h + _MARGIN_PX + number * step
        for x, item in row:
            swatch = item.swatch
            canvas.paste(Image.fromarray(swatch), (x, y + 2))
            right = x + swatch.shape[1]
            if item.framed:
                draw.rectangle([x, y + 2, right - 1, y + 15], outline=(90, 90, 90))
            draw.text(
                (right + 6, y + 9), _line(item.text), _INK, font=font, anchor="lm"
            )
    return canvas


def _line(text: str) -> str:
    """Text on one line: a newline in a class name must not tear the legend."""
    return " ".join(text.split())


def _round_length(at_most_um: float) -> float:
    """The longest of 1, 2, 5 x 10^n that is not above a length."""
    power = 10.0 ** math.floor(math.log10(at_most_um))
    return max(f * power for f in (1, 2, 5) if f * power <= at_most_um * (1 + 1e-9))
