"""Parses the XML of annotations as a stream; refuses what could harm the reader.

Without a document type there are no entities, so none can be expanded or fetched.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np

from wsi_pipeline.annotations.files import read_pieces
from wsi_pipeline.annotations.shapes import FARTHEST_PX, Points
from wsi_pipeline.errors import RegionError

MAX_DEPTH = 32
MAX_ELEMENTS = 4_000_000
"""Elements that are kept take about 500 bytes each; points take 24 and do not count."""
_POINTS = frozenset(("Vertex", "V", "Coordinate"))
_KEPT = frozenset(
    (
        "Annotations", "Annotation", "Attributes", "Attribute", "Regions", "Region",
        "Vertices", "Coordinates", "AnnotationGroups", "Group",
    )
)  # fmt: skip


@dataclass(slots=True)
class Element:
    """An element of XML with those below it that annotations are made of.

    Parameters
    ----------
    tag : str
        Its name.
    attributes : dict of str to str
        As written.
    children : list of Element
        In their order; points are not among them.
    numbers : array of float
        Order, x and y of the points that lie in it.
    """

    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    numbers: "array[float]" = field(default_factory=lambda: array("d"))

    def get(self, name: str) -> str:
        """An attribute without the blanks around it; empty where it lacks."""
        return self.attributes.get(name, "").strip()

    def find(self, *tags: str) -> Iterator["Element"]:
        """Elements below, level by level: ``find("Regions", "Region")``."""
        for child in self.children:
            if child.tag == tags[0]:
                if len(tags) == 1:
                    yield child
                else:
                    yield from child.find(*tags[1:])

    def points(self, tag: str) -> Points:
        """(n, 2) points that lie in the children of a name, in their order."""
        rows = [np.frombuffer(child.numbers).reshape(-1, 3) for child in self.find(tag)]
        found = np.concatenate([np.empty((0, 3)), *rows])
        return found[np.argsort(found[:, 0], kind="stable"), 1:]


def load_xml(path: Path) -> Element:
    """Parse a file, with or without gzip.

    Returns
    -------
    Element
        The root.

    Raises
    ------
    RegionError
        If the file cannot be read or is no XML, declares a document type (in which
        entities lie in wait), nests deeper than 32 elements, has more than 4 million
        of them or is larger than 1 GiB, or a point has no place.

    Notes
    -----
    Memory: 24 bytes per point, about 500 per region.
    """
    reader = _Reader(path)
    try:
        for piece in read_pieces(path):
            reader.parser.Parse(piece)
        reader.parser.Parse(b"", True)
    except RegionError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise RegionError(f"{path}: no XML ({error})") from error
    return reader.root


class _Reader:
    """Takes the parser's events; elements that nobody asks for leave nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = Element("", {})
        self._open: list[Element | None] = []
        self._kept = 0
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def _refuse(self, *_: object) -> None:
        raise self._error(
            "declares a document type, which may hold entities; no annotation program "
            "writes one"
        )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._open) == MAX_DEPTH:
            raise self._error(f"elements nest deeper than {MAX_DEPTH}")
        parent = self._open[-1] if self._open else None
        if not self._open:
            self.root = Element(tag, attributes)
            self._open.append(self.root)
        elif parent is None or tag not in _KEPT:
            if parent is not None and tag in _POINTS:
                self._add_point(parent, attributes)
            self._open.append(None)
        else:
            self._kept += 1
            if self._kept > MAX_ELEMENTS:
                raise self._error(f"more than {MAX_ELEMENTS} elements; split the file")
            element = Element(tag, attributes)
            parent.children.append(element)
            self._open.append(element)

    def _end(self, _: str) -> None:
        self._open.pop()

    def _add_point(self, parent: Element, attributes: dict[str, str]) -> None:
        order = attributes.get("Order", str(len(parent.numbers) // 3))
        texts = order, attributes.get("X", ""), attributes.get("Y", "")
        try:
            # some locales write decimal commas
            numbers = [float(text.replace(",", ".")) for text in texts]
        except ValueError:
            numbers = [math.nan]
        if not all(abs(number) <= FARTHEST_PX for number in numbers):
            raise self._error(f"a point without a place: {attributes}")
        parent.numbers.extend(numbers)

    def _error(self, text: str) -> RegionError:
        return RegionError(f"{self.path}: line {self.parser.CurrentLineNumber}: {text}")
