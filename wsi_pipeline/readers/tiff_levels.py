"""Which directories of a TIFF are the levels of its slide."""

import math
from collections.abc import Iterator
from typing import Any

import tifffile

from wsi_pipeline.readers.base import has_proportions, pyramid_levels

# Files whose levels OpenSlide tells by their tags. tifffile tells them by their sizes:
# it stops where the factor changes (1, 4, 16, 32), and takes Aperio's second directory
# for a thumbnail even where there is none.
_BY_TAGS = ("svs", "generic")


def level_pages(file: Any, series: Any) -> list[list[Any]]:  # Any: tifffile's objects
    """Directories of each level, finest first.

    Parameters
    ----------
    file : tifffile.TiffFile
        An open file.
    series : tifffile.TiffPageSeries
        Its first series.

    Returns
    -------
    list of list of tifffile.TiffPage
        Per level one directory or, with colours apart, one per colour.

    Raises
    ------
    tifffile.TiffFileError
        If the first image is none, or one that is tagged as smaller is larger.
    """
    levels = [
        [page.aspage() for page in level.pages if page is not None]
        for level in series.levels
    ]
    base = levels[0][0]
    if series.kind not in _BY_TAGS or not base.is_tiled:
        return levels
    if base.offset != file.pages.first.offset:
        raise tifffile.TiffFileError("its first image is damaged")
    sizes = {_size(pages[0]) for pages in levels}
    for page in _tagged(file, series):
        w, h = _size(page)
        if w * h > math.prod(_size(base)):
            raise tifffile.TiffFileError(f"its smaller image {page.index} is larger")
        if (w, h) not in sizes and _is_smaller(page, base):
            levels.append([page])
            sizes.add((w, h))
    return sorted(levels, key=lambda pages: -_size(pages[0])[0])


def level_doubts(
    file: Any, series: Any, levels: list[list[Any]]
) -> tuple[str, ...]:  # Any: tifffile's objects
    """Sentences about directories that are tagged as levels but are none.

    Parameters
    ----------
    file, series
        See `level_pages`.
    levels : list of list of tifffile.TiffPage
        What it returned.
    """
    base = levels[0][0]
    if series.kind not in _BY_TAGS or not base.is_tiled:
        return ()
    used = {page.offset for pages in levels for page in pages}
    (w0, h0), left_out = _size(base), []
    for page in _tagged(file, series):
        if page.offset not in used:
            w, h = _size(page)
            left_out.append(
                f"holds an image of {w} x {h} px that is tagged as a level but does "
                f"not fit one of {w0} x {h0} px, or comes twice; it is left out"
            )
    return tuple(left_out)


def _tagged(file: Any, series: Any) -> Iterator[Any]:
    """Directories that are tagged as levels."""
    for page in (p.aspage() for p in file.pages):
        if page.is_tiled and page.is_reduced is (series.kind == "generic"):
            yield page


def _size(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


def _is_smaller(page: Any, base: Any) -> bool:
    """Whether a directory is the base made smaller: the same kind and proportions."""
    kinds = [(p.samplesperpixel, p.dtype, p.planarconfig, p.axes) for p in (page, base)]
    (w, h), (w0, h0) = _size(page), _size(base)
    if kinds[0] != kinds[1] or not 0 < w < w0 or not h:
        return False
    level = pyramid_levels([(w0, h0), (w, h)])[1]
    return has_proportions(level, (w0, h0))
