"""Reads through OpenSlide: MIRAX, NDPI, DICOM, JPEG 2000 and all else that it knows."""

import functools
import os
import re
from collections import deque
from collections.abc import Mapping
from ctypes import POINTER, c_uint32
from pathlib import Path

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import lowlevel

# Into memory of ours: the public call makes new memory, undoes the multiplication with
# alpha and copies. Imported by name, so that a release without it fails at once.
from openslide.lowlevel import _read_region

from wsi_pipeline.errors import NotASlideError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.places import Place
from wsi_pipeline.readers.base import (
    PARSER_ERRORS,
    BackendSlide,
    GivenScale,
    check_geometry,
    plain,
    pyramid_levels,
)
from wsi_pipeline.readers.scale import StatedScale, choose_scale
from wsi_pipeline.readers.tiff_doubts import file_doubts
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

READ_PX = 2048
# CPU seconds for 24 MP of JPEG 2000 in tiles of 1008 px, with 32 MiB (OpenSlide's own
# choice) and with 128: in blocks of 512 px 7.2 and 3.3, on two threads 7.9 and 3.3; of
# 2048 px 5.2 and 3.3, 5.1 and 3.6; of 4096 px 3.6 and 3.5. Each tile once takes 3.3;
# 256 MiB gain nothing (tests/benchmarks/openslide_speed.py).
CACHE_BYTES = 128 << 20
_SCRATCH = 5  # bytes per pixel: ARGB and alpha once more


class OpenSlideReader(BackendSlide["OpenSlideHandle"]):
    """A slide read by OpenSlide; the rest is in `BackendSlide`."""

    errors = _ERRORS
    damage = openslide.OpenSlideError

    def _open(self) -> "OpenSlideHandle":
        return OpenSlideHandle(self._info.path, self._info.background)


class OpenSlideHandle:
    """An OpenSlide object; it is thread-safe and closes itself when dropped.

    Notes
    -----
    Memory: OpenSlide's tiles (`CACHE_BYTES` in all, whatever is open), and per thread
    that reads 5 bytes for each pixel of a block of `READ_PX`.
    """

    def __init__(self, path: Place, background: tuple[int, int, int]) -> None:
        self._slide = lowlevel.open(path)
        lowlevel.set_cache(self._slide, _tile_cache(os.getpid()))
        self._downsamples = [
            lowlevel.get_level_downsample(self._slide, level)
            for level in range(lowlevel.get_level_count(self._slide))
        ]
        clear = 255 - np.arange(256)
        self._grounds = [
            ((c * clear + 127) // 255).astype(np.uint8) for c in background
        ]
        self._spare: deque[NDArray[np.uint8]] = deque()

    def read_planes(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(3, h, w) uint8 RGB of a box inside a level, laid on the background.

        Notes
        -----
        OpenSlide takes the corner in level-0 pixels and divides by its own mean
        downsample. Where that is no whole number, the corner is off by at most half a
        level-0 pixel and the pixels are interpolated.
        """
        size = box.area_px * _SCRATCH
        if size > READ_PX**2 * _SCRATCH:
            return self._read_into(np.empty(size, np.uint8), box, level)
        # used again and again: new pages cost as much as the work in them
        try:
            scratch = self._spare.pop()
        except IndexError:
            scratch = np.empty(READ_PX**2 * _SCRATCH, np.uint8)
        try:
            return self._read_into(scratch, box, level)
        finally:
            self._spare.append(scratch)

    def _read_into(
        self, scratch: NDArray[np.uint8], box: Box, level: int
    ) -> NDArray[np.uint8]:
        w, h, area = box.w, box.h, box.area_px
        bgra = scratch[: area * 4].reshape(h, w, 4)
        alpha = scratch[area * 4 : area * 5].reshape(h, w)
        factor = self._downsamples[level]
        x, y = round(box.x * factor), round(box.y * factor)
        words = bgra.ctypes.data_as(POINTER(c_uint32))
        _read_region(self._slide, words, x, y, level, w, h)
        out = np.empty((3, h, w), np.uint8)
        # ARGB in 32-bit words; OpenSlide is built for little-endian machines only
        cv2.split(bgra, [*out[::-1], alpha])
        if cv2.minMaxLoc(alpha)[0] < 255:
            # colours come multiplied with alpha: c + ground * (255 - alpha) / 255
            for plane, ground in zip(out, self._grounds, strict=True):
                cv2.add(plane, cv2.LUT(alpha, ground), plane)
        return out


@functools.cache
def _tile_cache(_pid: int) -> object:
    """OpenSlide's cache of decoded tiles, one per process: a fork copies its lock."""
    return lowlevel.cache_create(CACHE_BYTES)


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
    doubts = file_doubts(path)
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
        warnings=(*warnings, *doubts),
        read_px=READ_PX,
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
