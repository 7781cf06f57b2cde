"""A slide made of numbers, for tests that need no file format."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Level, Scale
from wsi_pipeline.slide import SlideInfo


def info_of(size_px: tuple[int, int], mpp: float = 0.5) -> SlideInfo:
    return SlideInfo(
        Path("numbers.tif"),
        "numbers",
        "test",
        (Level(size_px, 1.0),),
        Scale(mpp, mpp),
        "test",
        Box(0, 0, *size_px),
        (256, 256),
    )


@dataclass(frozen=True)
class NumberSlide:
    """Every pixel follows from its coordinates; `broken` boxes cannot be read."""

    info: SlideInfo
    broken: Box | None = None

    @classmethod
    def of(cls, w: int, h: int, **changes: object) -> Self:
        return replace(cls(info_of((w, h))), **changes)

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        if self.broken and self.broken.intersect(box).area_px:
            raise SlideError("numbers.tif: a tile is damaged")
        y, x = np.mgrid[box.y : box.bottom, box.x : box.right]
        return np.stack([x * 7, y * 3, x ^ y], axis=-1).astype(np.uint8)

    def read_planes(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.read(box, level).transpose(2, 0, 1))

    def read_jpeg(self, box: Box) -> tuple[NDArray[np.uint8], list[bytes | None]]:
        raise SlideError("numbers.tif: no JPEG")

    def stored_bytes(self, box: Box) -> int | None:
        return None

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...
