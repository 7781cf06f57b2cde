"""Slides whose stated geometry is impossible or odd, and what must be said of each."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from tests.tiff_files import HALF_UM, Make, tissue_like, write_make

type Spoil = Callable[[Path], None]

SIZES = ((704, 512), (352, 256), (176, 128))
PLAIN = Make(sizes=SIZES, tile=(128, 128), marker="jfif")
APERIO = Make(sizes=SIZES, tile=(128, 128), inside="rgb", tagged="rgb", aperio=True)
OME = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8"
SizeX="512" SizeY="256" SizeC="3" SizeZ="1" SizeT="1" {scale}>
<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>"""


@dataclass(frozen=True)
class Case:
    """One odd slide.

    Parameters
    ----------
    name : str
        What is odd.
    said : str
        Part of the refusal, or of a warning.
    make : callable
        Writes it to a path.
    warned : bool
        Whether it is opened with a warning.
    mpp : float, optional
        What the user gives.
    """

    name: str
    said: str
    make: Spoil
    warned: bool = False
    mpp: float | None = None

    @property
    def ending(self) -> str:
        """Of the file's name, by which readers may go."""
        kinds = {"Aperio": ".svs", "OME": ".ome.tif"}
        return kinds.get(self.name.split()[0], ".tif")


def tagged(make: Make = PLAIN, page: int = 0, **tags: object) -> Spoil:
    """A sound slide with tags of a directory replaced."""

    def spoil(path: Path) -> None:
        write_make(path, make)
        with tifffile.TiffFile(path, mode="r+") as file:
            for name, value in tags.items():
                file.pages[page].tags[name].overwrite(value)

    return spoil


def sized(*sizes: tuple[int, int], make: Make = PLAIN) -> Spoil:
    """A slide with levels of such sizes, pixels and all."""

    def write(path: Path) -> None:
        levels = [tissue_like(w, h, i) for i, (w, h) in enumerate(sizes)]
        with tifffile.TiffWriter(path) as file:
            for number, image in enumerate(levels):
                file.write(
                    image,
                    subfiletype=min(number, 1),
                    tile=make.tile[::-1],
                    photometric="rgb",
                    metadata=None,
                    **HALF_UM,
                )

    return write


def per_cm(x: float, y: float | None = None, unit: int = 3) -> Spoil:
    """Stated by resolution tags, pixels per unit."""
    pair = [_fraction(value) for value in (x, x if y is None else y)]
    return tagged(XResolution=pair[0], YResolution=pair[1], ResolutionUnit=unit)


def _fraction(value: float) -> tuple[int, int]:
    if not math.isfinite(value):
        return 1, 0
    return round(value * 1000), 1000


def aperio(mpp: str) -> Spoil:
    """Stated by Aperio's description; no tags."""

    def spoil(path: Path) -> None:
        write_make(path, APERIO)
        data = path.read_bytes().replace(b"MPP = 0.5", f"MPP ={mpp:>4}".encode()[:9])
        path.write_bytes(data)
        with tifffile.TiffFile(path, mode="r+") as file:
            for page in file.pages:
                page.tags["ResolutionUnit"].overwrite(1)

    return spoil


def ome(scale: str) -> Spoil:
    """Stated by OME-XML."""

    def write(path: Path) -> None:
        tifffile.imwrite(
            path,
            tissue_like(512, 256),
            tile=(128, 128),
            photometric="rgb",
            metadata=None,
            description=OME.format(scale=scale),
        )

    return write


def square(um: str) -> str:
    """Attributes of OME-XML."""
    return f'PhysicalSizeX="{um}" PhysicalSizeY="{um}"'


def raw(data: bytes) -> Spoil:
    """A file of such bytes."""
    return lambda path: path.write_bytes(data) and None


def patched(offset: int, form: str, value: int) -> Spoil:
    """A sound slide with a number of its header replaced."""

    def spoil(path: Path) -> None:
        write_make(path, PLAIN)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(struct.pack(form, value))

    return spoil


def looped(path: Path) -> None:
    """Directories that follow each other in a circle."""
    write_make(path, PLAIN)
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[-1].offset
    with path.open("r+b") as file:
        file.seek(last)
        count = struct.unpack("<H", file.read(2))[0]
        file.seek(last + 2 + 12 * count)
        file.write(struct.pack("<I", first))


def one_strip(side: int) -> Spoil:
    """All of a slide in one strip, a megabyte on disk."""

    def write(path: Path) -> None:
        tifffile.imwrite(
            path,
            np.full((side, side, 3), 200, np.uint8),
            compression="deflate",
            rowsperstrip=side,
            photometric="rgb",
            metadata=None,
            **HALF_UM,
        )

    return write


NO_SCALE, IMPOSSIBLE = "how large a pixel is", "which no slide scanner makes"
UNUSUAL, NOT_SQUARE = "unusual pixel size", "pixels are not square"
TOO_LARGE, TILES = "too large to read", r"lists \d+ image tiles where"
LEFT_OUT = "tagged as a level but does not fit"
NOTHING = "it has no table of contents"
NAN, INF = float("nan"), float("inf")

