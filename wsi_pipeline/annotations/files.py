"""Reads files of annotations piece by piece, unpacked, up to a bearable size."""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from wsi_pipeline.errors import RegionError

MAX_BYTES = 1 << 30
"""Larger files are refused: QuPath, too, takes the whole file into memory."""
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK"
_PIECE_BYTES = 1 << 20


def read_pieces(path: Path, most_bytes: int | None = None) -> Iterator[bytes]:
    """Yield the content of a file in pieces of 1 MiB; gzip and zip are unpacked.

    Parameters
    ----------
    path : Path
        The file.
    most_bytes : int, optional
        Refuse more, unpacked; left out, 1 GiB.

    Raises
    ------
    RegionError
        If it cannot be read, is larger than that, or a zip of several files.
    """
    left = MAX_BYTES if most_bytes is None else most_bytes
    try:
        with path.open("rb") as raw, _unpacked(raw, path) as stream:
            while piece := stream.read(_PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise RegionError(f"{path}: larger than 1 GiB; split the file")
                yield piece
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise RegionError(f"{path}: cannot read it ({error})") from error


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextmanager
def _unpacked(raw: BinaryIO, path: Path) -> Iterator[_Readable]:
    magic = raw.read(2)
    raw.seek(0)
    if magic == _GZIP_MAGIC:
        with gzip.open(raw) as stream:
            yield stream
    elif magic == _ZIP_MAGIC:
        with zipfile.ZipFile(raw) as packed:
            # what macOS adds beside each file is no file of the user
            names = [
                info.filename
                for info in packed.infolist()
                if not (info.is_dir() or info.filename.startswith("__MACOSX/"))
            ]
            if len(names) != 1:
                raise RegionError(
                    f"{path}: a zip of {len(names)} files; unpack it and give them "
                    "one by one"
                )
            with packed.open(names[0]) as stream:
                yield stream
    else:
        yield raw
