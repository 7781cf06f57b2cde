"""Reads from a DICOM file's header which series and level it is, and nothing else.

Enough to tell the main file of a slide from its other levels, label and overview.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

IMPLICIT_LE = "1.2.840.10008.1.2"
MAX_HEADER_BYTES = 4 << 20  # the wanted tags come before the pixel data
_SERIES, _IMAGE_TYPE = (0x0020, 0x000E), (0x0008, 0x0008)
_COLUMNS, _SYNTAX = (0x0048, 0x0006), (0x0002, 0x0010)
_WANTED = {_SERIES, _IMAGE_TYPE, _COLUMNS, _SYNTAX}
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT"}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_ITEM, _END_SEQUENCE = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)


@dataclass(frozen=True)
class DicomFacts:
    """What a DICOM file is within its slide.

    Parameters
    ----------
    series : str
        SeriesInstanceUID, equal for all files of a slide.
    is_volume : bool
        True for the levels of the pyramid, False for label, overview, thumbnail.
    columns : int
        Width of the level in pixels, 0 if not stated.
    """

    series: str
    is_volume: bool
    columns: int


def read_dicom_facts(path: Path) -> DicomFacts | None:
    """Facts of a DICOM file; None if it is none or its header is damaged.

    Parameters
    ----------
    path : Path
        Any file.

    References
    ----------
    DICOM PS3.10 section 7 (file meta), PS3.5 section 7.1 (data elements).
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_HEADER_BYTES)
        if data[128:132] != b"DICM":
            return None
        found = _scan(data)
        series = found[_SERIES].decode("ascii").strip("\0 ")
    except (OSError, KeyError, struct.error, UnicodeDecodeError):
        return None
    kind = found.get(_IMAGE_TYPE, b"").decode("ascii", "replace").upper()
    width = found.get(_COLUMNS, b"\0\0\0\0")
    columns = struct.unpack("<I", width)[0] if len(width) == 4 else 0
    return DicomFacts(series, "VOLUME" in kind.split("\\"), columns)


def _scan(data: bytes) -> dict[tuple[int, int], bytes]:
    """Values of the wanted top-level elements, up to the pixel data."""
    found: dict[tuple[int, int], bytes] = {}
    place, explicit = 132, True
    while place + 8 <= len(data):
        tag = struct.unpack_from("<HH", data, place)
        if tag[0] > 0x0002 and _SYNTAX in found:
            syntax = found[_SYNTAX].decode("ascii", "replace").strip("\0 ")
            explicit = syntax != IMPLICIT_LE
        if tag > _COLUMNS:
            break
        place, length = _header(data, place, explicit)
        if length == _UNDEFINED:
            place = _skip_sequence(data, place, explicit)
            continue
        if tag in _WANTED:
            found[tag] = data[place : place + length]
        place += length
    return found


def _header(data: bytes, place: int, explicit: bool) -> tuple[int, int]:
    """Where an element's value starts, and its length."""
    if not explicit:
        return place + 8, struct.unpack_from("<I", data, place + 4)[0]
    if data[place + 4 : place + 6] in _LONG:
        return place + 12, struct.unpack_from("<I", data, place + 8)[0]
    return place + 8, struct.unpack_from("<H", data, place + 6)[0]


def _skip_sequence(data: bytes, place: int, explicit: bool) -> int:
    """End of a sequence of undefined length; nested ones are counted, not recursed."""
    depth = 1
    while depth and place + 8 <= len(data):
        tag = struct.unpack_from("<HH", data, place)
        if tag in (_ITEM, _END_ITEM, _END_SEQUENCE):
            length = struct.unpack_from("<I", data, place + 4)[0]
            place += 8
            if tag == _END_SEQUENCE:
                depth -= 1
            elif tag == _ITEM and length != _UNDEFINED:
                place += length
            continue
        place, length = _header(data, place, explicit)
        if length == _UNDEFINED:
            depth += 1
        else:
            place += length
    return place
