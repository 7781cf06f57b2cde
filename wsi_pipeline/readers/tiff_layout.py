"""Finds the colour image in a TIFF and says where the bytes of its tiles lie.

Structure only: what is no 8-bit RGB brightfield image is refused here by name.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.errors import NotASlideError, SlideError
from wsi_pipeline.places import Place, opened
from wsi_pipeline.readers.base import MAX_SEGMENT_BYTES, PARSER_ERRORS, plain
from wsi_pipeline.readers.jpeg_notes import without_notes
from wsi_pipeline.readers.tiff_doubts import page_doubts, says_jfif
from wsi_pipeline.readers.tiff_levels import level_doubts, level_pages
from wsi_pipeline.readers.tiff_whole import check_chain, check_extents
from wsi_pipeline.slide import JpegTiles

# tifffile logs its doubts; ours are exceptions, and a log line without a handler
# would go to the terminal
logging.getLogger("tifffile").addHandler(logging.NullHandler())

MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
JPEG = 7
_PLANES = {"YXS": 1, "SYX": 1, "CYX": 3}
_MAKERS = ("ndpi", "scn", "bif", "philips", "avs")
_COLOURS = ("red", "green", "blue")
_BRIGHT_ONLY = "brightfield colour slides only, such as H&E"
_COPY = "copy it again from the scanner"

# (data, index, jpegtables) -> (pixels or None, (plane, _, y, x, _), shape)
Decoder = Callable[..., tuple[Any, tuple[int, ...], tuple[int, ...]]]
# channels may have any name: others than dyes and letters are not repeated
_DYE = re.compile(
    r"[A-Z]|DAPI|Hoechst|FITC|TRITC|Cy ?\d(\.\d)?|Texas ?Red|[RGBYC]FP|Opal ?\d{3}|"
    r"Alexa ?(Fluor)? ?\d{3}|Red|Green|Blue",
    re.I,
)


@dataclass(frozen=True)
class Plane:
    """One TIFF directory: where its tiles or strips lie and how they decode.

    Parameters
    ----------
    size_px, tile_px : tuple of int
        (width, height) of the image, and of a tile (of a strip: image width, rows).
    offsets, counts : (n,) int64 array
        Byte ranges in the file; a count of 0 is a tile that was not scanned.
    samples, planar : int, bool
        Samples per pixel; whether each has tiles of its own.
    decode : callable
        tifffile's decoder of this directory; pure, so threads may share it.
    tables : bytes or None
        JPEG tables that the tiles abbreviate.
    jpeg : JpegTiles or None
        What decodes the tiles, where they are square RGB or YCbCr JPEGs.
    """

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    samples: int
    planar: bool
    decode: Decoder
    tables: bytes | None
    jpeg: JpegTiles | None

    @property
    def across(self) -> tuple[int, int]:
        """Tiles per row and per column."""
        (w, h), (tw, th) = self.size_px, self.tile_px
        return -(-w // tw), -(-h // th)


@dataclass(frozen=True)
class Layout:
    """The slide's image inside a TIFF.

    Parameters
    ----------
    levels : tuple of tuple of Plane
        Per level one directory, or three with a colour each.
    compression, photometric : int
        TIFF codes of level 0.
    compression_name : str
        Lower case, "jpeg".
    kind : str
        tifffile's name of the flavour: "svs", "ome", "generic".
    description : str
        ImageDescription of level 0.
    resolution : tuple of float, float, int
        XResolution, YResolution and ResolutionUnit of level 0.
    alpha : int or None
        1 premultiplied, 2 straight alpha as the fourth sample.
    maker : str
        tifffile's name of a scanner whose files are more than plain tiles, or
        "trestle"; else empty.
    doubts : tuple of str
        Sentences for the report.
    """

    levels: tuple[tuple[Plane, ...], ...]
    compression: int
    photometric: int
    compression_name: str
    kind: str
    description: str
    resolution: tuple[float, float, int]
    alpha: int | None
    maker: str
    doubts: tuple[str, ...]

    @property
    def has_holes(self) -> bool:
        """Whether there are several levels and, in any of them, tiles without bytes."""
        holes = [np.any(p.counts == 0) for planes in self.levels for p in planes]
        return len(self.levels) > 1 and any(holes)


def read_layout(path: Place) -> Layout:
    """Parse a TIFF and check that it holds a whole 8-bit colour image.

    Raises
    ------
    NotASlideError
        For stacks, channels, grey, palette, fax and deep images.
    SlideError
        If the file is damaged or cut short.
    """
    try:
        with _parsed(path) as file:
            if not file.pages:
                raise SlideError(
                    f"{path.name}: is cut short or damaged: it has no table of "
                    f"contents; {_COPY}"
                )
            if not isinstance(path, Path):  # local ones: before a reader is chosen
                check_extents(path, file)
            return _layout(path, file)
    except SlideError:
        raise
    except PARSER_ERRORS as error:
        raise _damaged(path, error) from error


@contextmanager
def _parsed(path: Place) -> Iterator[tifffile.TiffFile]:
    with opened(path) as source, tifffile.TiffFile(source) as file:
        check_chain(file)
        yield file


def _damaged(path: Place, error: Exception) -> SlideError:
    """The parser's own words help only where it means them for people."""
    known = isinstance(error, tifffile.TiffFileError)
    why = f" ({plain(error)})" if known else ""
    return SlideError(f"{path.name}: is a damaged TIFF{why}; {_COPY}")


