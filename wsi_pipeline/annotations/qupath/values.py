"""Numbers among JSON values."""

from typing import Any


def is_number(value: Any) -> bool:  # Any: a JSON value
    """Whether a value is a number as JSON means it: true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_of(text: Any) -> int | float | None:  # Any: a JSON value
    """The number that a text spells, as whole as it is; None where it spells none."""
    if not isinstance(text, str):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
