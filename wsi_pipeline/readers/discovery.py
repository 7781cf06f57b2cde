"""Turns what the user names (files, folders, patterns, URLs) into a list of slides.

Every file below a folder gets one row: a slide, or skipped with the reason.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsi_pipeline.errors import SlideError
from wsi_pipeline.places import (
    STORES,
    Place,
    as_place,
    file_system,
    is_url,
    list_objects,
    reaching,
    scheme_of,
)
from wsi_pipeline.readers.dicom import DicomFacts, read_dicom_facts

if TYPE_CHECKING:
    from upath import UPath

_TIFFS = (".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".qptiff")
SLIDE_EXTENSIONS = (*_TIFFS, ".svslide", ".mrxs", ".dcm", ".vms", ".vmu", ".czi")
_ZARR = "an OME-Zarr, not a slide file"
_MAX_ID = 100


@dataclass(frozen=True)
class Candidate:
    """A file that the user's arguments lead to.

    Parameters
    ----------
    path : Path or UPath
        The file, as reached; links are not resolved.
    root : Path or UPath
        The folder that was given, or the file's own: the id is relative to it.
    kind : str
        "slide", or "skip" for a file that is none.
    reason : str
        Why it is skipped; empty for a slide.
    """

    path: Place
    root: Place
    kind: Literal["slide", "skip"]
    reason: str = ""


def find_slides(paths: Sequence[Place | str]) -> list[Candidate]:
    """List the slides that files, folders, patterns and URLs lead to.

    Parameters
    ----------
    paths : sequence of Path, UPath or str
        Files; folders, searched to the bottom; patterns (``*``, ``?``, ``[...]``,
        ``**``) that the shell did not expand. A pattern's root is its part before
        the first wildcard. URLs of files, and of folders in a store.

    Returns
    -------
    list of Candidate
        In the order of `paths`, sorted by name within each; every file once. Hidden
        files, staging folders and empty folders are not listed; a ``.zarr`` folder is
        one row.

    Raises
    ------
    SlideError
        If a path does not exist or cannot be reached, or a pattern matches nothing.
    ConfigError
        If a URL is of an unknown kind, or its package is not installed.
    """
    found: dict[Path, Candidate] = {}
    for given in paths:
        for row in _expand(as_place(given) if is_url(given) else Path(str(given))):
            name = os.path.normpath(_plain(row.path).absolute())
            found.setdefault(Path(name), row)
    rows = _mark_doubles(_mark_companions(list(found.values())))
    return _mark_twins(_widen_roots(rows))


def slide_id(candidate: Candidate) -> str:
    """Name of a slide's results folder.

    Parameters
    ----------
    candidate : Candidate
        From `find_slides`.

    Returns
    -------
    str
        The stem in [A-Za-z0-9._-], "-", 8 hex digits of the sha256 of the path relative
        to the root (POSIX, NFC): at most 100 characters, never hidden, equal on every
        machine, and different for equal stems in different folders.
    """
    relative = os.path.relpath(_plain(candidate.path), _plain(candidate.root))
    text = unicodedata.normalize("NFC", Path(relative).as_posix())
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    plain = unicodedata.normalize("NFKD", candidate.path.stem)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    return f"{stem[: _MAX_ID - 9] or 'slide'}-{digest}"


def _plain(place: Place) -> Path:
    """A name by which places are compared and made relative to each other."""
    if isinstance(place, Path):
        return place
    scheme, _, rest = str(place).partition("://")
    return Path("/", f"{scheme}:", rest.lstrip("/"))


def _expand(given: Place) -> Iterator[Candidate]:
    if not isinstance(given, Path):
        yield from _expand_remote(given)
    elif given.is_dir():
        if given.suffix == ".zarr":
            yield Candidate(
                given, given.parent, "skip", "an OME-Zarr, not a slide file"
            )
            return
        yield from _walk(given, given, ())
    elif given.exists() or given.is_symlink():
        yield _judge(given, given.parent)
    elif has_magic(str(given)):
        yield from _match(given)
    else:
        raise SlideError(f"{given.name}: not found; check the path {given}")


def _expand_remote(given: "UPath") -> Iterator[Candidate]:
    """One object, or those below a name in a store; the web cannot be listed."""
    names = [""]
    if scheme_of(given) in STORES:
        with reaching(given, SlideError):
            if file_system(given).info(given.path)["type"] == "directory":
                names = list(list_objects(given))
    if names == [""]:
        yield _judge(given, given.parent)
        return
    pyramids = set()
    for steps in sorted(name.split("/") for name in names):
        ends = [i for i, step in enumerate(steps, 1) if step.endswith(".zarr")]
        place = given.joinpath(*steps[: ends[0] if ends else None])
        if any(step.startswith(".") for step in steps) or place in pyramids:
            continue
        if ends:
            pyramids.add(place)
            yield Candidate(place, given, "skip", _ZARR)
        else:
            yield _judge(place, given)


def _match(pattern: Path) -> Iterator[Candidate]:
    steps = pattern.parts
    first = next(i for i, step in enumerate(steps) if has_magic(step))
    root = Path(*steps[:first]) if first else Path()
    matches = sorted(glob(str(pattern), recursive=True))  # noqa: PTH207 - keeps `**`
    if not matches:
        raise SlideError(f"{pattern}: no file matches this pattern; check the path")
    for match in map(Path, matches):
        if match.is_dir():
            if "**" not in steps:
                yield from _walk(match, root, ())
        else:
            yield _judge(match, root)


def _walk(
    folder: Path, root: Path, above: tuple[tuple[int, int], ...]
) -> Iterator[Candidate]:
    """Files below a folder by name; a link back to a folder above is not followed."""
    try:
        status = folder.stat()
        entries = sorted(folder.iterdir(), key=lambda p: p.name)
    except OSError as error:
        raise SlideError(
            f"{folder.name}: this folder cannot be listed ({error.strerror}); "
            "check its permissions"
        ) from error
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield _judge(entry, root)
        elif entry.suffix == ".zarr":
            yield Candidate(entry, root, "skip", _ZARR)
        else:
            yield from _walk(entry, root, (*above, identity))


def _judge(path: Place, root: Place) -> Candidate:
    """Slide or not, by the name; files without an extension by their first bytes."""
    extension = path.suffix.lower()
    if isinstance(path, Path):
        if path.exists() and not path.is_file():
            return Candidate(path, root, "skip", "not a regular file")
        if not extension and read_dicom_facts(path) is not None:
            return Candidate(path, root, "slide")
    if extension in SLIDE_EXTENSIONS:
        return Candidate(path, root, "slide")
    what = extension or "no extension"
    return Candidate(path, root, "skip", f"not a slide format ({what})")


def _mark_companions(rows: list[Candidate]) -> list[Candidate]:
    """Skip the files that belong to another: MIRAX data, DICOM levels and labels."""
    mirax = {
        r.path.with_suffix(""): r.path.name
        for r in rows
        if r.path.suffix.lower() == ".mrxs"
    }
    facts = {r.path: f for r in rows if (f := _dicom_facts(r)) is not None}
    mains: dict[tuple[Place, str], Place] = {}
    for path, fact in sorted(facts.items(), key=lambda item: item[0].name):
        series = path.parent, fact.series
        best = mains.get(series)
        if best is None or _rank(fact) > _rank(facts[best]):
            mains[series] = path
    marked = []
    for row in rows:
        owner = mirax.get(row.path.parent)
        own = facts.get(row.path)
        if owner is not None:
            row = replace(row, kind="skip", reason=f"part of {owner}")
        elif own is not None:
            main = mains[row.path.parent, own.series]
            if main != row.path:
                reason = f"level or label of the DICOM slide {main.name}"
                row = replace(row, kind="skip", reason=reason)
        marked.append(row)
    return marked


def _dicom_facts(row: Candidate) -> DicomFacts | None:
    if not isinstance(row.path, Path) or row.kind == "skip":
        return None
    if row.path.suffix.lower() not in (".dcm", ""):
        return None
    return read_dicom_facts(row.path)


def _rank(facts: DicomFacts) -> tuple[bool, int]:
    return facts.is_volume, facts.columns


def _mark_doubles(rows: list[Candidate]) -> list[Candidate]:
    """Skip a slide that links lead to a second time."""
    first: dict[Path, str] = {}
    marked = []
    for row in rows:
        if row.kind == "slide" and isinstance(row.path, Path) and row.path.exists():
            real = row.path.resolve()
            if real in first:
                reason = f"the same file as {first[real]}"
                row = replace(row, kind="skip", reason=reason)
            else:
                first[real] = row.path.name
        marked.append(row)
    return marked


def _widen_roots(rows: list[Candidate]) -> list[Candidate]:
    """Give slides whose ids would be equal a common root, so that they differ.

    Notes
    -----
    Happens for files named one by one: ``a/1.svs b/1.svs`` have the same name in
    their own folders.
    """
    by_id: dict[str, list[Candidate]] = {}
    for row in rows:
        if row.kind == "slide":
            by_id.setdefault(slide_id(row), []).append(row)
    roots = {
        row.path: Path(os.path.commonpath([_plain(r.path).absolute() for r in group]))
        for group in by_id.values()
        if len(group) > 1
        for row in group
    }
    return [
        replace(row, path=row.path.absolute(), root=roots[row.path])
        if row.kind == "slide" and row.path in roots
        else row
        for row in rows
    ]


def _mark_twins(rows: list[Candidate]) -> list[Candidate]:
    """Skip a slide whose name differs from another's in Unicode spelling only."""
    first: dict[str, str] = {}
    marked = []
    for row in rows:
        name = slide_id(row)
        if row.kind == "slide" and name in first:
            reason = f"named like {first[name]} but for the Unicode spelling; rename it"
            marked.append(replace(row, kind="skip", reason=reason))
            continue
        if row.kind == "slide":
            first[name] = row.path.name
        marked.append(row)
    return marked
