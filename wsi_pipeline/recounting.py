"""Measures the area of every class anew, in each kind of file that an export writes."""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from tifffile import TiffFile

from wsi_pipeline.annotations.classing import REGION
from wsi_pipeline.annotations.files import read_pieces
from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.label_blocks import count_values
from wsi_pipeline.layout import LABEL_CHUNK_PX
from wsi_pipeline.pyramid import MaskPyramid

_FEATURE, _END = b'{"type":"Feature",', b"]}"


@dataclass
class Recount:
    """What was measured in a file.

    Parameters
    ----------
    areas_um2 : dict of str to float
        Area per class.
    lengths_um : dict of str to float
        Length of its outlines, where the file has such.
    """

    areas_um2: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lengths_um: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def recount(path: Path, label: MaskPyramid) -> Recount:
    """Measure a file that an export wrote.

    Parameters
    ----------
    path : Path
        Its ending, without .gz or .zip, says what it is.
    label : MaskPyramid
        The mask that it was made from: tells scale and classes.

    Raises
    ------
    RegionError
        If the file is not there, is not as an export writes it, or is of an unknown
        kind.

    Notes
    -----
    Memory: the largest feature, row group or tile.
    """
    name = path.name.removesuffix(".gz").removesuffix(".zip")
    try:
        if name.endswith(".geojson"):
            return _outlines(_of_geojson(path), label.source.scale)
        if name.endswith(".parquet"):
            return _outlines(_of_parquet(path), label.source.scale)
        if name.endswith(".csv"):
            with path.open(encoding="utf-8", newline="") as file:
                rows = {row["class"]: row["area_mm2"] for row in csv.DictReader(file)}
            return Recount({name: float(mm2) * 1e6 for name, mm2 in rows.items()})
        if name.endswith(".ome.tif"):
            return Recount(in_um2(label, _count_tiff(path)))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise RegionError(f"{path}: not as an export wrote it ({error!r})") from error
    raise RegionError(f"{path}: no kind of file that is exported")


def count_pixels(label: MaskPyramid, box: Box) -> NDArray[np.int64]:
    """(256,) pixels per value in a part of a mask's base."""
    totals = np.zeros(256, np.int64)
    for block in box.blocks(LABEL_CHUNK_PX):
        totals += count_values(label.read_level(block, 0))
    return totals


def in_um2(label: MaskPyramid, totals: NDArray[np.int64]) -> dict[str, float]:
    """Area per class but the background, from (256,) pixels per value."""
    pixel_um2 = label.scale.area_um2
    kinds = (kind for kind in label.classes if kind.value)
    return {kind.name: float(totals[kind.value]) * pixel_um2 for kind in kinds}


def _outlines(found: Iterable[tuple[str, shapely.Geometry]], scale: Scale) -> Recount:
    """Areas and lengths of outlines with their classes, in level-0 pixels."""
    mpp = np.array([scale.x, scale.y])
    told = Recount()
    for name, outline in found:
        shape = shapely.transform(outline, lambda points: points * mpp)
        told.areas_um2[name] += shapely.area(shape)
        told.lengths_um[name] += shapely.length(shape)
    return told


def _of_geojson(path: Path) -> Iterator[tuple[str, shapely.Geometry]]:
    """Features, one per line; those of what has no result left out."""
    last = b""
    for line in _lines(path):
        last = line
        if line.startswith(_FEATURE):
            text = line.removesuffix(b",").decode()
            name = orjson.loads(text)["properties"]["classification"]["name"]
            if name != REGION:
                yield name, shapely.from_geojson(text)
    if last != _END:
        raise ValueError("it does not end as it should")


def _lines(path: Path) -> Iterator[bytes]:
    """Lines that are not empty, each read once however long it is."""
    parts: list[bytes] = []
    for piece in read_pieces(path, most_bytes=sys.maxsize):
        first, *others = piece.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts)
            parts = [other]
    if rest := b"".join(parts):
        yield rest


def _of_parquet(path: Path) -> Iterator[tuple[str, shapely.Geometry]]:
    with pq.ParquetFile(path) as file:
        for rows in file.iter_batches(columns=["class", "geometry"]):
            names, shapes = (column.to_pylist() for column in rows.columns)
            yield from zip(names, shapely.from_wkb(shapes), strict=True)


def _count_tiff(path: Path) -> NDArray[np.int64]:
    """(256,) pixels per value of the finest level."""
    totals = np.zeros(256, np.int64)
    with TiffFile(path) as file:
        tiles: Any = file.pages.first.segments()  # Any: tifffile's are untyped
        for values, _, shape in tiles:
            totals += count_values(values[0, : shape[1], : shape[2], 0])
    return totals