def first_codes(path: Place) -> tuple[int, int]:
    """Compression and photometric codes of a TIFF's first image; (0, -1) if damaged."""
    try:
        with _parsed(path) as file:
            page = file.pages.first
            return int(page.compression), int(page.photometric)
    except PARSER_ERRORS:
        return 0, -1


def has_holes(path: Place) -> bool:
    """As `Layout.has_holes`; False if the file cannot be parsed."""
    try:
        return read_layout(path).has_holes
    except SlideError:
        return False


def check_whole(path: Place) -> None:
    """Refuse a TIFF that is cut short or lacks tiles; see `check_extents`.

    Raises
    ------
    SlideError
        If it does.
    """
    try:
        with _parsed(path) as file:
            check_extents(path, file)
    except SlideError:
        raise
    except PARSER_ERRORS as error:
        raise _damaged(path, error) from error


def _layout(path: Place, file: Any) -> Layout:  # Any: tifffile's types are not exported
    series = file.series[0]
    page = series.levels[0].keyframe
    _check_kind(path.name, series, page)
    planes = _PLANES[series.levels[0].axes]
    found = level_pages(file, series)
    levels = tuple(
        tuple(_plane(path, page) for page in pages[:planes]) for pages in found
    )
    x, y = page.resolution
    return Layout(
        levels,
        int(page.compression),
        int(page.photometric),
        str(getattr(page.compression, "name", page.compression)).lower(),
        str(series.kind),
        str(page.description),
        (float(x), float(y), int(page.resolutionunit)),
        _alpha(page),
        _maker(file.pages.first),
        (*page_doubts(page), *level_doubts(file, series, found)),
    )


def _maker(page: Any) -> str:
    if page.software.startswith("MedScan"):
        return "trestle"
    return next((name for name in _MAKERS if getattr(page, f"is_{name}")), "")


def _check_kind(name: str, series: Any, page: Any) -> None:
    """Refuse by name what is no 8-bit RGB plane."""
    axes, sizes = series.axes, dict(zip(series.axes, series.shape, strict=True))
    for axis, what in (("T", "time points"), ("Z", "focal planes")):
        if sizes.get(axis, 1) > 1:
            raise NotASlideError(
                f"{name}: is a series of {sizes[axis]} {what}, not a flat slide; "
                "export one plane in colour (RGB)"
            )
    channels = sizes.get("C", 1)
    if channels > 1:
        names = _channel_names(series)
        rgb = channels == 3 and tuple(n.lower() for n in names) in ((), _COLOURS)
        if not rgb or axes != "CYX" or series.kind == "qpi":
            known = [name for name in names if _DYE.fullmatch(name)]
            listed = f" ({', '.join(known)})" if known else ""
            raise NotASlideError(
                f"{name}: has {channels} separate channels{listed}, as fluorescence "
                f"images do; {_BRIGHT_ONLY}"
            )
    bits = page.bitspersample
    if page.dtype is None or page.dtype.kind == "b" or bits == 1:
        raise NotASlideError(
            f"{name}: is a black-and-white image (1 bit), not a slide; leave it out"
        )
    if page.photometric == PALETTE:
        raise NotASlideError(
            f"{name}: has indexed colours (a palette), as label images do; "
            "save it in colour (RGB)"
        )
    if page.photometric in (MINISWHITE, MINISBLACK) and channels == 1:
        raise NotASlideError(
            f"{name}: is a grey image or a label mask, not a colour slide; "
            f"{_BRIGHT_ONLY}"
        )
    if page.dtype != np.uint8:
        raise NotASlideError(
            f"{name}: has {bits} bits per colour ({page.dtype}); "
            "save it with 8 bits per colour"
        )
    if axes not in _PLANES:
        raise NotASlideError(
            f"{name}: is a stack of images (axes {axes}), not a slide; leave it out"
        )
    _check_colour(name, page, channels)