CASES = (
    Case("tags 0.005", IMPOSSIBLE, per_cm(2e6)),
    Case("tags 0.049", IMPOSSIBLE, per_cm(10_000 / 0.049)),
    Case("tags 10.5", IMPOSSIBLE, per_cm(10_000 / 10.5)),
    Case("tags 50", IMPOSSIBLE, per_cm(200)),
    Case("tags 0", NO_SCALE, per_cm(0)),
    Case("tags 1 / 0", NO_SCALE, per_cm(INF)),
    Case("tags without unit", NO_SCALE, per_cm(20_000, unit=1)),
    Case("tags of an unknown unit", NO_SCALE, per_cm(20_000, unit=9)),
    Case("72 dpi", "only 72 dpi, a print default", per_cm(72, unit=2)),
    Case("300 dpi", "only 300 dpi, a print default", per_cm(300, unit=2)),
    Case("tags 0.05", UNUSUAL, per_cm(200_000), warned=True),
    Case("tags 0.08", UNUSUAL, per_cm(125_000), warned=True),
    Case("tags 2.5", UNUSUAL, per_cm(4_000), warned=True),
    Case("tags 0.5 x 0.25", NOT_SQUARE, per_cm(20_000, 40_000), warned=True),
    Case("tags 0.5 x 0.44", NOT_SQUARE, per_cm(20_000, 22_500), warned=True),
    Case("Aperio 0", NO_SCALE, aperio("0")),
    Case("Aperio 0.01", IMPOSSIBLE, aperio("0.01")),
    Case("Aperio 50", IMPOSSIBLE, aperio("50")),
    Case("Aperio 12", IMPOSSIBLE, aperio("12")),
    Case("Aperio nan", NO_SCALE, aperio("nan")),
    Case("Aperio inf", NO_SCALE, aperio("inf")),
    Case("Aperio -0.5", NO_SCALE, aperio("-0.5")),
    Case("OME nothing", NO_SCALE, ome("")),
    Case("OME 0", IMPOSSIBLE, ome(square("0"))),
    Case("OME 0.005", IMPOSSIBLE, ome(square("0.005"))),
    Case("OME 50", IMPOSSIBLE, ome(square("50"))),
    Case("OME -1", IMPOSSIBLE, ome(square("-1"))),
    Case("OME NaN", IMPOSSIBLE, ome(square("NaN"))),
    Case("OME inf", IMPOSSIBLE, ome(square("inf"))),
    Case("OME pixels", NO_SCALE, ome(square("1") + ' PhysicalSizeXUnit="pixel"')),
    Case(
        "OME 0.5 x 0.25",
        NOT_SQUARE,
        ome('PhysicalSizeX="0.5" PhysicalSizeY="0.25"'),
        warned=True,
    ),
    Case("given 0", "give a number above 0", tagged(), mpp=0),
    Case("given -1", "give a number above 0", tagged(), mpp=-1),
    Case("given NaN", "give a number above 0", tagged(), mpp=NAN),
    Case("given inf", "give a number above 0", tagged(), mpp=INF),
    Case("given 0.01", UNUSUAL, tagged(), warned=True, mpp=0.01),
    Case("given 1", "the file says 0.5", tagged(), warned=True, mpp=1),
    Case("10^6 x 10^6 px", TILES, tagged(ImageWidth=10**6, ImageLength=10**6)),
    Case("2^31 px", TILES, tagged(ImageWidth=2**31 - 1, ImageLength=2**31 - 1)),
    Case("no width", "its first image is damaged", tagged(ImageWidth=0)),
    Case("no height", "its first image is damaged", tagged(ImageLength=0)),
    Case("wider", TILES, tagged(ImageWidth=1704)),
    Case("narrower", TILES, tagged(ImageWidth=404)),
    Case("tile of 2^30 px", TOO_LARGE, tagged(TileWidth=2**30)),
    Case("tile of 2^60 px", TOO_LARGE, tagged(TileWidth=2**30, TileLength=2**30)),
    Case("tile of 2^28 px", TILES, tagged(TileWidth=2**14, TileLength=2**14)),
    Case("tile of 256 px", TILES, tagged(TileWidth=256, TileLength=256)),
    Case("tile of 64 px", TILES, tagged(TileWidth=64, TileLength=64)),
    Case("tile of 1 px", TILES, tagged(TileWidth=1, TileLength=1)),
    Case("tile of 0 px", "states an image of", tagged(TileWidth=0)),
    Case("planes without tiles", TILES, tagged(PlanarConfiguration=2)),
    Case("flat level", LEFT_OUT, sized((704, 512), (352, 128)), warned=True),
    Case("high level", LEFT_OUT, sized((704, 512), (352, 300)), warned=True),
    Case("turned level", LEFT_OUT, sized((704, 512), (256, 352)), warned=True),
    Case("narrow level", LEFT_OUT, tagged(page=1, ImageWidth=300), warned=True),
    Case(
        "level twice",
        LEFT_OUT,
        sized((704, 512), (352, 256), (352, 256)),
        warned=True,
    ),
    Case("level of the same size", "is a stack", sized((704, 512), (704, 512))),
    Case("larger level", "smaller image 1 is larger", sized((352, 256), (704, 512))),
    Case("huge level", TILES, tagged(page=1, ImageWidth=5000)),
    Case("high huge level", TILES, tagged(page=1, ImageLength=10**6)),
    Case("no directory", NOTHING, patched(4, "<I", 0)),
    Case("directory behind the end", NOTHING, patched(4, "<I", 2**31)),
    Case("header alone", NOTHING, raw(b"II*\0\x08\0\0\0")),
    Case("nothing at all", r"is empty \(0 bytes\)", raw(b"")),
    Case("circle", "goes round in a circle", looped),
    Case("0 samples", "is a damaged TIFF", tagged(SamplesPerPixel=0)),
    Case("5 samples", "has 5 values per pixel", tagged(SamplesPerPixel=5)),
    Case("0 bits", "black-and-white", tagged(BitsPerSample=(0, 0, 0))),
    Case("16 bits", "has 16 bits per colour", tagged(BitsPerSample=(16, 16, 16))),
)
