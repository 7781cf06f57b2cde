"""Checks the properties of a feature by QuPath's rules, each rule with its remedy."""

import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from wsi_pipeline.annotations.qupath.colours import colour_flaw, rgb_of
from wsi_pipeline.annotations.qupath.findings import Defect, Json, Seen
from wsi_pipeline.annotations.qupath.naming import check_class
from wsi_pipeline.annotations.qupath.values import is_number, number_of

TYPES = {
    "annotation": "annotation",
    "detection": "detection",
    "tile": "tile",
    "cell": "cell",
    "tmaCore": "tmaCore",
    "tma_core": "tmaCore",
    "root": "root",
    "unknown": "annotation",
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathTileObject": "tile",
    "PathCellObject": "cell",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
"""Every name of a kind of object that QuPath knows, and today's name for it."""

_TYPE_KEYS = ("objectType", "object_type", "type")
_NOT_FINITE = ("NaN", "inf", "-inf", "Infinity", "-Infinity")
_DROPPED = "left out"


def check_properties(properties: Json, seen: Seen) -> Iterator[Defect]:
    """Yield what is wrong with the properties of a feature.

    Parameters
    ----------
    properties : dict
        Remedies change it in place.
    seen : Seen
        The classes before it.
    """
    name = properties.get("name")
    if "name" in properties and (name is None or isinstance(name, list | dict)):
        words = f"name is {name!r:.40}; expected text, or no such key"
        yield Defect("abort", words, partial(properties.pop, "name"), _DROPPED)
    yield from _check_type(properties)
    yield from _check_colour(properties)
    yield from check_class(properties, seen)
    yield from _check_lock(properties)
    yield from _check_measurements(properties)
    yield from _check_metadata(properties)


def kind_of(properties: Json, otherwise: object = None) -> str:
    """Name of the kind of object, as it stands where QuPath looks for it."""
    named = (properties[key] for key in _TYPE_KEYS if key in properties)
    return str(next(named, otherwise))


def remember(properties: Json, name: str, value: Any) -> None:  # Any: a JSON value
    """Keep what a remedy replaces among the object's metadata, which QuPath shows."""
    metadata = properties.get("metadata")
    if not isinstance(metadata, dict):
        properties["metadata"] = metadata = {}
    text = value if isinstance(value, str) else json.dumps(value)
    metadata[f"original {name}"] = text


def _check_type(properties: Json) -> Iterator[Defect]:
    key = next((key for key in _TYPE_KEYS if key in properties), None)
    if key is None:
        return
    kind = properties[key]

    def retype() -> None:
        if kind is not None and key == "objectType":
            remember(properties, key, kind)
        properties["objectType"] = "annotation"

    cured = "made an annotation"
    if kind is None or isinstance(kind, list | dict):
        words = f"{key} is {kind!r:.40}; expected text, or no such key"
        yield Defect("abort", words, retype, cured)
    elif TYPES.get(str(kind)) == "tmaCore":
        words = "a TMA core: QuPath takes none from a file"
        yield Defect("dropped", words, retype, cured)
    elif str(kind) not in TYPES:
        words = f"{key} {kind!r:.40} is unknown: read as annotation"
        yield Defect("changed", words, retype, cured)


def _check_colour(properties: Json) -> Iterator[Defect]:
    """The colour of the object itself."""
    colour = properties.get("color")
    if colour is None:
        return
    flaw = None
    if isinstance(colour, list) and len(colour) == 3:
        flaw = colour_flaw(colour)
    elif isinstance(colour, list | dict):
        flaw = "dropped", f"colour {colour!r:.60}: expected three numbers"
    elif not is_number(colour):
        flaw = "abort", f"colour {colour!r:.40}: expected [red, green, blue]"
    if flaw:
        rgb = rgb_of(colour)
        cure = partial(properties.pop, "color")
        if rgb:
            cure = partial(properties.update, color=list(rgb))
        cured = f"written as {list(rgb)}" if rgb else _DROPPED
        yield Defect(flaw[0], f"the object's {flaw[1]}", cure, cured)


def _check_lock(properties: Json) -> Iterator[Defect]:
    locked = properties.get("isLocked")
    if isinstance(locked, bool | None | list | dict):
        return
    meant = str(locked).lower() in ("true", "1", "1.0", "yes")
    if meant != (str(locked).lower() == "true"):
        words = f"isLocked {locked!r:.40} is read as false; expected true"
        cure = partial(properties.update, isLocked=True)
        yield Defect("changed", words, cure, "written as true")


def _check_measurements(properties: Json) -> Iterator[Defect]:
    value = properties.get("measurements")
    if isinstance(value, dict):
        yield from _check_map(value)
    elif isinstance(value, list):
        yield from _check_rows(value)
    elif value is not None:
        words = f"measurements {value!r:.40}: expected names and numbers"
        cure = partial(properties.pop, "measurements")
        yield Defect("dropped", words, cure, _DROPPED)


def _check_map(measurements: Json) -> Iterator[Defect]:
    for name, value in measurements.items():
        words = f"measurement {name!r} is {value!r:.40}; expected a number"
        if value is None:
            yield Defect("dropped", words, partial(measurements.pop, name), _DROPPED)
        elif not (is_number(value) or value in _NOT_FINITE):
            number = _measured(value)
            cure = partial(measurements.pop, name)
            if number is not None:
                cure = partial(measurements.__setitem__, name, number)
            yield Defect("abort", words, cure, _as(number))


def _check_rows(rows: list[Any]) -> Iterator[Defect]:  # Any: JSON values
    """Measurements as QuPath wrote them before 0.4."""
    for row in list(rows):
        named = isinstance(row, dict) and isinstance(row.get("name"), str)
        value = row.get("value") if named else None
        if named and (is_number(value) or value in _NOT_FINITE):
            continue
        number = _measured(value) if named else None
        cure = partial(_remove, rows, row)
        if number is not None:
            cure = partial(row.update, value=number)
        words = f"measurement {row!r:.60}: expected a name and a number"
        yield Defect("abort", words, cure, _as(number))


def _measured(value: Any) -> float | str | None:  # Any: a JSON value
    """The number that text or a truth value stands for, as QuPath reads it."""
    number = int(value) if isinstance(value, bool) else number_of(value)
    if number is None or math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _as(number: float | str | None) -> str:
    return _DROPPED if number is None else f"written as {number}"


def _remove(rows: list[Any], row: Any) -> None:  # Any: JSON values
    rows[:] = [other for other in rows if other is not row]


def _check_metadata(properties: Json) -> Iterator[Defect]:
    metadata = properties.get("metadata")
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        words = f"metadata {metadata!r:.40}: expected names and texts"
        yield Defect("dropped", words, partial(properties.pop, "metadata"), _DROPPED)
        return
    for name, value in metadata.items():
        if value is None or isinstance(value, list | dict):
            words = f"metadata {name!r} is {value!r:.40}; expected text or a number"
            cure = partial(metadata.__setitem__, name, json.dumps(value))
            yield Defect("dropped", words, cure, "written as text")
