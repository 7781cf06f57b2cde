"""Writes painted strips as images, masks and tables, which the row "folder" reads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.errors import ConfigError, ExportError
from wsi_pipeline.publishing import make_folder, publish_bytes
from wsi_pipeline.synthetic import SYNTHETIC_CLASSES
from wsi_pipeline.training.datasets.record import DatasetOptions
from wsi_pipeline.training.datasets.strips import StripCase, lay_cases

Progress = Callable[[int, int], None]


def paint_strips(
    folder: Path,
    options: DatasetOptions,
    *,
    splits: tuple[str, ...] = ("train", "validation", "test"),
    progress: Progress | None = None,
) -> int:
    """Write painted strips as a folder that the row "folder" reads.

    Parameters
    ----------
    folder : Path
        Gets ``images/``, ``masks/`` (PNG), ``classes.csv``, ``split.csv`` and
        ``mpp.txt``; must not hold images yet.
    options : DatasetOptions
        As for `synthetic_strips`.
    splits : tuple of str
        Splits to write.
    progress : callable, optional
        Called with (strips done, strips in all).

    Returns
    -------
    int
        Strips written.

    Raises
    ------
    ConfigError
        If the folder holds images, or an option is out of range.
    ExportError
        If it cannot be written.

    Notes
    -----
    Memory: one strip, 16 bytes per pixel. ``split.csv`` comes last, so that a folder
    that was not finished cannot be read by mistake.
    """
    parts = [(split, lay_cases(split, options)) for split in splits]
    if not parts:
        raise ConfigError(f"{folder}: no split to write")
    if (folder / "images").is_dir() and any((folder / "images").iterdir()):
        raise ConfigError(f"{folder}: holds images already; choose another folder")
    for name in ("images", "masks"):
        make_folder(folder / name)
    total = sum(len(case.heights_px) for _, cases in parts for case in cases)
    lines = ["name,split,group"]
    for split, case, strip in _each(parts):
        name = f"{case.number}_{strip}"
        image, label = case.paint(strip)
        _write(folder / "images" / f"{name}.png", image.transpose(1, 2, 0))
        _write(folder / "masks" / f"{name}.png", label)
        lines.append(f"{name},{split},{case.number}")
        if progress is not None:
            progress(len(lines) - 1, total)
    rows = [
        f"{c.value},{c.name},{','.join(map(str, c.rgb))}" for c in SYNTHETIC_CLASSES
    ]
    mpp = parts[0][1][0].mpp
    publish_bytes(folder / "classes.csv", _lines(["value,name,r,g,b", *rows]))
    publish_bytes(folder / "mpp.txt", _lines([str(mpp)]))
    publish_bytes(folder / "split.csv", _lines(lines))
    return total


def _each(
    parts: list[tuple[str, tuple[StripCase, ...]]],
) -> Iterator[tuple[str, StripCase, int]]:
    for split, cases in parts:
        for case in cases:
            for strip in range(len(case.heights_px)):
                yield split, case, strip


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    try:
        Image.fromarray(pixels).save(path, format="PNG", compress_level=3)
    except OSError as error:
        raise ExportError(f"{path}: cannot write ({error})") from error


def _lines(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
