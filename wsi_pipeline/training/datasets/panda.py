"""PANDA: prostate biopsies of two centres with label masks.

::

    train.csv                                image_id, data_provider, isup_grade, ...
    train_images/<image_id>.tiff             levels of 1, 4 and 16
    train_label_masks/<image_id>_mask.tiff   the same sizes; labels in the red channel

Checked against the challenge's page and several public readers: names, columns, the
red channel, the values: Radboud 0 background or unknown, 1 stroma, 2 healthy
epithelium, 3 to 5 Gleason 3 to 5; Karolinska 0 background or unknown, 1 benign, 2
cancerous tissue; some hundred images have no mask. Patients are not published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import IndexCodes, Stored
from wsi_pipeline.training.datasets.files import dataset_folder
from wsi_pipeline.training.datasets.ondemand import OnDemand
from wsi_pipeline.training.datasets.record import DatasetOptions, SegmentData
from wsi_pipeline.training.datasets.splits import split_groups
from wsi_pipeline.training.datasets.tables import read_table
from wsi_pipeline.training.datasets.tiff_levels import describe_level, read_level

PANDA_CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Benign tissue", (0, 158, 115)),
    MaskClass(2, "Cancer", (213, 94, 0)),
)
"""What both centres can say."""
RADBOUD_CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Stroma", (204, 121, 167)),
    MaskClass(2, "Healthy epithelium", (0, 158, 115)),
    MaskClass(3, "Gleason 3", (240, 228, 66)),
    MaskClass(4, "Gleason 4", (230, 159, 0)),
    MaskClass(5, "Gleason 5", (0, 114, 178)),
)
_SAME_6 = IndexCodes(tuple((n, n) for n in range(6)))
_SAME_3 = IndexCodes(tuple((n, n) for n in range(3)))
_RADBOUD_AS_3 = IndexCodes(((0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)))
_SPREAD = 0.15
"""Scales of one set may differ this much from their median."""


@dataclass(frozen=True)
class PandaImage:
    """A row of train.csv with its files.

    Parameters
    ----------
    name : str
        image_id.
    provider : str
        "radboud" or "karolinska".
    isup : int
        ISUP grade group, 0 to 5.
    image, mask : Path
    """

    name: str
    provider: str
    isup: int
    image: Path
    mask: Path


@dataclass(frozen=True)
class _Images:
    rows: tuple[PandaImage, ...]
    level: int

    def __call__(self, row: int) -> NDArray[np.uint8]:
        path = self.rows[row].image
        pixels = read_level(path, self.level)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ConfigError(
                f"{path}: expected RGB of 8 bits, got {pixels.dtype} {pixels.shape}"
            )
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True)
class _Masks:
    rows: tuple[PandaImage, ...]
    level: int
    merged: bool

    def __call__(self, row: int) -> NDArray[np.uint8]:
        one = self.rows[row]
        stored = _red(read_level(one.mask, self.level), one.mask)
        wanted = describe_level(one.image, self.level).size_px
        if stored.shape != wanted:
            raise ConfigError(
                f"{one.mask}: level {self.level} is {stored.shape[1]} x "
                f"{stored.shape[0]} px, expected the {wanted[1]} x {wanted[0]} px of "
                f"{one.image}"
            )
        if one.provider == "karolinska":
            return _SAME_3.decode(stored, one.mask)
        return (_RADBOUD_AS_3 if self.merged else _SAME_6).decode(stored, one.mask)


def _red(stored: Stored, path: Path) -> Stored:
    """The labels: one channel, or the first of three whose others are empty."""
    if stored.ndim == 2:
        return stored
    if stored.shape[2] != 3 or stored[..., 1:].any():
        raise ConfigError(
            f"{path}: expected labels in the red channel and nothing in the others, "
            f"got {stored.shape[2]} channels"
        )
    return stored[..., 0]


def list_images(folder: Path, provider: str | None) -> tuple[list[PandaImage], int]:
    """Rows of ``train.csv`` that have a mask, and the number of those that have none.

    Parameters
    ----------
    folder : Path
        The set's folder.
    provider : str, optional
        "radboud" or "karolinska"; left out, both.

    Raises
    ------
    ConfigError
        If the table does not fit, an image is missing, or no image has a mask.
    """
    table = folder / "train.csv"
    found, without = [], 0
    columns = ("image_id", "data_provider", "isup_grade")
    for name, centre, grade in read_table(table, columns):
        if centre not in ("radboud", "karolinska") or grade not in "012345":
            raise ConfigError(
                f"{table}: image {name!r}: expected radboud or karolinska and a grade "
                f"of 0 to 5, got {centre!r} and {grade!r}"
            )
        if provider not in (None, centre):
            continue
        image = folder / "train_images" / f"{name}.tiff"
        mask = folder / "train_label_masks" / f"{name}_mask.tiff"
        if not image.is_file():
            raise ConfigError(f"{image}: no such file, but {table.name} lists it")
        if mask.is_file():
            found.append(PandaImage(name, centre, int(grade), image, mask))
        else:
            without += 1
    if not found:
        raise ConfigError(
            f"{folder / 'train_label_masks'}: no mask of any listed image"
        )
    return found, without


def panda(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """PANDA as a dataset; the module's text shows the files.

    Parameters
    ----------
    data_dir : Path
        Folder of train.csv, or a data folder with ``labelled/panda``.
    options : DatasetOptions
        `classes` is left out (both centres: background, benign, cancer), "radboud"
        (its images, six classes) or "karolinska" (its images, three classes). `level`,
        1 by default. `seed` of the split, which is by image. `mpp` of the level where
        the tags do not state it.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit, or scales differ by more than 15 %.

    Notes
    -----
    Memory: two images and two masks of the level. Opens every image's tags once.
    """
    folder = dataset_folder(data_dir, "panda")
    if options.classes not in (None, "radboud", "karolinska") or options.split:
        raise ConfigError(
            f"dataset 'panda': classes must be radboud, karolinska or left out, got "
            f"{options.classes!r}; split is not used, got {options.split!r}"
        )
    rows, without = list_images(folder, options.classes)
    mpp = _common_mpp(rows, options)
    dealt = split_groups(
        [one.name for one in rows], seed=options.seed, what=str(folder)
    )
    merged = options.classes is None

    def part(which: Sequence[int]) -> LabelledImages:
        chosen = tuple(rows[n] for n in which)
        names = tuple(one.name for one in chosen)
        return LabelledImages(
            OnDemand(len(chosen), _Images(chosen, options.level)),
            OnDemand(len(chosen), _Masks(chosen, options.level, merged)),
            names,
            names,
            mpp,
        )

    return SegmentData(
        name="panda",
        classes=RADBOUD_CLASSES if options.classes == "radboud" else PANDA_CLASSES,
        train=part(dealt[0]),
        validation=part(dealt[1]),
        test=part(dealt[2]),
        frame_px=None,
        budgets=(),
        cases_disjoint=False,
        licence="PANDA challenge (Kaggle): as its page states",
        note=f"Level {options.level}. {without} listed images have no mask and are "
        "left out. Patients are not published: they may be in two splits.",
    )


def _common_mpp(rows: Sequence[PandaImage], options: DatasetOptions) -> float:
    """Median um/px of the level; scales that differ much are refused."""
    found = []
    for one in rows:
        mpp = describe_level(one.image, options.level).mpp
        mpp = options.mpp if mpp is None else mpp
        if mpp is None:
            raise ConfigError(f"{one.image}: states no um/px; the option mpp gives it")
        found.append(mpp)
    middle = float(np.median(found))
    for one, mpp in zip(rows, found, strict=True):
        if abs(mpp / middle - 1) > _SPREAD:
            raise ConfigError(
                f"{one.image}: level {options.level} has {mpp:.4g} um/px, the others "
                f"{middle:.4g}"
            )
    return middle
