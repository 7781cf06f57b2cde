"""Lists which blocks of a half-made folder are whole, for the run after a kill."""

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from threading import Lock

import orjson

from wsi_pipeline.errors import ExportError
from wsi_pipeline.publishing import remove
from wsi_pipeline.written import Written

_DIGEST = 32  # hex digits of the sha256 of a line, which stand before it


class BlockJournal:
    """A file that is only appended to, beside the folder that is being made.

    Parameters
    ----------
    folder : Path
        What `staged` yields under a key; the journal lies in the same room.

    Notes
    -----
    One process writes it; its threads may do so at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder.with_name("journal")
        self._lock = Lock()

    def resume(self) -> list[str]:
        """Hash what is there again, and delete all that is not whole.

        Returns
        -------
        list of str
            Names of the blocks whose files are as they were written, in order. Nothing
            is kept without the first one, on which the others stand.
        """
        blocks = self._read()
        whole = [
            name
            for name, files in blocks.items()
            if all(self._is_whole(*file) for file in files)
        ]
        if next(iter(blocks), None) not in whole:
            whole = []
            remove(self._path)
        listed = {name for block in whole for name, *_ in blocks[block]}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in listed:
                path.unlink()
        if not whole:
            remove(self.folder)
        return whole

    def add(self, block: str, files: Iterable[Written]) -> None:
        """Append a block.

        Parameters
        ----------
        block : str
            Its name; what was said of it before counts no more.
        files : iterable of Written
            Below the folder, on the disk already.

        Raises
        ------
        ExportError
            If the journal cannot be written.
        """
        names = [
            [file.path.relative_to(self.folder).as_posix(), file.size, file.sha256]
            for file in files
        ]
        line = orjson.dumps([block, names])
        try:
            with self._lock, self._path.open("ab") as stream:
                stream.write(_digest(line) + b" " + line + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ExportError(
                f"{self._path}: cannot write ({error.strerror})"
            ) from error

    def _read(self) -> dict[str, list[tuple[str, int, str]]]:
        """Files of each block, up to the first line that a kill spoilt."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return {}
        blocks: dict[str, list[tuple[str, int, str]]] = {}
        end = 0
        for line in data.splitlines(keepends=True):
            digest, _, body = line.removesuffix(b"\n").partition(b" ")
            if not line.endswith(b"\n") or digest != _digest(body):
                break
            name, files = orjson.loads(body)
            blocks[name] = files
            end += len(line)
        if end < len(data):
            os.truncate(self._path, end)
        return blocks

    def _is_whole(self, name: str, size: int, digest: str) -> bool:
        try:
            return Written.of(self.folder / name) == Written(
                self.folder / name, size, digest
            )
        except OSError:
            return False


def _digest(line: bytes) -> bytes:
    return sha256(line).hexdigest()[:_DIGEST].encode()
