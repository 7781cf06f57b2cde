"""Checks a geometry by the rules of QuPath's importer, each rule with its remedy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from wsi_pipeline.annotations.qupath.coordinates import DEPTHS, check_coordinates
from wsi_pipeline.annotations.qupath.findings import Defect, Json
from wsi_pipeline.annotations.qupath.values import is_number

_FAMILIES = ("Polygon", "LineString", "Point")  # what hides what in a collection


def check_shape(holder: Json, key: str) -> Iterator[Defect]:
    """Yield what is wrong with the geometry at `key`, one kind of flaw at a time.

    Parameters
    ----------
    holder : dict
        A feature; remedies change it in place.
    key : str
        "geometry" or "nucleusGeometry".
    """
    shape = holder[key]
    if not isinstance(shape, dict):
        yield Defect("abort", f"{key} is {shape!r:.40}; expected a geometry")
        return
    if not shape:
        yield Defect("dropped", f"{key} is empty: an object without a place")
        return
    kind = shape.get("type")
    if kind == "GeometryCollection":
        yield _collection(shape)
    elif kind == "LinearRing":
        yield Defect(
            "abort",
            "a LinearRing, which GeoJSON does not know",
            partial(shape.update, type="LineString"),
            "written as LineString",
        )
    elif kind not in DEPTHS:
        words = f"{key} of type {kind!r:.40}; expected one of {', '.join(DEPTHS)}"
        names = {name.lower(): name for name in DEPTHS}
        name = names.get(str(kind).lower())
        cure = partial(shape.update, type=name) if name else None
        yield Defect("abort", words, cure, f"written as {name}")
    else:
        yield from _check_members(shape)
        yield from check_coordinates(shape)


def _collection(shape: Json) -> Defect:
    """A collection, and how it becomes one geometry: what has the most dimensions."""
    members = shape.get("geometries")
    listed = members if isinstance(members, list) else []
    found = [member for member in listed if isinstance(member, dict)]
    kinds = [str(member.get("type")) for member in found]
    family = next((f for f in _FAMILIES if any(k.endswith(f) for k in kinds)), None)
    other = [kind for kind in kinds if not family or not kind.endswith(family)]
    parts: list[Any] = []  # Any: coordinates
    for kind, member in zip(kinds, found, strict=True):
        inner = member.get("coordinates")
        if kind == family:
            parts.append(inner)
        elif kind == f"Multi{family}" and isinstance(inner, list):
            parts += inner

    def cure() -> None:
        shape.pop("geometries", None)
        shape.update(type=f"Multi{family}", coordinates=parts)

    return Defect(
        "abort",
        f"a GeometryCollection of {', '.join(kinds) or 'nothing'}",
        cure if parts else None,
        f"its {family}s kept" + (f", {', '.join(other)} left out" if other else ""),
        before="dropped" if other else "repaired",
    )


def _check_members(shape: Json) -> Iterator[Defect]:
    """The plane and the mark of an ellipse that QuPath keeps in a geometry."""
    plane = shape.get("plane", {})
    if not isinstance(plane, dict):
        words = f"plane is {plane!r:.40}; expected c, z and t"
        yield Defect("abort", words, partial(shape.pop, "plane"), "plane left out")
    else:
        for name, value in plane.items():
            if name not in ("c", "z", "t") or not is_number(value):
                words = f"plane with {name!r}: {value!r:.40}; only c, z, t as numbers"
                cure = partial(plane.pop, name)
                yield Defect("abort", words, cure, f"{name!r} left out")
    if "isEllipse" in shape and not isinstance(shape["isEllipse"], bool):
        words = f"isEllipse is {shape['isEllipse']!r:.40}; expected true or no such key"
        yield Defect("abort", words, partial(shape.pop, "isEllipse"), "left out")
