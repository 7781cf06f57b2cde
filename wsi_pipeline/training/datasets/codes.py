"""Turns what a mask file stores, values or colours, into classes; refuses the rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError

Rgb = tuple[int, int, int]
Stored = NDArray[Any]  # Any: what a file holds: bool, 8 or 16 bits
_UNKNOWN = -1


class MaskCodes(Protocol):
    """What the pixels of a set's masks mean."""

    def decode(self, stored: Stored, path: Path) -> NDArray[np.uint8]:
        """Classes (h, w) of the stored pixels, 255 = no label.

        Raises
        ------
        ConfigError
            If a pixel means nothing; `path` is named.
        """
        ...


@dataclass(frozen=True)
class IndexCodes:
    """One value per pixel.

    Parameters
    ----------
    pairs : tuple of (int, int)
        Stored value, 0 to 255, and its class (255 = no label).
    """

    pairs: tuple[tuple[int, int], ...]

    def decode(self, stored: Stored, path: Path) -> NDArray[np.uint8]:
        """See `MaskCodes.decode`; `stored` is (h, w)."""
        if stored.ndim != 2:
            raise ConfigError(
                f"{path}: expected one value per pixel, got pixels of "
                f"{stored.shape[-1]} channels"
            )
        if stored.size and not 0 <= int(stored.min()) <= int(stored.max()) <= 255:
            raise ConfigError(
                f"{path}: expected values 0 to 255, got {stored.min()} to "
                f"{stored.max()}"
            )
        table = np.full(256, _UNKNOWN, np.int16)
        for value, kind in self.pairs:
            table[value] = kind
        found = table[stored.astype(np.uint8, copy=False)]
        if (found == _UNKNOWN).any():
            extra = np.unique(stored[found == _UNKNOWN])[:8].tolist()
            known = sorted(value for value, _ in self.pairs)
            raise ConfigError(f"{path}: unknown values {extra}; expected {known}")
        return found.astype(np.uint8)


@dataclass(frozen=True)
class ColourCodes:
    """One colour per pixel.

    Parameters
    ----------
    pairs : tuple of ((int, int, int), int)
        RGB and its class (255 = no label).
    threshold : int, optional
        Channels at or above it count as 255, those below as 0.
    """

    pairs: tuple[tuple[Rgb, int], ...]
    threshold: int | None = None

    def decode(self, stored: Stored, path: Path) -> NDArray[np.uint8]:
        """See `MaskCodes.decode`; `stored` is (h, w, 3) uint8."""
        if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype != np.uint8:
            raise ConfigError(
                f"{path}: expected RGB colours of 8 bits, got {stored.dtype} "
                f"{stored.shape}"
            )
        if self.threshold is not None:
            stored = (stored >= self.threshold) * np.uint8(255)
        packed = _pack(stored)
        found = np.empty(packed.shape, np.uint8)
        strange = np.ones(packed.shape, np.bool_)
        for rgb, kind in self.pairs:
            same = packed == _pack(np.array(rgb))
            found[same] = kind
            strange &= ~same
        if strange.any():
            extra = np.unique(packed[strange])[:4].tolist()
            listed = ", ".join(str((n >> 16, n >> 8 & 255, n & 255)) for n in extra)
            raise ConfigError(
                f"{path}: unknown colours {listed}; expected one of "
                f"{[rgb for rgb, _ in self.pairs]}"
            )
        return found


def _pack(rgb: Stored) -> NDArray[np.int32]:
    """Channels of the last axis as one number."""
    packed: NDArray[np.int32] = rgb[..., 0].astype(np.int32) << 8
    packed |= rgb[..., 1]
    packed <<= 8
    packed |= rgb[..., 2]
    return packed
