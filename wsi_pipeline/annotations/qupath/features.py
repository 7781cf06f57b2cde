"""Checks a feature by the rules of QuPath's importer, each rule with its remedy."""

import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from wsi_pipeline.annotations.qupath.findings import Defect, Effect, Json, Seen
from wsi_pipeline.annotations.qupath.naming import class_colour, is_known
from wsi_pipeline.annotations.qupath.properties import (
    TYPES,
    check_properties,
    kind_of,
    remember,
)
from wsi_pipeline.annotations.qupath.shapes import check_shape

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsi_pipeline/mended")


def check_feature(feature: Json, seen: Seen) -> Iterator[Defect]:
    """Yield what is wrong with a feature, its children left aside.

    Parameters
    ----------
    feature : dict
        Remedies change it in place. Where there are several, each may be applied;
        afterwards another look may find what they hid.
    seen : Seen
        The features before it.
    """
    yield from _check_id(feature, seen)
    if "geometry" not in feature:
        yield Defect("abort", "no geometry")
    elif feature["geometry"] is None:
        yield Defect("abort", "geometry is null; expected a geometry")
    else:
        yield from check_shape(feature, "geometry")
    properties = feature.get("properties", {})
    if isinstance(properties, dict):
        yield from _check_type(feature, properties)
        yield from _check_nucleus(feature, properties)
        yield from check_properties(properties, seen)
    else:
        words = f"properties is {properties!r:.40}; expected names and values"
        yield Defect("abort", words, partial(feature.pop, "properties"), "left out")


def note_feature(feature: Json, seen: Seen) -> None:
    """Add the id and the class of a checked feature to those seen."""
    if isinstance(feature.get("id"), str):
        seen.ids.add(feature["id"].lower())
    properties = feature.get("properties")
    if isinstance(properties, dict) and not is_known(properties, seen):
        named = class_colour(properties)
        if named:
            seen.colours.setdefault(*named)


def children_of(feature: Json) -> list[Any]:  # Any: JSON values
    """The list of a feature's children, to be changed in place; empty without any."""
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        return []
    key = "childObjects" if "childObjects" in properties else "children"
    children = properties.get(key)
    return children if isinstance(children, list) else []


def _check_id(feature: Json, seen: Seen) -> Iterator[Defect]:
    if "id" not in feature:
        return
    value = feature["id"]
    if value is None or isinstance(value, list | dict):
        words = f"id is {value!r:.40}; expected a UUID, or no such key"
        yield Defect("abort", words, partial(feature.pop, "id"), "left out")
    elif str(value) in TYPES:
        return  # QuPath 0.2 wrote the kind of object there
    elif not _UUID.fullmatch(str(value)):
        words = f"id {value!r:.60} is no UUID: a new one at each import"
        new = partial(_identify, feature, seen)
        yield Defect("changed", words, new, "made a UUID, the old one in the metadata")
    elif value.lower() in seen.ids:
        words = f"id {value} is there already: two objects that nobody can tell apart"
        new = partial(_identify, feature, seen)
        yield Defect("kept", words, new, "made another UUID")


def _identify(feature: Json, seen: Seen) -> None:
    """Give a feature an id of its own, the same one for the same file."""
    old, times = str(feature["id"]), 0
    if not _UUID.fullmatch(old):
        if not isinstance(feature.get("properties"), dict):
            feature["properties"] = {}
        remember(feature["properties"], "id", feature["id"])
    new = str(uuid.uuid5(_NAMESPACE, old))
    while new in seen.ids:
        times += 1
        new = str(uuid.uuid5(_NAMESPACE, f"{old}\n{times}"))
    feature["id"] = new


def _check_type(feature: Json, properties: Json) -> Iterator[Defect]:
    """A kind of object that stands where QuPath does not look for it."""
    if "objectType" not in feature or "objectType" in properties:
        return
    kind = feature["objectType"]

    def move() -> None:
        del feature["objectType"]
        if str(kind) in TYPES:
            properties["objectType"] = kind
            feature["properties"] = properties

    words = f"objectType {kind!r:.40} outside properties: read as annotation"
    yield Defect("changed", words, move, "moved into properties")


def _check_nucleus(feature: Json, properties: Json) -> Iterator[Defect]:
    if "nucleusGeometry" not in feature:
        return
    remove, left = partial(feature.pop, "nucleusGeometry"), "nucleus left out"
    flaws = list(check_shape(feature, "nucleusGeometry"))
    if TYPES.get(kind_of(properties, feature.get("id"))) != "cell":
        refused = any(flaw.effect == "abort" for flaw in flaws)
        effect: Effect = "abort" if refused else "dropped"
        yield Defect(effect, "a nucleus in what is no cell", remove, left)
        return
    for flaw in flaws:
        yield replace(
            flaw,
            message=f"nucleus: {flaw.message}",
            cure=flaw.cure or remove,
            cured=flaw.cured if flaw.cure else left,
        )