def _check_colour(name: str, page: Any, channels: int) -> None:
    known = page.photometric == RGB or (
        page.photometric == YCBCR and page.compression == JPEG
    )
    if not known and channels == 1:
        kind = getattr(page.photometric, "name", page.photometric)
        method = getattr(page.compression, "name", page.compression)
        raise SlideError(
            f"{name}: stores colours as {kind} with {method} compression, which is not "
            "supported; save it as RGB with JPEG or deflate compression"
        )
    if channels == 1 and page.samplesperpixel not in (3, 4):
        raise NotASlideError(
            f"{name}: has {page.samplesperpixel} values per pixel where a colour slide "
            f"has 3; {_BRIGHT_ONLY}"
        )


def _channel_names(series: Any) -> tuple[str, ...]:
    """Channel names from OME-XML or the pages of a QPTIFF, without anything else."""
    if series.kind == "qpi":
        pattern, texts = r"<Name>([^<]*)</Name>", [p.description for p in series.pages]
    else:
        pattern, texts = r'<Channel\b[^>]*\bName="([^"]*)"', []
        texts = re.findall(pattern, series.keyframe.description or "")
        return tuple(t[:20] for t in texts)
    found = [re.search(pattern, text or "") for text in texts]
    return tuple(m[1][:20] for m in found if m)


def _plane(path: Place, page: Any) -> Plane:
    w, h = int(page.imagewidth), int(page.imagelength)
    if page.is_tiled:
        tile = int(page.tilewidth), int(page.tilelength)
    else:
        tile = w, min(h, int(page.rowsperstrip))
    if min(w, h, *tile) < 1:
        raise SlideError(f"{path.name}: states an image of {w} x {h} px; {_COPY}")
    if tile[0] * tile[1] * int(page.samplesperpixel) > MAX_SEGMENT_BYTES:
        raise SlideError(
            f"{path.name}: is stored in pieces of {tile[0]} x {tile[1]} px, too large "
            "to read one by one; save it as a tiled TIFF (256 or 512 px tiles)"
        )
    page.is_jfif = says_jfif(page)
    plane = Plane(
        (w, h),
        tile,
        np.asarray(page.dataoffsets, np.int64),
        np.asarray(page.databytecounts, np.int64),
        int(page.samplesperpixel),
        int(page.planarconfig) == 2 and int(page.samplesperpixel) > 1,
        _decoder(path, page),
        page.jpegtables,
        _jpeg_tiles(page),
    )
    _check_extent(path, plane, page.parent.filehandle.size)
    return plane


def _jpeg_tiles(page: Any) -> JpegTiles | None:
    """Colour space and tables of square JPEG tiles, all samples in one."""
    side = int(page.tilewidth)
    square = page.is_tiled and side == page.tilelength
    one = int(page.planarconfig) == 1 and int(page.samplesperpixel) == 3
    if page.compression != JPEG or not (square and one):
        return None
    # the tag decides, as in OpenSlide: Aperio's RGB tiles have no marker of their own
    ycbcr = page.photometric == YCBCR or page.is_jfif
    tables = page.jpegtables and without_notes(page.jpegtables)
    if page.jpegtables and not tables:
        return None
    return JpegTiles(side, "YCBCR" if ycbcr else "RGB", tables)


def _decoder(path: Place, page: Any) -> Decoder:
    """The decoder of a directory, which must know the compression."""
    decode: Decoder = page.decode
    try:
        decode(None, 0)
    except ValueError as error:
        raise SlideError(
            f"{path.name}: has an unknown compression ({int(page.compression)}); "
            "save it with JPEG or deflate compression"
        ) from error
    return decode


def _check_extent(path: Place, plane: Plane, size: int) -> None:
    """Every tile has a byte range, inside the file of so many bytes."""
    columns, rows = plane.across
    wanted = columns * rows * (plane.samples if plane.planar else 1)
    if len(plane.offsets) != wanted or len(plane.counts) != wanted:
        raise SlideError(
            f"{path.name}: lists {min(len(plane.offsets), len(plane.counts))} image "
            f"tiles where {wanted} belong; the file is damaged: {_COPY}"
        )
    ends = np.where(plane.counts > 0, plane.offsets + plane.counts, 0)
    if int(ends.max()) > size or int(plane.counts.min()) < 0:
        raise SlideError(
            f"{path.name}: is cut short: {np.count_nonzero(ends > size)} of {wanted} "
            f"image tiles lie behind its end at {size:,} bytes; {_COPY}"
        )


def _alpha(page: Any) -> int | None:
    kinds = tuple(int(k) for k in page.extrasamples)
    return kinds[0] if page.samplesperpixel == 4 and kinds[:1] in ((1,), (2,)) else None
