"""What a TIFF says of its pixels that its readers take in different ways."""

from pathlib import Path
from typing import Any

import tifffile

from wsi_pipeline.errors import SlideError
from wsi_pipeline.readers.base import PARSER_ERRORS

JPEG, APERIO_JPEG_2000 = 7, {33003, 33005}
RGB = 2
# libtiff turns these inside each tile that it decodes; it leaves 5 as it is
_TURNED_BY_LIBTIFF = {2, 3, 4, 6, 7, 8}


def page_doubts(page: Any) -> tuple[str, ...]:  # Any: tifffile's page
    """Sentences about a directory for the report.

    Parameters
    ----------
    page : tifffile.TiffPage
        Level 0.

    Notes
    -----
    All pixels are read as they are stored. So does OpenSlide, and QuPath with it, where
    it decodes the tiles itself (JPEG); others go through libtiff, which turns each tile
    in its place by the Orientation tag.
    """
    doubts = []
    orientation = _orientation(page)
    if orientation != 1:
        seen = "mirror each of its tiles" if _is_torn(page) else "show it so too"
        doubts.append(
            f"is stored turned or mirrored (TIFF orientation {orientation}) and read "
            f"as it is stored; viewers that use OpenSlide {seen}"
        )
    if page.compression == JPEG and page.photometric == RGB and says_jfif(page):
        doubts.append(
            "says that its colours are RGB, its JPEG tiles (JFIF) that they are YCbCr; "
            "YCbCr is taken, viewers that use OpenSlide show false colours"
        )
    return tuple(doubts)


def file_doubts(path: Path) -> tuple[str, ...]:
    """Sentences about a file that OpenSlide reads; none if it is no TIFF.

    Raises
    ------
    SlideError
        If OpenSlide would mirror its tiles one by one.
    """
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            doubts = page_doubts(page)
            torn = _is_torn(page)
    except PARSER_ERRORS:
        return ()
    if torn:
        raise SlideError(
            f"{path.name}: is stored turned or mirrored (TIFF orientation "
            f"{_orientation(page)}), and OpenSlide mirrors each of its tiles; "
            "open it with the backend tiff"
        )
    return doubts


def says_jfif(page: Any) -> bool:
    """Whether the JPEG tiles are marked as JFIF, by which their colours are YCbCr.

    Notes
    -----
    Exports of Bio-Formats and QuPath are so where the TIFF says RGB. The first tile
    with bytes is asked, where tifffile asks the first, which may have none.
    """
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count > 10:
            page.parent.filehandle.seek(offset + 6)
            return bool(page.parent.filehandle.read(4) == b"JFIF")
    return False


def _orientation(page: Any) -> int:
    """Orientation tag, 1 where there is none or an impossible one."""
    tag = page.tags.get("Orientation")
    value = int(tag.value) if tag is not None else 1
    return value if 1 <= value <= 8 else 1


def _is_torn(page: Any) -> bool:
    """Whether OpenSlide returns tiles that are turned in their places."""
    direct = page.compression == JPEG and page.planarconfig == 1
    direct = direct or page.compression in APERIO_JPEG_2000
    return page.is_tiled and not direct and _orientation(page) in _TURNED_BY_LIBTIFF
