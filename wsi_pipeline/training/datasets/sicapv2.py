"""SICAPv2: patches of prostate biopsies with Gleason patterns.

::

    images/<slide>_Block_Region_..._xini_<x>_yini_<y>.jpg       512 x 512 px, 10x
    masks/<the same stem>.png
    partition/Test/Train.xlsx, Test.xlsx                        (or .csv)
    partition/Validation/Val1/Train.xlsx, Test.xlsx             ... Val4

Checked against several public readers: folders, names, the column image_name (with or
without .jpg), four folds. Only in one of them: that PNG masks hold 3, 4, 5 for the
Gleason patterns (0 = not cancerous). An older release has JPEG masks, whose values are
blurred by the compression; they are refused. Not known: um/px (10x is about 1), and
whether two slides are of one patient: the slide's number without its last letter counts
as the patient.
"""

import re
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

SICAPV2_CLASSES = (
    MaskClass(0, "Not cancerous", (255, 255, 255)),
    MaskClass(1, "Gleason 3", (240, 228, 66)),
    MaskClass(2, "Gleason 4", (230, 159, 0)),
    MaskClass(3, "Gleason 5", (0, 114, 178)),
)
_CODES = IndexCodes(((0, 0), (3, 1), (4, 2), (5, 3)))
_FOLDS = ("Val1", "Val2", "Val3", "Val4")
_NAME = re.compile(r"(?P<patient>[^_]*\d)[A-Za-z]?_\w.*")
_MPP = 1.0
_SIDE_PX = 512


def sicapv2(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """SICAPv2 as a dataset: a published fold, and the published test part.

    Parameters
    ----------
    data_dir : Path
        Folder with images, masks and partition, or a data folder with
        ``labelled/sicapv2``.
    options : DatasetOptions
        `split` is the fold, "Val1" (the default) to "Val4". `mpp` if known.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit, or there is no such fold.
    """
    folder = dataset_folder(data_dir, "sicapv2")
    fold = options.split or _FOLDS[0]
    if options.classes is not None or fold not in _FOLDS:
        raise ConfigError(
            f"dataset 'sicapv2' has no classes {options.classes!r} with split {fold!r};"
            f" expected none, and one of {', '.join(_FOLDS)}"
        )
    mpp = _MPP if options.mpp is None else options.mpp
    tables = [
        folder / "partition" / "Validation" / fold / "Train",
        folder / "partition" / "Validation" / fold / "Test",
        folder / "partition" / "Test" / "Test",
    ]
    train, validation, test = (_load(folder, table, mpp) for table in tables)
    patients = [set(one.groups) for one in (train, validation, test)]
    disjoint = sum(map(len, patients)) == len(set().union(*patients))
    return SegmentData(
        name="sicapv2",
        classes=SICAPV2_CLASSES,
        train=train,
        validation=validation,
        test=test,
        frame_px=(_SIDE_PX, _SIDE_PX),
        budgets=((32, 32), (64, 64)),
        cases_disjoint=disjoint,
        licence="SICAPv2 (Mendeley Data 9xxm58dvs3): as stated there",
        note=f"Fold {fold}. "
        + ("" if disjoint else "Slide numbers occur in two parts. ")
        + ("" if options.mpp else "um/px are not stated: 10x counts as 1.0. ")
        + "Budgets are our own choice.",
    )


def _load(folder: Path, table: Path, mpp: float) -> LabelledImages:
    """Patches of a partition table, Excel or CSV."""
    paths = [table.with_suffix(ending) for ending in (".csv", ".xlsx")]
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        raise ConfigError(f"{paths[1]}: no such file, nor {paths[0].name}")
    files = []
    for (cell,) in read_table(path, ("image_name",)):
        stem = cell.removesuffix(".jpg")
        name = _NAME.fullmatch(stem)
        if name is None:
            raise ConfigError(f"{path}: expected a name <slide>_..., got {cell!r}")
        mask = folder / "masks" / f"{stem}.png"
        if not mask.is_file() and mask.with_suffix(".jpg").is_file():
            raise ConfigError(
                f"{mask.with_suffix('.jpg')}: JPEG blurs class values; get the release "
                "with PNG masks"
            )
        image = folder / "images" / f"{stem}.jpg"
        files.append(LabelledFile(image, mask, stem, name["patient"]))
    return label_files(files, _CODES, mpp, frame_px=(_SIDE_PX, _SIDE_PX))
