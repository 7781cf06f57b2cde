"""Reads through OpenSlide: MIRAX, NDPI, DICOM, JPEG 2000 and all else that it knows."""

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.errors import NotASlideError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers.base import (
    PARSER_ERRORS,
    BackendSlide,
    GivenScale,
    check_geometry,
    plain,
    pyramid_levels,
)
from wsi_pipeline.readers.scale import StatedScale, choose_scale
from wsi_pipeline.slide import SlideInfo

_DICOM_CODECS = {
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG",
}
_EXPORT = "export it again as RGB with JPEG compression, or as SVS or TIFF"
_COPY = "copy it again from the scanner, with all files that belong to it"


_ERRORS = (*PARSER_ERRORS, openslide.OpenSlideError)


class OpenSlideReader(BackendSlide["OpenSlideHandle"]):
    """A slide read by OpenSlide; the rest is in `BackendSlide`."""

    errors = _ERRORS

    def _open(self) -> "OpenSlideHandle":
        return OpenSlideHandle(self._info.path, self._info.background)


class OpenSlideHandle:
    """An OpenSlide object; it is thread-safe and closes itself when dropped."""

    def __init__(self, path: Path, background: tuple[int, int, int]) -> None:
        self._slide = openslide.OpenSlide(path)
        self._background = background
        self._downsamples = self._slide.level_downsamples

    def read_planes(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(3, h, w) uint8 RGB of a box inside a level, laid on the background.

        Notes
        -----
        OpenSlide takes the corner in level-0 pixels and divides by its own mean
        downsample. Where that is no whole number, the corner is off by at most half a
        level-0 pixel and the pixels are interpolated.
        """
        factor = self._downsamples[level]
        corner = round(box.x * factor), round(box.y * factor)
        rgba = np.asarray(self._slide.read_region(corner, level, (box.w, box.h)))
        out = np.empty((4, box.h, box.w), np.uint8)
        cv2.split(rgba, list(out))
        if out[3].min() == 255:
            return out[:3]
        alpha = out[3].astype(np.uint16)
        for plane, ground in zip(out[:3], self._background, strict=True):
            plane[:] = (plane * alpha + ground * (255 - alpha) + 127) // 255
        return out[:3]


def open_with_openslide(path: Path, given: GivenScale) -> OpenSlideReader:
    """Open a slide with OpenSlide.

    Parameters
    ----------
    path : Path
        Any file that OpenSlide knows.
    given : GivenScale
        The user's pixel size, if any.

    Raises
    ------
    NotASlideError
        If OpenSlide does not know the format.
    SlideError
        If it refuses the file.
    MissingScaleError
        If nobody says how large a pixel is.
    """
    try:
        with openslide.OpenSlide(path) as slide:
            facts = dict(slide.properties)
            sizes = [(int(w), int(h)) for w, h in slide.level_dimensions]
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise NotASlideError(
            f"{path.name}: is no slide format that this program knows; "
            "export it as SVS, TIFF, NDPI, MRXS or DICOM"
        ) from error
    except _ERRORS as error:
        raise SlideError(f"{path.name}: {_refusal(str(error))}") from error
    if not sizes or min(min(size) for size in sizes) < 1:
        raise SlideError(f"{path.name}: states an image without pixels; {_COPY}")
    vendor = facts.get("openslide.vendor", "unknown")
    scale, source, warnings = choose_scale(path.name, _stated(facts), given)
    levels = pyramid_levels(sizes)
    info = SlideInfo(
        path=path,
        backend="openslide",
        vendor=vendor,
        levels=levels,
        scale=scale,
        scale_source=source,
        bounds=_bounds(facts, levels[0].box),
        tile_px=(
            _whole(facts, "openslide.level[0].tile-width", 256),
            _whole(facts, "openslide.level[0].tile-height", 256),
        ),
        compression=_compression(facts),
        background=_colour(facts.get("openslide.background-color", "")),
        warnings=warnings,
        read_px=2048,
    )
    check_geometry(path.name, info)
    return OpenSlideReader(info)


def detect_vendor(path: Path) -> str | None:
    """OpenSlide's name for the format; None where it knows none."""
    try:
        vendor: str | None = openslide.OpenSlide.detect_format(path)
    except _ERRORS:
        return None
    return vendor


def _refusal(message: str) -> str:
    """OpenSlide's error as a sentence about the slide and what helps."""
    colour = re.search(r"Unsupported photometric interpretation (\S+)", message)
    if colour:
        return (
            f"stores its colours as {colour[1]}, which the DICOM reader does not "
            f"support; {_EXPORT}"
        )
    syntax = re.search(r"Unsupported transfer syntax ([0-9.]+)", message)
    if syntax:
        codec = _DICOM_CODECS.get(syntax[1], syntax[1])
        return (
            f"is compressed as {codec}, which the DICOM reader does not support; "
            f"{_EXPORT}"
        )
    if "Index.dat" in message:
        return f"its index file Index.dat is damaged or cut short; {_COPY}"
    return f"is damaged or incomplete ({plain(ValueError(message))}); {_COPY}"


def _stated(facts: Mapping[str, str]) -> list[StatedScale]:
    try:
        x, y = float(facts["openslide.mpp-x"]), float(facts["openslide.mpp-y"])
    except (KeyError, ValueError):
        return []
    tags = facts.get("openslide.vendor") == "generic-tiff"
    return [StatedScale(x, y, "openslide.mpp-x/y", from_tags=tags)]


def _bounds(facts: Mapping[str, str], whole: Box) -> Box:
    """OpenSlide's bounds, clipped to the slide; all of it where there are none."""
    stated = Box(
        _whole(facts, "openslide.bounds-x", 0),
        _whole(facts, "openslide.bounds-y", 0),
        max(0, _whole(facts, "openslide.bounds-width", whole.w)),
        max(0, _whole(facts, "openslide.bounds-height", whole.h)),
    ).intersect(whole)
    return stated if stated.area_px else whole


def _whole(facts: Mapping[str, str], name: str, default: int) -> int:
    text = facts.get(name, "")
    return int(text) if re.fullmatch(r"-?\d+", text) else default


def _colour(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[0-9A-Fa-f]{6}", text):
        return 255, 255, 255
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


def _compression(facts: Mapping[str, str]) -> str:
    """What Aperio descriptions say; OpenSlide itself does not tell."""
    text = facts.get("tiff.ImageDescription", "")
    return "jpeg2000" if "J2K" in text else "jpeg" if "JPEG" in text else "unknown"
