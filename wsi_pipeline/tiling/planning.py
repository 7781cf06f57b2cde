"""Decides how a slide becomes a pyramid, and how many bytes that will take."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.codecs import BloscLz4, Jpeg, Zstd
from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ExportError
from wsi_pipeline.geometry import Box, halved
from wsi_pipeline.layout import Layout
from wsi_pipeline.places import Place
from wsi_pipeline.slide import Slide, SlideInfo
from wsi_pipeline.tiling.halving import halve
from wsi_pipeline.tiling.sources import SlideSource

_CHUNK_PX, _LARGEST_CHUNK_PX = 512, 2048
_READERS = (
    "JPEG chunks are read only where imagecodecs is installed and its "
    "zarr.register_codecs() was called"
)
_AT_ONCE = 4  # reads from a store wait for its answers
_SAMPLES = 24  # chunks that a forecast encodes: 0.6 % of a slide of 1 GP


@dataclass(frozen=True)
class TilePlan:
    """How a slide becomes a pyramid.

    Parameters
    ----------
    base : int
        Level-0 pixels per pixel of the pyramid's base, a power of two.
    layout : Layout
        Chunks, shards and codecs.
    note : str
        What the user should know about it; empty where there is nothing to say.
    """

    base: int
    layout: Layout
    note: str = ""


def plan_tiling(
    info: SlideInfo, options: TileOptions, base_mpp: float | None = None
) -> TilePlan:
    """Base, chunks, shards and codecs for a slide.

    Parameters
    ----------
    info : SlideInfo
        The slide's facts: chunks are whole tiles of it, so that each is decoded once.
    options : TileOptions
        What was asked for.
    base_mpp : float, optional
        um/px the base must not be coarser than, where `options` does not say.
    """
    target = base_mpp if options.target_mpp is None else options.target_mpp
    base = base_downsample(info.scale.mean, None if target == "native" else target)
    if options.ome_zarr == "0.4":
        return TilePlan(base, Layout("0.4", 1024, _block(1024, options), BloscLz4()))
    chunk = options.chunk_px or _whole_tiles(info.tile_px)
    block = _block(chunk, options)
    if options.codec == "zstd":
        return TilePlan(base, Layout("0.5", chunk, block, Zstd(options.zstd_level)))
    jpeg = Jpeg(options.jpeg_quality)
    obstacle = _obstacle(info, base, options)
    if obstacle or not info.jpeg:
        note = (
            f"level 0 is encoded anew as JPEG of quality {options.jpeg_quality}: "
            f"{obstacle}; {_READERS}"
        )
        return TilePlan(base, Layout("0.5", chunk, block, jpeg), note)
    tiles = info.jpeg
    copied = Jpeg(options.jpeg_quality, tiles.colour, tiles.tables)
    block = _block(tiles.side_px, options)
    note = f"level 0 is copied from the slide; {_READERS}"
    return TilePlan(base, Layout("0.5", tiles.side_px, block, jpeg, copied), note)


def _obstacle(info: SlideInfo, base: int, options: TileOptions) -> str:
    """Why tiles cannot be copied; empty where they can."""
    if base > 1:
        return f"the pyramid's base is {base} times coarser than the slide"
    if info.jpeg is None:
        w, h = info.tile_px
        return (
            f"its tiles cannot be copied ({info.compression} compression, "
            f"{w} x {h} px, read by {info.backend})"
        )
    side = info.jpeg.side_px
    if side % 2 or side > _LARGEST_CHUNK_PX:
        return f"its tiles have {side} px, an even number up to 2048 is needed"
    if options.chunk_px not in (None, side):
        return f"its tiles have {side} px, chunk_px asks for {options.chunk_px}"
    return ""


def base_downsample(mpp: float, target_mpp: float | None) -> int:
    """Largest power of two that leaves the base not coarser than the target.

    Parameters
    ----------
    mpp : float
        um/px of the slide's level 0.
    target_mpp : float or None
        um/px wanted; 1 % coarser still passes, as scanners round. None keeps level 0.
    """
    if target_mpp is None:
        return 1
    base = 1
    while mpp * base * 2 <= target_mpp * 1.01:
        base *= 2
    return base


def forecast_bytes(slide: Slide, plan: TilePlan) -> int:
    """About how many bytes the pyramid will take.

    Parameters
    ----------
    slide : Slide
        The slide.
    plan : TilePlan
        How it is to be tiled.

    Notes
    -----
    Chunks spread over the slide are encoded, and so are their reductions, which stand
    for all coarser levels (a third of the pixels). Where the slide says how many bytes
    its own tiles have, their sum carries the sample over to the whole (ratio
    estimator); it is exact for level 0 where tiles are copied.

    Raises
    ------
    SlideError
        If a chunk cannot be read.
    """
    layout, side = plan.layout, plan.layout.chunk_px
    size = halved(slide.info.size_px, plan.base.bit_length() - 1)
    whole = Box(0, 0, *size)
    count = -(-size[0] // side) * -(-size[1] // side)
    step = -(-count // _SAMPLES)
    boxes = list(islice(whole.blocks(side), step // 2, None, step))
    source = SlideSource(slide, plan.base, side, side)

    def measured(box: Box) -> tuple[int, int, int]:
        planes = source.gather(box)
        fine, coarse = (_encoded_bytes(layout, p) for p in (planes, halve(planes)))
        return fine, coarse, slide.stored_bytes(_level_0(box, plan.base)) or 0

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        samples = np.array(list(pool.map(measured, boxes)))
    fine, coarse, stored = (int(n) for n in samples.sum(axis=0))
    area = sum(box.area_px for box in boxes)
    total = slide.stored_bytes(slide.info.box) or 0
    scale = total / stored if stored else whole.area_px / max(area, 1)
    if layout.base_codec:
        return round(total + coarse * 4 / 3 * scale)
    return round((fine + coarse * 4 / 3) * scale)


def check_room(path: Place, needed: int) -> None:
    """Refuse to start what the disk cannot hold; stores have no such limit.

    Parameters
    ----------
    path : Path or UPath
        The pyramid's place; its folder is there.
    needed : int
        Bytes.

    Raises
    ------
    ExportError
        If fewer bytes are free.
    """
    if not isinstance(path, Path):
        return
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ExportError(
            f"{path}: the pyramid takes about {gigabytes(needed)}, "
            f"{gigabytes(free)} are free there; choose another folder (--out), a "
            "coarser base (--target-mpp) or --codec jpeg"
        )


def gigabytes(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _encoded_bytes(layout: Layout, planes: NDArray[np.uint8]) -> int:
    """Bytes of the chunk, or of its three in Zarr v2."""
    planes = np.ascontiguousarray(planes)
    parts = [planes] if layout.version == "0.5" else list(planes)
    return sum(len(layout.codec.encode(part)) for part in parts)


def _level_0(box: Box, base: int) -> Box:
    return Box(box.x * base, box.y * base, box.w * base, box.h * base)


def _whole_tiles(tile_px: tuple[int, int]) -> int:
    """Side of a chunk: whole tiles, about 512 px; 512 where tiles are no help."""
    w, h = tile_px
    if w != h or w % 2 or w > _LARGEST_CHUNK_PX or w % _CHUNK_PX == 0:
        return _CHUNK_PX
    return w * max(1, _CHUNK_PX // w)


def _block(chunk_px: int, options: TileOptions) -> int:
    """Largest power of two times a chunk within `block_px`; one chunk at least."""
    return chunk_px << max(0, (options.block_px // chunk_px).bit_length() - 1)
