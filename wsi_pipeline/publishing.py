"""Makes results appear whole or not at all: staging, fsync, rename, checksums."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from wsi_pipeline.errors import ExportError

STAGING = ".staging"
"""Folder beside a result in which it is built; safe to delete when nothing runs."""


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Build a file or folder aside and move it to its name when the block succeeds.

    Parameters
    ----------
    path : Path
        The final name. What stood there is replaced in one rename (files) or moved
        aside first (folders).

    Yields
    ------
    Path
        The name to write to, on the same file system; it does not exist yet.

    Raises
    ------
    ExportError
        If the folder cannot be written, or nothing was written.
    """
    staging = path.parent / STAGING
    make_folder(staging)
    temporary = staging / f"{uuid.uuid4().hex[:12]}-{path.name}"
    try:
        yield temporary
        if not temporary.exists():
            raise ExportError(f"{path}: nothing was written")
        sync_tree(temporary)
        _move(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, ExportError) or error.errno is None:
            raise
        raise ExportError(f"{path}: cannot write ({error.strerror})") from error
    finally:
        remove(temporary)
        _remove_if_empty(staging)


def publish_bytes(path: Path, data: bytes) -> None:
    """Write a file so that its name shows either the old or the new content.

    Raises
    ------
    ExportError
        If it cannot be written.
    """
    with staged(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)


def publish_json(path: Path, value: Any) -> None:  # Any: whatever orjson can write
    """Write sorted, indented JSON, the same bytes for the same value."""
    publish_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:  # Any: whatever orjson can write
    """Sorted, indented JSON, the same bytes for the same value."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(value, option=options)


def make_folder(path: Path) -> None:
    """Make a folder, parents included; nothing happens where it is there.

    Raises
    ------
    ExportError
        If it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"{path}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ExportError(f"{path}: no permission to write; choose another folder")


def remove(path: Path) -> None:
    """Delete a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Make a folder disappear in one step, then delete what it held."""
    with suppress(FileNotFoundError):
        staging = path.parent / STAGING
        make_folder(staging)
        aside = staging / f"{uuid.uuid4().hex[:12]}-{path.name}"
        path.rename(aside)
        remove(aside)
        _remove_if_empty(staging)


def printable(text: str) -> str:
    """Text that UTF-8 can hold: bytes of file names in other encodings are escaped."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sha256_file(path: Path) -> str:
    """sha256 of a file's content, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder in sorted order, staging left out."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and STAGING not in path.relative_to(root).parts:
            yield path


def sync_files(files: Iterable[Path]) -> None:
    """Flush files to the disk."""
    for file in files:
        _sync_folder(file)


def sync_tree(path: Path) -> None:
    """Flush a file, or every file and folder below a folder, to the disk."""
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        _sync_folder(entry)


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        # a folder cannot be replaced in one rename: the old one steps aside first
        aside = source.with_name(source.name + ".old")
        target.rename(aside)
        try:
            source.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        remove(aside)
    else:
        source.replace(target)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
