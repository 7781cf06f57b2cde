"""Slides of many makes whose tags, comments, names and folders hold planted words."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tests.test_discovery import element
from tests.tiff_files import (
    HALF_UM,
    Make,
    Pixels,
    cut_tiles,
    encode_tile,
    tissue_like,
)

MARK = "QZTOKEN"
NAMED = "QZTOKENNAME"
SIDE, TILE = 512, 256
LABEL = (255, 0, 255)


@dataclass
class Tokens:
    """Gives unique words, all of which begin alike."""

    given: list[str] = field(default_factory=list)

    def __call__(self) -> str:
        self.given.append(f"{MARK}{len(self.given):03d}X")
        return self.given[-1]


def noted(tile: Pixels, token: Tokens, make: Make) -> bytes:
    """A JPEG tile with a comment, and with EXIF-like data."""
    jpeg = encode_tile(tile, make)
    notes = b""
    for marker in (b"\xff\xfe", b"\xff\xe1", b"\xff\xed"):
        text = token().encode()
        notes += marker + struct.pack(">H", len(text) + 2) + text
    return jpeg[:2] + notes + jpeg[2:]


def tags(token: Tokens) -> list[tuple[int, int, int, Any, bool]]:
    """Private and public tags that may name somebody."""
    texts = [269, 271, 272, 285, 315, 316, 33432, 42016, 65000, 65001]
    blobs = [700, 33723, 34377, 37724]
    found: list[tuple[int, int, int, Any, bool]] = [
        (code, 2, 0, token(), True) for code in texts
    ]
    for code in blobs:
        data = f"<xmp>{token()}</xmp>".encode()
        found.append((code, 7, len(data), data, True))
    return sorted(found)


def write_tiff(path: Path, token: Tokens, description: str, software: str) -> Path:
    make = Make(tile=(TILE, TILE))
    image = tissue_like(SIDE, SIDE)
    tiles = [noted(tile, token, make) for tile in cut_tiles(image, make.tile)]
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter(tiles),
            shape=image.shape,
            dtype=np.uint8,
            compression="jpeg",
            compressionargs={"outcolorspace": "ycbcr"},
            photometric="ycbcr",
            subsampling=(2, 2),
            tile=make.tile,
            description=description,
            software=software,
            datetime="1967:08:09 10:11:12",
            extratags=tags(token),
            metadata=None,
            **HALF_UM,
        )
        if path.suffix == ".svs":
            for name, kind in (("label", 1), ("macro", 9)):
                picture = np.full((80, 100, 3), LABEL, np.uint8)
                file.write(
                    picture,
                    description=f"Aperio\r\n{name} {token()}",
                    subfiletype=kind,
                    rowsperstrip=16,
                    metadata=None,
                )
    return path


def write_all(folder: Path, token: Tokens) -> list[Path]:
    """Slides of four makes, their names and folders tokens too."""
    folder.mkdir()
    head = f"{SIDE}x{SIDE} [0,0 {SIDE}x{SIDE}] ({TILE}x{TILE}) JPEG/RGB Q=70"
    keys = (
        "Filename", "Title", "Date", "Time", "User", "ScanScope ID", "DSR ID",
        "ImageID", "Patient", "Accession", "Barcode", "CustomField.1",
    )  # fmt: skip
    facts = "|".join(f"{key} = {token()}" for key in keys)
    aperio = f"Aperio Image Library v11\r\n{head}|AppMag = 20|{facts}|MPP = 0.5"
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:{token()}" Creator="{token()}"><Experimenter '
        f'ID="Experimenter:0" LastName="{token()}"/><Image ID="Image:0" '
        f'Name="{token()}"><AcquisitionDate>'
        f"{token()}</AcquisitionDate><Description>{token()}</Description><Pixels "
        'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="{SIDE}" SizeY="{SIDE}" SizeC="3" SizeZ="1" SizeT="1" '
        'PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel ID="Channel:0:0" '
        f'SamplesPerPixel="3" Name="{token()}"/><TiffData/></Pixels></Image></OME>'
    )
    qpi = (
        '<?xml version="1.0"?><PerkinElmer-QPI-ImageDescription>'
        f"<OperatorName>{token()}</OperatorName><SlideID>{token()}</SlideID><Barcode>{token()}</Barcode>"
        "<ImageType>FullResolution</ImageType></PerkinElmer-QPI-ImageDescription>"
    )
    return [
        write_tiff(folder / f"{NAMED}1.svs", token, aperio, token()),
        write_tiff(folder / f"{NAMED}2.tif", token, f"scan of {token()}", token()),
        write_tiff(folder / f"{NAMED}3.ome.tif", token, ome, token()),
        write_tiff(folder / f"{NAMED}4.qptiff", token, qpi, "PerkinElmer-QPI"),
    ]


def write_dicom(source: Path, path: Path, token: Tokens) -> Path:
    """A real DICOM slide into which who and where are written."""
    path.parent.mkdir()
    data = source.read_bytes()
    for place, group, fields in (
        (element(8, 0x60, b"CS", b"SM"), 8, [(0x50, b"SH")]),
        (b"\x08\0\x3e\x10LO", 8, [(0x80, b"LO"), (0x90, b"PN"), (0x1010, b"SH")]),
        (b"\x20\0\x0d\0UI", 0x10, [(0x10, b"PN"), (0x20, b"LO"), (0x21B0, b"LT")]),
    ):
        told = [element(group, f, kind, token().encode()) for f, kind in fields]
        assert data.count(place) == 1
        data = data.replace(place, b"".join([*told, place]))
    path.write_bytes(data)
    return path
