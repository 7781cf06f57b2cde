"""Standard output for results, standard error for progress; loads nothing heavy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from wsi_pipeline.terminal import Terminal


@contextmanager
def terminal_of(quiet: bool = False) -> Iterator["Terminal"]:
    """Progress on standard error while the block runs."""
    from wsi_pipeline.terminal import Terminal

    with Terminal(quiet=quiet) as terminal:
        yield terminal


def print_json(value: Any) -> None:  # Any: whatever orjson can write
    """Write indented JSON to standard output."""
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode())
