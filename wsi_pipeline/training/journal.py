"""Writes how a training goes into a CSV file that can be read while it grows."""

import csv
import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import ConfigError, ExportError
from wsi_pipeline.publishing import make_folder, publish_bytes

_STEP = "step"


class Journal:
    """A CSV file with one row per so many steps; the first row names the columns.

    Parameters
    ----------
    path : Path
        The file. It is opened for each row, so no handle is held.
    every : int
        Steps per row, for who writes it.
    tensorboard : Path, optional
        Folder that gets the same numbers for TensorBoard.

    Raises
    ------
    ConfigError
        If `every` is below 1, or TensorBoard is asked for and not installed.
    """

    def __init__(
        self, path: Path, *, every: int = 1, tensorboard: Path | None = None
    ) -> None:
        if every < 1:
            raise ConfigError(f"{path}: a row per {every} steps; expected 1 or more")
        self.path = path
        self.every = every
        self._columns: list[str] | None = None
        self._last: int | None = None  # None: the file was not looked at yet
        self._folder = tensorboard
        self._make_writer = None if tensorboard is None else _tensorboard()
        self._writer: Any = None  # tensorboard ships no types

    def rewind(self, step: int) -> None:
        """Cut the rows behind a step; 0 cuts all, whatever their columns.

        Raises
        ------
        ConfigError
            If the file is something else than a journal: it is left alone.
        ExportError
            If it cannot be written.
        """
        self.close()
        self._columns, rows, whole = self._read()
        kept = [row for row in rows if int(row[0]) <= step]
        self._last = int(kept[-1][0]) if kept else 0
        if not kept:
            self._columns = None
            if self.path.exists():
                self.path.unlink()
        elif not whole or len(kept) < len(rows):
            lines = [self._columns or [], *kept]
            publish_bytes(self.path, "".join(map(_line, lines)).encode())

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row.

        Parameters
        ----------
        step : int
            Steps taken, 1 or more. Rows from this step on are cut first: they are of
            a run that was interrupted later than its checkpoint.
        values : mapping of str to float
            By column, the same in every row.

        Raises
        ------
        ConfigError
            If the columns are not those of the file.
        ExportError
            If it cannot be written.
        """
        if self._last is None or step <= self._last:
            self.rewind(step - 1)
        columns = [_STEP, *values]
        known = self._columns is not None
        if known and columns != self._columns:
            raise ConfigError(
                f"{self.path}: columns are {', '.join(self._columns or [])}; got "
                f"{', '.join(columns)}; give the journal another name"
            )
        # without a file there is no header: nothing was written, or it was removed
        header = _line(columns) if not known or not self.path.exists() else ""
        self._append(header + _line([step, *values.values()]))
        self._columns, self._last = columns, step
        self._show(step, values)

    def close(self) -> None:
        """Finish what was sent to TensorBoard; the next row opens it again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(self, text: str) -> None:
        make_folder(self.path.parent)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(text)
        except OSError as error:
            raise ExportError(
                f"{self.path}: cannot write ({error.strerror})"
            ) from error

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        if self._make_writer is None:
            return
        if self._writer is None:
            self._writer = self._make_writer(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _read(self) -> tuple[list[str] | None, list[list[str]], bool]:
        """Columns, whole rows, and whether there is nothing else in the file."""
        try:
            text = self.path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None, [], True
        except (OSError, UnicodeDecodeError) as error:
            raise self._foreign() from error
        lines = text.splitlines(keepends=True)
        # a crash may leave a row without its end
        whole = [line for line in lines if line.endswith("\n")]
        found = list(csv.reader(whole))
        start = f"{_STEP},"
        torn = bool(lines) and not whole and start.startswith(text[: len(start)])
        if lines and not torn and not text.startswith(start):
            raise self._foreign()
        rows = [
            row for row in found[1:] if len(row) == len(found[0]) and row[0].isdecimal()
        ]
        clean = len(rows) + 1 == len(lines)
        return (found[0], rows, clean) if found else (None, [], not torn)

    def _foreign(self) -> ConfigError:
        return ConfigError(
            f"{self.path}: no journal of a training; give the journal another name"
        )


def _line(values: list[Any]) -> str:  # Any: numbers and words alike
    """One row; floats in the fewest digits that give them back exactly."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _tensorboard() -> Any:  # its writer has no types
    """Class of TensorBoard's writer, imported only where it is asked for."""
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is asked for and not installed: pip install tensorboard, or "
            "leave it out; the CSV journal holds the same numbers"
        ) from error
