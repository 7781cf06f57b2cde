"""Decides how large a pixel is: what the user says, else what the file says, else no.

A scale is never guessed: a wrong one makes every area and every model input wrong.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wsi_pipeline.errors import MissingScaleError
from wsi_pipeline.geometry import Scale
from wsi_pipeline.readers.base import GivenScale

USUAL_MPP = (0.1, 2.0)  # scanners: 0.11 (80x oil) to 2 (5x)
POSSIBLE_MPP = (0.05, 10.0)
ANISOTROPY = 1.1
# Resolutions that programs write when they know none, and those of printers.
PRINT_DPI = (72, 96, 100, 150, 200, 300, 600, 1200)
_CURE = "give the pixel size with --mpp or in the samplesheet column mpp"
_UM = {
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "Å": 1e-4,
    "in": 25400.0,
    "inch": 25400.0,
    "thou": 25.4,
}


@dataclass(frozen=True)
class StatedScale:
    """A pixel size that the file states, not yet believed.

    Parameters
    ----------
    x, y : float
        um/px, any number.
    source : str
        Name of the metadata field, as a person would look it up.
    from_tags : bool
        True for TIFF resolution tags, where programs write print resolutions.
    """

    x: float
    y: float
    source: str
    from_tags: bool = False


def choose_scale(
    name: str, stated: Sequence[StatedScale], given: GivenScale
) -> tuple[Scale, str, tuple[str, ...]]:
    """Take the user's scale, else the first that the file states.

    Parameters
    ----------
    name : str
        The slide's file name, for messages.
    stated : sequence of StatedScale
        What the metadata say, most trustworthy first.
    given : GivenScale
        What the user says; wins, and may lie outside the possible range.

    Returns
    -------
    scale : Scale
        um/px of level 0.
    source : str
        Where it came from.
    warnings : tuple of str
        Sentences for the report.

    Raises
    ------
    MissingScaleError
        If there is none, or the stated one is impossible.
    """
    usable = [s for s in stated if not (s.from_tags and _print_dpi(s))]
    if given.mpp is not None:
        return _take_given(name, given.mpp, given.source, usable)
    if not usable:
        dpi = [f" (only {_print_dpi(s)} dpi, a print default)" for s in stated]
        raise MissingScaleError(
            f"{name}: does not say how large a pixel is{dpi[0] if dpi else ''}; {_CURE}"
        )
    first = usable[0]
    low, high = POSSIBLE_MPP
    for value in (first.x, first.y):
        if not (math.isfinite(value) and low <= value <= high):
            raise MissingScaleError(
                f"{name}: states {value:.4g} um/px ({first.source}), which no slide "
                f"scanner makes ({low} to {high:g} is possible); {_CURE}"
            )
    scale = Scale(first.x, first.y)
    return scale, first.source, _doubts(scale, first.source)


def aperio_mpp(description: str) -> StatedScale | None:
    """Pixel size from an Aperio image description (``|MPP = 0.499``)."""
    found = re.search(r"\bMPP\s*=\s*([0-9]+(?:[.,][0-9]+)?)", description)
    if found is None:
        return None
    # some scanners write the decimal comma of their locale
    value = float(found[1].replace(",", "."))
    return StatedScale(value, value, "Aperio MPP") if value else None


def ome_mpp(description: str) -> StatedScale | None:
    """Pixel size from OME-XML (``PhysicalSizeX``, unit by default micrometres)."""
    sizes = []
    for axis in "XY":
        value = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', description)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', description)
        factor = _UM.get(unit[1] if unit else "µm")
        if value is None or factor is None:
            return None
        try:
            sizes.append(float(value[1]) * factor)
        except ValueError:
            return None
    return StatedScale(sizes[0], sizes[1], "OME PhysicalSizeX/Y")


def resolution_mpp(
    x: float, y: float, unit: int, source: str = "TIFF resolution tags"
) -> StatedScale | None:
    """Pixel size from TIFF resolution tags; None without a real unit.

    Parameters
    ----------
    x, y : float
        XResolution and YResolution, pixels per unit.
    unit : int
        ResolutionUnit: 1 none, 2 inch, 3 centimetre.
    """
    um = {2: 25400.0, 3: 10000.0}.get(unit)
    # 1 pixel per inch is how some writers say "no resolution"
    if um is None or not (x > 1 and y > 1):
        return None
    return StatedScale(um / x, um / y, source, from_tags=True)


def _take_given(
    name: str, mpp: float, source: str, stated: Sequence[StatedScale]
) -> tuple[Scale, str, tuple[str, ...]]:
    if not (math.isfinite(mpp) and mpp > 0):
        raise MissingScaleError(
            f"{name}: {source} says {mpp} um/px; give a number above 0, such as 0.5"
        )
    scale = Scale(mpp, mpp)
    others = [
        f"{source} says {mpp:g} um/px, the file says {s.x:.4g} ({s.source}); "
        f"{source} is used"
        for s in stated[:1]
        if not 1 / ANISOTROPY <= s.x / mpp <= ANISOTROPY
    ]
    return scale, source, (*_doubts(scale, source), *others)


def _doubts(scale: Scale, source: str) -> tuple[str, ...]:
    low, high = USUAL_MPP
    doubts = []
    if not low <= scale.mean <= high:
        doubts.append(
            f"unusual pixel size {scale.mean:.4g} um/px ({source}); slides have "
            f"{low} to {high:g}"
        )
    if max(scale.x / scale.y, scale.y / scale.x) > ANISOTROPY:
        doubts.append(
            f"pixels are not square: {scale.x:.4g} x {scale.y:.4g} um ({source})"
        )
    return tuple(doubts)


def _print_dpi(stated: StatedScale) -> int | None:
    """The print resolution that the value is within 0.5 % of, if any."""
    if not (math.isfinite(stated.x) and stated.x > 0):
        return None
    dpi = 25400 / stated.x
    return next((d for d in PRINT_DPI if abs(dpi / d - 1) < 0.005), None)
