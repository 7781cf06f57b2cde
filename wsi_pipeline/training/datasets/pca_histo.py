"""PCa-Histo: strips of prostate sections, as the paper's released code lists them.

::

    full_train_list_200.odgt     one JSON object per line: fpath_img, fpath_segm,
    full_val_list_27.odgt        width, height; paths from this folder on
    full_test_list_39.odgt
    train/images/<case>_<strip>.png, train/labels/<case>_<strip>.png, val/..., test/...

Checked against the list files and the reading code of lxasqjc/Deformation-Segmentation
(2022): the names, the sizes, 200 / 27 / 39 strips of 33 cases, ids on disk that start
at 1 (the code subtracts 1, so that 0 counts for nothing), six slots. Not known: what
each id means (the project page shows Unlabelled, Mild cancer, Severe cancer and
Suspicious, without ids), and um/px. The images were never public.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import IndexCodes
from wsi_pipeline.training.datasets.files import (
    LabelledFile,
    dataset_folder,
    label_files,
    size_of,
)
from wsi_pipeline.training.datasets.odgt import ListedPair, read_odgt
from wsi_pipeline.training.datasets.record import (
    NO_SCALE_MPP,
    UNLABELLED,
    DatasetOptions,
    SegmentData,
)
from wsi_pipeline.training.datasets.splits import split_groups

PCA_HISTO_CLASSES = tuple(
    MaskClass(n, f"Id {n + 1}", rgb)
    for n, rgb in enumerate(
        (
            (255, 255, 255),
            (204, 121, 167),
            (0, 158, 115),
            (240, 228, 66),
            (230, 159, 0),
            (0, 114, 178),
        )
    )
)
RULE_NODES = 80, 800
_CODES = IndexCodes(((0, UNLABELLED), *((n + 1, n) for n in range(6))))
_LISTS = ("train", "val", "test")
_SHARES = (200 / 266, 27 / 266, 39 / 266)
_NAME = re.compile(r"(?P<case>[^/_]+)_(?P<strip>\d+)")


def strip_nodes(
    size_px: tuple[int, int], rule: tuple[int, int] = RULE_NODES
) -> tuple[int, int]:
    """Number of nodes of a strip under a budget rule such as "80 x 800".

    Parameters
    ----------
    size_px : (h, w)
        Of the strip; a portrait one is treated the same with its sides swapped.
    rule : (int, int)
        Nodes along the short and the long side.

    Returns
    -------
    (h, w)
        The strip divided by a whole factor: of short // rule[0] and long // rule[1]
        the one that leaves fewer nodes, at least 1.

    References
    ----------
    Released code of Jin et al., ICLR 2022: the factors of option "80_800".
    """
    short, long = min(size_px), max(size_px)
    factor = max(1, short // rule[0], long // rule[1])
    h, w = size_px
    return max(1, h // factor), max(1, w // factor)


def pca_histo(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """PCa-Histo as a dataset; the module's text shows the files.

    Parameters
    ----------
    data_dir : Path
        Folder of the list files, or a data folder with ``labelled/pca-histo``.
    options : DatasetOptions
        `split` is "case-disjoint" (the default: all strips, dealt anew by case and
        `seed`) or "paper" (as listed: most cases are in all splits). `mpp` if known.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit, or there is no such split.
    """
    folder = dataset_folder(data_dir, "pca-histo")
    if options.classes is not None:
        raise ConfigError(f"dataset 'pca-histo' has no classes {options.classes!r}")
    split = options.split or "case-disjoint"
    if split not in ("case-disjoint", "paper"):
        raise ConfigError(
            f"dataset 'pca-histo': split must be case-disjoint or paper, got {split!r}"
        )
    lists = [read_odgt(folder, f"full_{part}_list_*.odgt") for part in _LISTS]
    rows = [row for part in lists for row in part]
    files = [_file_of(folder, row) for row in rows]
    if split == "paper":
        edges = [0, len(lists[0]), len(lists[0]) + len(lists[1]), len(rows)]
        dealt = [tuple(range(edges[n], edges[n + 1])) for n in range(3)]
    else:
        groups = [one.group for one in files]
        dealt = list(split_groups(groups, _SHARES, seed=options.seed, what=str(folder)))
    mpp = NO_SCALE_MPP if options.mpp is None else options.mpp

    def part(which: Sequence[int]) -> LabelledImages:
        return label_files([files[n] for n in which], _CODES, mpp)

    return SegmentData(
        name="pca-histo",
        classes=PCA_HISTO_CLASSES,
        train=part(dealt[0]),
        validation=part(dealt[1]),
        test=part(dealt[2]),
        frame_px=None,
        budgets=(RULE_NODES,),
        cases_disjoint=split == "case-disjoint",
        licence="never published; as its owners state",
        note=f"Split {split}. "
        + ("" if options.mpp else "um/px are not known: 1 px counts as 1 um. ")
        + "What the six ids mean is not published. The budget is a rule "
        "(`strip_nodes`).",
    )


def _file_of(folder: Path, row: ListedPair) -> LabelledFile:
    image = folder / row.image
    name = _NAME.fullmatch(image.stem)
    if name is None:
        raise ConfigError(f"{image}: expected a name <case>_<strip>, in {row.source}")
    got = size_of(image)
    if got != row.size_px:
        raise ConfigError(
            f"{image}: is {got[1]} x {got[0]} px, but {row.source.name} says "
            f"{row.size_px[1]} x {row.size_px[0]}"
        )
    return LabelledFile(image, folder / row.mask, image.stem, name["case"])
