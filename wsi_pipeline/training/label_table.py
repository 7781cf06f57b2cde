"""Tables of slide-level labels: a row per slide, a column per task, and who is where.

::

    sample,slide,cancer,gland,group,split
    a,a.svs,1,,patient 1,train
    b,b.svs,0,1,patient 2,val

Labels are 1, 0, or empty for unknown. `group` (patients) and `split` are optional.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.bags import UNKNOWN
from wsi_pipeline.training.datasets.folder import SPLIT_NAMES
from wsi_pipeline.training.datasets.splits import split_groups

_VALUES = {"": UNKNOWN, "0": 0.0, "1": 1.0}
_SHARES = 0.8, 0.2


@dataclass(frozen=True)
class LabelRow:
    """One row.

    Parameters
    ----------
    where : str
        Table and line, for messages.
    name : str
        Unique in the table.
    cells : mapping of str to str
        Its other columns that are no labels, by name.
    labels : (T,) float32 array
        1, 0 or UNKNOWN per task; one at least is known.
    """

    where: str
    name: str
    cells: Mapping[str, str]
    labels: NDArray[np.float32]


@dataclass(frozen=True)
class LabelTable:
    """A table of labels.

    Parameters
    ----------
    path : Path
        The CSV file.
    tasks : tuple of str
        Names of the label columns.
    rows : tuple of LabelRow
        Those with a label, one at least.
    """

    path: Path
    tasks: tuple[str, ...]
    rows: tuple[LabelRow, ...]


def read_labels(
    path: Path, name: str, known: Sequence[str], tasks: Sequence[str] = ()
) -> LabelTable:
    """Read a table.

    Parameters
    ----------
    path : Path
        A CSV file, UTF-8.
    name : str
        Column that names the rows.
    known : sequence of str
        Columns that may be there and are no labels; all others are.
    tasks : sequence of str
        The label columns, where not all others are meant.

    Raises
    ------
    ConfigError
        If the file cannot be read, a column is missing, or a cell is wrong; names the
        line.
    """
    header, lines = _read(path)
    known = (name, *known, "group", "split")
    if name not in header:
        raise ConfigError(f"{path}: no column {name!r}; there are {', '.join(header)}")
    wanted = tuple(tasks) or tuple(one for one in header if one not in known)
    missing = [one for one in wanted if one not in header]
    if missing or not wanted:
        raise ConfigError(
            f"{path}: no label column {', '.join(missing) or 'at all'}; there are "
            f"{', '.join(header)}, of which {', '.join(known)} are no labels"
        )
    rows, seen = [], set[str]()
    for where, cells in lines:
        if not cells[name] or cells[name] in seen:
            why = "is there twice" if cells[name] else "is empty"
            raise ConfigError(f"{where}: {name} {cells[name]!r} {why}")
        seen.add(cells[name])
        labels = np.array([_label(where, t, cells[t]) for t in wanted], np.float32)
        if not np.isnan(labels).all():
            rows.append(LabelRow(where, cells[name], cells, labels))
    if not rows:
        raise ConfigError(f"{path}: no row has a label ({', '.join(wanted)})")
    return LabelTable(path, wanted, tuple(rows))


def deal_rows(table: LabelTable, seed: int) -> tuple[list[int], list[int], str]:
    """Deal rows into training and validation, by their split or by the hash of groups.

    Returns
    -------
    train, validation : list of int
        Numbers of rows; those of a split "test" are in neither.
    note : str
        How it was done, a sentence or two.

    Raises
    ------
    ConfigError
        If a split is empty or unknown, or a task has labels of one kind only to learn
        from.
    """
    groups = [row.cells.get("group") or row.name for row in table.rows]
    given = [row.cells.get("split", "") for row in table.rows]
    if any(given):
        parts = [
            _part(row, split) for row, split in zip(table.rows, given, strict=True)
        ]
        train, validation = ([n for n, p in enumerate(parts) if p == k] for k in (0, 1))
        torn = {groups[n] for n in train} & {groups[n] for n in validation}
        note = "Split as the table states."
        if torn:
            note += f" {len(torn)} groups are in training and in validation."
    else:
        dealt = split_groups(groups, _SHARES, seed=seed, what=str(table.path))
        train, validation = map(list, dealt)
        note = f"Split by the hash of the group, seed {seed}."
        if not any(row.cells.get("group") for row in table.rows):
            note += " No groups are stated: slides of one patient may be in both."
    for part, name in ((train, "train"), (validation, "val")):
        if not part:
            raise ConfigError(f"{table.path}: no labelled row in split {name!r}")
    _check_kinds(table, train)
    return train, validation, note


def _check_kinds(table: LabelTable, train: Sequence[int]) -> None:
    """Refuse a task that has nothing to tell apart."""
    labels = np.stack([table.rows[n].labels for n in train])
    for task, column in zip(table.tasks, labels.T, strict=True):
        counts = {value: int((column == value).sum()) for value in (0, 1)}
        if not all(counts.values()):
            raise ConfigError(
                f"{table.path}: {task!r} has {counts[0]} slides of label 0 and "
                f"{counts[1]} of label 1 in training, it takes both; add slides, give "
                "a column split, or deal them by another --seed"
            )


def _part(row: LabelRow, split: str) -> int:
    if split not in SPLIT_NAMES:
        raise ConfigError(
            f"{row.where}: split is {split!r}, expected one of {', '.join(SPLIT_NAMES)}"
        )
    return SPLIT_NAMES[split]


def _label(where: str, task: str, cell: str) -> float:
    if cell not in _VALUES:
        raise ConfigError(
            f"{where}: label {task!r} is {cell!r}, expected 1, 0, or empty for "
            "unknown; if the column is no label, --task names those that are"
        )
    return _VALUES[cell]


def _read(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Header and lines of a CSV file, cells stripped, empty lines left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [cell.strip() for cell in next(reader, [])]
    twice = sorted({one for one in header if header.count(one) > 1})
    if twice:
        raise ConfigError(f"{path}: column {twice[0]!r} is there twice")

    def lines() -> Iterator[tuple[str, dict[str, str]]]:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ConfigError(
                    f"{where}: {len(cells)} cells, the header has {len(header)}"
                )
            yield where, dict(zip(header, map(str.strip, cells), strict=True))

    return header, lines()
