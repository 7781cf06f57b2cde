"""Writes a copy of a GeoJSON file that QuPath imports as it stands."""

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from wsi_pipeline.annotations.checking import check_part
from wsi_pipeline.annotations.qupath.colours import Rgb
from wsi_pipeline.annotations.qupath.containers import Part, is_zip, read_parts
from wsi_pipeline.annotations.qupath.features import (
    check_feature,
    children_of,
    note_feature,
)
from wsi_pipeline.annotations.qupath.findings import Defect, Json, Seen
from wsi_pipeline.annotations.qupath.listing import check_document, unpack
from wsi_pipeline.annotations.qupath.streaming import Element, Elements, NotJsonError
from wsi_pipeline.errors import RegionError
from wsi_pipeline.publishing import staged

_ROUNDS = 12
"""Looks at a feature: each may bring to light what the flaws before it hid."""
_ENDINGS = [f"{a}{b}" for b in (".gz", ".zip", "") for a in (".geojson", ".json", "")]


@dataclass(frozen=True)
class Mending:
    """What became of a file.

    Parameters
    ----------
    copy : Path or None
        The mended copy; None where nothing was wrong, or nothing could be mended.
    mended : tuple of str
        What was changed, a line each.
    lost : tuple of str
        What could not be mended and is not in the copy, a line each.
    """

    copy: Path | None
    mended: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def mend_geojson(path: Path) -> Mending:
    """Write a mended copy of a file beside it; without flaws, no copy is written.

    What has no flaw is copied byte for byte. A feature with a flaw keeps all else that
    it has; one without a shape that can be mended is left out, its children stay.

    Parameters
    ----------
    path : Path
        As for `check_geojson`. The copy's name is that of `copy_of`.

    Returns
    -------
    Mending

    Raises
    ------
    RegionError
        If the file cannot be opened, or there is a file of the copy's name.
    ExportError
        If the copy cannot be written.

    Notes
    -----
    Memory: as for `check_geojson`.
    """
    first, copy = Seen(), copy_of(path)
    found = [f for part in read_parts(path) for f in check_part(part, first)]
    if not found:
        return Mending(None)
    if copy.exists():
        raise RegionError(f"{copy} is there already; delete it or give it another name")
    report = _Report(first.colours)
    try:
        with staged(copy) as temporary, temporary.open("wb") as raw:
            if is_zip(path):
                _write_zip(raw, path, report)
            else:
                (part,) = read_parts(path)
                with _packed(raw, copy.suffix.lower() == ".gz") as stream:
                    _write_part(stream, part, report)
    except _UnreadableError as error:
        return Mending(None, (), (*report.lost, str(error)))
    return Mending(copy, tuple(report.mended), tuple(report.lost))


def copy_of(path: Path) -> Path:
    """Name of a file's mended copy: a.geojson.gz becomes a.mended.geojson.gz."""
    name = path.name
    ending = next(e for e in _ENDINGS if name.lower().endswith(e))
    stem, ending = name[: len(name) - len(ending)], name[len(name) - len(ending) :]
    if is_zip(path) and not ending.lower().endswith(".zip"):
        ending = ".geojson.zip"
    elif ending.lower() in ("", ".gz"):
        ending = f".geojson{ending}"
    return path.with_name(f"{stem}.mended{ending}")


class _UnreadableError(Exception):
    """A text of which nothing can be kept."""


class _Report:
    """What is done while a copy is written.

    Parameters
    ----------
    colours : dict
        The first colour of each class in the file.
    """

    def __init__(self, colours: dict[str, Rgb]) -> None:
        self.seen = Seen()
        self.seen.colours = colours
        self.mended: list[str] = []
        self.lost: list[str] = []

    def note(self, where: str, defect: Defect) -> None:
        """Write down what is done about a defect."""
        if defect.cure:
            self.mended.append(f"{where}: {defect.message}: {defect.cured}")
        else:
            self.lost.append(f"{where}: {defect.message}: left out")


def _write_zip(raw: BinaryIO, path: Path, report: _Report) -> None:
    with zipfile.ZipFile(raw, "w") as packed:
        for part in read_parts(path):
            if part.text is None and all(defect.cure for defect in part.defects):
                for defect in part.defects:  # of the zip itself
                    report.note("file", defect)
                continue
            data = io.BytesIO()
            try:
                with _packed(data, part.name.lower().endswith(".gz")) as stream:
                    _write_part(stream, part, report)
            except _UnreadableError as error:
                report.lost.append(str(error))
            else:
                entry = zipfile.ZipInfo(part.name)
                packed.writestr(entry, data.getvalue(), zipfile.ZIP_DEFLATED)
        if not packed.namelist():
            raise _UnreadableError("file: nothing of it can be mended")


