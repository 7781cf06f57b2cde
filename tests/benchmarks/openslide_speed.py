"""What reading through OpenSlide costs beside its own read_region, and which cache and
block sizes suit it: two tables of CPU seconds.

    python tests/benchmarks/openslide_speed.py [--slide FILE] [--rounds 5]

Without --slide a JPEG TIFF of 100 MP is made. Both ways read the same blocks in turns,
in this process, so that other work on the machine hits both; medians are compared. The
cache is measured on JPEG 2000 of 24 MP with tiles of 1008 px, which no block size of a
power of two meets: each tile is wanted again, and dear. Takes three minutes.
"""

import argparse
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import openslide as reader
from wsi_pipeline.readers.base import GivenScale

BLOCK_PX, SIDE_PX, ROWS_PX, TILE_PX = 2048, 8064, 3024, 1008
HALF_UM = {"resolution": (20000, 20000), "resolutionunit": 3, "metadata": None}
APERIO = "Aperio Image Library v11\n8064x3024 J2K/RGB|AppMag = 20|MPP = 0.5"
CACHES_MIB, BLOCKS_PX = (0, 32, 64, 128, 256), (512, 2048, 4096)


def tissue(side: int) -> NDArray[np.uint8]:
    """Pink noise of two grains."""
    rng = np.random.default_rng(1)
    out = np.empty((side, side, 3), np.uint8)
    for channel, mean in enumerate((200, 130, 180)):
        coarse = gaussian_filter(rng.normal(0, 1, (side, side)).astype(np.float32), 9)
        grain = rng.normal(0, 6, (side, side)).astype(np.float32)
        out[..., channel] = np.clip(mean + 900 * coarse + grain, 0, 255)
    return out


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(act: Callable[[], None]) -> float:
    start = cpu()
    act()
    return cpu() - start


def compare(path: Path, rounds: int) -> None:
    slide = reader.open_with_openslide(path, GivenScale(0.5))
    blocks = list(slide.info.box.blocks(BLOCK_PX))

    def theirs() -> None:
        with openslide.OpenSlide(path) as plain:
            for box in blocks:
                plain.read_region((box.x, box.y), 0, (box.w, box.h))

    def ours() -> None:
        slide.close()
        for box in blocks:
            slide.read_planes(box)

    pairs = [(timed(theirs), timed(ours)) for _ in range(rounds + 1)][1:]
    plain, own = (median(times) for times in zip(*pairs, strict=True))
    print(f"{path.name}, {slide.info.box.area_px / 1e6:.0f} MP in {BLOCK_PX} px blocks")
    print(f"read_region {plain:.2f} s, read_planes {own:.2f} s: {own / plain:.3f}")


def cache_table(path: Path) -> None:
    print(f"\n{path.name}: CPU seconds by size of the cache in MiB\n")
    print("| threads | block px | " + " | ".join(map(str, CACHES_MIB)) + " |")
    print("|--:|--:|" + "--:|" * len(CACHES_MIB))
    for threads in (1, 2):
        for side in BLOCKS_PX:
            times = [read_all(path, side, threads, mib) for mib in CACHES_MIB]
            cells = " | ".join(f"{time:.1f}" for time in times)
            print(f"| {threads} | {side} | {cells} |", flush=True)


def read_all(path: Path, side: int, threads: int, mib: int) -> float:
    """Each thread reads its own half of the slide, row by row, as workers do."""
    reader.CACHE_BYTES = mib << 20
    reader._tile_cache.cache_clear()
    slide = reader.open_with_openslide(path, GivenScale(0.5))
    blocks = list(slide.info.box.blocks(side))
    step = -(-len(blocks) // threads)
    shares = [blocks[i : i + step] for i in range(0, len(blocks), step)]

    def read(share: list[Box]) -> None:
        for box in share:
            slide.read_planes(box)

    with ThreadPoolExecutor(threads) as pool:
        return timed(lambda: list(pool.map(read, shares)).clear())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jpeg, jpeg2000 = Path(folder, "jpeg.tif"), Path(folder, "jpeg2000.svs")
        image = tissue(10000 if options.slide is None else SIDE_PX)
        if options.slide is None:
            tifffile.imwrite(
                jpeg, image, tile=(256, 256), compression="jpeg", **HALF_UM
            )
        compare(options.slide or jpeg, options.rounds)
        tifffile.imwrite(
            jpeg2000,
            image[:ROWS_PX, :SIDE_PX],
            tile=(TILE_PX, TILE_PX),
            compression="aperio_jp2000_rgb",
            compressionargs={"level": 40},
            description=APERIO,
            **HALF_UM,
        )
        cache_table(jpeg2000)


if __name__ == "__main__":
    main()
