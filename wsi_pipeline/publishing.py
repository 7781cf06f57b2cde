"""Makes results appear whole or not at all: staging, fsync, rename, checksums.

A store of objects knows no rename; there, what announces a result is written last.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from glob import escape, has_magic
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import orjson

from wsi_pipeline.errors import ExportError
from wsi_pipeline.places import (
    STORES,
    Place,
    file_system,
    list_objects,
    reaching,
    scheme_of,
)

if TYPE_CHECKING:
    from upath import UPath

STAGING = ".staging"
"""Folder beside a result in which it is built; safe to delete when nothing runs."""
KEPT = ".kept"
"""How names end in there of what an interrupted run leaves to the next one."""


@contextmanager
def staged[P: Place](path: P, key: str = "") -> Iterator[P]:
    """Build a file or folder aside and move it to its name when the block succeeds.

    Parameters
    ----------
    path : Path or UPath
        The final name. What stood there is replaced in one rename (files) or moved
        aside first (folders); in a store it is removed first.
    key : str, optional
        Digest of all that decides the content. What is built under a key outlives a
        kill or an interrupt, not an error, and is given to the next block with the
        same key, to go on with. Not in a store.

    Yields
    ------
    Path or UPath
        The name to write to, on the same file system; it does not exist yet, unless
        there is something to go on with. It has its folder for itself. In a store it
        is the final name: what the block writes to its folder `STAGING` appears last,
        beside the rest, and is what announces the result.

    Raises
    ------
    ExportError
        If the folder cannot be written, or nothing was written.
    """
    inner = _staged_aside(path, key) if isinstance(path, Path) else _staged_there(path)
    with inner as temporary:
        yield cast("P", temporary)


@contextmanager
def _staged_aside(path: Path, key: str) -> Iterator[Path]:
    staging = path.parent / STAGING
    room = staging / f"{path.name}.{key[:16]}{KEPT}" if key else staging / _unique()
    _make_room(room)
    if key:  # what was kept for another making of the same is of no use
        for other in staging.glob(f"{escape(path.name)}.*{KEPT}"):
            if other != room:
                remove(other)
    temporary = room / path.name
    left = False
    try:
        yield temporary
        if not temporary.exists():
            raise ExportError(f"{path}: nothing was written")
        sync_tree(temporary)
        _move(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, ExportError) or error.errno is None:
            raise
        raise ExportError(f"{path}: cannot write ({error.strerror})") from error
    except BaseException as error:
        left = bool(key) and not isinstance(error, Exception)
        raise
    finally:
        if not left:
            remove(room)
        _remove_if_empty(staging)


def _unique() -> str:
    return uuid.uuid4().hex[:12]


def _make_room(room: Path) -> None:
    """Make a folder in the staging folder, which another run may remove meanwhile."""
    while True:
        make_folder(room.parent)
        try:
            room.mkdir(exist_ok=True)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ExportError(f"{room}: cannot write ({error.strerror})") from error
        return


def clear_staging(folder: Path, *, finished: bool = False) -> None:
    """Remove what killed runs left beside a folder's results.

    Parameters
    ----------
    folder : Path
        Its `STAGING` is cleared; nothing else may write there meanwhile.
    finished : bool
        Whether nothing is left to go on with, so that what was kept goes too.
    """
    staging = folder / STAGING
    if staging.is_dir():
        for leftover in staging.iterdir():
            if finished or leftover.suffix != KEPT:
                remove(leftover)
        _remove_if_empty(staging)


@contextmanager
def _staged_there(place: "UPath") -> Iterator["UPath"]:
    if scheme_of(place) not in STORES:
        raise ExportError(f"{place}: cannot write there; choose s3:// or gs://")
    if scheme_of(place) != "memory" and "/" not in str(place.path).strip("/"):
        raise ExportError(f"{place}: a whole bucket; choose a name inside it")
    remove(place)
    try:
        with reaching(place, ExportError):
            yield place
            _announce(place)
    except BaseException:
        with suppress(ExportError):  # the first failure is the one to tell
            remove(place)
        raise


@contextmanager
def drafted(place: Place, announcing: Collection[str]) -> Iterator[Path]:
    """A local folder for what is small and has to be written by way of one.

    Parameters
    ----------
    place : Path or UPath
        What `staged` yields.
    announcing : collection of str
        Names of the files that announce the result.

    Yields
    ------
    Path
        The place itself where it is local; else a folder whose files are sent there
        at the end, those that announce the result for `staged` to give their names.
    """
    if isinstance(place, Path):
        yield place
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)
        for file in list_files(Path(folder)):
            name = file.relative_to(folder).as_posix()
            parent = place / STAGING if name in announcing else place
            publish_bytes(parent / name, file.read_bytes())


def _announce(place: "UPath") -> None:
    """Give what waits in the staging folder its names, the deepest first."""
    waiting = place / STAGING
    names = sorted(list_objects(waiting), key=lambda n: (-n.count("/"), n))
    if not names:
        raise ExportError(f"{place}: nothing was written")
    files = file_system(place)
    for name in names:
        files.pipe_file((place / name).path, (waiting / name).read_bytes())
    _delete(files, [(waiting / name).path for name in names])


def publish_bytes(path: Place, data: bytes) -> None:
    """Write a file so that its name shows either the old or the new content.

    Raises
    ------
    ExportError
        If it cannot be written.
    """
    if not isinstance(path, Path):  # a store shows whole objects only
        with reaching(path, ExportError):
            file_system(path).pipe_file(path.path, data)
        return
    with staged(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)


def publish_json(path: Place, value: Any) -> None:  # Any: whatever orjson can write
    """Write sorted, indented JSON, the same bytes for the same value."""
    publish_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:  # Any: whatever orjson can write
    """Sorted, indented JSON, the same bytes for the same value."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(value, option=options)


def make_folder(path: Place) -> None:
    """Make a folder, parents included; nothing happens where it is there.

    Raises
    ------
    ExportError
        If it cannot be made or written to.
    """
    if not isinstance(path, Path):
        return  # names in a store have no folders
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"{path}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ExportError(f"{path}: no permission to write; choose another folder")


def remove(path: Place) -> None:
    """Delete a file or folder if it is there.

    Raises
    ------
    ExportError
        If a store cannot be reached or does not allow it.
    """
    if not isinstance(path, Path):
        with reaching(path, ExportError):
            _remove_objects(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_objects(place: "UPath") -> None:
    """Delete objects, those directly in the folder first, which announce it."""
    files = file_system(place)
    names = list(list_objects(place))
    for group in (
        [name for name in names if "/" not in name],
        [name for name in names if "/" in name],
    ):
        _delete(files, [(place / name if name else place).path for name in group])


def _delete(files: Any, names: list[str]) -> None:  # Any: fsspec ships no types
    """Delete objects by their exact names: fsspec takes lists of them for patterns."""
    plain = [name for name in names if not has_magic(name)]
    if plain:
        files.rm(plain)
    for name in names:
        if has_magic(name):
            files.rm_file(name)


def discard(path: Path) -> None:
    """Make a folder disappear in one step, then delete what it held."""
    staging = path.parent / STAGING
    room = staging / _unique()
    _make_room(room)
    with suppress(FileNotFoundError):
        path.rename(room / path.name)
    remove(room)
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


def sync_tree(path: Path) -> None:
    """Flush a file, or every file and folder below a folder, to the disk."""
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        sync_folder(entry)


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


def sync_folder(path: Path) -> None:
    """Flush one file, or the names in one folder, to the disk."""
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
