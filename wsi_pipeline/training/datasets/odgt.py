"""Reads list files of the released code (.odgt): a JSON object per line and image."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from wsi_pipeline.errors import ConfigError


@dataclass(frozen=True)
class ListedPair:
    """A line of a list file.

    Parameters
    ----------
    source : Path
        The list file.
    image, mask : str
        Paths below the data set's folder.
    size_px : (h, w)
        As listed.
    """

    source: Path
    image: str
    mask: str
    size_px: tuple[int, int]


def read_odgt(folder: Path, pattern: str) -> list[ListedPair]:
    """Lines of the one list file in a folder whose name fits a pattern.

    Raises
    ------
    ConfigError
        If not exactly one file fits, or a line does not hold fpath_img, fpath_segm,
        width and height.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ConfigError(
            f"{folder}/{pattern}: expected one such list file, got {len(found)}"
        )
    path = found[0]
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    rows = [
        _pair(path, number, line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise ConfigError(f"{path}: lists no image")
    return rows


def _pair(path: Path, number: int, line: bytes) -> ListedPair:
    try:
        match orjson.loads(line):
            case {
                "fpath_img": str(image),
                "fpath_segm": str(mask),
                "width": int(w),
                "height": int(h),
            }:
                return ListedPair(path, image, mask, (h, w))
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {number}: no JSON ({error})") from error
    raise ConfigError(
        f"{path}: line {number}: expected fpath_img, fpath_segm, width, height"
    )
