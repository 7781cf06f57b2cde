"""What all backends share: one handle per process, reopened after an error.

Turns a backend's ``read_planes`` into the :class:`wsi_pipeline.slide.Slide` protocol.
"""

import os
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import MAX_PIXELS
from wsi_pipeline.errors import SlideError, UnreadableError
from wsi_pipeline.geometry import Box, Level
from wsi_pipeline.slide import SlideInfo

# What file parsers and decoders raise on damaged or unforeseen files.
PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_QUOTE = re.compile(r"""(?<!\w)['"`\u2018\u201c].*?['"\u2019\u201d](?!\w)""", re.S)
JPEG_2000 = {33003, 33005, 34712}
MAX_SEGMENT_BYTES = 2**30  # one tile or strip, decoded


@dataclass(frozen=True)
class GivenScale:
    """What the user says about the scale.

    Parameters
    ----------
    mpp : float or None
        um/px of level 0, None where the user says nothing.
    source : str
        Who says so: "--mpp" or "samplesheet".
    """

    mpp: float | None = None
    source: str = "--mpp"


class Handle(Protocol):
    """An open file. It frees itself when the last reader drops it."""

    def read_planes(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(3, h, w) uint8 RGB of a box on the level's own grid, inside the level."""
        ...


class BackendSlide[H: Handle](ABC):
    """A slide read through handles, one per process.

    Parameters
    ----------
    info : SlideInfo
        Facts; they travel with a pickle, the handle does not.

    Notes
    -----
    Handles are kept by process id, so that a fork never shares one: shared positions
    and caches mix up pixels. A handle is dropped, not closed: another thread may
    still be reading from it. No lock: `dict.setdefault` is atomic, and a second
    handle that lost the race frees itself.
    """

    errors: ClassVar[tuple[type[Exception], ...]] = PARSER_ERRORS
    damage: ClassVar[type[Exception]]
    """What an open handle raises where the file cannot be decoded."""

    def __init__(self, info: SlideInfo) -> None:
        self._info = info
        self._handles: dict[int, H] = {}

    @property
    def info(self) -> SlideInfo:
        """Facts about the slide."""
        return self._info

    @abstractmethod
    def _open(self) -> H:
        """Open the file; raises one of `errors`."""

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """Read pixels; see :meth:`wsi_pipeline.slide.Slide.read`.

        Raises
        ------
        SlideError
            If the file cannot be decoded there, or has no such level.

        Notes
        -----
        Memory: twice the result.
        """
        planes = self.read_planes(box, level)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def read_planes(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """Read pixels plane by plane; see :meth:`wsi_pipeline.slide.Slide.read`.

        Notes
        -----
        Memory: the result plus one decoded tile (native) or twice the result
        (OpenSlide).
        """
        if not 0 <= level < len(self._info.levels):
            raise SlideError(
                f"{self._info.path.name}: has no level {level}; "
                f"there are {len(self._info.levels)}, counted from 0"
            )
        grid = self._info.levels[level]
        area = grid.cover(box)
        inside = grid.box.intersect(area)
        if inside == area and area.area_px:
            return self._read_inside(inside, level)
        out = np.empty((3, area.h, area.w), np.uint8)
        out[:] = np.array(self._info.background, np.uint8)[:, None, None]
        if inside.area_px:
            place = inside.shift(-area.x, -area.y)
            out[:, place.rows, place.columns] = self._read_inside(inside, level)
        return out

    def read_jpeg(self, box: Box) -> tuple[NDArray[np.uint8], list[bytes | None]]:
        """No backend copies tiles unless it says how; see `Slide.read_jpeg`."""
        raise SlideError(
            f"{self._info.path.name}: has no JPEG tiles that can be copied, at {box}"
        )

    def stored_bytes(self, box: Box) -> int | None:  # noqa: ARG002  # of the protocol
        """Bytes of compressed tiles; unknown unless the backend says more."""
        return None

    def close(self) -> None:
        """Drop the file; a later read opens it again."""
        self._handles.pop(os.getpid(), None)

    def _read_inside(self, box: Box, level: int) -> NDArray[np.uint8]:
        return self._guarded(lambda handle: handle.read_planes(box, level), box, level)

    def _guarded[T](self, act: Callable[[H], T], box: Box, level: int) -> T:
        """Act on this process's handle, which is dropped if the file fails it."""
        pid = os.getpid()
        handle = self._handles.get(pid)
        try:
            if handle is None:
                handle = self._handles.setdefault(pid, self._open())
            return act(handle)
        except self.errors as error:
            if self._handles.get(pid) is handle:
                self._handles.pop(pid, None)
            if handle is None or not isinstance(error, self.damage):
                raise SlideError(self._refusal(error, box, level)) from error
        return self._retried(act, box, level)

    def _retried[T](self, act: Callable[[H], T], box: Box, level: int) -> T:
        """Act once more, on a handle of its own.

        A handle of OpenSlide's that failed once fails for good, so that a sound place
        may have failed by what another thread read.
        """
        handle: H | None = None
        try:
            handle = self._open()
            return act(handle)
        except self.errors as error:
            decoding = handle is not None and isinstance(error, self.damage)
            kind = UnreadableError if decoding else SlideError
            raise kind(self._refusal(error, box, level)) from error

    def _refusal(self, error: Exception, box: Box, level: int) -> str:
        why, cure = plain(error), "the file is damaged there: copy it again"
        if not isinstance(self._info.path, Path):
            cure = "the connection failed, or the file is damaged there: try again"
        elif isinstance(error, OSError) and error.errno is not None:
            why, cure = os.strerror(error.errno), "mend the disk, then `--retry`"
        return (
            f"{self._info.path.name}: cannot be read at level {level}, {box.w} x "
            f"{box.h} px at ({box.x}, {box.y}) of that level ({why}); {cure}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:  # Any: what pickle stores
        return self.__dict__ | {"_handles": {}}


def plain(error: BaseException) -> str:
    """A library's message on one short line without paths and quotes of the file.

    What a message quotes may be metadata: a name, a date.
    """
    text = " ".join(_QUOTE.sub("...", str(error)).split()) or type(error).__name__
    words = [w for w in text.split(" ") if "/" not in w and "object at 0x" not in w]
    text = " ".join(words).removeprefix("Reading ").strip(" :")
    return text if len(text) <= 120 else text[:117] + "..."


def pyramid_levels(sizes_px: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from their sizes, downsamples exact where rounding explains the rest.

    Parameters
    ----------
    sizes_px : list of tuple of int
        (width, height), finest first.

    Notes
    -----
    A power of two, else a whole number, is taken where every side is within one pixel
    of the exact quotient (scanners round down, up or to nearest); else the mean of
    the ratios.
    """
    w0, h0 = sizes_px[0]
    levels = []
    for w, h in sizes_px:
        ratio = (w0 / w + h0 / h) / 2
        longest = w0 / w if w0 >= h0 else h0 / h
        power = 2 ** max(0, int(longest).bit_length() - 1)
        wanted = [power, power * 2, round(longest)]
        fits = [d for d in wanted if abs(w - w0 / d) <= 1 and abs(h - h0 / d) <= 1]
        levels.append(Level((w, h), float(fits[0]) if fits else ratio))
    return tuple(levels)


def has_proportions(level: Level, size_px: tuple[int, int]) -> bool:
    """Whether a level has the proportions of level 0: within 2 of its pixels or 5 %."""
    return all(
        abs(side * level.downsample - side0) <= max(2 * level.downsample, 0.05 * side0)
        for side, side0 in zip(level.size_px, size_px, strict=True)
    )


def check_geometry(name: str, info: SlideInfo) -> None:
    """Refuse impossible geometry.

    Raises
    ------
    SlideError
        If the size is too large, a tile is empty or too large, levels do not become
        coarser, or a level has other proportions than level 0.
    """
    w0, h0 = info.size_px
    if w0 * h0 > MAX_PIXELS:
        raise SlideError(
            f"{name}: states {w0} x {h0} px, more than any scanner makes "
            f"(limit {MAX_PIXELS:,} px); the file is damaged: copy it again"
        )
    if min(info.tile_px) < 1:
        raise SlideError(
            f"{name}: states tiles of {info.tile_px[0]} x {info.tile_px[1]} px; the "
            "file is damaged: copy it again"
        )
    if info.tile_px[0] * info.tile_px[1] * 4 > MAX_SEGMENT_BYTES:
        raise SlideError(
            f"{name}: is stored in pieces of {info.tile_px[0]} x {info.tile_px[1]} px, "
            "too large to read; save it as a tiled TIFF (256 or 512 px tiles)"
        )
    last = 0.0
    for number, level in enumerate(info.levels):
        if not has_proportions(level, info.size_px):
            w, h = level.size_px
            raise SlideError(
                f"{name}: level {number} is {w} x {h} px, which does not have the "
                f"proportions of the full image ({w0} x {h0} px); the file is damaged"
            )
        if level.downsample <= last:
            raise SlideError(
                f"{name}: level {number} is not coarser than the one before; "
                "the file is damaged"
            )
        last = level.downsample
