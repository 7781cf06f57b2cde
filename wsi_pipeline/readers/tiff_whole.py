"""Refuses TIFFs that are not whole: cut short, tiles left out, directories in circles.

A circle is found before the parser walks the directories, since it would never end.
"""

import math
import struct
from typing import Any

import numpy as np
import tifffile

from wsi_pipeline.errors import SlideError
from wsi_pipeline.places import Place


def check_chain(file: Any) -> None:  # Any: tifffile's types are not exported
    """Refuse a TIFF whose directories follow each other in a circle.

    Parameters
    ----------
    file : tifffile.TiffFile
        Just opened.

    Raises
    ------
    tifffile.TiffFileError
        If one of them is met twice.
    """
    tiff, handle = file.tiff, file.filehandle
    offset, seen = file.pages.first.offset if file.pages else 0, set()
    while 0 < offset < handle.size:
        if offset in seen:
            raise tifffile.TiffFileError("its table of contents goes round in a circle")
        seen.add(offset)
        handle.seek(offset)
        try:
            (tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
            handle.seek(offset + tiff.tagnosize + tags * tiff.tagsize)
            (offset,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
        except struct.error:  # it ends there, which the parser copes with
            return


def check_extents(path: Place, file: Any) -> None:  # Any: see check_chain
    """Refuse a TIFF whose directories list too few tiles, or point behind its end.

    Raises
    ------
    SlideError
        If one does.
    """
    pages = [page for page in file.pages if len(page.dataoffsets)]
    for page in pages:
        sides = (page.imagewidth, page.tilewidth), (page.imagelength, page.tilelength)
        if not page.is_tiled or min(map(min, sides)) < 1:
            continue
        wanted = math.prod(-(-image // tile) for image, tile in sides)
        wanted *= page.samplesperpixel if page.planarconfig == 2 else 1
        listed = min(len(page.dataoffsets), len(page.databytecounts))
        if listed < wanted:
            raise SlideError(
                f"{path.name}: lists {listed} image tiles where {wanted} belong; the "
                "file is damaged: copy it again from the scanner"
            )
    size = file.filehandle.size
    ends = [
        int(np.max(np.add(page.dataoffsets, page.databytecounts)))
        for page in pages
        if len(page.dataoffsets) == len(page.databytecounts)
    ]
    if ends and max(ends) > size:
        raise SlideError(
            f"{path.name}: is cut short: it ends at {size:,} bytes, its images at "
            f"{max(ends):,}; copy it again from the scanner"
        )
