"""Opens the slides of a table of labels, or the pictures of a folder, as bags.

::

    sheet.csv           sample,slide,<labels>: slides in results folders of `wsi tissue`
    sheet.csv           sample,features,<labels>: files of features, relative to it
    folder/labels.csv   name,<labels>: pictures folder/images/<name>.*
    folder/mpp.txt      um/px of the pictures (or the option mpp)
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.errors import ConfigError, WsiError
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.training.bag_training import PatchBag
from wsi_pipeline.training.datasets.files import find_pictures
from wsi_pipeline.training.datasets.folder import read_mpp
from wsi_pipeline.training.datasets.record import DatasetOptions
from wsi_pipeline.training.label_options import BagOptions
from wsi_pipeline.training.label_table import (
    LabelRow,
    LabelTable,
    deal_rows,
    read_labels,
)
from wsi_pipeline.training.stored_bags import FeatureBag, PictureBag, TiledBag

_SHEET = "slide", "mpp", "tissue", "features"
_PATCH_PX = 128

Patches = tuple[int, float]
"""Side of a patch in pixels, and um/px of these."""


@dataclass(frozen=True)
class BagData:
    """Labelled slides or pictures to learn from, and to measure on.

    Parameters
    ----------
    name : str
        The table's or the folder's.
    tasks : tuple of str
        One label each.
    train, validation : tuple of PatchBag
    patch_px, mpp : int and float
        Of the patches.
    inputs : int
        Length F of features; 0 where patches are pixels.
    note : str
        How they were dealt, a sentence.
    digest : str
        Of names, labels and sizes: the same for the same data.
    """

    name: str
    tasks: tuple[str, ...]
    train: tuple[PatchBag, ...]
    validation: tuple[PatchBag, ...]
    patch_px: int
    mpp: float
    inputs: int
    note: str
    digest: str


def is_labelled(source: str) -> bool:
    """Whether a name is that of a table or a folder, not of a data set."""
    return source.lower().endswith(".csv") or Path(source).is_dir()


def open_bags(source: Path, options: BagOptions) -> BagData:
    """Open a samplesheet or a folder; reads no patch.

    Parameters
    ----------
    source : Path
        See the module's text.
    options : BagOptions
        What is not in there.

    Raises
    ------
    ConfigError
        If something is missing or does not fit; names the file, the line and what
        helps.
    """
    if source.is_dir():
        table = read_labels(source / "labels.csv", "name", (), options.tasks)
        return _open_pictures(source, table, options)
    table = read_labels(source, "sample", _SHEET, options.tasks)
    if any(row.cells.get("features") for row in table.rows):
        return _open_features(table, options)
    return _open_slides(table, options)


def _open_slides(table: LabelTable, options: BagOptions) -> BagData:
    results = options.results
    if options.patch_px or options.mpp:
        raise ConfigError(
            f"{table.path}: patches of tiled slides are those that `wsi tissue` laid; "
            "leave --patch-px and --mpp out"
        )
    if results is None:
        raise ConfigError(
            f"{table.path}: no column features, so slides are read from their results; "
            "--results names the folder with one folder per sample (`wsi tile`, "
            "`wsi tissue`)"
        )
    bags = _each(
        table, lambda row: TiledBag.open(SlideFolder(results / row.name), row.labels)
    )
    kinds = [(bag.grid.patch_px, bag.grid.mpp) for bag in bags]
    return _deal(table, bags, _same(table, kinds), 0, options.seed)


def _open_pictures(folder: Path, table: LabelTable, options: BagOptions) -> BagData:
    mpp = read_mpp(folder, DatasetOptions(mpp=options.mpp))
    side = options.patch_px or _PATCH_PX
    pictures = {path.stem: path for path in find_pictures(folder / "images")}

    def open_one(row: LabelRow) -> PictureBag:
        if row.name not in pictures:
            raise ConfigError(f"{folder / 'images' / row.name}.*: no such picture")
        return PictureBag.open(pictures[row.name], side, mpp, row.labels)

    return _deal(table, _each(table, open_one), (side, mpp), 0, options.seed)


def _open_features(table: LabelTable, options: BagOptions) -> BagData:
    def open_one(row: LabelRow) -> FeatureBag:
        cell = row.cells["features"]
        if not cell:
            raise ConfigError("no features, other rows have some; leave the row out")
        bag = FeatureBag.open(table.path.parent / cell, row.labels)
        for stated, given in (
            (bag.file.patch_px, options.patch_px),
            (bag.file.mpp, options.mpp),
        ):
            if stated and given and stated != given:
                raise ConfigError(
                    f"{bag.file.path}: states {stated:g}, the options say {given:g}; "
                    "leave --patch-px and --mpp out"
                )
        return bag

    bags = _each(table, open_one)
    kinds = [
        (b.file.patch_px or options.patch_px or 0, b.file.mpp or options.mpp or 0.0)
        for b in bags
    ]
    patches = _same(table, kinds)
    if not all(patches):
        raise ConfigError(
            f"{bags[0].file.path}: does not state the patches' side and um/px; give "
            "--patch-px and --mpp"
        )
    width = bags[0].file.width
    for bag in bags:
        if bag.file.width != width:
            raise ConfigError(
                f"{bag.file.path}: features of length {bag.file.width}, those of "
                f"{bags[0].file.path} have {width}; extract all with one model"
            )
    return _deal(table, bags, patches, width, options.seed)


def _each[Kind: PatchBag](
    table: LabelTable, open_one: Callable[[LabelRow], Kind]
) -> list[Kind]:
    """A bag per row; what goes wrong names the row."""
    bags = []
    for row in table.rows:
        with _naming(row):
            bags.append(open_one(row))
    return bags


@contextmanager
def _naming(row: LabelRow) -> Iterator[None]:
    try:
        yield
    except WsiError as error:
        raise ConfigError(f"{row.where}: {error}") from error


def _same(table: LabelTable, kinds: Sequence[Patches]) -> Patches:
    """The one kind of patches that all slides have."""
    side, mpp = kinds[0]
    for row, (other_side, other_mpp) in zip(table.rows, kinds, strict=True):
        if other_side != side or abs(other_mpp - mpp) > 0.01 * mpp:
            raise ConfigError(
                f"{row.where}: patches of {other_side} px at {other_mpp:g} um/px, "
                f"those of {table.rows[0].name} are {side} px at {mpp:g}; make all "
                "with one model"
            )
    return side, mpp


def _deal(
    table: LabelTable,
    bags: Sequence[PatchBag],
    patches: Patches,
    inputs: int,
    seed: int,
) -> BagData:
    train, validation, note = deal_rows(table, seed)
    facts = [
        (row.name, row.labels.tolist(), len(bag), n in train)
        for n, (row, bag) in enumerate(zip(table.rows, bags, strict=True))
    ]
    path = table.path
    return BagData(
        path.parent.name if path.name == "labels.csv" else path.stem,
        table.tasks,
        tuple(bags[n] for n in train),
        tuple(bags[n] for n in validation),
        *patches,
        inputs,
        note,
        hashlib.sha256(repr(facts).encode()).hexdigest()[:16],
    )
