"""Writes a mask as a label image: a tiled, pyramidal OME-TIFF that viewers open."""

import functools
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffWriter

from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.exporters.accounts import ClassArea, counted_areas
from wsi_pipeline.exporters.exporter import Export, Exporter
from wsi_pipeline.geometry import Box
from wsi_pipeline.label_blocks import count_values
from wsi_pipeline.layout import LABEL_CHUNK_PX
from wsi_pipeline.ome_xml import label_xml
from wsi_pipeline.pyramid import MaskPyramid

TILE_PX = LABEL_CHUNK_PX
"""Side of a tile: a chunk of the label, so that each is read once."""
_GREY = (128, 128, 128)  # of what was not computed, unlike any background
_UM_PER_CM = 10_000
_CLASSIC_BYTES = 2**32  # 32-bit offsets


def write_ome_tiff(path: Path, export: Export) -> tuple[ClassArea, ...]:
    """Write all levels of a mask, tile by tile, with the colours of its classes.

    Parameters
    ----------
    path : Path
        File to write.
    export : Export
        Pixels hold the values of the mask, 255 included, and lie on the slide's level
        0 whatever the frame of the outlines is.

    Returns
    -------
    tuple of ClassArea

    Raises
    ------
    ExportError
        If a value is no class of the mask.

    Notes
    -----
    Coarser levels are SubIFDs of the first, as OME-TIFF has them, and at the same time
    the directories that follow it, as OpenSlide, ASAP and libtiff look for them.

    Memory: a row of compressed tiles, and a tile per worker.

    References
    ----------
    OME-TIFF specification 6.3, "Sub-resolutions". TIFF 6.0, "Palette-color images";
    Adobe PageMaker 6.0 TIFF technical notes, "SubIFDs". BigTIFF beyond 4 GiB.
    """
    masks = export.masks
    totals = np.zeros(256, np.int64)
    with TiffWriter(path, bigtiff=_may_be_large(masks)) as file:
        for index, level in enumerate(masks.levels):
            w, h = level.size_px
            scale = masks.source.scale.coarser(level.downsample)
            file.write(
                _tiles(masks, index, export.workers, totals),
                shape=(h, w),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                compression="adobe_deflate",
                photometric="palette",
                colormap=_palette(masks),
                resolution=(_UM_PER_CM / scale.x, _UM_PER_CM / scale.y),
                resolutionunit="centimeter",
                description=None if index else _description(masks),
                subifds=0 if index else len(masks.levels) - 1,
                subfiletype=1 if index else 0,
                software=False,
                metadata=None,
            )
    _chain_levels(path)
    return counted_areas(masks, totals)


def _may_be_large(masks: MaskPyramid) -> bool:
    """Whether a file of tiles that do not shrink goes beyond 32-bit offsets."""
    sides = (level.size_px for level in masks.levels)
    tiles = sum(-(-w // TILE_PX) * -(-h // TILE_PX) for w, h in sides)
    return tiles * (TILE_PX**2 + TILE_PX) >= _CLASSIC_BYTES


def _description(masks: MaskPyramid) -> bytes:
    labels = [(kind.value, kind.name) for kind in masks.classes]
    return label_xml(
        f"{masks.source.name}, {masks.path.name}",
        masks.levels[0].size_px,
        masks.scale,
        [*labels, (NOT_COMPUTED, "Not computed")],
    )


def _palette(masks: MaskPyramid) -> NDArray[np.uint16]:
    """(3, 256) colours of the values, 0 to 65535."""
    colours = np.zeros((256, 3), np.uint16)
    colours[NOT_COMPUTED] = _GREY
    for kind in masks.classes:
        colours[kind.value] = kind.rgb
    return colours.T * np.uint16(257)


def _tiles(
    masks: MaskPyramid, index: int, workers: int, totals: NDArray[np.int64]
) -> Iterator[bytes]:
    """Compressed tiles of a level, row by row; adds up the values of the finest."""

    def encode(tile: Box) -> tuple[bytes, NDArray[np.int64] | int]:
        values = masks.read_level(tile, index)
        counts = 0 if index else count_values(values)
        value = int(values[0, 0])
        if (values == value).all() and values.shape == (TILE_PX, TILE_PX):
            return _of_one_value(value), counts
        padded = np.zeros((TILE_PX, TILE_PX), np.uint8)
        padded[: values.shape[0], : values.shape[1]] = values
        return _deflated(padded), counts

    w, h = masks.levels[index].size_px
    with ThreadPoolExecutor(workers) as pool:
        for y in range(0, h, TILE_PX):
            row = [Box(x, y, TILE_PX, TILE_PX) for x in range(0, w, TILE_PX)]
            for data, counts in pool.map(encode, row):
                totals += counts
                yield data


@functools.lru_cache(maxsize=256)
def _of_one_value(value: int) -> bytes:
    return _deflated(np.full((TILE_PX, TILE_PX), value, np.uint8))


def _deflated(values: NDArray[np.uint8]) -> bytes:
    """A tile as zlib has it, by libdeflate: a quarter of zlib's time, 9 % smaller."""
    return bytes(imagecodecs.deflate_encode(values, level=6))


def _chain_levels(path: Path) -> None:
    """Let the directory of each level name the next one as the one after it."""
    with TiffFile(path) as file:
        first, form = file.pages.first, file.tiff
        places = [first.offset, *(page.offset for page in first.pages or ())]
    with path.open("r+b") as raw:
        for place, following in pairwise(places):
            raw.seek(place)
            (count,) = struct.unpack(form.tagnoformat, raw.read(form.tagnosize))
            raw.seek(count * form.tagsize, os.SEEK_CUR)
            raw.write(struct.pack(form.offsetformat, following))


OME_TIFF = Exporter(
    "segmentation.ome.tif",
    "Label image (OME-TIFF)",
    write_ome_tiff,
    frame="level0",
)
