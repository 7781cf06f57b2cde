"""Gives slides pseudonyms: what follows sees links that bear them, never the names.

Which slide has which pseudonym is in a table that the user keeps apart.
"""

import csv
import fcntl
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.readers.dicom import read_dicom_facts
from wsi_pipeline.readers.discovery import SLIDE_EXTENSIONS
from wsi_pipeline.samplesheet import Entry

COLUMNS = ("pseudonym", "sample", "slide")
"""Of the table; samples are the names that the slides would have without it."""
_PSEUDONYM = re.compile(r"S[0-9a-f]{10}")
_PACKED = (".gz", ".zip")
_log = logging.getLogger(__name__)

type Identity = tuple[str, str]
"""Sample and path of a slide."""


@contextmanager
def pseudonymous(
    entries: Sequence[Entry], config: RunConfig, key: Path, out: Path
) -> Iterator[tuple[list[Entry], RunConfig]]:
    """Entries and config in which nothing bears a slide's name, while the block runs.

    Parameters
    ----------
    entries : sequence of Entry
        As the user names them; what is no slide is left out.
    config : RunConfig
        Its tissue mask gets a neutral name; of the model's path the last part is kept.
    key : Path
        The table, a CSV that only its owner may read. Pseudonyms in it are used again,
        new ones are random and added. The links lie beside it.
    out : Path
        Results folder, which the table must not lie in.

    Yields
    ------
    entries : list of Entry
        In the order of their pseudonyms.
    config : RunConfig

    Raises
    ------
    ConfigError
        If the table lies in the results, may be read by others, is damaged or cannot
        be written, or a slide is remote.
    """
    if key.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--deid {key}: lies in the results; keep it elsewhere")
    slides = [entry for entry in entries if not entry.skip]
    for entry in slides:
        if not isinstance(entry.path, Path):
            raise ConfigError(f"--deid takes local slides only, got {entry.path}")
    names = _give_names([_identity(entry) for entry in slides], key)
    if len(slides) < len(entries):
        count = len(entries) - len(slides)
        _log.info("files that are no slides, not listed with --deid: %d", count)
    with TemporaryDirectory(prefix=".links-", dir=key.parent) as folder:
        place = Path(folder)
        try:
            hidden = [
                _link(entry, name, place / name)
                for entry, name in zip(slides, names, strict=True)
            ]
            settings = _hide_places(config, place)
        except OSError as error:
            raise ConfigError(
                f"--deid {key}: no links can be made beside it ({error.strerror})"
            ) from error
        yield sorted(hidden, key=lambda entry: entry.slide_id), settings


def _identity(entry: Entry) -> Identity:
    return entry.slide_id, str(Path(str(entry.path)).absolute())


def _give_names(slides: Sequence[Identity], key: Path) -> list[str]:
    """Pseudonyms of slides, those that are new written down before they are used."""
    with _opened(key) as stream:
        known = _read(stream, key)
        used = set(known.values())
        for slide in slides:
            while slide not in known:
                name = f"S{secrets.token_hex(5)}"
                if name not in used:
                    known[slide] = name
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        if not stream.tell():
            writer.writerow(COLUMNS)
        fresh = {slide: name for slide, name in known.items() if name not in used}
        writer.writerows((name, *slide) for slide, name in fresh.items())
        stream.flush()
        os.fsync(stream.fileno())
    return [known[slide] for slide in slides]


@contextmanager
def _opened(key: Path) -> Iterator[TextIO]:
    """The table, held alone; whoever else wants it waits."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(key, flags, 0o600)
    except OSError as error:
        raise ConfigError(
            f"--deid {key}: cannot write it ({error.strerror})"
        ) from error
    with os.fdopen(
        descriptor, "a+", encoding="utf-8", errors="surrogateescape", newline=""
    ) as stream:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ConfigError(
                f"--deid {key}: others may read it, or it is no file; chmod 600 it"
            )
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield stream


def _read(stream: TextIO, key: Path) -> dict[Identity, str]:
    """Slides and their pseudonyms; the stream is at its end afterwards."""
    stream.seek(0)
    text = stream.read()
    rows = list(csv.reader(text.splitlines(keepends=True)))
    good = all(len(row) == 3 and _PSEUDONYM.fullmatch(row[0]) for row in rows[1:])
    if rows and not (good and tuple(rows[0]) == COLUMNS and text.endswith("\n")):
        raise ConfigError(
            f"--deid {key}: no table of pseudonyms, or cut short; its columns are "
            f"{','.join(COLUMNS)}"
        )
    return {(sample, slide): name for name, sample, slide in rows[1:]}


def _link(entry: Entry, name: str, folder: Path) -> Entry:
    """The entry as it is seen through links in a folder of its own."""
    folder.mkdir()
    path = Path(str(entry.path)).absolute()
    extension = path.suffix.lower()
    link = folder / f"{name}{extension if extension in SLIDE_EXTENSIONS else ''}"
    link.symlink_to(path)
    _link_companions(path, extension, link)
    return replace(
        entry,
        slide_id=name,
        path=link,
        tissue=_neutral(entry.tissue, folder, "tissue"),
        features=_neutral(entry.features, folder, "features"),
    )


def _link_companions(path: Path, extension: str, link: Path) -> None:
    """Link what belongs to a slide of several files, by names that tell nothing."""
    if extension == ".mrxs":
        link.with_suffix("").symlink_to(path.with_suffix(""))
    elif extension in (".vms", ".vmu"):  # its files are found by the names inside it
        for file in path.parent.iterdir():
            if file != path and file.is_file():
                (link.parent / file.name).symlink_to(file)
    elif extension in (".dcm", ""):
        own = read_dicom_facts(path)
        for number, file in enumerate(sorted(path.parent.iterdir())):
            facts = read_dicom_facts(file) if own and file.is_file() else None
            if own and facts and facts.series == own.series and file != path:
                (link.parent / f"{number}.dcm").symlink_to(file)


def _neutral(file: Path | None, folder: Path, name: str) -> Path | None:
    """A link to a file that keeps of its name what tells the format."""
    if file is None:
        return None
    kept = 2 if file.suffix.lower() in _PACKED else 1
    link = folder / f"{name}{''.join(file.suffixes[-kept:])}"
    link.symlink_to(file.absolute())
    return link


def _hide_places(config: RunConfig, folder: Path) -> RunConfig:
    mask = _neutral(config.tissue.mask, folder, "tissue")
    model = Path(config.model).name if config.model else None
    return config.updated("tissue", mask=mask).updated(None, model=model)
