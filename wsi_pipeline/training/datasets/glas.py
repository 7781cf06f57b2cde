"""GlaS: H&E images of colon glands with the grade painted onto each gland."""

from pathlib import Path

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import IndexCodes
from wsi_pipeline.training.datasets.files import (
    LabelledFile,
    dataset_folder,
    label_files,
)
from wsi_pipeline.training.datasets.record import DatasetOptions, SegmentData
from wsi_pipeline.training.datasets.tables import read_table

GLAS_CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Benign gland", (0, 158, 115)),
    MaskClass(2, "Malignant gland", (213, 94, 0)),
)
GLAS_BINARY_CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Gland", (0, 158, 115)),
)
_MPP = 0.62
_CODES = IndexCodes(((0, 0), (1, 1), (2, 2)))
_BINARY = IndexCodes(((0, 0), (1, 1), (2, 1)))


def load_glas(data_dir: Path, split: str, *, binary: bool = False) -> LabelledImages:
    """Colon glands of GlaS, split by patient.

    Parameters
    ----------
    data_dir : Path
        Folder that holds ``labelled/glas``.
    split : str
        "train" or "val".
    binary : bool
        Whether benign and malignant glands are one class.

    Raises
    ------
    ConfigError
        If the folder or the split is not there.
    """
    folder = dataset_folder(data_dir, "glas")
    table = folder / "split.csv"
    if not table.is_file():
        raise ConfigError(f"{folder}: no GlaS data there (no file split.csv)")
    files = [
        LabelledFile(
            folder / "images" / f"{name}.png",
            folder / "masks3" / f"{name}.png",
            name,
            patient,
        )
        for name, patient, part in read_table(table, ("name", "patient_id", "split"))
        if part == split
    ]
    if not files:
        raise ConfigError(f"{table}: no image in split {split!r}")
    return label_files(files, _BINARY if binary else _CODES, _MPP)


def glas(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """GlaS as a dataset: ``labelled/glas`` below the data folder.

    Parameters
    ----------
    data_dir : Path
        Data folder.
    options : DatasetOptions
        `classes` is None (three classes) or "binary".

    Raises
    ------
    ConfigError
        If the files are not there, or there are no such classes.
    """
    if data_dir is None:
        raise ConfigError("dataset 'glas' needs a data folder; --data gives it")
    if options.classes not in (None, "binary"):
        raise ConfigError(
            f"dataset 'glas': classes must be binary or left out, got "
            f"{options.classes!r}"
        )
    binary = options.classes == "binary"
    return SegmentData(
        name="glas",
        classes=GLAS_BINARY_CLASSES if binary else GLAS_CLASSES,
        train=load_glas(data_dir, "train", binary=binary),
        validation=load_glas(data_dir, "val", binary=binary),
        test=None,
        frame_px=None,
        budgets=((16, 24), (24, 36), (32, 48), (48, 72)),
        cases_disjoint=True,
        licence="GlaS / Warwick-QU: research only, no commercial use",
        note="Colon, not prostate. The grade is given per image and painted onto its "
        "glands; the published split is not by patient, this one is.",
    )
