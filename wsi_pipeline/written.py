"""Files that a block has written: flushed to the disk, or sent to their store."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from wsi_pipeline.errors import ExportError
from wsi_pipeline.places import file_system, reaching
from wsi_pipeline.publishing import sha256_file, sync_folder

if TYPE_CHECKING:
    from upath import UPath


@dataclass(frozen=True)
class Written:
    """A new local file, and what was written to it.

    Parameters
    ----------
    path : Path
        The file.
    size : int
        Bytes.
    sha256 : str
        Of them, hex.
    """

    path: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """A file as it is now."""
        return cls(path, path.stat().st_size, sha256_file(path))


class Upload:
    """A new object that is gathered in memory until `settle` sends it.

    Parameters
    ----------
    place : UPath
        Its name.
    """

    def __init__(self, place: "UPath") -> None:
        self.place = place
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._parts.append(data)

    def take(self) -> bytes:
        """All that was written, which is then held by the caller only."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


def settle(files: Iterable[Written | Upload]) -> None:
    """Flush files to the disk; send uploads to their store, all at once.

    Raises
    ------
    ExportError
        If the store does not take them.
    """
    uploads = []
    for file in files:
        if isinstance(file, Written):
            sync_folder(file.path)
        else:
            uploads.append(file)
    if uploads:
        place = uploads[0].place
        with reaching(place, ExportError):
            file_system(place).pipe({u.place.path: u.take() for u in uploads})
