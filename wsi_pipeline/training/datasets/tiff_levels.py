"""Reads one level of a multi-level TIFF, and what its tags say about scale."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.datasets.codes import Stored

_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre: TIFF 6.0, tag 296
# what tifffile and its codecs raise on damaged files
_ERRORS = (OSError, ValueError, RuntimeError, IndexError, KeyError, TypeError)


@dataclass(frozen=True)
class TiffLevel:
    """What is known of a level without decoding it.

    Parameters
    ----------
    size_px : (h, w)
        Of the level.
    downsample : float
        Level-0 pixels per pixel of the level.
    mpp : float or None
        um/px of the level; None where the tags do not state it.
    """

    size_px: tuple[int, int]
    downsample: float
    mpp: float | None


def describe_level(path: Path, level: int) -> TiffLevel:
    """Size and scale of a level.

    Raises
    ------
    ConfigError
        If the file cannot be read or has no such level.
    """
    with _open(path) as tiff:
        page = _page(tiff, path, level)
        first = tiff.pages[0]
        downsample = float(first.shape[0] / page.shape[0])
        mpp = _mpp(first)
        size_px = int(page.shape[0]), int(page.shape[1])
        return TiffLevel(size_px, downsample, None if mpp is None else mpp * downsample)


def read_level(path: Path, level: int) -> Stored:
    """Pixels of a level, (h, w) or (h, w, channels).

    Raises
    ------
    ConfigError
        If the file cannot be decoded or has no such level.

    Notes
    -----
    Memory: the level, decoded.
    """
    with _open(path) as tiff:
        return np.asarray(_page(tiff, path, level).asarray())


@contextmanager
def _open(path: Path) -> Iterator[Any]:  # Any: tifffile ships no types
    try:
        with tifffile.TiffFile(path) as tiff:
            yield tiff
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except _ERRORS as error:
        raise ConfigError(f"{path}: cannot be read as TIFF ({error})") from error


def _page(tiff: Any, path: Path, level: int) -> Any:  # Any: tifffile ships no types
    if level >= len(tiff.pages):
        raise ConfigError(
            f"{path}: has no level {level}; there are {len(tiff.pages)}, from 0 on"
        )
    first, page = tiff.pages[0], tiff.pages[level]
    factor = first.shape[0] / page.shape[0]
    if factor < 1 or abs(page.shape[1] * factor - first.shape[1]) > 2 * factor:
        raise ConfigError(
            f"{path}: level {level} is {page.shape[1]} x {page.shape[0]} px, which is "
            f"no reduction of {first.shape[1]} x {first.shape[0]}"
        )
    return page


def _mpp(page: Any) -> float | None:  # Any: tifffile ships no types
    unit = page.tags.get("ResolutionUnit")
    resolution = page.tags.get("XResolution")
    if unit is None or resolution is None or int(unit.value) not in _UM_PER_UNIT:
        return None
    above, below = resolution.value
    return _UM_PER_UNIT[int(unit.value)] * below / above if above and below else None
