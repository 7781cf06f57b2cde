"""TIFF slides of every make; JPEG tiles are put together marker by marker."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
HALF_UM = {"resolution": (20000, 20000), "resolutionunit": 3}
_SUBSAMPLING = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}
APERIO = "Aperio Image Library v11.2.1\n{w}x{h} [0,0 {w}x{h}] ({tile}x{tile}) JPEG/RGB"
APERIO += " Q=70|AppMag = 20|MPP = 0.5"


def tissue_like(width: int, height: int, seed: int = 0) -> Pixels:
    """Smooth pink noise: survives JPEG, differs everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(90, 250, (height // 8 + 2, width // 8 + 2, 3))
    fine = np.kron(coarse, np.ones((8, 8, 1), int))[:height, :width]
    return np.clip(fine + rng.integers(-9, 9, fine.shape), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Make:
    """How a TIFF is written.

    Parameters
    ----------
    sizes : tuple of (int, int)
        (width, height) of each level, finest first.
    tile : tuple of int
        (width, height) of a tile.
    codec : str
        "jpeg", "lzw", "deflate", "packbits" or "none".
    tagged : str
        Photometric interpretation that the TIFF states: "rgb" or "ycbcr".
    inside : str
        Colours inside the JPEGs: "rgb" or "ycbcr".
    marker : str
        What the JPEGs say themselves: "jfif", "adobe" (of `inside`) or "".
    chroma : str
        "444", "422" or "420".
    quality : int
        Of the JPEGs.
    tables : str
        Tables that the JPEGs leave to the JPEGTables tag: "", "all" or "huffman".
    predictor, bigtiff, planar : bool
        TIFF options; planar keeps each colour in tiles of its own.
    byteorder : str
        "<" or ">".
    orientation : int
        Orientation tag; 0 for none.
    aperio : bool
        Whether the description is Aperio's.
    thumbnail : bool
        Whether a picture in strips follows the first level, as in Aperio's files.
    holes : tuple of (int, int)
        (level, tile) pairs without bytes.
    """

    sizes: tuple[tuple[int, int], ...] = ((330, 250),)
    tile: tuple[int, int] = (64, 64)
    codec: str = "jpeg"
    tagged: str = "ycbcr"
    inside: str = "ycbcr"
    marker: str = ""
    chroma: str = "420"
    quality: int = 80
    tables: str = ""
    predictor: bool = False
    bigtiff: bool = False
    planar: bool = False
    byteorder: str = "<"
    orientation: int = 0
    aperio: bool = False
    thumbnail: bool = False
    holes: tuple[tuple[int, int], ...] = ()


def write_make(path: Path, make: Make, seed: int = 0) -> list[Pixels]:
    """Write a slide; returns its levels as they went in, each noise of its own."""
    levels = [tissue_like(w, h, seed + i) for i, (w, h) in enumerate(make.sizes)]
    options = {"bigtiff": make.bigtiff, "byteorder": make.byteorder}
    with tifffile.TiffWriter(path, **options) as file:
        for number, image in enumerate(levels):
            _write_level(file, make, number, image)
            if make.thumbnail and not number:
                file.write(tissue_like(100, 80, 99), metadata=None, rowsperstrip=16)
    for level, tile in make.holes:
        page = level + (make.thumbnail and level > 0)
        with tifffile.TiffFile(path, mode="r+") as file:
            tag = file.pages[page].tags["TileByteCounts"]
            counts = list(tag.value)
            counts[tile] = 0
            tag.overwrite(counts)
    return levels


def _write_level(
    file: tifffile.TiffWriter, make: Make, number: int, image: Pixels
) -> None:
    (h, w), (tw, th) = image.shape[:2], make.tile
    options: dict[str, Any] = {
        "metadata": None,
        "subfiletype": 0 if make.aperio else min(number, 1),
        "photometric": make.tagged,
        "tile": (th, tw),
        **HALF_UM,
    }
    if make.aperio:
        options["description"] = APERIO.format(w=w, h=h, tile=tw)
    if make.orientation:
        options["extratags"] = [(274, 3, 1, make.orientation, True)]
    if make.planar:
        options["planarconfig"] = "separate"
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
    if make.codec != "jpeg":
        codec = None if make.codec == "none" else make.codec
        file.write(image, compression=codec, predictor=make.predictor, **options)
        return
    coded = [encode_tile(tile, make) for tile in cut_tiles(image, make.tile)]
    if make.tables:
        options["jpegtables"] = split_tables(coded[0], make.tables)[0]
        coded = [split_tables(data, make.tables)[1] for data in coded]
    if make.tagged == "ycbcr":
        options["subsampling"] = _SUBSAMPLING[make.chroma]
    # tifffile would tag RGB as YCbCr, which its own JPEGs are
    options |= {
        "compression": "jpeg",
        "compressionargs": {"outcolorspace": make.tagged},
    }
    file.write(iter(coded), shape=image.shape, dtype=np.uint8, **options)


def cut_tiles(image: Pixels, tile: tuple[int, int]) -> Iterator[Pixels]:
    """Tiles row by row, those at the edge filled with grey of their own."""
    (h, w), (tw, th) = image.shape[:2], tile
    padded = np.full((-(-h // th) * th, -(-w // tw) * tw, 3), 77, np.uint8)
    padded[:h, :w] = image
    for y in range(0, h, th):
        for x in range(0, w, tw):
            yield np.ascontiguousarray(padded[y : y + th, x : x + tw])


def encode_tile(tile: Pixels, make: Make) -> bytes:
    """A JPEG with the markers that the make wants, whatever the encoder adds."""
    rgb = make.inside == "rgb"
    data = imagecodecs.jpeg8_encode(
        tile,
        level=make.quality,
        colorspace="RGB",
        outcolorspace="RGB" if rgb else "YCBCR",
        subsampling="444" if rgb else make.chroma,
    )
    bare = [s for s in segments(data) if s[1] not in (0xE0, 0xEE)]
    return b"\xff\xd8" + _marker(make.marker, rgb) + b"".join(bare)


def _marker(kind: str, rgb: bool) -> bytes:
    if kind == "jfif":
        return b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    if kind == "adobe":
        return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([0 if rgb else 1])
    return b""


def segments(jpeg: bytes) -> list[bytes]:
    """The segments of a JPEG after its start; the last is the scan to the end."""
    found, place = [], 2
    while jpeg[place + 1] != 0xDA:
        length = struct.unpack_from(">H", jpeg, place + 2)[0]
        found.append(jpeg[place : place + 2 + length])
        place += 2 + length
    return [*found, jpeg[place:]]


def split_tables(jpeg: bytes, which: str = "all") -> tuple[bytes, bytes]:
    """(tables, JPEG without them), as TIFF's JPEGTables tag has it."""
    kinds = {"all": (0xDB, 0xC4), "huffman": (0xC4,)}[which]
    parts = segments(jpeg)
    tables = b"".join(p for p in parts if p[1] in kinds)
    rest = b"".join(p for p in parts if p[1] not in kinds)
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest
