"""Colours as QuPath's importer reads them, and the colours that were meant."""

import math
from typing import Any

from PIL import ImageColor

from wsi_pipeline.annotations.qupath.findings import Effect
from wsi_pipeline.annotations.qupath.values import is_number, number_of

Rgb = tuple[int, int, int]


def colour_flaw(numbers: list[Any]) -> tuple[Effect, str] | None:  # Any: JSON values
    """What QuPath makes of a colour in a list that is not three whole 0-255 numbers."""
    if not all(map(is_number, numbers)):
        return "abort", f"colour {numbers!r:.60}: expected whole numbers 0-255"
    if any(number % 1 for number in numbers) or _is_fractions(numbers):
        return "changed", f"colour {numbers}: fractions are read as black"
    if len(numbers) > 2 and not all(0 <= number <= 255 for number in numbers):
        return "changed", f"colour {numbers}: beyond 0-255 it is another colour"
    return None


def rgb_of(colour: Any) -> Rgb | None:  # Any: a JSON value
    """The colour that was meant by a list, a packed number or text; None: no idea."""
    if isinstance(colour, str):
        try:
            r, g, b = ImageColor.getrgb(colour.strip())[:3]
        except ValueError:
            return None
        return r, g, b
    if isinstance(colour, list) and len(colour) == 1:
        colour = colour[0]
    if is_number(colour) and not colour % 1:
        packed = int(colour)
        return packed >> 16 & 255, packed >> 8 & 255, packed & 255
    if not isinstance(colour, list) or len(colour) < 3:
        return None
    read = [n if is_number(n) else number_of(n) for n in colour[:3]]
    numbers = [n for n in read if n is not None and math.isfinite(n)]
    if len(numbers) < 3:
        return None
    scale = 255 if _is_fractions(numbers) else 1
    r, g, b = (min(max(round(n * scale), 0), 255) for n in numbers)
    return r, g, b


def _is_fractions(numbers: list[Any]) -> bool:  # Any: numbers
    """Whether they are shares of 1: such a white is 1.0, 1.0, 1.0, and not 1, 1, 1."""
    some = any(isinstance(n, float) for n in numbers) and any(numbers)
    return some and all(0 <= n <= 1 for n in numbers)
