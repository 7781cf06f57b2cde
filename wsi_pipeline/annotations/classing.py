"""Decides which class of a mask each drawn area is, and in which order they lie."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import shapely

from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.annotations.record import Annotation
from wsi_pipeline.annotations.shapes import only_areas
from wsi_pipeline.classes import COVERAGE_CLASSES, NOT_COMPUTED, MaskClass
from wsi_pipeline.errors import ConfigError, RegionError

IGNORE = "Ignore*"
"""QuPath's class for what counts as nothing: its pixels become 255."""
Overlap = Literal["last", "smallest", "listed"]
"""Which of two areas counts where they overlap: the later one in the file; the smaller;
or the one whose class comes later in the class map, else in the list of classes.
"""
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)
REGION = "Region*"
"""QuPath's class for what is only outlined, never filled."""
LEFT_OUT = (REGION, *(kind.name for kind in COVERAGE_CLASSES))
"""Classes that QuPath and this package draw and that are nobody's finding."""


def check_overlap(text: str) -> Overlap:
    """A rule by its name.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    for rule in OVERLAPS:
        if rule == text:
            return rule
    raise ConfigError(f"overlap {text!r}: expected one of {', '.join(OVERLAPS)}")


def drawn_name(item: Annotation) -> str:
    """What an annotation goes by: its class, else its colour "#rrggbb", else ""."""
    if item.class_name or item.rgb is None:
        return item.class_name or ""
    return "#" + bytes(item.rgb).hex()


@dataclass(frozen=True)
class ClassMap:
    """What the names in files of annotations mean.

    Parameters
    ----------
    rows : tuple of (str, str)
        Name that was drawn, and name of the class: empty to leave the area out,
        "Ignore*" to count its pixels as nothing. Areas without a name go by their
        colour, "#rrggbb", else by the empty name.

    Raises
    ------
    ConfigError
        If a name is there twice.
    """

    rows: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        counts = Counter(drawn for drawn, _ in self.rows)
        twice = [drawn for drawn, count in counts.items() if count > 1]
        if twice:
            raise ConfigError(f"class map: {twice[0]!r} is there twice")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a CSV file with the columns ``drawn,class``.

        Raises
        ------
        ConfigError
            If it cannot be read, has other columns, or a name is there twice.
        """
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream)
                rows = [(row.get("drawn"), row.get("class")) for row in reader]
                columns = list(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error
        if not {"drawn", "class"} <= set(columns):
            raise ConfigError(f"{path}: columns are {columns}, expected drawn,class")
        try:
            return cls(tuple(((a or "").strip(), (b or "").strip()) for a, b in rows))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def find(self, item: Annotation) -> tuple[int, str] | None:
        """Number of the row that an annotation goes by, and its class.

        Returns
        -------
        (int, str) or None
            None where no row fits.
        """
        for key in dict.fromkeys((drawn_name(item), item.class_name or "")):
            for number, (drawn, name) in enumerate(self.rows):
                if drawn.casefold() == key if key.startswith("#") else drawn == key:
                    return number, name
        return None


def class_areas(
    annotations: Iterable[Annotation],
    classes: Sequence[MaskClass],
    class_map: ClassMap = ClassMap(),
    *,
    overlap: Overlap = "last",
    unnamed: Literal["refuse", "leave out"] = "refuse",
) -> Areas:
    """Areas to paint, each with the value of its class.

    Parameters
    ----------
    annotations : iterable of Annotation
        Those without an area are left out.
    classes : sequence of MaskClass
        Of the mask.
    class_map : ClassMap
        For names that are not the classes' own.
    overlap : "last", "smallest" or "listed"
        Which area wins.
    unnamed : "refuse" or "leave out"
        What becomes of areas without a class that the map does not know. Detections,
        cells and tiles without a class are always left out.

    Raises
    ------
    RegionError
        If an area has a class that is neither in the map nor among `classes`, or none.
    """
    values = {kind.name: kind.value for kind in classes} | {IGNORE: NOT_COMPUTED}
    places = {kind.name: place for place, kind in enumerate(classes)}
    found: list[tuple[int, int, shapely.Geometry]] = []  # place in the list, value
    strange: Counter[str] = Counter()
    for item in annotations:
        if shapely.area(item.geometry) == 0:
            continue
        place, name = class_map.find(item) or (-1, item.class_name)
        if place < 0 and name is None:
            loose = item.object_type != "annotation" or unnamed == "leave out"
            name = "" if loose else None
        if place < 0 and name in LEFT_OUT and name not in values:
            name = ""
        if name is None or (name and name not in values):
            strange[name or "no class"] += 1
        elif name:
            place = place if place >= 0 else len(class_map.rows) + places.get(name, 0)
            found.append((place, values[name], only_areas(item.geometry)))
    if strange:
        listed = ", ".join(f"{name!r} ({n})" for name, n in strange.most_common(12))
        raise RegionError(
            f"areas of unknown classes: {listed}; the mask has "
            f"{', '.join(repr(kind.name) for kind in classes)}; a class map "
            "(class_map.csv of a dataset, --class-map) says what they are"
        )
    if overlap == "smallest":
        found.sort(key=lambda row: -shapely.area(row[2]))
    elif overlap == "listed":
        found.sort(key=lambda row: row[0])
    geometries = np.empty(len(found), object)
    geometries[:] = [geometry for *_, geometry in found]
    return Areas(geometries, np.array([v for _, v, _ in found], np.uint8))
