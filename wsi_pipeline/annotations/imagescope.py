"""Reads the XML of Aperio ImageScope, and of HALO, which uses other words in it.

A layer is a class. Regions that are marked negative are cut out of its other regions.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import shapely

from wsi_pipeline.annotations.elements import Element, load_xml
from wsi_pipeline.annotations.record import Annotation, Drawing, Format
from wsi_pipeline.annotations.shapes import (
    Points,
    cut_out,
    ellipse,
    line,
    polygon,
    rectangle,
)
from wsi_pipeline.errors import RegionError

_SHAPES: dict[str, Callable[[Points], shapely.Geometry]] = {
    "": polygon,  # as scripts write it
    "0": polygon,
    "1": rectangle,
    "2": ellipse,
    "3": line,  # an arrow
    "4": line,  # a ruler
    "polygon": polygon,
    "rectangle": rectangle,
    "ellipse": ellipse,
    "arrow": line,
    "ruler": line,
    "pin": line,
}


def read_imagescope(root: Element, path: Path) -> Drawing:
    """Layers and regions as annotations.

    Parameters
    ----------
    root : Element
        ``Annotations``.
    path : Path
        For messages.

    Returns
    -------
    Drawing
        The class is the layer's name; where it has none, the name or value of its
        first attribute; where that is empty too, the region's own text. HALO's frame
        depends on the slide.

    Raises
    ------
    RegionError
        If a region's type is unknown.
    """
    found = [one for layer in root.find("Annotation") for one in _layer(layer, path)]
    halo = path.name.lower().endswith(_HALO_ENDINGS)
    return Drawing(tuple(found), None if halo else "level0")


def _layer(layer: Element, path: Path) -> Iterator[Annotation]:
    name, rgb = _layer_name(layer), _colour(layer.get("LineColor"))
    drawn, holes = [], []
    for region in layer.find("Regions", "Region"):
        geometry = _geometry(region, path)
        if region.get("NegativeROA") == "1":
            holes.append(geometry)
        else:
            drawn.append((region.get("Text"), geometry))
    shapes = cut_out([geometry for _, geometry in drawn], holes)
    for (text, _), geometry in zip(drawn, shapes, strict=True):
        yield Annotation(geometry, name or text or None, rgb, name=text or None)


def _layer_name(layer: Element) -> str:
    if layer.get("Name"):
        return layer.get("Name")
    for attribute in layer.find("Attributes", "Attribute"):
        named = attribute.get("Name")
        # ImageScope gives every layer an attribute "Description"
        return attribute.get("Value") if named == "Description" else named
    return ""


def _colour(packed: str) -> tuple[int, int, int] | None:
    """Red, green and blue of a number that has red in its lowest byte."""
    if not re.fullmatch(r"[0-9]{1,10}", packed):
        return None
    number = int(packed)
    return number & 255, number >> 8 & 255, number >> 16 & 255


def _geometry(region: Element, path: Path) -> shapely.Geometry:
    kind = region.get("Type").lower()
    if kind not in _SHAPES:
        raise RegionError(
            f"{path}: region {region.get('Id')!r}: type {kind!r}; expected one of "
            f"{', '.join(name for name in _SHAPES if name)}"
        )
    return _SHAPES[kind](region.points("Vertices"))


_HALO_ENDINGS = (".annotations", ".annotations.gz")
IMAGESCOPE = Format(
    (".xml", ".xml.gz", *_HALO_ENDINGS),
    load_xml,
    lambda root: root.tag == "Annotations",
    read_imagescope,
)
