"""Turns pairs of image and mask files into labelled images, decoded on demand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import MaskCodes, Stored
from wsi_pipeline.training.datasets.ondemand import OnDemand

KEEP = 2
"""Images, and masks, that a split keeps decoded."""
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its mask.

    Parameters
    ----------
    image, mask : Path
        Of the same size in pixels.
    name : str
        Unique within the set.
    group : str
        What is independent: patient, case, scene.
    """

    image: Path
    mask: Path
    name: str
    group: str


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture with Pillow.

    Raises
    ------
    ConfigError
        If the file is missing or unreadable, also when it is decoded in the block.
    """
    try:
        with Image.open(path) as image:
            yield image
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except _PICTURE_ERRORS as error:
        raise ConfigError(f"{path}: cannot be read as a picture ({error})") from error


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Image as (3, h, w) uint8 RGB.

    Raises
    ------
    ConfigError
        If it cannot be read, or has more than 8 bits per channel.
    """
    with open_picture(path) as image:
        if image.mode[0] in "IF":
            raise ConfigError(
                f"{path}: expected 8 bits per channel, got mode {image.mode}"
            )
        pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_index(path: Path) -> Stored:
    """Mask of one value per pixel as (h, w); a palette's indices, not its colours.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds colours.
    """
    with open_picture(path) as image:
        if image.mode not in _INDEX_MODES:
            raise ConfigError(
                f"{path}: expected one value per pixel, got mode {image.mode}"
            )
        return np.array(image)


def read_colours(path: Path) -> Stored:
    """Mask of colours as (h, w, 3) uint8.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds one value per pixel and no palette.
    """
    with open_picture(path) as image:
        if image.mode not in ("RGB", "RGBA", "P"):
            raise ConfigError(f"{path}: expected colours, got mode {image.mode}")
        return np.array(image.convert("RGB"))


def size_of(path: Path) -> tuple[int, int]:
    """(h, w) of a picture, from its header.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    with open_picture(path) as image:
        return image.height, image.width


@dataclass(frozen=True)
class _Images:
    """Decodes the n-th image."""

    files: tuple[LabelledFile, ...]

    def __call__(self, row: int) -> NDArray[np.uint8]:
        return read_rgb(self.files[row].image)


@dataclass(frozen=True)
class _Masks:
    """Decodes the n-th mask."""

    files: tuple[LabelledFile, ...]
    read: Callable[[Path], Stored]
    codes: MaskCodes

    def __call__(self, row: int) -> NDArray[np.uint8]:
        path = self.files[row].mask
        return self.codes.decode(self.read(path), path)


def label_files(
    files: Sequence[LabelledFile],
    codes: MaskCodes,
    mpp: float,
    *,
    read: Callable[[Path], Stored] = read_index,
    frame_px: tuple[int, int] | None = None,
) -> LabelledImages:
    """Labelled images of files, decoded on demand.

    Parameters
    ----------
    files : sequence of LabelledFile
        In order.
    codes : MaskCodes
        What the masks' pixels mean.
    mpp : float
        um/px.
    read : callable
        Reads a mask: `read_index` or `read_colours`.
    frame_px : (h, w), optional
        Size that every image must have.

    Raises
    ------
    ConfigError
        If a file is missing or unreadable, sizes of image and mask differ, or a name
        is there twice. Pixels are looked at only when a mask is decoded, then with the
        same error.

    Notes
    -----
    Memory: `KEEP` images and masks. Opens the header of every file once.
    """
    seen: set[str] = set()
    for one in files:
        if one.name in seen:
            raise ConfigError(f"{one.image}: the name {one.name!r} is there twice")
        seen.add(one.name)
        if not one.mask.is_file():
            raise ConfigError(f"{one.mask}: no such mask, for image {one.image}")
        h, w = size_of(one.image)
        got = size_of(one.mask)
        if got != (h, w):
            raise ConfigError(
                f"{one.mask}: the mask is {got[1]} x {got[0]} px, expected the "
                f"{w} x {h} px of {one.image}"
            )
        if frame_px is not None and (h, w) != frame_px:
            raise ConfigError(
                f"{one.image}: is {w} x {h} px, expected {frame_px[1]} x {frame_px[0]}"
            )
    rows = tuple(files)
    return LabelledImages(
        OnDemand(len(rows), _Images(rows), KEEP),
        OnDemand(len(rows), _Masks(rows, read, codes), KEEP),
        tuple(one.name for one in rows),
        tuple(one.group for one in rows),
        mpp,
    )


def find_pictures(folder: Path, ending: str | None = None) -> list[Path]:
    """Pictures directly in a folder, sorted by name.

    Parameters
    ----------
    folder : Path
        Hidden files are left out.
    ending : str, optional
        Of the name, such as "_sat.jpg"; left out, every usual kind of picture.

    Raises
    ------
    ConfigError
        If the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    endings = IMAGE_ENDINGS if ending is None else (ending,)
    found = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(endings) and not path.name.startswith(".")
    )
    if not found:
        raise ConfigError(f"{folder}: no image there; expected {', '.join(endings)}")
    return found


def dataset_folder(data_dir: Path | None, name: str) -> Path:
    """Folder of a named set: ``labelled/<name>`` below the data folder, or itself.

    Raises
    ------
    ConfigError
        If there is no data folder.
    """
    if data_dir is None:
        raise ConfigError(f"dataset {name!r} needs a data folder; --data gives it")
    if not data_dir.is_dir():
        raise ConfigError(f"{data_dir}: no such folder, for dataset {name!r}")
    below = data_dir / "labelled" / name
    return below if below.is_dir() else data_dir
