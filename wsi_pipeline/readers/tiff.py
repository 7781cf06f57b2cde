"""The native reader: byte ranges of a TIFF's tiles to pixels, without a shared cursor.

Reads what OpenSlide reads as aperio or generic TIFF, to the same pixels, and what it
refuses: WebP, Zstandard, OME-TIFF, strips, colours in separate planes.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from tiffslide import TiffSlide

from wsi_pipeline.errors import SlideError
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
from wsi_pipeline.readers.jpeg_notes import without_notes
from wsi_pipeline.readers.ranges import ranges_of
from wsi_pipeline.readers.remote import check_layout
from wsi_pipeline.readers.scale import (
    StatedScale,
    aperio_mpp,
    choose_scale,
    ome_mpp,
    resolution_mpp,
)
from wsi_pipeline.readers.tiff_layout import Layout, Plane, read_layout
from wsi_pipeline.slide import JpegTiles, SlideInfo

WHITE = (255, 255, 255)
_REMOTE_READ_PX = 2048  # 64 tiles at once, as requests take longer than decoding
_END = b"\xff\xd9"  # of a JPEG; what a scan may hold of 0xFF is followed by 0
# vendors whose pixel size tiffslide takes from their own metadata, not from TIFF tags
_OWN_SCALE = ("hamamatsu", "leica", "philips_tiff")


class UndecodableError(ValueError):
    """The bytes of a tile were read, but are no picture of its size."""


class TiffSlideReader(BackendSlide["TiffHandle"]):
    """A TIFF read natively; the rest is in `BackendSlide`.

    Parameters
    ----------
    info : SlideInfo
        Facts about the slide.
    layout : Layout
        As just parsed: this process does not parse it a second time.
    """

    damage = UndecodableError

    def __init__(self, info: SlideInfo, layout: Layout) -> None:
        super().__init__(info)
        self._handles[os.getpid()] = TiffHandle(info.path, layout)

    def _open(self) -> "TiffHandle":
        layout = read_layout(self._info.path)
        sizes = tuple(planes[0].size_px for planes in layout.levels)
        if sizes != tuple(level.size_px for level in self._info.levels):
            raise SlideError("has changed since it was opened")
        return TiffHandle(self._info.path, layout)

    def read_jpeg(self, box: Box) -> tuple[NDArray[np.uint8], list[bytes | None]]:
        """Pixels of level 0 and their tiles, without comments; see `Slide`."""
        if self._info.jpeg is None:
            return super().read_jpeg(box)
        return self._guarded(lambda handle: handle.read_jpeg(box), box, 0)

    def stored_bytes(self, box: Box) -> int:
        """Bytes of the compressed tiles of level 0 under a box."""
        inside = self._info.box.intersect(box)
        return self._guarded(lambda handle: handle.stored_bytes(inside), box, 0)


class _Room:
    """Memory for one tile, used again and again: it stays in the cache.

    In fresh memory, decoding takes a third longer.
    """

    def __init__(self, h: int, w: int, samples: int) -> None:
        self.tile = np.empty((h, w, samples), np.uint8)
        # planes that lie whole pages apart would push each other out of the cache
        apart = np.empty((samples, h * w + 16), np.uint8)
        self.planes = apart[:, : h * w].reshape(samples, h, w)


class TiffHandle:
    """An open file and the byte ranges of its tiles.

    Notes
    -----
    Reading ranges moves no cursor and the decoders are pure and release the GIL:
    threads read side by side without a lock.
    """

    def __init__(self, path: Place, layout: Layout) -> None:
        self._layout = layout
        self._ranges = ranges_of(path)
        self._rooms = threading.local()

    def read_planes(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(3, h, w) uint8 RGB of a box inside a level; each tile is decoded once."""
        planes = self._layout.levels[level]
        channels = 4 if self._layout.alpha else 3
        out = np.empty((channels, box.h, box.w), np.uint8)
        for number, plane in enumerate(planes):
            first = number if len(planes) > 1 else 0
            tiles = _tiles(plane, box)
            data = self._fetch(plane, [tile[0] for tile in tiles])
            _paint(out, plane, tiles, data, first, self._room(plane))
        return _on_white(out, self._layout.alpha) if channels == 4 else out

    def read_jpeg(self, box: Box) -> tuple[NDArray[np.uint8], list[bytes | None]]:
        """(3, h, w) uint8 RGB of whole tiles of level 0, and their bytes."""
        plane = self._layout.levels[0][0]
        out = np.empty((3, box.h, box.w), np.uint8)
        tiles = _tiles(plane, box)
        data = self._fetch(plane, [tile[0] for tile in tiles])
        shapes = _paint(out, plane, tiles, data, 0, self._room(plane))
        whole = (*plane.tile_px[::-1], 3)
        return out, [
            without_notes(d) if d and s == whole else None
            for d, s in zip(data, shapes, strict=True)
        ]

    def stored_bytes(self, box: Box) -> int:
        """Bytes of the tiles of level 0 under a box, each by the share it covers."""
        total = 0.0
        for plane in self._layout.levels[0]:
            columns, rows = plane.across
            across = _shares(box.x, box.right, plane.tile_px[0], plane.size_px[0])
            down = _shares(box.y, box.bottom, plane.tile_px[1], plane.size_px[1])
            for counts in plane.counts.reshape(-1, rows, columns):
                total += float(down @ counts @ across)
        return round(total)

    def _room(self, plane: Plane) -> "_Room":
        """Memory for one tile, of the calling thread."""
        w, h = plane.tile_px
        room: _Room | None = getattr(self._rooms, "room", None)
        if room is None or room.tile.shape != (h, w, plane.samples):
            room = self._rooms.room = _Room(h, w, plane.samples)
        return room

    def _fetch(self, plane: Plane, indices: list[int]) -> list[bytes | None]:
        """Bytes of tiles; None where nothing was scanned."""
        scanned = [index for index in indices if plane.counts[index]]
        data = self._ranges.fetch(
            plane.offsets[scanned].tolist(), plane.counts[scanned].tolist()
        )
        found = dict(zip(scanned, data, strict=True))
        return [found.get(index) for index in indices]


