"""What a conversion cannot beat on this machine: each pixel decoded, reduced and
encoded once, spread perfectly over the cores, or the bytes read and written.

    python tests/benchmarks/floors.py SLIDE FOLDER --threads 1 2

Prints one line of JSON. FOLDER lies on the disk that conversions write to. Each
phase is timed alone, call by call, as CPU seconds over the number of threads; the
same calls by the wall clock are printed beside, as a check. Allocation, transposition
and padding are not counted.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import local
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile
from numcodecs import Zstd
from numpy.typing import NDArray
from peers import available_cores, pin

BLOCK_PX, CHUNK_PX, JPEG_PX, OPENSLIDE_PX = 4096, 512, 256, 2048
BLOCK_LEVELS = 4  # levels of a block that still fill whole chunks: 4096 to 512 px
JPEG_QUALITY = 80
PIECE_BYTES = 32 * 2**20

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Floor:
    """The floors on so many threads; seconds and bytes by phase.

    Parameters
    ----------
    threads : int
    seconds : dict
        "decode", "reduce", "zstd", "jpeg", "read", "zstd write", "jpeg write", and
        "openslide" on the most threads.
    wall : dict
        The first four by the wall clock.
    out_bytes : dict
        What "zstd" and "jpeg" write.
    """

    threads: int
    seconds: dict[str, float]
    wall: dict[str, float]
    out_bytes: dict[str, int]

    def best(self, kind: str) -> float:
        """Seconds of the best possible: the cores or the disk, whichever is slower."""
        if kind == "openslide":  # what it reads is reduced and encoded as well
            names = ("openslide", "reduce", "zstd")
            return sum(self.seconds[name] for name in names)
        return max(self.work(kind), self.disk(kind))

    def work(self, kind: str) -> float:
        return self.seconds["decode"] + self.seconds["reduce"] + self.seconds[kind]

    def disk(self, kind: str) -> float:
        return self.seconds["read"] + self.seconds[f"{kind} write"]

    def explain(self, kind: str) -> str:
        names = ("decode", "reduce", kind)
        parts = [f"{name} {self.seconds[name]:.2f} s" for name in names]
        wall = sum(self.wall[name] for name in names)
        disk = f"{self.seconds['read']:.2f} + {self.seconds[f'{kind} write']:.2f} s"
        shared = wall > 1.1 * self.work(kind)
        warning = "; other programs took part of the cores, measure again" * shared
        return f"{', '.join(parts)} (by the wall {wall:.2f} s{warning}); disk {disk}"


class Meter:
    """Seconds and bytes per phase, of one block or summed over all."""

    def __init__(self) -> None:
        self.cpu: Counter[str] = Counter()
        self.wall: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.cpu[name] += time.thread_time() - cpu
        self.wall[name] += time.perf_counter() - wall

    def add(self, other: "Meter") -> None:
        self.cpu.update(other.cpu)
        self.wall.update(other.wall)
        self.bytes.update(other.bytes)


class Source:
    """Level 0 of a JPEG TIFF, tile by tile."""

    def __init__(self, path: Path) -> None:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            self.w, self.h = int(page.imagewidth), int(page.imagelength)
            self.tile_px = int(page.tilewidth)
            self.offsets, self.counts = page.dataoffsets, page.databytecounts
            self.tables = page.jpegtables
        self.columns = -(-self.w // self.tile_px)
        self.descriptor = os.open(path, os.O_RDONLY)

    def blocks(self, side: int) -> list[tuple[int, int]]:
        tops = range(0, self.h, side)
        return [(x, y) for y in tops for x in range(0, self.w, side)]

    def decode_block(self, x: int, y: int, meter: Meter) -> Pixels:
        """(h, w, 3) pixels of a block at a tile's corner, each tile decoded once."""
        px = self.tile_px
        h, w = min(BLOCK_PX, self.h - y), min(BLOCK_PX, self.w - x)
        out = np.empty((h, w, 3), np.uint8)
        tile = np.empty((px, px, 3), np.uint8)
        for top in range(0, h, px):
            for left in range(0, w, px):
                index = (y + top) // px * self.columns + (x + left) // px
                count = self.counts[index]
                data = os.pread(self.descriptor, count, self.offsets[index])
                with meter.phase("decode"):
                    imagecodecs.jpeg8_decode(data, tables=self.tables, out=tile)
                part = out[top : top + px, left : left + px]
                part[:] = tile[: part.shape[0], : part.shape[1]]
        return out


def pieces(pixels: Pixels, side: int) -> Iterator[Pixels]:
    """Copies of all chunks of an image, padded with 0 to (side, side, 3)."""
    for y in range(0, pixels.shape[0], side):
        for x in range(0, pixels.shape[1], side):
            part = pixels[y : y + side, x : x + side]
            out = np.zeros((side, side, 3), np.uint8)
            out[: part.shape[0], : part.shape[1]] = part
            yield out


def encode_level(pixels: Pixels, level: int, meter: Meter) -> None:
    codec = Zstd(level=1, checksum=True)
    for chunk in pieces(pixels, CHUNK_PX):
        planar = np.ascontiguousarray(chunk.transpose(2, 0, 1))
        with meter.phase("zstd"):
            encoded = codec.encode(planar)
        meter.bytes["zstd"] += len(encoded)
    for tile in pieces(pixels, JPEG_PX) if level else ():
        with meter.phase("jpeg"):
            encoded = imagecodecs.jpeg8_encode(
                tile, level=JPEG_QUALITY, subsampling="420"
            )
        meter.bytes["jpeg"] += len(encoded)


