"""Draws what a segmenter saw of a region and made of it, side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.errors import RegionError

PANEL_PX = 400
"""Longest side of a panel."""

Picture = NDArray[np.uint8]

_COLUMNS = 4
_GAP_PX, _TEXT_PX, _LINE_PX = 14, 17, 26
_INK, _FRAME, _PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)
_PALE = 0.55  # of white over the image, so that black nodes show on dark tissue
_APART_PX = 6.0  # between nodes as drawn; denser ones run together
_HATCH_PX = 8
_SWATCH_PX = 24, 16


@dataclass(frozen=True)
class Shown:
    """One region: what was seen, where, and what came of it.

    Parameters
    ----------
    image : (3, H, W) uint8 array
        The region at full resolution.
    grid : (h, w, 2) float array
        x and y of the nodes in [-1, 1]: the centres of the first and the last pixel.
    sampled : (3, h, w) uint8 array
        Pixels at the nodes.
    deformed : (h, w) uint8 array
        Class predicted at each node.
    predicted : (H, W) uint8 array
        Class predicted for each pixel; 255 = none.
    truth : (H, W) uint8 array
        True class of each pixel; 255 = not labelled.
    density : (h, w) float array, optional
        Density of the nodes that was asked for, of any sum.

    Raises
    ------
    RegionError
        If a shape or a type is another, or the grid or the density is not finite.
    """

    image: NDArray[np.uint8]
    grid: NDArray[np.floating]
    sampled: NDArray[np.uint8]
    deformed: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    density: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        whole, nodes = self.image.shape[1:], self.grid.shape[:2]
        wanted = {
            "image": (3, *whole[:2]),
            "grid": (*nodes, 2),
            "sampled": (3, *nodes),
            "deformed": nodes,
            "predicted": whole,
            "truth": whole,
            "density": nodes,
        }
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape or 0 in shape:
                raise RegionError(
                    f"{name} to show is {array.shape}, expected {shape}, none of it 0"
                )
            if name in ("grid", "density"):
                if not np.isfinite(array).all():
                    raise RegionError(f"{name} to show holds values that are no number")
            elif array.dtype != np.uint8:
                raise RegionError(f"{name} to show is {array.dtype}, expected uint8")


def picture_of(
    shown: Shown, classes: Sequence[MaskClass], *, title: str = ""
) -> Image.Image:
    """Draw a region as a segmenter saw it.

    Parameters
    ----------
    shown : Shown
        The region.
    classes : sequence of MaskClass
        Colours and names; those that occur are listed below the panels.
    title : str
        A line above the panels: strategy, step, score.

    Returns
    -------
    RGB image
        Panels, four in a row: image, density if there is one, nodes on the image,
        pixels at the nodes, prediction at the nodes, prediction and truth at full
        resolution.

    Raises
    ------
    RegionError
        If a label is no class.

    Notes
    -----
    Memory: the region as float32 and about 10 MB. Colours are the classes' own; the
    nodes are black and the density is in viridis, so no meaning rests on a hue.
    """
    table = _table(shown, classes)
    h, w = shown.image.shape[1:]
    scale = PANEL_PX / max(h, w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    image = _resized(shown.image.transpose(1, 2, 0), size)
    panels = [("image", image), *_density_panel(shown.density, size)]
    panels += [
        _nodes_panel(shown, image),
        ("pixels at the nodes", _resized(shown.sampled.transpose(1, 2, 0), size)),
        ("prediction at the nodes", _labels(shown.deformed, table, size)),
        ("prediction, full resolution", _labels(shown.predicted, table, size)),
        ("truth", _labels(shown.truth, table, size)),
    ]
    return _laid_out(panels, size, title, _entries(shown, classes))


def _table(shown: Shown, classes: Sequence[MaskClass]) -> Picture:
    """(256, 3) colours of the labels."""
    table = np.zeros((256, 3), np.uint8)
    for row in classes:
        table[row.value] = row.rgb
    strange = _present(shown) - {row.value for row in classes} - {NOT_COMPUTED}
    if strange:
        raise RegionError(
            f"label {min(strange)} to show is no class; there are: "
            f"{', '.join(str(row.value) for row in classes)}"
        )
    return table


def _present(shown: Shown) -> set[int]:
    """Values that occur in any of the label maps."""
    maps = shown.deformed, shown.predicted, shown.truth
    return {int(value) for part in maps for value in np.unique(part)}


def _resized(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """Means where it shrinks, whole pixels where it grows."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return image.resize(size, Image.Resampling.BOX)


def _labels(labels: Picture, table: Picture, size: tuple[int, int]) -> Image.Image:
    """Labels in their colours; those that are missing hatched."""
    image = Image.fromarray(np.ascontiguousarray(labels))
    values = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    return Image.fromarray(_hatched(table[values], values == NOT_COMPUTED))