def _shares(start: int, stop: int, tile_px: int, size_px: int) -> NDArray[np.float64]:
    """How much of each tile along an axis lies in [start, stop), 0 to 1."""
    left = np.arange(0, size_px, tile_px)
    right = np.minimum(left + tile_px, size_px)
    inside = np.minimum(right, stop) - np.maximum(left, start)
    shares: NDArray[np.float64] = inside.clip(0) / (right - left)
    return shares


def _tiles(plane: Plane, box: Box) -> list[tuple[int, int, int, int]]:
    """(index, sample, x, y) of the tiles that a box touches, row by row.

    Corners count from the box's; plain numbers, as there are hundreds of thousands.
    """
    columns, rows = plane.across
    tw, th = plane.tile_px
    return [
        (
            (sample * rows + row) * columns + column,
            sample,
            column * tw - box.x,
            row * th - box.y,
        )
        for row in range(box.y // th, -(-box.bottom // th))
        for column in range(box.x // tw, -(-box.right // tw))
        for sample in range(plane.samples if plane.planar else 1)
    ]


def _paint(
    out: NDArray[np.uint8],
    plane: Plane,
    tiles: list[tuple[int, int, int, int]],
    data: list[bytes | None],
    first: int,
    room: "_Room",
) -> list[tuple[int, ...]]:
    """Decode tiles into a box from its plane `first` on; returns their full shapes."""
    tw, th = plane.tile_px
    _, height, width = out.shape
    shapes = []
    for (index, sample, x, y), raw in zip(tiles, data, strict=True):
        try:
            pixels = _decode(plane, index, raw, room.tile)
        except PARSER_ERRORS as error:
            raise UndecodableError(plain(error)) from error
        shapes.append(pixels.shape)
        h, w, samples = pixels.shape
        start = first + sample
        stop = min(start + samples, len(out))
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + w, width), min(y + h, height)
        if right < min(x + tw, width) or bottom < min(y + th, height):
            place = out[start:stop, top : y + th, left : x + tw]
            place[:] = 255  # what a short tile leaves open
        if right > left and bottom > top:
            part = pixels[top - y : bottom - y, left - x : right - x, : stop - start]
            _lay(part, out[start:stop, top:bottom, left:right], room.planes)
    return shapes


def _lay(
    pixels: NDArray[np.uint8], out: NDArray[np.uint8], scratch: NDArray[np.uint8]
) -> None:
    """Put (h, w, s) pixels into (s, h, w) planes."""
    if scratch.shape == out.shape and len(out) > 1 and pixels.flags.c_contiguous:
        cv2.split(pixels, list(scratch))
        out[:] = scratch
    else:
        out[:] = pixels.transpose(2, 0, 1)


def _decode(
    plane: Plane, index: int, data: bytes | None, whole: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(h, w, s) pixels of one tile; (0, 0, s) where nothing was scanned.

    A tile of the right size comes back in `whole`.
    """
    if data is None:
        return np.empty((0, 0, 1 if plane.planar else plane.samples), np.uint8)
    if plane.jpeg:
        # the general decoder below makes the same of it, and of what fails here
        with suppress(ValueError, imagecodecs.Jpeg8Error):
            decoded = _decode_jpeg(plane.jpeg, data, whole)
            _check_end(plane.jpeg, index, data, decoded)
            return decoded
    if plane.tables:
        pixels = plane.decode(data, index, jpegtables=plane.tables)[0]
    else:
        pixels = plane.decode(data, index)[0]
    if pixels is None:
        return _decode(plane, index, None, whole)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"tile {index} decodes to {pixels.dtype}")
    found: NDArray[np.uint8] = pixels[0]
    return found


def _decode_jpeg(
    jpeg: JpegTiles, data: bytes, whole: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    return np.asarray(
        imagecodecs.jpeg8_decode(
            data,
            tables=jpeg.tables,
            colorspace=jpeg.colour,
            outcolorspace="RGB",
            out=whole,
        )
    )


def _check_end(
    jpeg: JpegTiles, index: int, data: bytes, decoded: NDArray[np.uint8]
) -> None:
    """Refuse a JPEG that stops early: it decodes without an error, to grey from there.

    Where the end marker is missing, what is put in its place must not be seen.
    """
    if data.endswith(_END) or _END in data:
        return
    scan = data.rstrip(b"\0\xff")  # what disks and copies put where data are lost
    scan += b"\xff\0" * data.startswith(b"\xff\0", len(scan))  # a byte of the scan
    filled = scan + b"\xa5" * 16 + _END
    if not np.array_equal(_decode_jpeg(jpeg, filled, np.empty_like(decoded)), decoded):
        raise OSError(f"tile {index} is cut short")


def open_tiff(path: Place, given: GivenScale) -> TiffSlideReader:
    """Open a TIFF natively.

    Parameters
    ----------
    path : Path or UPath
        A TIFF or BigTIFF file.
    given : GivenScale
        The user's pixel size, if any.

    Raises
    ------
    SlideError
        If it is damaged or no 8-bit colour image, or remote and of a kind that only
        OpenSlide reads.
    MissingScaleError
        If nobody says how large a pixel is.
    """
    layout = read_layout(path)
    if not isinstance(path, Path):
        check_layout(path, layout)
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
        warnings=(*warnings, *layout.doubts),
        read_px=_read_px(base, 512 if isinstance(path, Path) else _REMOTE_READ_PX),
        jpeg=base.jpeg if len(layout.levels[0]) == 1 else None,
    )
    check_geometry(path.name, info)
    return TiffSlideReader(info, layout)


def _vendor(layout: Layout) -> str:
    names = {"svs": "aperio", "ome": "ome-tiff", "qpi": "qptiff"}
    return names.get(layout.kind, "generic-tiff")


def _stated_scales(path: Place, layout: Layout) -> list[StatedScale]:
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


def _vendor_scale(path: Place) -> StatedScale | None:
    """Pixel size from a vendor's own metadata, as tiffslide parses them."""
    if not isinstance(path, Path):
        return None  # vendors with such metadata are refused there
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


def _read_px(plane: Plane, wanted: int) -> int:
    """Whole tiles, about as wanted; a lot of a strip, which decodes in one go."""
    w, h = plane.tile_px
    return w * max(1, wanted // w) if w == h else 4096


def _on_white(rgba: NDArray[np.uint8], alpha_kind: int | None) -> NDArray[np.uint8]:
    """RGB of planes with alpha (1 premultiplied, 2 straight) laid on white."""
    alpha = rgba[3:].astype(np.uint16)
    colour = rgba[:3].astype(np.uint16)
    if alpha_kind == 2:
        colour = (colour * alpha + 127) // 255
    mixed: NDArray[np.uint8] = np.minimum(colour + 255 - alpha, 255).astype(np.uint8)
    return mixed
