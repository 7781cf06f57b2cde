"""Labelled datasets that a segmenter can be trained on, by name; a row per set."""

from pathlib import Path

from wsi_pipeline.registry import Registry
from wsi_pipeline.training.datasets.glas import GLAS_CLASSES, load_glas
from wsi_pipeline.training.datasets.painted import paint_images
from wsi_pipeline.training.datasets.record import DatasetOptions, SegmentData

__all__ = [
    "DATASETS",
    "GLAS_CLASSES",
    "DatasetOptions",
    "SegmentData",
    "load_dataset",
    "load_glas",
    "paint_images",
]

_HERE = "wsi_pipeline.training.datasets"
DATASETS = Registry(
    "dataset",
    {
        "glas": f"{_HERE}.glas:glas",
        "synthetic": f"{_HERE}.painted:synthetic",
        "synthetic-strips": f"{_HERE}.strips:synthetic_strips",
        "folder": f"{_HERE}.folder:own_folder",
        "slides": f"{_HERE}.slides:slides",
        "pca-histo": f"{_HERE}.pca_histo:pca_histo",
        "panda": f"{_HERE}.panda:panda",
        "sicapv2": f"{_HERE}.sicapv2:sicapv2",
        "deepglobe": f"{_HERE}.deepglobe:deepglobe",
        "cityscapes": f"{_HERE}.cityscapes:cityscapes",
        "camvid": f"{_HERE}.camvid:camvid",
    },
)


def load_dataset(
    name: str,
    data_dir: Path | None,
    *,
    images: int = 96,
    classes: str | None = None,
    options: DatasetOptions | None = None,
) -> SegmentData:
    """Load or paint a dataset; pixels are decoded when they are asked for.

    Parameters
    ----------
    name : str
        Row of `DATASETS`.
    data_dir : Path or None
        Data folder (named sets lie in ``labelled/<name>`` below it) or the set's own
        folder; painted sets need none.
    images : int
        Training images to paint.
    classes : str, optional
        Name of another set of classes, such as "binary" of glas.
    options : DatasetOptions, optional
        Everything else; then `images` and `classes` are taken from here too.

    Raises
    ------
    UnknownNameError
        If there is no such dataset.
    ConfigError
        If its files are not there or do not fit.
    """
    loader = DATASETS.load(name)
    wanted = options or DatasetOptions(images=images, classes=classes)
    found: SegmentData = loader(data_dir, wanted)
    return found
