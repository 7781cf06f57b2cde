"""Encoded tiles between painting and writing: blocks come in, TIFF levels go out.

A TIFF wants its tiles level by level, row by row; blocks come with all their levels
at once. The spool keeps the encoded tiles on disk in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Level

TILE_PX = 256
SUPER_PX = 4096
"""Side of what is painted and reduced at once."""
SUPER_LEVELS = 5
"""Levels that a block of SUPER_PX fills by itself: 4096 px down to one tile."""
SMALLEST_LEVEL_PX = 1024


@dataclass(frozen=True)
class Spool:
    """A folder of encoded tiles, one file and one index per block and level.

    Parameters
    ----------
    folder : Path
    quality : int
        JPEG quality.
    """

    folder: Path
    quality: int

    def add_block(
        self, column: int, row: int, rgb: NDArray[np.uint8], levels: int
    ) -> None:
        """Encode a painted block and its reductions.

        Parameters
        ----------
        column, row : int
            Position in the lattice of blocks of SUPER_PX.
        rgb : (h, w, 3) uint8 array
            Sides are multiples of 512 px, at most SUPER_PX.
        levels : int
            Levels of the whole slide.
        """
        for level in range(min(levels, SUPER_LEVELS)):
            if level:
                rgb = reduce_by_two(rgb)
            self._write(column, row, level, rgb)
        if levels > SUPER_LEVELS:
            np.save(self.folder / f"top-{row}-{column}.npy", rgb)

    def tiles(self, level: int, size_px: tuple[int, int]) -> Iterator[bytes]:
        """Yield the tiles of a level, row by row."""
        per_block = (SUPER_PX >> level) // TILE_PX
        across, down = -(-size_px[0] // TILE_PX), -(-size_px[1] // TILE_PX)
        for top in range(0, down, per_block):
            count = range(-(-across // per_block))
            files = [self._name(i, top // per_block, level) for i in count]
            index = [np.load(file.with_suffix(".npy")) for file in files]
            streams = [file.open("rb") for file in files]
            try:
                for j in range(min(per_block, down - top)):
                    for i in range(across):
                        block, part = divmod(i, per_block)
                        start, end = index[block][j, part]
                        streams[block].seek(start)
                        yield streams[block].read(end - start)
            finally:
                for stream in streams:
                    stream.close()

    def gather_top(self, size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """The coarsest level that blocks fill, as an array on disk.

        Returns
        -------
        (h, w, 3) uint8 memory map
        """
        side = SUPER_PX >> (SUPER_LEVELS - 1)
        whole = Box(0, 0, *size_px)
        name = self.folder / "top.npy"
        out = np.lib.format.open_memmap(
            name, "w+", np.dtype(np.uint8), (size_px[1], size_px[0], 3)
        )
        for box in whole.blocks(side):
            part = np.load(self.folder / f"top-{box.y // side}-{box.x // side}.npy")
            out[box.rows, box.columns] = part[: box.h, : box.w]
        return out

    def encoded(self, pixels: NDArray[np.uint8]) -> Iterator[bytes]:
        """Yield the encoded tiles of an array, row by row."""
        for y in range(0, pixels.shape[0], TILE_PX):
            for x in range(0, pixels.shape[1], TILE_PX):
                yield self._encode(pixels[y : y + TILE_PX, x : x + TILE_PX])

    def size_bytes(self) -> int:
        """Bytes of all tiles."""
        return sum(path.stat().st_size for path in self.folder.glob("*.tiles"))

    def _write(self, column: int, row: int, level: int, rgb: NDArray[np.uint8]) -> None:
        name = self._name(column, row, level)
        h, w = rgb.shape[:2]
        shape = (-(-h // TILE_PX), -(-w // TILE_PX))
        ends = []
        with name.open("wb") as stream:
            for tile in self.encoded(rgb):
                stream.write(tile)
                ends.append(stream.tell())
        bounds = np.array([0, *ends], np.int64)
        index = np.stack([bounds[:-1], bounds[1:]], -1).reshape(*shape, 2)
        np.save(name.with_suffix(".npy"), index)

    def _encode(self, pixels: NDArray[np.uint8]) -> bytes:
        h, w = pixels.shape[:2]
        if (h, w) != (TILE_PX, TILE_PX):
            spare = ((0, TILE_PX - h), (0, TILE_PX - w), (0, 0))
            pixels = np.pad(pixels, spare, mode="edge")
        return bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(pixels),
                level=self.quality,
                colorspace="RGB",
                outcolorspace="YCBCR",
                subsampling="420",
            )
        )

    def _name(self, column: int, row: int, level: int) -> Path:
        return self.folder / f"{level}-{row}-{column}.tiles"


def level_sizes(size_px: tuple[int, int]) -> list[Level]:
    """Levels of a slide: halved to at most 1024 px, at least two coarser ones."""
    levels = [Level(size_px, 1.0)]
    while max(levels[-1].size_px) > SMALLEST_LEVEL_PX or len(levels) < 3:
        w, h = levels[-1].size_px
        half = (max(1, -(-w // 2)), max(1, -(-h // 2)))
        levels.append(Level(half, levels[-1].downsample * 2))
    return levels


def write_tiff(
    path: Path, spool: Spool, levels: list[Level], mpp: float, description: str
) -> None:
    """Write a tiled pyramidal TIFF from a spool.

    Notes
    -----
    Memory: one tile, and a strip of the levels above the blocks' own, which live on
    disk.

    References
    ----------
    TIFF 6.0 and TIFF Technical Note 2 (JPEG); reduced images carry NewSubfileType 1.
    """
    # 32-bit offsets reach 4 GiB; a margin for the tables
    big = spool.size_bytes() > 3.8e9
    with tifffile.TiffWriter(path, bigtiff=big) as writer:
        top: NDArray[np.uint8] | None = None
        for index, level in enumerate(levels):
            w, h = level.size_px
            if index < SUPER_LEVELS:
                tiles = spool.tiles(index, level.size_px)
            else:
                if top is None:
                    top = spool.gather_top(levels[index - 1].size_px)
                top = _halve_on_disk(top, spool.folder / f"top-{index}.map")
                tiles = spool.encoded(top)
            per_cm = 1e4 / (mpp * level.downsample)
            writer.write(
                tiles,
                shape=(h, w, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if index else 0,
                description=description if index == 0 else None,
                software="wsi_pipeline",
                metadata=None,
            )


def reduce_by_two(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Area mean of 2 x 2 pixels, rounded; odd edges repeat their last pixel."""
    h, w = rgb.shape[:2]
    if h % 2 or w % 2:
        rgb = np.pad(rgb, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    sums = rgb[::2, ::2].astype(np.uint16)
    sums += rgb[1::2, ::2]
    sums += rgb[::2, 1::2]
    sums += rgb[1::2, 1::2]
    sums += 2
    return (sums >> 2).astype(np.uint8)


def _halve_on_disk(pixels: NDArray[np.uint8], name: Path) -> NDArray[np.uint8]:
    h, w = -(-pixels.shape[0] // 2), -(-pixels.shape[1] // 2)
    out = np.lib.format.open_memmap(name, "w+", np.dtype(np.uint8), (h, w, 3))
    for y in range(0, h, TILE_PX):
        out[y : y + TILE_PX] = reduce_by_two(pixels[2 * y : 2 * (y + TILE_PX)])
    return out
