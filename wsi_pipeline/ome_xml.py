"""Turns an image's name, size and scale into the OME-XML that Java readers ask for.

QuPath and Bio-Formats take um and channel colours of an OME-Zarr from nowhere else.
"""

import re
import xml.etree.ElementTree as ET

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
    # the namespace as a plain attribute: ElementTree would prefix every element
    ome = ET.Element("OME", {"xmlns": _SCHEMA})
    shown = _NOT_XML.sub(lambda hit: ascii(hit[0])[1:-1], name)
    image = ET.SubElement(ome, "Image", {"ID": "Image:0", "Name": shown})
    pixels = ET.SubElement(image, "Pixels", _pixels(size_px, scale))
    for index, (label, colour) in enumerate(CHANNELS):
        rgba = int.from_bytes(bytes.fromhex(colour + "FF"), "big", signed=True)
        channel = {"ID": f"Channel:0:{index}", "Name": label, "Color": str(rgba)}
        ET.SubElement(pixels, "Channel", channel | {"SamplesPerPixel": "1"})
    ET.SubElement(pixels, "MetadataOnly")
    ET.indent(ome)
    data: bytes = ET.tostring(ome, encoding="UTF-8", xml_declaration=True)
    return data + b"\n"


def _pixels(size_px: tuple[int, int], scale: Scale) -> dict[str, str]:
    w, h = size_px
    return {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": "uint8",
        "BigEndian": "false",
        "Interleaved": "false",
        "SizeX": str(w),
        "SizeY": str(h),
        "SizeC": str(len(CHANNELS)),
        "SizeZ": "1",
        "SizeT": "1",
        "PhysicalSizeX": str(scale.x),
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": str(scale.y),
        "PhysicalSizeYUnit": "µm",
    }
