"""Checks a GeoJSON file by the rules of QuPath's importer, before QuPath does.

The rules were measured on QuPath 0.5.1, 0.6.0, 0.7.0 and the sources of 0.8; one bad
feature there aborts the import of the whole file.
"""

from collections.abc import Iterator
from pathlib import Path

from wsi_pipeline.annotations.qupath.containers import Part, read_parts
from wsi_pipeline.annotations.qupath.features import (
    check_feature,
    children_of,
    note_feature,
)
from wsi_pipeline.annotations.qupath.findings import Finding, Json, Seen
from wsi_pipeline.annotations.qupath.listing import check_document, unpack
from wsi_pipeline.annotations.qupath.streaming import Elements, NotJsonError

__all__ = ["Finding", "check_geojson"]


def check_geojson(path: Path) -> list[Finding]:
    """List what QuPath would refuse or alter in a file; an empty list is good.

    Parameters
    ----------
    path : Path
        .geojson or .json, also with .gz, or a .zip of such files. Of a zip, QuPath
        leaves out without a word each file in it that it would refuse.

    Returns
    -------
    list of Finding
        In the order of the file.

    Raises
    ------
    RegionError
        If the file cannot be opened.

    Notes
    -----
    Memory: the text of the file, the ids of its features, and one feature at a time:
    with 200,000 polygons of 17 points (115 MB) 0.3 GB. Properties that are not
    QuPath's are nothing to it, and are not told of; comments and single quotes, which
    it lets pass, are.
    """
    seen = Seen()
    return [found for part in read_parts(path) for found in check_part(part, seen)]


def check_part(part: Part, seen: Seen) -> Iterator[Finding]:
    """Yield what is wrong with one text of a file; its features are added to `seen`."""
    place = f"{part.name}: " if part.name else ""
    whole = f"{place}file"
    yield from (Finding.of(whole, defect) for defect in part.defects)
    if part.text is None:
        return
    elements = Elements(part.text)
    try:
        for number, element in enumerate(elements):
            where = f"{place}feature {number}"
            for at, feature, defect in unpack(element.value, where, elements.form):
                if defect:
                    lone = elements.form == "single" and feature is None
                    yield Finding.of(whole if lone else at, defect)
                if feature is not None:
                    yield from _check_tree(at, feature, seen)
    except (NotJsonError, RecursionError) as error:
        yield Finding("abort", whole, f"no JSON ({error})")
        return
    yield from (Finding.of(whole, defect) for defect in check_document(elements))


def _check_tree(where: str, feature: Json, seen: Seen) -> Iterator[Finding]:
    """A feature and its children, the parent first."""
    yield from (Finding.of(where, defect) for defect in check_feature(feature, seen))
    note_feature(feature, seen)
    for number, child in enumerate(children_of(feature)):
        at = f"{where}, child {number}"
        if isinstance(child, dict):
            yield from _check_tree(at, child, seen)
        else:
            yield Finding("abort", at, f"{child!r:.40} is no feature")