@contextmanager
def _packed(raw: BinaryIO, compress: bool) -> Iterator[TextIO]:
    """A text file; no name and no time in a gzip header: the same bytes every time."""
    if not compress:
        yield from _lettered(raw)
        return
    with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        yield from _lettered(cast("BinaryIO", packed))


def _lettered(raw: BinaryIO) -> Iterator[TextIO]:
    stream = io.TextIOWrapper(raw, "utf-8", newline="")
    try:
        yield stream
    finally:
        stream.detach()


def _write_part(stream: TextIO, part: Part, report: _Report) -> None:
    place = f"{part.name}: " if part.name else ""
    whole = f"{place}file"
    fatal = next((d for d in part.defects if d.cure is None), None)
    if fatal or part.text is None:
        raise _UnreadableError(f"{whole}: {fatal.message if fatal else 'no text'}")
    for defect in part.defects:
        report.note(whole, defect)
    elements = Elements(part.text)
    pieces = (
        piece
        for number, element in enumerate(elements)
        for piece in _mend_element(
            element, f"{place}feature {number}", elements.form, report
        )
    )
    try:
        if not _write_pieces(stream, elements, pieces) and report.lost:
            raise _UnreadableError(f"{whole}: nothing of it can be mended")
    except (NotJsonError, RecursionError) as error:
        raise _UnreadableError(f"{whole}: no JSON ({error})") from None
    for defect in check_document(elements):
        report.note(whole, defect)


def _write_pieces(stream: TextIO, elements: Elements, pieces: Iterator[str]) -> bool:
    """Write features as they were listed, in a collection or array; if any."""
    first = next(pieces, None)
    second = next(pieces, None)
    known = dict(elements.members) if elements.form == "collection" else {}
    alone = elements.form == "single" and first is not None and second is None
    if elements.form != "array" and not alone:
        stream.write('{"type":"FeatureCollection"' + _members(known) + ',"features":')
    if not alone:
        stream.write("[\n")
    for number, piece in enumerate(chain([first, second], pieces)):
        if piece is not None:
            stream.write(",\n" * (number > 0) + piece)
    if not alone:
        stream.write("\n]")
    if elements.form == "collection":
        rest = {k: v for k, v in elements.members.items() if k not in known}
        stream.write(_members(rest))
    if elements.form != "array" and not alone:
        stream.write("}")
    stream.write("\n")
    return first is not None


def _members(members: Json) -> str:
    """Members of a collection's object but those that are written anew, as JSON."""
    kept = {k: v for k, v in members.items() if k not in ("type", "crs", "features")}
    return "".join(f",{json.dumps(k)}:{json.dumps(v)}" for k, v in kept.items())


def _mend_element(
    element: Element, where: str, form: str, report: _Report
) -> Iterator[str]:
    """Yield the texts of the features in an element, its own text if it is fine."""
    features: list[Json] = []
    fine = True
    for at, feature, defect in unpack(element.value, where, form):
        if defect:
            fine = False
            report.note(at, defect)
        if feature is not None:
            kept, same = _mend_tree(at, feature, report)
            fine &= same
            features += kept
    if fine:
        yield element.text
    else:
        yield from (json.dumps(f, separators=(",", ":")) for f in features)


def _mend_tree(where: str, feature: Json, report: _Report) -> tuple[list[Json], bool]:
    """Mend a feature and its children.

    Returns
    -------
    (list of dict, bool)
        The feature, or its children where it has to go; whether all is as it was.
    """
    whole, same = _mend(where, feature, report)
    listed = children_of(feature)
    kept: list[Json] = []
    for number, child in enumerate(listed):
        at = f"{where}, child {number}"
        if isinstance(child, dict):
            mended, fine = _mend_tree(at, child, report)
        else:
            report.lost.append(f"{at}: {child!r:.40} is no feature: left out")
            mended, fine = [], False
        kept += mended
        same &= fine
    listed[:] = kept
    return ([feature] if whole else kept), same


def _mend(where: str, feature: Json, report: _Report) -> tuple[bool, bool]:
    """Mend a feature; whether it can stay, and whether it is as it was."""
    for looks in range(_ROUNDS):
        flaws = list(check_feature(feature, report.seen))
        fatal = next((flaw for flaw in flaws if flaw.cure is None), None)
        if fatal:
            report.note(where, fatal)
            return False, False
        if not flaws:
            note_feature(feature, report.seen)
            return True, looks == 0
        for flaw in flaws:
            report.note(where, flaw)
            if flaw.cure:
                flaw.cure()
    report.lost.append(f"{where}: too much is wrong with it: left out")
    return False, False
