"""Turns what a user names (slides, folders, a samplesheet) into a batch's entries."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.places import Place, as_place, is_url
from wsi_pipeline.readers.discovery import find_slides, slide_id

_SAMPLE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
# run.json, slides.csv and the like lie beside the slides' folders
_FILES = (".json", ".csv", ".html", ".groovy")


@dataclass(frozen=True)
class Entry:
    """One file of a batch.

    Parameters
    ----------
    path : Path or UPath
        The file.
    slide_id : str
        Name of its results folder.
    skip : str
        Why it is no slide; empty for a slide.
    mpp : float, optional
        um/px of level 0 from the samplesheet.
    tissue : Path, optional
        The user's tissue mask from the samplesheet.
    features : Path, optional
        Features of the slide's patches, from the samplesheet.
    """

    path: Place
    slide_id: str
    skip: str = ""
    mpp: float | None = None
    tissue: Path | None = None
    features: Path | None = None


def list_entries(slides: Sequence[Place | str]) -> Iterator[Entry]:
    """Yield every file of a batch once, with its id.

    Parameters
    ----------
    slides : sequence of Path, UPath or str
        Slides, folders, globs, URLs, or one samplesheet.

    Raises
    ------
    ConfigError
        If two files get the same id, the samplesheet is wrong, or a URL's package is
        not installed.
    SlideError
        If a path does not exist or cannot be reached.
    """
    sheet = _samplesheet(slides)
    if sheet:
        entries = read_samplesheet(sheet)
    else:
        entries = [
            Entry(c.path, slide_id(c), skip=c.reason if c.kind == "skip" else "")
            for c in find_slides(slides)
        ]
    seen: dict[str, Place] = {}
    for entry in entries:
        if entry.skip:  # gets no folder
            yield entry
            continue
        # file systems that fold case would let two such slides share a folder
        other = seen.get(entry.slide_id.lower())
        if other is not None:
            raise ConfigError(
                f"{entry.path} and {other} get the same name {entry.slide_id!r} "
                "(upper and lower case count as the same); give each its own sample "
                "name in a samplesheet"
            )
        seen[entry.slide_id.lower()] = entry.path
        yield entry


def _samplesheet(slides: Sequence[Place | str]) -> Path | None:
    """The one file given, if it is a samplesheet."""
    if len(slides) != 1 or is_url(slides[0]):
        return None
    path = Path(str(slides[0]))
    return path if path.suffix.lower() == ".csv" and path.is_file() else None


def pick_samples(entries: list[Entry], only: Sequence[str]) -> list[Entry]:
    """Keep the entries of some samples.

    Raises
    ------
    ConfigError
        If a sample is not there.
    """
    if not only:
        return entries
    missing = set(only) - {entry.slide_id for entry in entries}
    if missing:
        raise ConfigError(
            f"--only: no sample {', '.join(sorted(missing))} in the sheet"
        )
    return [entry for entry in entries if entry.slide_id in only]


def read_samplesheet(path: Path) -> list[Entry]:
    """Read ``sample,slide[,mpp,tissue,features,label]``: a row per slide.

    Slides are URLs, or paths relative to the sheet as tissue masks and features are.

    Raises
    ------
    ConfigError
        If a column is missing or unknown, or a value is wrong; names the line.
    """
    known = {"sample", "slide", "mpp", "tissue", "features", "label"}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as 'CSV UTF-8'") from error
    try:
        with io.StringIO(text, newline="") as stream:
            reader = csv.DictReader(stream)
            columns, rows = set(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise ConfigError(f"{path}: no CSV that can be read ({error})") from error
    if not {"sample", "slide"} <= columns or not columns <= known:
        raise ConfigError(
            f"{path}: columns are {sorted(columns)}, expected sample,slide and "
            "optionally mpp,tissue,features,label"
        )
    entries = []
    for line, row in enumerate(rows, 2):
        where = f"{path}, line {line}"
        sample, slide = (row["sample"] or "").strip(), (row["slide"] or "").strip()
        if not slide:
            raise ConfigError(f"{where}: no slide")
        if not _SAMPLE.fullmatch(sample):
            raise ConfigError(
                f"{where}: sample {sample!r}; expected letters, digits, '.', '_', '-', "
                "not starting with '.'"
            )
        if sample.lower().endswith(_FILES):
            raise ConfigError(
                f"{where}: sample {sample!r} ends like a file of the results; leave "
                "the ending out"
            )
        entries.append(
            Entry(
                as_place(slide) if is_url(slide) else path.parent / slide,
                sample,
                mpp=_positive(row.get("mpp"), where),
                tissue=_named(path, row.get("tissue"), where, "tissue mask"),
                features=_named(path, row.get("features"), where, "file of features"),
            )
        )
    return entries


def _named(sheet: Path, cell: str | None, where: str, what: str) -> Path | None:
    """The file that a cell names, if it names one."""
    name = (cell or "").strip()
    if not name:
        return None
    file = sheet.parent / name
    if not file.exists():
        raise ConfigError(f"{where}: no such {what}: {file}")
    return file


def _positive(text: str | None, where: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{where}: mpp is {text!r}, expected um/px above 0")
    return value
