"""Reads amounts as people state them: memory, and the recall of a screen."""

from typing import Annotated, Literal

from pydantic import ByteSize, PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError

_LEAST_MEMORY = 1 << 20
_SIZE = TypeAdapter(ByteSize)


def _parse_memory(value: object) -> int | float:
    """Bytes as an int, a share of the device's memory as a float."""
    text = str(value).strip()
    try:
        if text.isdecimal() or text[-1:].isalpha():  # "2147483648" or "2GiB"
            size = int(text) if text.isdecimal() else int(_SIZE.validate_python(text))
            if size >= _LEAST_MEMORY:
                return size
        elif 0 < (share := _share(text)) <= 1:
            return share
    except ValueError:  # pydantic's ValidationError is one
        pass
    raise PydanticCustomError(
        "memory",
        "expected 1 MiB or more, in bytes or with a unit (5GiB), or a share of the "
        "device's memory (0.5 or 50%; all of it is 100%, as 1 could be a byte)",
    )


def _parse_recall(value: object) -> float | str:
    """A share as a float, or "off"."""
    text = str(value).strip()
    try:
        if 0 < (recall := _share(text)) < 1:
            return recall
    except ValueError:
        if text == "off":
            return text
    raise PydanticCustomError(
        "recall",
        "expected 'off', which looks at all patches in full, or the recall of the top "
        "M that a screen is to hold, above 0 and below 1 (0.95 or 95%)",
    )


def _share(text: str) -> float:
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


MemoryAmount = Annotated[int | float, PlainValidator(_parse_memory)]
"""Memory of a device: an int is bytes, a float in (0, 1] a share of all there is.

Text in all three forms is read; what it becomes is what JSON holds and gives back.
"""

Recall = Annotated[float | Literal["off"], PlainValidator(_parse_recall)]
"""Share of the top M that a screen is to keep, in (0, 1); or "off", no screen."""