def reduce_level(pixels: Pixels, meter: Meter) -> Pixels:
    """(ceil(h / 2), ceil(w / 2), 3) area means, chunk by chunk while it is in cache."""
    h, w = pixels.shape[:2]
    out = np.empty((-(-h // 2), -(-w // 2), 3), np.uint8)
    for y in range(0, h, CHUNK_PX):
        for x in range(0, w, CHUNK_PX):
            part = pixels[y : y + CHUNK_PX, x : x + CHUNK_PX]
            odd = part.shape[0] % 2, part.shape[1] % 2
            if any(odd):
                part = np.pad(part, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
            size = part.shape[1] // 2, part.shape[0] // 2
            with meter.phase("reduce"):
                half = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
            out[y // 2 : y // 2 + size[1], x // 2 : x // 2 + size[0]] = half
    return out


def compute_floor(source: Source, threads: int) -> Meter:
    """Decode level 0, reduce and encode the whole pyramid, block by block."""
    step = 2**BLOCK_LEVELS
    top = np.empty((-(-source.h // step), -(-source.w // step), 3), np.uint8)
    meter = Meter()

    def convert(corner: tuple[int, int]) -> Meter:
        x, y = corner
        own = Meter()
        pixels = source.decode_block(x, y, own)
        for level in range(BLOCK_LEVELS):
            encode_level(pixels, level, own)
            pixels = reduce_level(pixels, own)
        h, w = pixels.shape[:2]
        top[y // step : y // step + h, x // step : x // step + w] = pixels
        return own

    with ThreadPoolExecutor(threads) as pool:
        for own in pool.map(convert, source.blocks(BLOCK_PX)):
            meter.add(own)
    level, pixels = BLOCK_LEVELS, top
    while True:
        encode_level(pixels, level, meter)
        if max(pixels.shape[:2]) <= CHUNK_PX:
            return meter
        level, pixels = level + 1, reduce_level(pixels, meter)


def openslide_floor(path: Path, source: Source, threads: int) -> float:
    """Seconds of `read_region` over all of level 0, a handle per thread."""
    own = local()

    def read(corner: tuple[int, int]) -> None:
        if not hasattr(own, "slide"):
            own.slide = openslide.OpenSlide(path)
        x, y = corner
        w, h = min(OPENSLIDE_PX, source.w - x), min(OPENSLIDE_PX, source.h - y)
        own.slide.read_region((x, y), 0, (w, h))

    return spread(read, source.blocks(OPENSLIDE_PX), threads)


def read_floor(path: Path, threads: int) -> float:
    """Seconds to bring the file's bytes from the page cache into memory."""
    own = local()
    with path.open("rb") as stream:

        def read(offset: int) -> None:
            if not hasattr(own, "buffer"):
                own.buffer = bytearray(PIECE_BYTES)
            os.preadv(stream.fileno(), [own.buffer], offset)

        offsets = list(range(0, path.stat().st_size, PIECE_BYTES))
        for offset in offsets:
            read(offset)  # warm
        return spread(read, offsets, threads)


def write_floor(folder: Path, size_bytes: int, threads: int) -> float:
    """Seconds until so many bytes are on the disk, in files that are flushed at once.

    One file of that size takes several times as long on some systems.
    """
    piece = os.urandom(PIECE_BYTES)

    def write(start: int) -> None:
        with (folder / f"floor-{start}.bin").open("wb", buffering=0) as stream:
            stream.write(piece[: size_bytes - start])
            os.fsync(stream.fileno())

    seconds = spread(write, list(range(0, size_bytes, PIECE_BYTES)), threads)
    for path in folder.glob("floor-*.bin"):
        path.unlink()
    return seconds


def spread(work: Callable[[Any], None], items: list[Any], threads: int) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
    return time.perf_counter() - start


def measure(path: Path, folder: Path, threads: int) -> Floor:
    """All floors but OpenSlide's."""
    source = Source(path)
    meter = compute_floor(source, threads)
    names = ("decode", "reduce", "zstd", "jpeg")
    seconds = {name: meter.cpu[name] / threads for name in names}
    wall = {name: meter.wall[name] / threads for name in names}
    passed = int(np.sum(source.counts)) + meter.bytes["jpeg"]
    out_bytes = {"zstd": meter.bytes["zstd"], "jpeg": passed}
    os.sync()
    # the disk's speed varies most: best of so many
    seconds["read"] = min(read_floor(path, threads) for _ in range(3))
    for name, size in out_bytes.items():
        writes = [write_floor(folder, size, threads) for _ in range(3)]
        seconds[f"{name} write"] = min(writes)
    return Floor(threads, seconds, wall, out_bytes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    path, found = arguments.slide, []
    cores = available_cores()
    for threads in sorted(arguments.threads):
        pin(cores[:threads])
        found.append(measure(path, arguments.folder, threads))
    found[-1].seconds["openslide"] = openslide_floor(path, Source(path), threads)
    print(json.dumps([asdict(floor) for floor in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
