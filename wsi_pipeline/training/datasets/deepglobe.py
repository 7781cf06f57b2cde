"""DeepGlobe land cover: satellite scenes with a colour per class.

::

    <folder>/land-train/<id>_sat.jpg, <id>_mask.png     or directly in <folder>, or
                                                        in <folder>/train

Checked against several public readers and the set's own text: names, colours, that
channels have to be cut at 128, 2448 x 2448 px of 0.5 m, 803 labelled scenes, unknown
(black) is ignored. Scenes of the published validation and test parts have no masks.
Not known: which scenes are neighbours, so no split is known to be free of them.
"""

from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import ColourCodes
from wsi_pipeline.training.datasets.files import (
    LabelledFile,
    dataset_folder,
    find_pictures,
    label_files,
    read_colours,
)
from wsi_pipeline.training.datasets.odgt import read_odgt
from wsi_pipeline.training.datasets.record import (
    UNLABELLED,
    DatasetOptions,
    SegmentData,
)
from wsi_pipeline.training.datasets.splits import split_groups

DEEPGLOBE_CLASSES = (
    MaskClass(0, "Urban land", (0, 255, 255)),
    MaskClass(1, "Agriculture land", (255, 255, 0)),
    MaskClass(2, "Rangeland", (255, 0, 255)),
    MaskClass(3, "Forest land", (0, 255, 0)),
    MaskClass(4, "Water", (0, 0, 255)),
    MaskClass(5, "Barren land", (255, 255, 255)),
)
"""Six classes; the seventh, unknown, is no label."""
_CODES = ColourCodes(
    (*((kind.rgb, kind.value) for kind in DEEPGLOBE_CLASSES), ((0, 0, 0), UNLABELLED)),
    threshold=128,
)
_MPP = 500_000.0
_SHARES = (455 / 803, 207 / 803, 141 / 803)
_SIDE_PX = 2448


def deepglobe(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """DeepGlobe land cover as a dataset; the module's text shows the files.

    Parameters
    ----------
    data_dir : Path
        Folder of the scenes, or a data folder with ``labelled/deepglobe``.
    options : DatasetOptions
        `split` is left out (by hash and `seed`, 455 : 207 : 141) or "paper": then the
        list files ``labd_train_list_*_455.odgt`` and ``*_207.odgt`` of the released
        code lie in the folder; there is no test part.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit, or there is no such split.
    """
    folder = dataset_folder(data_dir, "deepglobe")
    if options.classes is not None or options.split not in (None, "paper"):
        raise ConfigError(
            f"dataset 'deepglobe' has no classes {options.classes!r} with split "
            f"{options.split!r}; expected none, and none or paper"
        )
    scenes = next(
        (folder / name for name in ("land-train", "train") if (folder / name).is_dir()),
        folder,
    )
    names = [
        path.name.removesuffix("_sat.jpg") for path in find_pictures(scenes, "_sat.jpg")
    ]
    if options.split == "paper":
        parts = [
            [
                Path(row.image).name.removesuffix("_sat.jpg")
                for row in read_odgt(folder, f"labd_train_list_*_{count}.odgt")
            ]
            for count in (455, 207)
        ]
    else:
        dealt = split_groups(names, _SHARES, seed=options.seed, what=str(scenes))
        parts = [[names[row] for row in rows] for rows in dealt]

    def part(which: Sequence[str]) -> LabelledImages:
        files = [
            LabelledFile(scenes / f"{n}_sat.jpg", scenes / f"{n}_mask.png", n, n)
            for n in which
        ]
        frame_px = _SIDE_PX, _SIDE_PX
        return label_files(files, _CODES, _MPP, read=read_colours, frame_px=frame_px)

    return SegmentData(
        name="deepglobe",
        classes=DEEPGLOBE_CLASSES,
        train=part(parts[0]),
        validation=part(parts[1]),
        test=part(parts[2]) if len(parts) > 2 else None,
        frame_px=(_SIDE_PX, _SIDE_PX),
        budgets=((300, 300),),
        cases_disjoint=False,
        licence="DeepGlobe 2018 / DigitalGlobe: as its terms of use state",
        note="Not histology. No place is stated per scene: neighbours may be in two "
        "splits. Unknown is no label: 6 classes count.",
    )
