"""Finds out which truth belongs to which prediction, of one slide or of many."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.annotations import ending_of
from wsi_pipeline.errors import ConfigError, PyramidError
from wsi_pipeline.evaluation.opening import is_pyramid, is_slide_folder
from wsi_pipeline.pyramid import Multiscale


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth.

    Parameters
    ----------
    name : str
        Of the slide.
    predicted, truth : Path
        See `open_prediction` and `open_truth`.
    patient : str
        Who the slide is of; the slide's own name where nobody says.
    """

    name: str
    predicted: Path
    truth: Path
    patient: str


@dataclass(frozen=True)
class LeftOut:
    """A slide that is not compared, and why."""

    name: str
    reason: str


def find_pairs(predicted: Path, truth: Path) -> tuple[list[Pair], list[LeftOut]]:
    """Pair predictions with truths.

    Parameters
    ----------
    predicted : Path
        Folder of one slide's results, or of many; a label; a file of annotations, or a
        folder of such files and labels.
    truth : Path
        A label or a file of annotations; a folder of them, named as the slides or as
        their results; or a table with the columns ``sample``, ``truth`` (or ``label``)
        and optionally ``patient``.

    Returns
    -------
    pairs : list of Pair
        In the order of their names.
    left_out : list of LeftOut
        Truths without a prediction. Predictions without a truth are none.

    Raises
    ------
    ConfigError
        If a file is missing, a table has other columns, or one truth is given for
        several predictions.
    """
    found = dict(_list(predicted))
    if not found:
        raise ConfigError(
            f"{predicted}: no results of slides, labels or annotations there"
        )
    if truth.suffix.lower() == ".csv":
        rows = list(_read_sheet(truth))
    elif truth.is_dir() and not is_pyramid(truth):
        rows = [(name, path, "") for name, path in _list(truth)]
    elif not truth.exists():
        raise ConfigError(f"{truth}: no such file or folder")
    elif len(found) > 1:
        raise ConfigError(
            f"{predicted}: {len(found)} slides, and one truth for them: {truth}; give "
            "a folder of annotations, or a table with the columns sample,truth"
        )
    else:
        rows = [(name, truth, "") for name in found]
    if not rows:
        raise ConfigError(f"{truth}: no annotations or labels there")
    pairs, left_out = [], []
    for name, path, patient in rows:
        matching = _match(name, found)
        if len(matching) == 1:
            (key,) = matching
            pairs.append(Pair(key, found[key], path, patient or key))
        else:
            several = f"several slides of that name: {', '.join(matching)}"
            left_out.append(LeftOut(name, several if matching else "no prediction"))
    _check_twice(pairs)
    return sorted(pairs, key=lambda pair: pair.name), left_out


def _list(path: Path) -> Iterator[tuple[str, Path]]:
    """Masks in a folder by the names of their slides, or the one that a path is."""
    if path.is_dir() and not (is_pyramid(path) or is_slide_folder(path)):
        there = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
        # beside results lie files of JSON that are no annotations
        results = [one for one in there if is_slide_folder(one)]
        masks = [one for one in there if is_pyramid(one) or ending_of(one.name)]
        yield from ((_stem(one), one) for one in results or masks)
    elif path.exists():
        yield _stem(path.resolve()), path


def _stem(path: Path) -> str:
    """A name without what says of which kind the file is."""
    if is_pyramid(path):
        stem = path.name.removesuffix(".zarr").removesuffix(".ome")
    else:
        ending = None if path.is_dir() else ending_of(path.name)
        stem = path.name[: -len(ending)] if ending else path.name
    return stem.removesuffix(".truth")  # as `wsi synth` names it


def _match(name: str, found: dict[str, Path]) -> list[str]:
    """Keys of the predictions that a truth's name is of."""
    if name in found:
        return [name]
    return [key for key, path in found.items() if _slide_name(path) == name]


def _slide_name(path: Path) -> str | None:
    """Stem of the slide's file, where results or a label state it."""
    folder = path / "slide.ome.zarr" if is_slide_folder(path) else path
    if not folder.is_dir():
        return None
    try:
        return Path(Multiscale(folder).source.name).stem
    except PyramidError:
        return None


def _read_sheet(path: Path) -> Iterator[tuple[str, Path, str]]:
    """Sample, truth and patient of each row that has a truth."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            columns = set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error
    of = next((name for name in ("truth", "label") if name in columns), None)
    if of is None or "sample" not in columns:
        raise ConfigError(
            f"{path}: columns are {sorted(columns)}, expected sample and truth (or "
            "label), and optionally patient"
        )
    for line, row in enumerate(rows, 2):
        sample, file = ((row[name] or "").strip() for name in ("sample", of))
        if not file:
            continue
        truth = path.parent / file
        if not truth.exists():
            raise ConfigError(f"{path}, line {line}: no such truth: {truth}")
        yield sample, truth, (row.get("patient") or "").strip()


def _check_twice(pairs: list[Pair]) -> None:
    seen: dict[str, Path] = {}
    for pair in pairs:
        if pair.name in seen:
            raise ConfigError(
                f"slide {pair.name!r} has two truths: {seen[pair.name]}, {pair.truth}"
            )
        seen[pair.name] = pair.truth
