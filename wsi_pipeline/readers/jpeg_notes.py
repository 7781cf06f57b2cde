"""Takes out of a JPEG what is neither pixels nor how they are coded.

Scanners and converters write comments, EXIF and XMP into tiles, names among them.
"""

_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_JFIF, _ADOBE = 0xE0, 0xEE
_APPLICATIONS = range(0xE0, 0xF0)
_PLAIN_BYTES = {_JFIF: 18, _ADOBE: 16}  # with marker and length; JFIF has no picture


def without_notes(jpeg: bytes) -> bytes | None:
    """The JPEG without comments and application data, but for JFIF and Adobe.

    Those two say how colours are stored. Tables without a scan end at their end marker.
    Returns None if the segments cannot be told.

    References
    ----------
    ITU-T T.81, annex B: marker segments.
    """
    kept, place = [jpeg[:2]], 2
    while True:
        head = jpeg[place : place + 4]
        if len(head) < 2 or head[0] != 0xFF or head[1] in (0x00, 0xFF):
            return None
        kind = head[1]
        if kind in (_SCAN, _END):
            break
        size = 2 + int.from_bytes(head[2:4])
        is_note = kind == _COMMENT or (
            kind in _APPLICATIONS and size != _PLAIN_BYTES.get(kind)
        )
        if not is_note:
            kept.append(jpeg[place : place + size])
        place += size
    return b"".join([*kept, jpeg[place:]])
