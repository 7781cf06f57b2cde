"""Cityscapes: street scenes with fine labels.

::

    leftImg8bit/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png
    gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png       or
    gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelTrainIds.png

Checked against the set's own scripts: folders, names, the 34 ids and the 19 train ids
with their colours, 255 = ignored. Labels of the test part are not public.
"""

from pathlib import Path

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import IndexCodes
from wsi_pipeline.training.datasets.files import (
    LabelledFile,
    dataset_folder,
    find_pictures,
    label_files,
)
from wsi_pipeline.training.datasets.record import (
    NO_SCALE_MPP,
    UNLABELLED,
    DatasetOptions,
    SegmentData,
)

# id on disk, name, colour; the train id is the place in this table
_LABELS = (
    (7, "Road", (128, 64, 128)),
    (8, "Sidewalk", (244, 35, 232)),
    (11, "Building", (70, 70, 70)),
    (12, "Wall", (102, 102, 156)),
    (13, "Fence", (190, 153, 153)),
    (17, "Pole", (153, 153, 153)),
    (19, "Traffic light", (250, 170, 30)),
    (20, "Traffic sign", (220, 220, 0)),
    (21, "Vegetation", (107, 142, 35)),
    (22, "Terrain", (152, 251, 152)),
    (23, "Sky", (70, 130, 180)),
    (24, "Person", (220, 20, 60)),
    (25, "Rider", (255, 0, 0)),
    (26, "Car", (0, 0, 142)),
    (27, "Truck", (0, 0, 70)),
    (28, "Bus", (0, 60, 100)),
    (31, "Train", (0, 80, 100)),
    (32, "Motorcycle", (0, 0, 230)),
    (33, "Bicycle", (119, 11, 32)),
)
CITYSCAPES_CLASSES = tuple(
    MaskClass(n, name, rgb) for n, (_, name, rgb) in enumerate(_LABELS)
)
_TRAIN_OF = {stored: n for n, (stored, *_) in enumerate(_LABELS)}
_IDS = IndexCodes(tuple((n, _TRAIN_OF.get(n, UNLABELLED)) for n in range(34)))
_TRAIN_IDS = IndexCodes((*((n, n) for n in range(19)), (UNLABELLED, UNLABELLED)))
_KINDS = (("labelIds", _IDS), ("labelTrainIds", _TRAIN_IDS))
_IMAGE = "_leftImg8bit.png"


def cityscapes(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """Cityscapes as a dataset: its train and val parts, which share no city.

    Parameters
    ----------
    data_dir : Path
        Folder with ``leftImg8bit`` and ``gtFine``, or a data folder with
        ``labelled/cityscapes``.
    options : DatasetOptions
        Nothing of it is used.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit.
    """
    folder = dataset_folder(data_dir, "cityscapes")
    if options.classes is not None or options.split is not None:
        raise ConfigError("dataset 'cityscapes' has no other classes or split")
    return SegmentData(
        name="cityscapes",
        classes=CITYSCAPES_CLASSES,
        train=_load(folder, "train"),
        validation=_load(folder, "val"),
        test=None,
        frame_px=(1024, 2048),
        budgets=((64, 128),),
        cases_disjoint=True,
        licence="Cityscapes: non-commercial, as its terms state",
        note="Not histology; 1 px counts as 1 um. The published val part validates.",
    )


def _load(folder: Path, split: str) -> LabelledImages:
    images, masks = folder / "leftImg8bit" / split, folder / "gtFine" / split
    if not images.is_dir():
        raise ConfigError(f"{images}: no such folder")
    pairs = [
        (path, path.name.removesuffix(_IMAGE), city.name)
        for city in sorted(images.iterdir())
        if city.is_dir()
        for path in find_pictures(city, _IMAGE.lower())
    ]
    if not pairs:
        raise ConfigError(f"{images}: no city there")
    kind, codes = _find_kind(masks, pairs[0])
    files = [
        LabelledFile(path, masks / city / f"{name}_gtFine_{kind}.png", name, city)
        for path, name, city in pairs
    ]
    return label_files(files, codes, NO_SCALE_MPP, frame_px=(1024, 2048))


def _find_kind(masks: Path, pair: tuple[Path, str, str]) -> tuple[str, IndexCodes]:
    """Kind of masks that the first image has."""
    image, name, city = pair
    for kind, codes in _KINDS:
        if (masks / city / f"{name}_gtFine_{kind}.png").is_file():
            return kind, codes
    raise ConfigError(
        f"{masks / city / name}_gtFine_labelIds.png (or labelTrainIds): no such mask, "
        f"for image {image}"
    )
