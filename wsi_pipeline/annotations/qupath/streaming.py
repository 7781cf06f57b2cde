"""Walks through the features of a JSON text one at a time, without holding them all."""

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

_scan = json.JSONDecoder().raw_decode
_space = re.compile(r"[ \t\r\n]*")


class NotJsonError(ValueError):
    """A text is no JSON."""


@dataclass(frozen=True)
class Element:
    """One of the values that a text lists.

    Parameters
    ----------
    value : JSON value
        A value of its own, free to be changed.
    text : str
        Its text, exactly as it stands.
    """

    value: Any
    text: str


class Elements:
    """The features of a FeatureCollection, the elements of an array, or one value.

    Parameters
    ----------
    text : str
        JSON; NaN and Infinity are let through.

    Attributes
    ----------
    form : str
        "collection", "array" or "single"; known once the iteration has begun.
    members : dict
        What a collection's object says besides its features; those before the features
        are there when the first one comes, all of them at the end.
    ends_clean : bool
        At the end: whether nothing follows the JSON.

    Notes
    -----
    Memory: the text, and one element.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.form = "single"
        self.members: dict[str, Any] = {}
        self.ends_clean = True

    def __iter__(self) -> Iterator[Element]:
        """Yield the elements.

        Raises
        ------
        NotJsonError
            If the text is no JSON, as soon as that shows.
        """
        start = self._skip(0)
        if self._text.startswith("{", start):
            end = yield from self._object(start)
        elif self._text.startswith("[", start):
            self.form = "array"
            end = yield from self._array(start)
        else:
            value, end = self._value(start)
            yield Element(value, self._text[start:end])
        self.ends_clean = self._skip(end) == len(self._text)

    def _object(self, start: int) -> Generator[Element, None, int]:
        at = self._skip(start + 1)
        while not self._text.startswith("}", at):
            key, at = self._value(at)
            if not isinstance(key, str):
                raise self._error("expected a key", at)
            at = self._skip(self._past(":", self._skip(at)))
            listed = key == "features" and self._text.startswith("[", at)
            if listed and self.members.get("type", "FeatureCollection") == (
                "FeatureCollection"
            ):
                self.form = "collection"
                at = yield from self._array(at)
            else:
                self.members[key], at = self._value(at)
            at = self._next(at, "}")
        if self.form != "collection":
            yield Element(self.members, self._text[start : at + 1])
        return at + 1

    def _array(self, start: int) -> Generator[Element, None, int]:
        at = self._skip(start + 1)
        while not self._text.startswith("]", at):
            value, end = self._value(at)
            yield Element(value, self._text[at:end])
            at = self._next(end, "]")
        return at + 1

    def _next(self, at: int, last: str) -> int:
        """Where the next value or the closing bracket `last` begins."""
        at = self._skip(at)
        if self._text.startswith(last, at):
            return at
        at = self._skip(self._past(",", at))
        if self._text.startswith(last, at):
            raise self._error(f"a comma before {last!r}", at)
        return at

    def _past(self, sign: str, at: int) -> int:
        if not self._text.startswith(sign, at):
            raise self._error(f"expected {sign!r}", at)
        return at + 1

    def _skip(self, at: int) -> int:
        found = _space.match(self._text, at)
        return found.end() if found else at

    def _value(self, at: int) -> tuple[Any, int]:
        """A value, and where it ends."""
        try:
            return _scan(self._text, at)
        except (ValueError, RecursionError) as error:
            raise NotJsonError(str(error)) from error

    def _error(self, message: str, at: int) -> NotJsonError:
        return NotJsonError(str(json.JSONDecodeError(message, self._text, at)))
