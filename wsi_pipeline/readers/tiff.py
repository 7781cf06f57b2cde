"""The native reader: byte ranges of a TIFF's tiles to pixels, without a shared cursor.

Reads what OpenSlide reads as aperio or generic TIFF, to the same pixels, and what it
refuses: WebP, Zstandard, OME-TIFF, strips, colours in separate planes.
"""

import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiffslide import TiffSlide

from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers.base import (
    PARSER_ERRORS,
    BackendSlide,
    GivenScale,
    check_geometry,
    pyramid_levels,
)
from wsi_pipeline.readers.scale import (
    StatedScale,
    aperio_mpp,
    choose_scale,
    ome_mpp,
    resolution_mpp,
)
from wsi_pipeline.readers.tiff_layout import Layout, Plane, read_layout
from wsi_pipeline.slide import SlideInfo

WHITE = (255, 255, 255)
# vendors whose pixel size tiffslide takes from their own metadata, not from TIFF tags
_OWN_SCALE = ("hamamatsu", "leica", "philips_tiff")


class TiffSlideReader(BackendSlide):
    """A TIFF read natively; the rest is in `BackendSlide`."""

    def _open(self) -> "TiffHandle":
        layout = read_layout(self._info.path)
        sizes = tuple(planes[0].size_px for planes in layout.levels)
        if sizes != tuple(level.size_px for level in self._info.levels):
            raise SlideError("has changed since it was opened")
        return TiffHandle(self._info.path, layout)


class TiffHandle:
    """A descriptor and the places of the tiles.

    Notes
    -----
    `os.pread` moves no cursor and the decoders are pure and release the GIL: threads
    read side by side without a lock.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)

    def read_level(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB of a box inside a level; each tile is decoded once."""
        planes = self._layout.levels[level]
        channels = 4 if self._layout.alpha else 3
        out = np.empty((box.h, box.w, channels), np.uint8)
        out[:] = (*WHITE, 255)[:channels]
        for number, plane in enumerate(planes):
            first = number if len(planes) > 1 else 0
            self._paint(out, box, plane, first)
        return _on_white(out, self._layout.alpha) if channels == 4 else out

    def _paint(
        self, out: NDArray[np.uint8], box: Box, plane: Plane, first: int
    ) -> None:
        columns, rows = plane.across
        tw, th = plane.tile_px
        for row in range(box.y // th, -(-box.bottom // th)):
            for column in range(box.x // tw, -(-box.right // tw)):
                for sample in range(plane.samples if plane.planar else 1):
                    index = (sample * rows + row) * columns + column
                    pixels = self._tile(plane, index)
                    if pixels is None:
                        continue
                    start = first + sample
                    stop = min(start + pixels.shape[2], out.shape[2])
                    tile = Box(column * tw, row * th, *pixels.shape[1::-1])
                    part = tile.intersect(box)
                    here = part.shift(-box.x, -box.y)
                    there = part.shift(-tile.x, -tile.y)
                    out[here.rows, here.columns, start:stop] = pixels[
                        there.rows, there.columns, : stop - start
                    ]

    def _tile(self, plane: Plane, index: int) -> NDArray[np.uint8] | None:
        """(h, w, s) pixels of one tile; None where nothing was scanned."""
        count = int(plane.counts[index])
        if count == 0:
            return None
        data = os.pread(self._descriptor, count, int(plane.offsets[index]))
        if len(data) != count:
            raise OSError(f"tile {index} is cut short")
        if plane.tables:
            pixels = plane.decode(data, index, jpegtables=plane.tables)[0]
        else:
            pixels = plane.decode(data, index)[0]
        if pixels is None:
            return None
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise ValueError(f"tile {index} decodes to {pixels.dtype}")
        whole: NDArray[np.uint8] = pixels[0]
        return whole


def open_tiff(path: Path, given: GivenScale) -> TiffSlideReader:
    """Open a TIFF natively.

    Parameters
    ----------
    path : Path
        A TIFF or BigTIFF file.
    given : GivenScale
        The user's pixel size, if any.

    Raises
    ------
    SlideError
        If it is damaged or no 8-bit colour image.
    MissingScaleError
        If nobody says how large a pixel is.
    """
    layout = read_layout(path)
    base = layout.levels[0][0]
    stated = _stated_scales(path, layout)
    scale, source, warnings = choose_scale(path.name, stated, given)
    levels = pyramid_levels([planes[0].size_px for planes in layout.levels])
    info = SlideInfo(
        path=path,
        backend="tiff",
        vendor=_vendor(layout),
        levels=levels,
        scale=scale,
        scale_source=source,
        bounds=levels[0].box,
        tile_px=base.tile_px,
        compression=layout.compression_name,
        background=WHITE,
        warnings=warnings,
    )
    check_geometry(path.name, info)
    return TiffSlideReader(info)


def _vendor(layout: Layout) -> str:
    names = {"svs": "aperio", "ome": "ome-tiff", "qpi": "qptiff"}
    return names.get(layout.kind, "generic-tiff")


def _stated_scales(path: Path, layout: Layout) -> list[StatedScale]:
    x, y, unit = layout.resolution
    tags = resolution_mpp(x, y, unit)
    if layout.kind == "svs":
        found = [aperio_mpp(layout.description), tags]
    elif layout.kind == "ome":
        found = [ome_mpp(layout.description), tags]
    elif layout.kind == "qpi":
        found = [resolution_mpp(x, y, unit, "QPTIFF resolution tags")]
    else:
        found = [_vendor_scale(path), tags]
    return [s for s in found if s is not None]


def _vendor_scale(path: Path) -> StatedScale | None:
    """Pixel size from a vendor's own metadata, as tiffslide parses them."""
    try:
        with TiffSlide(path) as slide:
            facts = slide.properties
            vendor = facts.get("tiffslide.vendor")
            x, y = facts.get("tiffslide.mpp-x"), facts.get("tiffslide.mpp-y")
    except (*PARSER_ERRORS, NotImplementedError):
        return None
    if vendor not in _OWN_SCALE or not x or not y:
        return None
    return StatedScale(float(x), float(y), f"{vendor} metadata")


def _on_white(rgba: NDArray[np.uint8], alpha_kind: int | None) -> NDArray[np.uint8]:
    """RGB of pixels with alpha (1 premultiplied, 2 straight) laid on white."""
    alpha = rgba[..., 3:].astype(np.uint16)
    colour = rgba[..., :3].astype(np.uint16)
    if alpha_kind == 2:
        colour = (colour * alpha + 127) // 255
    mixed: NDArray[np.uint8] = np.minimum(colour + 255 - alpha, 255).astype(np.uint8)
    return mixed
