"""Small slides of several formats, and damaged copies of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from tests.tiff_files import HALF_UM, Make, tissue_like, write_make

SIZES = ((640, 480), (320, 240))
PLAIN = Make(sizes=SIZES, marker="jfif")
BIG = Make(sizes=SIZES, codec="deflate", tagged="rgb", bigtiff=True)
APERIO = Make(sizes=SIZES, tagged="rgb", inside="rgb", aperio=True)
ZEROS = 4096


@dataclass(frozen=True)
class Base:
    """A sound slide.

    Parameters
    ----------
    ending : str
        Of its name.
    data : bytes
        Its content.
    heads : tuple of int
        Where its directories or headers begin.
    """

    ending: str
    data: bytes
    heads: tuple[int, ...]


def make_bases(folder: Path, data: Path | None) -> list[Base]:
    """TIFF, BigTIFF, SVS and JPEG 2000; DICOM where there is real data."""
    bases = []
    for name, make in (("a.tif", PLAIN), ("b.tif", BIG), ("c.svs", APERIO)):
        write_make(folder / name, make)
        bases.append(_base(folder / name))
    path = folder / "d.tif"
    image = tissue_like(640, 480)
    tifffile.imwrite(
        path,
        image,
        tile=(64, 64),
        compression="jpeg2000",
        photometric="rgb",
        metadata=None,
        **HALF_UM,
    )
    bases.append(_base(path))
    if data is not None:
        found = next(data.rglob("sm_image.dcm"))
        bases.append(Base(".dcm", found.read_bytes(), (0, 512, 2048)))
    return bases


def _base(path: Path) -> Base:
    with tifffile.TiffFile(path) as file:
        heads = tuple(page.offset for page in file.pages)
    return Base(path.suffix, path.read_bytes(), heads)


def tags(base: Base, rng: np.random.Generator) -> bytes:
    """Three bytes of a directory."""
    data = bytearray(base.data)
    for _ in range(3):
        place = int(rng.choice(base.heads)) + int(rng.integers(250))
        data[min(place, len(data) - 1)] = int(rng.integers(256))
    return bytes(data)


def cut(base: Base, rng: np.random.Generator) -> bytes:
    """The end is missing."""
    return base.data[: int(len(base.data) * rng.uniform(0.01, 0.99))]


def noise(base: Base, rng: np.random.Generator) -> bytes:
    """Twenty bytes anywhere."""
    data = np.frombuffer(base.data, np.uint8).copy()
    data[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
    return data.tobytes()


def zeros(base: Base, rng: np.random.Generator) -> bytes:
    """A page of the disk is empty."""
    data = bytearray(base.data)
    place = int(rng.integers(max(1, len(data) - ZEROS)))
    data[place : place + ZEROS] = bytes(len(data[place : place + ZEROS]))
    return bytes(data)


KINDS: tuple[Callable[[Base, np.random.Generator], bytes], ...] = (
    tags,
    cut,
    noise,
    zeros,
)


def mutants(bases: list[Base], count: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of damaged slides, the same every time."""
    for number in range(count):
        base = bases[number % len(bases)]
        kind = KINDS[number // len(bases) % len(KINDS)]
        rng = np.random.default_rng(number)
        yield f"{number:03}-{kind.__name__}{base.ending}", kind(base, rng)