def _hatched(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """White with thin grey diagonals over a part of a picture."""
    h, w = where.shape
    lines = (np.arange(h)[:, None] + np.arange(w)) % _HATCH_PX < 2
    pattern = np.where(lines[..., None], 150, 255)
    return np.where(where[..., None], pattern, picture).astype(np.uint8)


def _density_panel(
    density: NDArray[np.floating] | None, size: tuple[int, int]
) -> list[tuple[str, Image.Image]]:
    """The density in viridis, in multiples of an even one."""
    if density is None:
        return []
    mean = float(density.mean())
    times = density / mean if mean else np.ones_like(density)
    low, high = float(times.min()), float(times.max())
    # a span that is rounding only is even
    span = high - low if high - low > 1e-6 * max(abs(high), 1) else math.inf
    colours = colormaps["viridis"]((times - low) / span, bytes=True)[..., :3]
    caption = f"density, {low:.2g} to {high:.2g} x even"
    return [(caption, _resized(colours, size))]


def _nodes_panel(shown: Shown, image: Image.Image) -> tuple[str, Image.Image]:
    """The nodes as black dots on the paled image, thinned out where too many."""
    panel = Image.blend(image, Image.new("RGB", image.size, _PAPER), _PALE)
    h, w = shown.grid.shape[:2]
    every = max(1, math.ceil(_APART_PX * max(h / image.height, w / image.width)))
    nodes = shown.grid[every // 2 :: every, every // 2 :: every].reshape(-1, 2)
    whole = np.array(shown.image.shape[:0:-1])  # W, H
    pixels = (nodes + 1) / 2 * (whole - 1)
    places = (pixels + 0.5) * (np.array(image.size) / whole)
    corners = np.floor(places - 0.5).astype(int)
    corners -= corners == np.array(image.size) - 1  # the last dot is whole as well
    draw = ImageDraw.Draw(panel)
    for x, y in corners.tolist():
        draw.rectangle([x, y, x + 1, y + 1], fill=(0, 0, 0))
    thinned = "" if every == 1 else f", 1 of {every} each way"
    return f"{h} x {w} nodes{thinned}", panel


def _entries(
    shown: Shown, classes: Sequence[MaskClass]
) -> list[tuple[str, Image.Image]]:
    """Name and swatch of what occurs."""
    present = _present(shown)
    entries = [
        (" ".join(row.name.split()), Image.new("RGB", _SWATCH_PX, row.rgb))
        for row in classes
        if row.value in present
    ]
    if NOT_COMPUTED in present:
        w, h = _SWATCH_PX
        blank = np.zeros((h, w, 3), np.uint8)
        swatch = Image.fromarray(_hatched(blank, np.ones((h, w), np.bool_)))
        entries.append(("no label", swatch))
    return entries


def _laid_out(
    panels: Sequence[tuple[str, Image.Image]],
    size: tuple[int, int],
    title: str,
    entries: Sequence[tuple[str, Image.Image]],
) -> Image.Image:
    """Title, panels in rows with a caption above each, and the legend."""
    font = ImageFont.load_default(_TEXT_PX)
    columns = min(_COLUMNS, len(panels))
    # a narrow region leaves room for its captions all the same
    step_x = max(size[0], _widest(font, [text for text, _ in panels])) + _GAP_PX
    step_y = size[1] + _LINE_PX + _GAP_PX
    width = columns * step_x + _GAP_PX
    top = _GAP_PX + (_LINE_PX + 4 if title else 0)
    bottom = top + math.ceil(len(panels) / columns) * step_y
    rows = _wrapped(entries, font, width)
    canvas = Image.new(
        "RGB", (width, bottom + len(rows) * _LINE_PX + _GAP_PX // 2), _PAPER
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP_PX, _GAP_PX), " ".join(title.split()), _INK, font=font)
    for number, (caption, panel) in enumerate(panels):
        x = _GAP_PX + number % columns * step_x
        y = top + number // columns * step_y
        draw.text((x, y), caption, _INK, font=font)
        _put(canvas, panel, (x, y + _LINE_PX))
    for number, row in enumerate(rows):
        for x, name, swatch in row:
            y = bottom + number * _LINE_PX
            _put(canvas, swatch, (x, y))
            middle = y + _SWATCH_PX[1] // 2
            place = x + _SWATCH_PX[0] + 8, middle
            draw.text(place, name, _INK, font=font, anchor="lm")
    return canvas


def _put(canvas: Image.Image, picture: Image.Image, place: tuple[int, int]) -> None:
    """Paste with a thin frame around: white classes end somewhere."""
    (x, y), (w, h) = place, picture.size
    canvas.paste(picture, place)
    frame = [x - 1, y - 1, x + w, y + h]
    ImageDraw.Draw(canvas).rectangle(frame, outline=_FRAME)


def _wrapped(
    entries: Sequence[tuple[str, Image.Image]],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> list[list[tuple[int, str, Image.Image]]]:
    """Entries of the legend in rows, each with its x."""
    rows: list[list[tuple[int, str, Image.Image]]] = [[]]
    x = _GAP_PX
    for name, swatch in entries:
        need = _SWATCH_PX[0] + 8 + _widest(font, [name])
        if rows[-1] and x + need + _GAP_PX > width:
            rows.append([])
            x = _GAP_PX
        rows[-1].append((x, name, swatch))
        x += need + 2 * _GAP_PX
    return rows


def _widest(
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont, texts: Sequence[str]
) -> int:
    return math.ceil(max(font.getlength(text) for text in texts))
