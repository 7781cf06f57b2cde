"""Puts a legend with a scale bar below a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsi_pipeline.pictures.drawing import Colour, Picture

INK: Colour = (40, 40, 40)
MARGIN_PX, LEAST_WIDTH_PX = 12, 480
_TEXT_PX = 15


@dataclass(frozen=True)
class Entry:
    """One item of a legend: a swatch as wide as its columns, and what it means."""

    swatch: Picture  # (h, w, 3)
    text: str
    framed: bool = True


def plain(rgb: Colour) -> Picture:
    """A swatch of one colour."""
    return np.full((14, 22, 3), rgb, np.uint8)


def scale_bar(um_per_px: float, at_most_px: float, of: str = "") -> Entry:
    """A bar of a round length, and what it measures where that is not all there is."""
    length_um = _round_length(um_per_px * at_most_px)
    bar = np.full((14, max(1, round(length_um / um_per_px)), 3), 255, np.uint8)
    bar[5:9] = INK
    unit = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} um"
    return Entry(bar, f"{unit} {of}", framed=False)


def with_legend(picture: Picture, items: Sequence[Entry]) -> Image.Image:
    """The picture with its legend on a white strip below."""
    font = ImageFont.load_default(_TEXT_PX)
    h, w = picture.shape[:2]
    width = max(w, LEAST_WIDTH_PX)
    rows: list[list[tuple[int, Entry]]] = [[]]
    x = MARGIN_PX
    for item in items:
        need = item.swatch.shape[1] + 6 + math.ceil(font.getlength(_line(item.text)))
        if rows[-1] and x + need + MARGIN_PX > width:
            rows.append([])
            x = MARGIN_PX
        rows[-1].append((x, item))
        x += need + 2 * MARGIN_PX
    step = _TEXT_PX + 11
    canvas = Image.new(
        "RGB", (width, h + 2 * MARGIN_PX + step * len(rows) - 8), (255, 255, 255)
    )
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        y = h + MARGIN_PX + number * step
        for x, item in row:
            swatch = item.swatch
            canvas.paste(Image.fromarray(swatch), (x, y + 2))
            right = x + swatch.shape[1]
            if item.framed:
                draw.rectangle([x, y + 2, right - 1, y + 15], outline=(90, 90, 90))
            draw.text((right + 6, y + 9), _line(item.text), INK, font=font, anchor="lm")
    return canvas


def _line(text: str) -> str:
    """Text on one line: a newline in a class name must not tear the legend."""
    return " ".join(text.split())


def _round_length(at_most_um: float) -> float:
    """The longest of 1, 2, 5 x 10^n that is not above a length."""
    power = 10.0 ** math.floor(math.log10(at_most_um))
    return max(f * power for f in (1, 2, 5) if f * power <= at_most_um * (1 + 1e-9))
