"""Which directories of a TIFF are the levels of its slide."""

from typing import Any

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
    """
    levels = [
        [page.aspage() for page in level.pages if page is not None]
        for level in series.levels
    ]
    base = levels[0][0]
    if series.kind not in _BY_TAGS or not base.is_tiled:
        return levels
    sizes = {_size(pages[0]) for pages in levels}
    for page in (p.aspage() for p in file.pages):
        tagged = page.is_tiled and page.is_reduced is (series.kind == "generic")
        if tagged and _size(page) not in sizes and _is_smaller(page, base):
            levels.append([page])
            sizes.add(_size(page))
    return sorted(levels, key=lambda pages: -_size(pages[0])[0])


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
