"""A user's own folder: ``images/`` and ``masks/`` of the same stems, and small tables.

::

    images/a.png        RGB, any usual picture
    masks/a.png         one value per pixel; 255 = no label
    classes.csv         value,name,r,g,b: every value that masks may hold, but 255
    mpp.txt             um/px of the images, one number (or the option mpp)
    split.csv           optional: name,group and, optional, split (train, val, test)
"""

from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import IndexCodes
from wsi_pipeline.training.datasets.files import (
    LabelledFile,
    find_pictures,
    label_files,
)
from wsi_pipeline.training.datasets.record import (
    UNLABELLED,
    DatasetOptions,
    SegmentData,
)
from wsi_pipeline.training.datasets.splits import split_groups
from wsi_pipeline.training.datasets.tables import read_table

SPLIT_NAMES = {"train": 0, "val": 1, "validation": 1, "test": 2}


def read_classes(path: Path) -> tuple[tuple[MaskClass, ...], IndexCodes]:
    """Read ``classes.csv``.

    Returns
    -------
    classes : tuple of MaskClass
        Values 0, 1, ... in the order of the stored values.
    codes : IndexCodes
        Stored value to class; 255 stays 255.

    Raises
    ------
    ConfigError
        If a cell is no whole number in range, or a value or name is there twice.
    """
    found: dict[int, tuple[str, tuple[int, int, int]]] = {}
    for value, name, *parts in read_table(path, ("value", "name", "r", "g", "b")):
        try:
            stored = int(value)
            r, g, b = (int(part) for part in parts)
            MaskClass(stored, name, (r, g, b))
        except ValueError as error:
            raise ConfigError(
                f"{path}: class {name!r} ({value}): expected a value of 0 to 254, a "
                f"name, and r, g, b of 0 to 255 ({error})"
            ) from error
        if stored in found or name in [other for other, _ in found.values()]:
            raise ConfigError(f"{path}: class {name!r} ({value}) is there twice")
        found[stored] = name, (r, g, b)
    order = sorted(found)
    classes = tuple(MaskClass(n, *found[stored]) for n, stored in enumerate(order))
    pairs = [(stored, n) for n, stored in enumerate(order)]
    return classes, IndexCodes((*pairs, (UNLABELLED, UNLABELLED)))


def read_mpp(folder: Path, options: DatasetOptions) -> float:
    """um/px: the option, else the number in ``mpp.txt``.

    Raises
    ------
    ConfigError
        If neither is there, or the file holds no number above 0.
    """
    if options.mpp is not None:
        return options.mpp
    path = folder / "mpp.txt"
    try:
        mpp = float(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{folder}: um/px are not known; write the number into mpp.txt there, or "
            "give the option mpp"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected one number, um/px ({error})") from error
    if not 0 < mpp < float("inf"):
        raise ConfigError(f"{path}: um/px must be above 0, got {mpp}")
    return mpp


def pair_pictures(images: Path, masks: Path) -> list[tuple[str, Path, Path]]:
    """Pictures of two folders that share their stems: (stem, image, mask), sorted.

    Raises
    ------
    ConfigError
        If a folder is missing or empty, a stem is there twice, or has no mask.
    """
    by_stem = _by_stem(masks)
    found = []
    for stem, image in _by_stem(images).items():
        if stem not in by_stem:
            raise ConfigError(f"{masks / stem}.*: no such mask, for image {image}")
        found.append((stem, image, by_stem[stem]))
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in find_pictures(folder):
        if path.stem in found:
            raise ConfigError(f"{path}: the name {path.stem!r} is there twice")
        found[path.stem] = path
    return found


def deal_rows(
    folder: Path, names: Sequence[str], seed: int
) -> tuple[list[str], tuple[tuple[int, ...], ...], str]:
    """Groups and splits of named images, from ``split.csv`` or by hash.

    Returns
    -------
    groups : list of str
        One per name.
    rows : tuple of tuple of int
        Rows in training, validation and test; test may be empty.
    note : str
        Whose split it is; empty where no group can be in two of them.

    Raises
    ------
    ConfigError
        If the table does not fit the names, or a split is empty.
    """
    path = folder / "split.csv"
    if not path.exists():
        note = "Split by hash; patients are not known and may be in two splits. "
        return list(names), split_groups(names, seed=seed, what=str(folder)), note
    cells: dict[str, tuple[str, str]] = {}
    for name, group, split in read_table(path, ("name", "group"), ("split",)):
        if name in cells:
            raise ConfigError(f"{path}: the name {name!r} is there twice")
        cells[name] = group or name, split
    for name in names:
        if name not in cells:
            raise ConfigError(f"{path}: no row for image {name!r}")
    strange = sorted(set(cells) - set(names))
    if strange:
        raise ConfigError(f"{path}: no image for row {strange[0]!r}")
    groups = [cells[name][0] for name in names]
    wanted = [cells[name][1] for name in names]
    if not any(wanted):
        return groups, split_groups(groups, seed=seed, what=str(path)), ""
    for name, split in zip(names, wanted, strict=True):
        if split not in SPLIT_NAMES:
            raise ConfigError(
                f"{path}: image {name!r}: split must be one of "
                f"{', '.join(SPLIT_NAMES)}, got {split!r}"
            )
    rows = tuple(
        tuple(n for n, split in enumerate(wanted) if SPLIT_NAMES[split] == part)
        for part in range(3)
    )
    for part, title in enumerate(("train", "val")):
        if not rows[part]:
            raise ConfigError(f"{path}: no image in split {title!r}")
    parts = [{groups[n] for n in part} for part in rows]
    torn = (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
    note = f"{len(torn)} groups are in two splits of split.csv. " if torn else ""
    return groups, rows, note


def own_folder(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """A user's own folder as a dataset; the module's text shows the files.

    Parameters
    ----------
    data_dir : Path
        The folder.
    options : DatasetOptions
        `mpp` if there is no mpp.txt; `seed` of the split if there is none.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit; it is named.
    """
    if data_dir is None:
        raise ConfigError("dataset 'folder' needs a folder; --data gives it")
    if options.classes is not None:
        raise ConfigError("dataset 'folder' takes its classes from classes.csv")
    classes, codes = read_classes(data_dir / "classes.csv")
    mpp = read_mpp(data_dir, options)
    pairs = pair_pictures(data_dir / "images", data_dir / "masks")
    groups, rows, note = deal_rows(data_dir, [stem for stem, *_ in pairs], options.seed)
    files = [
        LabelledFile(image, mask, stem, group)
        for (stem, image, mask), group in zip(pairs, groups, strict=True)
    ]

    def part(which: Sequence[int]) -> LabelledImages:
        return label_files([files[n] for n in which], codes, mpp)

    return SegmentData(
        name="folder",
        classes=classes,
        train=part(rows[0]),
        validation=part(rows[1]),
        test=part(rows[2]) if rows[2] else None,
        frame_px=None,
        budgets=(),
        cases_disjoint=not note,
        licence="as the folder's owner states",
        note=f"{note}Folder {data_dir.name}.",
    )
