"""Turns an image's name, size and scale into the OME-XML that Java readers ask for.

QuPath and Bio-Formats take um and channel colours of an OME-Zarr from nowhere else.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from wsi_pipeline.geometry import Scale

OME_XML = "OME/METADATA.ome.xml"
"""Where readers look for it, below the first folder of the path named ``*.zarr``."""

CHANNELS = (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"))
"""Name and hex colour; QuPath shows an image as RGB only under exactly these."""

_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def image_xml(name: str, size_px: tuple[int, int], scale: Scale) -> bytes:
    r"""OME-XML of one RGB image, the same bytes for the same values.

    Parameters
    ----------
    name : str
        Shown to the user. Characters that XML 1.0 forbids are escaped, as ``\x01``.
    size_px : tuple of int
        (width, height) of the image's finest level.
    scale : Scale
        um/px of that level.

    Returns
    -------
    bytes
        UTF-8. Holds no date, user or instrument.

    Notes
    -----
    Bio-Formats' ZarrReader copies physical sizes and channels from here and replaces
    sizes, byte order and dimension order by those of the arrays: "XYCTZ" for (c, y, x),
    the same planes as the "XYCZT" written here since Z and T are 1.

    References
    ----------
    OME schema 2016-06, elements Image, Pixels, Channel and MetadataOnly, type Color
    (RGBA as a signed 32-bit number). XML 1.0, production 2 (Char).
    """
    ome, pixels = _image(name, size_px, scale, len(CHANNELS))
    for index, (label, colour) in enumerate(CHANNELS):
        rgba = int.from_bytes(bytes.fromhex(colour + "FF"), "big", signed=True)
        channel = {"ID": f"Channel:0:{index}", "Name": label, "Color": str(rgba)}
        ET.SubElement(pixels, "Channel", channel | {"SamplesPerPixel": "1"})
    ET.SubElement(pixels, "MetadataOnly")
    return _bytes(ome)


def label_xml(
    name: str,
    size_px: tuple[int, int],
    scale: Scale,
    labels: Sequence[tuple[int, str]],
) -> bytes:
    """OME-XML of a label image in a TIFF, the same bytes for the same values.

    Parameters
    ----------
    name, size_px, scale
        As for `image_xml`.
    labels : sequence of (int, str)
        Values of the pixels, and what they mean.

    Returns
    -------
    bytes
        UTF-8. One channel, whose plane is the first directory of the TIFF.

    Notes
    -----
    OME-XML has no place for classes; they stand in a map annotation of the image.

    References
    ----------
    OME schema 2016-06, elements TiffData, AnnotationRef and MapAnnotation.
    """
    ome, pixels = _image(name, size_px, scale, 1)
    channel = {"ID": "Channel:0:0", "Name": "Class", "SamplesPerPixel": "1"}
    ET.SubElement(pixels, "Channel", channel)
    ET.SubElement(pixels, "TiffData", {"IFD": "0", "PlaneCount": "1"})
    ET.SubElement(ome[0], "AnnotationRef", {"ID": "Annotation:0"})
    notes = ET.SubElement(ome, "StructuredAnnotations")
    space = {"ID": "Annotation:0", "Namespace": "wsi_pipeline/classes"}
    rows = ET.SubElement(ET.SubElement(notes, "MapAnnotation", space), "Value")
    for value, label in labels:
        ET.SubElement(rows, "M", {"K": str(value)}).text = _spelled(label)
    return _bytes(ome)


def _image(
    name: str, size_px: tuple[int, int], scale: Scale, channels: int
) -> tuple[ET.Element, ET.Element]:
    """A document of one image, and its element Pixels."""
    # the namespace as a plain attribute: ElementTree would prefix every element
    ome = ET.Element("OME", {"xmlns": _SCHEMA})
    about = {"ID": "Image:0", "Name": _spelled(name)}
    image = ET.SubElement(ome, "Image", about)
    return ome, ET.SubElement(image, "Pixels", _pixels(size_px, scale, channels))


def _spelled(text: str) -> str:
    """Text in which characters that XML forbids are escaped."""
    return _NOT_XML.sub(lambda hit: ascii(hit[0])[1:-1], text)


def _bytes(ome: ET.Element) -> bytes:
    ET.indent(ome)
    data: bytes = ET.tostring(ome, encoding="UTF-8", xml_declaration=True)
    return data + b"\n"


def _pixels(size_px: tuple[int, int], scale: Scale, channels: int) -> dict[str, str]:
    w, h = size_px
    return {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": "uint8",
        "BigEndian": "false",
        "Interleaved": "false",
        "SizeX": str(w),
        "SizeY": str(h),
        "SizeC": str(channels),
        "SizeZ": "1",
        "SizeT": "1",
        "PhysicalSizeX": str(scale.x),
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": str(scale.y),
        "PhysicalSizeYUnit": "µm",
    }
