"""Finds the features in the elements of a GeoJSON text as QuPath finds them."""

from collections.abc import Iterator
from typing import Any

from wsi_pipeline.annotations.qupath.coordinates import DEPTHS
from wsi_pipeline.annotations.qupath.findings import Defect, Effect, Json
from wsi_pipeline.annotations.qupath.streaming import Elements

_GEOMETRIES = (*DEPTHS, "GeometryCollection")
_EXPECTED = "expected a FeatureCollection, an array of features, or a feature"

Unpacked = tuple[str, Json | None, Defect | None]


def unpack(value: Any, where: str, form: str) -> Iterator[Unpacked]:  # Any: JSON value
    """Yield the features in an element of a text, each with its place.

    Parameters
    ----------
    value : JSON value
        The element.
    where : str
        Its place.
    form : str
        "collection" where it is listed as a feature, else "array" or "single".

    Yields
    ------
    (str, dict or None, Defect or None)
        Place; the feature, or None where there is none; what is wrong with the way in
        which it is listed. The feature of a defect is mended already.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if form == "collection":
        yield _unpack_listed(value, kind, where)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from unpack(inner, f"{where}, element {number}", "array")
    elif not isinstance(value, dict):
        yield where, None, Defect("dropped", f"{value!r:.40} is no feature")
    elif kind == "Feature":
        yield where, value, None
    elif kind in _GEOMETRIES:
        yield where, {"type": "Feature", "geometry": value}, None
    elif isinstance(value.get("features"), list):
        if kind != "FeatureCollection":
            yield where, None, _no_collection(kind)
        for number, inner in enumerate(value["features"]):
            at = f"feature {number}" if form == "single" else f"{where}.{number}"
            yield from unpack(inner, at, "collection")
    else:
        yield _unpack_strange(value, kind, where)


def _unpack_listed(value: Any, kind: object, where: str) -> Unpacked:  # Any: JSON value
    """An element of a collection: QuPath does not look at its type."""
    if not isinstance(value, dict):
        return where, None, Defect("abort", f"{value!r:.40} is no feature")
    if kind in (*_GEOMETRIES, "LinearRing") and "geometry" not in value:
        words = f"a {kind} where a feature belongs"
        feature = {"type": "Feature", "geometry": value}
        return where, feature, Defect("abort", words, _done, "made a feature")
    return where, value, None


def _unpack_strange(value: Json, kind: object, where: str) -> Unpacked:
    """An object of a type that QuPath passes over."""
    named = "type" not in value or isinstance(kind, str | int | float)
    effect: Effect = "dropped" if named else "abort"
    if "geometry" in value:
        words = f"type {kind!r:.40}; expected Feature"
        value["type"] = "Feature"
        return where, value, Defect(effect, words, _done, "made a feature")
    words = f"no GeoJSON: {_EXPECTED}, got {sorted(value)[:6]}"
    return where, None, Defect(effect, words)


def _no_collection(kind: object) -> Defect:
    words = f"type {kind!r:.40}; expected FeatureCollection: QuPath finds no object"
    return Defect("dropped", words, _done, "made a FeatureCollection")


def _done() -> None:
    """The remedy of what is mended where it is found."""


def check_document(elements: Elements) -> Iterator[Defect]:
    """Yield what is wrong around the features, once they have been walked through."""
    kind = elements.members.get("type")
    if elements.form == "collection" and kind != "FeatureCollection":
        yield _no_collection(kind)
    if "crs" in elements.members:
        words = "the member crs: other programs take the pixels for degrees or metres"
        yield Defect("kept", words, _done, "left out")
    if not elements.ends_clean:
        yield Defect("abort", "text after the end of the JSON", _done, "cut off")
