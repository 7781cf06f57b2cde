"""Turns a short name into the object behind it, importing its module on demand."""

from importlib import import_module
from typing import Any

from wsi_pipeline.errors import UnknownNameError


class Registry:
    """A table of names, each pointing at ``"module:attribute"``.

    Parameters
    ----------
    kind : str
        What the names stand for, in the singular ("reader", "exporter").
    rows : dict of str to str
        Name to ``"package.module:attribute"``.
    """

    def __init__(self, kind: str, rows: dict[str, str]) -> None:
        self.kind = kind
        self._rows = dict(rows)

    def names(self) -> tuple[str, ...]:
        """Names in the order of the table."""
        return tuple(self._rows)

    def load(self, name: str) -> Any:  # Any: the table cannot know its rows' types
        """Import and return the object behind a name.

        Raises
        ------
        UnknownNameError
            If the table has no such name; the message lists those it has.
        """
        if name not in self._rows:
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}; there are: {', '.join(self._rows)}"
            )
        module, _, attribute = self._rows[name].partition(":")
        return getattr(import_module(module), attribute)
