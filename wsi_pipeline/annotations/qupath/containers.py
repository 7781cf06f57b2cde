"""Opens what QuPath takes for GeoJSON: plain text, gzip, or a zip of several files."""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from wsi_pipeline.annotations.files import MAX_BYTES
from wsi_pipeline.annotations.qupath.findings import Defect, Effect
from wsi_pipeline.errors import RegionError

_PIECE_BYTES = 1 << 20
_ENDINGS = (".geojson", ".json")
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError)


@dataclass(frozen=True)
class Part:
    """A text in a file: the whole of it, or one of those in a zip.

    Parameters
    ----------
    name : str
        Its name in the zip; "" where it is the whole file.
    text : str or None
        What it holds; None where it cannot be read.
    defects : tuple of Defect
        What is wrong with its name, its compression or its letters.
    """

    name: str
    text: str | None
    defects: tuple[Defect, ...]


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, whatever its name says.

    Raises
    ------
    RegionError
        If it cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(2) == b"PK"
    except OSError as error:
        raise RegionError(f"{path}: cannot open it ({error.strerror})") from error


def read_parts(path: Path) -> Iterator[Part]:
    """Yield the texts of a file, one after the other.

    Parameters
    ----------
    path : Path
        .geojson or .json, also with .gz, or a .zip of such files.

    Raises
    ------
    RegionError
        If the file cannot be opened.

    Notes
    -----
    Memory: one text, as bytes and as letters (1 byte a letter; 2 or 4 for all of them
    where one is beyond Latin-1).
    """
    if is_zip(path):
        yield from _unzipped(path)
        return
    if path.name.lower().endswith(".zip"):
        words = f"the name {path.name!r} says zip, and the file is none"
        yield Part("", None, (Defect("abort", words),))
        return
    try:
        with path.open("rb") as stream:
            yield _part("", path.name, stream)
    except OSError as error:
        raise RegionError(f"{path}: cannot read it ({error.strerror})") from error


def _unzipped(path: Path) -> Iterator[Part]:
    if not path.name.lower().endswith(".zip"):
        words = f"a zip whose name is {path.name!r}; expected .zip"
        yield Part("", None, (_renamed("abort", words),))
    try:
        with zipfile.ZipFile(path) as packed:
            for info in packed.infolist():
                # what macOS adds beside each file is no file of the user
                if not (info.is_dir() or info.filename.startswith("__MACOSX/")):
                    with packed.open(info) as stream:
                        part = _part(info.filename, info.filename, stream)
                    yield part
    except _BROKEN as error:
        yield Part("", None, (Defect("abort", f"a zip that cannot be read: {error}"),))


def _part(place: str, name: str, stream: IO[bytes]) -> Part:
    defects = []
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    stem = name.lower().removesuffix(".gz")
    if not stem.endswith(_ENDINGS):
        words = f"QuPath opens no file named {name!r}; expected .geojson or .json"
        if place:
            return Part(place, None, (Defect("dropped", words),))
        defects.append(_renamed("dropped", words))
    elif packed != name.lower().endswith(".gz"):
        words = "is gzip" if packed else "is no gzip"
        defects.append(_renamed("abort", f"the file {words}, its name is {name!r}"))
    try:
        data = _read(gzip.GzipFile(fileobj=stream) if packed else stream)
    except _BROKEN as error:
        defects.append(Defect("abort", f"cannot be read: {error}"))
        return Part(place, None, tuple(defects))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        words = f"byte {error.start} is no UTF-8: letters are lost; save it as UTF-8"
        defects.append(Defect("changed", words))
        text = data.decode("utf-8-sig", "replace")
    return Part(place, text, tuple(defects))


def _read(stream: IO[bytes] | gzip.GzipFile) -> bytearray:
    data = bytearray()
    while piece := stream.read(_PIECE_BYTES):
        data += piece
        if len(data) > MAX_BYTES:
            raise OSError("more than 1 GiB of text; split the file")
    return data


def _renamed(effect: Effect, message: str) -> Defect:
    return Defect(effect, message, lambda: None, "written under a name that fits")
