"""Checks the class of an object by QuPath's rules, each rule with its remedy."""

from collections.abc import Iterator
from functools import partial

from wsi_pipeline.annotations.qupath.colours import Rgb, colour_flaw, rgb_of
from wsi_pipeline.annotations.qupath.findings import Defect, Effect, Json, Seen
from wsi_pipeline.annotations.qupath.values import is_number

_OLD = ("colorRGB", "parentClass")  # keys of classes before QuPath 0.4


def check_class(properties: Json, seen: Seen) -> Iterator[Defect]:
    """Yield the first flaw of an object's class.

    Parameters
    ----------
    properties : dict
        Of a feature; remedies change it in place.
    seen : Seen
        The classes before it.
    """
    value = properties.get("classification")
    if value is None or value == {} or is_known(properties, seen):
        return
    drop = partial(properties.pop, "classification")
    if not isinstance(value, str | dict):
        words = f"class {value!r:.40}: expected a name, or a name with a colour"
        text = partial(properties.update, classification=str(value))
        named = is_number(value)
        yield Defect("abort", words, text if named else drop, _how(named))
        return
    names = _names(value)
    old = isinstance(value, dict) and any(key in value for key in _OLD)
    if names is None:
        yield Defect("abort", "a class whose name is no text", drop, _how(False))
    elif not names:
        named = "color" in value and ("name" in value or "names" in value)
        if not (old or named):
            yield Defect("abort", "a class without a name", drop, _how(False))
    elif not old and (flaw := _name_flaw(value, names, properties)):
        yield flaw
    elif isinstance(value, dict):
        yield from _check_colour(value, _joined(names), properties, seen)


def class_colour(properties: Json) -> tuple[str, Rgb] | None:
    """Name and colour of a class whose name is fine, where it has both."""
    value = properties.get("classification")
    if not isinstance(value, dict):
        return None
    names = _names(value)
    if names and _name_flaw(value, names, properties):
        return None
    rgb = rgb_of(value.get("colorRGB", value.get("color")))
    return (_joined(names), rgb) if names and rgb else None


def is_known(properties: Json, seen: Seen) -> bool:
    """Whether a class was checked before, name and colour: the usual case."""
    value = properties.get("classification")
    if not isinstance(value, dict) or value.keys() != {"name", "color"}:
        return False
    name = value["name"]
    colour = seen.colours.get(name) if isinstance(name, str) else None
    return colour is not None and value["color"] == list(colour)


def _how(named: bool) -> str:
    return "written as text" if named else "left without a class"


def _names(value: str | Json) -> list[str] | None:
    """Names of a class and its sub-classes as they stand; None: they are no texts."""
    if isinstance(value, str):
        return _split(value)
    name, names = value.get("name"), value.get("names")
    if name is None:
        names = [] if names is None else names
        good = isinstance(names, list) and all(isinstance(n, str) for n in names)
        return names if good else None
    if is_number(name) or isinstance(name, bool):  # the importer makes text of them
        name = str(name)
    return _split(name) if isinstance(name, str) else None


def _split(name: str) -> list[str]:
    """As QuPath splits a name; Java's split forgets the empty ends."""
    names = name.split(":")
    while len(names) > 1 and not names[-1]:
        names.pop()
    return names


def _name_flaw(value: str | Json, names: list[str], properties: Json) -> Defect | None:
    if isinstance(value, str):
        written = value
    else:
        written = ": ".join(names) if value.get("name") is None else str(value["name"])
    stripped = [name.strip() for name in names]
    clean = [" ".join(one.split()) for name in stripped for one in name.split(":")]
    normal = ": ".join(filter(None, clean))

    def rename() -> None:
        if not normal:
            properties.pop("classification", None)
        elif isinstance(value, dict):
            value.pop("names", None)
            value["name"] = normal
        else:
            properties["classification"] = normal

    cured = f"named {normal!r}" if normal else _how(False)
    if not all(stripped):
        return Defect("abort", f"class {written!r}: an empty name", rename, cured)
    if any(sign in name for name in stripped for sign in ":\n\r"):
        words = f"class {written!r}: a colon or a line break in a name"
        return Defect("abort", words, rename, cured)
    if written != _joined(names):
        words = f"class {written!r} is read as {_joined(names)!r}"
        return Defect("changed", words, rename, cured)
    return None


def _joined(names: list[str]) -> str:
    """A class and its sub-classes as QuPath writes them."""
    return ": ".join(name.strip() for name in names)


def _check_colour(
    value: Json, name: str, properties: Json, seen: Seen
) -> Iterator[Defect]:
    """The colour of a class with a good name."""
    first = seen.colours.get(name)
    key = next((key for key in ("colorRGB", "color") if key in value), None)
    colour = value.get(key) if key else None

    def paint(rgb: Rgb | None) -> None:
        if rgb:
            value.pop("colorRGB", None)
            value["color"] = list(rgb)
        else:  # QuPath gives plain names a colour of its own
            properties["classification"] = name

    meant = first or rgb_of(colour)
    cure, cured = partial(paint, meant), f"coloured {meant}" if meant else "named only"
    flaw: tuple[Effect, str] | None = None
    if key is None and "parentClass" not in value:
        flaw = "abort", "no colour"
    elif key == "colorRGB" and colour is not None and not is_number(colour):
        flaw = "abort", f"colour {colour!r:.40}: expected a number"
    elif key == "color" and isinstance(colour, list):
        flaw = colour_flaw(colour)
        if flaw is None and len(colour) not in (0, 1, 3, 4):
            flaw = "abort", f"a colour of {len(colour)} numbers: expected three"
    elif key == "color" and colour is not None:
        flaw = "abort", f"colour {colour!r:.40}: expected [red, green, blue]"
    if flaw is None and first and (own := rgb_of(colour)) not in (None, first):
        flaw = "changed", f"in two colours: {first} comes first and wins over {own}"
    if flaw:
        yield Defect(flaw[0], f"class {name!r}: {flaw[1]}", cure, cured)
