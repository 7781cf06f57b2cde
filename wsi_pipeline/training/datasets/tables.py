"""Reads the small tables beside images: rows of a CSV (or Excel) file with columns."""

import csv
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.registry import Registry

# openpyxl is no dependency: imported only where an Excel file is met
_EXCEL = Registry("reader of Excel files", {".xlsx": "openpyxl:load_workbook"})


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> list[tuple[str, ...]]:
    """Read columns of a table by their names.

    Parameters
    ----------
    path : Path
        ``.csv`` (UTF-8), or ``.xlsx`` where openpyxl is installed (its first sheet).
    columns : sequence of str
        Wanted columns.
    optional : sequence of str
        Columns that may be missing; their cells are then empty.

    Returns
    -------
    list of tuple of str
        One per row, cells of `columns` and then of `optional`, stripped.

    Raises
    ------
    ConfigError
        If the file is missing, unreadable or empty, or has no such column.
    """
    rows = _excel_rows(path) if path.suffix.lower() == ".xlsx" else _csv_rows(path)
    if not rows:
        raise ConfigError(f"{path}: is empty; expected columns {', '.join(columns)}")
    header = [cell.strip() for cell in rows[0]]
    missing = [name for name in columns if name not in header]
    if missing:
        raise ConfigError(
            f"{path}: no column {', '.join(missing)}; there are {', '.join(header)}"
        )
    places = [header.index(name) for name in columns]
    places += [header.index(name) if name in header else -1 for name in optional]
    found = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(places):
            raise ConfigError(f"{path}: row {number} has only {len(row)} cells")
        cells = ("" if place < 0 else row[place].strip() for place in places)
        found.append(tuple(cells))
    if not found:
        raise ConfigError(f"{path}: has a header and no rows")
    return found


def _csv_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.reader(stream))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error


def _excel_rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        load = _EXCEL.load(".xlsx")
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading Excel needs openpyxl, which is not installed; install "
            f"it, or save the sheet as {path.with_suffix('.csv').name}"
        ) from error
    try:
        book = load(path, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        found = [["" if cell is None else str(cell) for cell in row] for row in rows]
        book.close()
    except Exception as error:  # openpyxl raises whatever its XML parser does
        raise ConfigError(f"{path}: cannot be read as Excel ({error})") from error
    return found
