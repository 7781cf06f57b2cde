"""Reads the XML of ASAP, in which CAMELYON16 and CAMELYON17 are annotated.

A group is a class. Groups for what is not meant are cut out of all other areas.
"""

from pathlib import Path

import shapely

from wsi_pipeline.annotations.elements import Element, load_xml
from wsi_pipeline.annotations.record import Annotation, Drawing, Format
from wsi_pipeline.annotations.shapes import cut_out, dots, line, polygon
from wsi_pipeline.errors import RegionError

_SHAPES = {
    "polygon": polygon,
    "spline": polygon,  # ASAP, too, fills the polygon through its points
    "rectangle": polygon,
    "dot": dots,
    "point": dots,  # as scripts write it
    "pointset": dots,
    "measurement": line,
}


def read_asap(root: Element, path: Path) -> Drawing:
    """Annotations by group.

    Parameters
    ----------
    root : Element
        ``ASAP_Annotations``.
    path : Path
        For messages.

    Returns
    -------
    Drawing
        Without the excluded areas: those of "Exclusion", of "_2" beside "_0" or "_1"
        (the names in CAMELYON16), and of groups that are part of these.

    Raises
    ------
    RegionError
        If an annotation's type is unknown.
    """
    groups = {one.get("Name"): one for one in root.find("AnnotationGroups", "Group")}
    rows = list(root.find("Annotations", "Annotation"))
    used = {row.get("PartOfGroup") for row in rows}
    left_out = {name for name in used if _is_exclusion(name, groups, used)}
    kept = [row for row in rows if row.get("PartOfGroup") not in left_out]
    holes = [_geometry(r, path) for r in rows if r.get("PartOfGroup") in left_out]
    shapes = cut_out([_geometry(row, path) for row in kept], holes)
    return Drawing(
        tuple(
            _annotation(row, shape, groups)
            for row, shape in zip(kept, shapes, strict=True)
        ),
        "level0",
    )


def _is_exclusion(name: str, groups: dict[str, Element], used: set[str]) -> bool:
    """Whether a group, or one that it is part of, holds what is not meant."""
    seen: set[str] = set()
    while name and name not in seen:
        if name.casefold() == "exclusion" or (name == "_2" and used & {"_0", "_1"}):
            return True
        seen.add(name)
        name = groups[name].get("PartOfGroup") if name in groups else ""
    return False


def _geometry(row: Element, path: Path) -> shapely.Geometry:
    kind = row.get("Type").lower()
    if kind not in _SHAPES:
        raise RegionError(
            f"{path}: annotation {row.get('Name')!r}: type {kind!r}; expected one of "
            f"{', '.join(_SHAPES)}"
        )
    return _SHAPES[kind](row.points("Coordinates"))


def _annotation(
    row: Element, geometry: shapely.Geometry, groups: dict[str, Element]
) -> Annotation:
    group = row.get("PartOfGroup")
    own = groups[group].get("Color") if group in groups else ""
    named = group if group != "None" else ""
    return Annotation(
        geometry,
        named or None,
        _colour(own or row.get("Color")),
        name=row.get("Name") or None,
    )


def _colour(text: str) -> tuple[int, int, int] | None:
    """Red, green and blue of "#rrggbb"."""
    try:
        r, g, b = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        return None
    return r, g, b


ASAP = Format(
    (".xml", ".xml.gz"),
    load_xml,
    lambda root: root.tag == "ASAP_Annotations",
    read_asap,
)
