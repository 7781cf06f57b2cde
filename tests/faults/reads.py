"""Four workers that read one slide at once, of every kind that Python has.

``python -m tests.faults.reads slide.tif tiff guarded spawn threads ...``
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tests.tiff_files import HALF_UM
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.ranges import LocalRanges

WORKERS, SIDE, TILE = 4, 2048, 64
TILES = (SIDE // TILE) ** 2  # what each worker reads, in an order of its own


def colours() -> np.ndarray:
    """(TILES, 3) uint8: a colour of its own for each tile, on a pink ground."""
    number = np.arange(TILES)
    return np.stack([200 + number // 32, 90 + number % 32, 150 + 0 * number], axis=1)


def write_tiles(path: Path) -> None:
    """A slide whose tiles have one colour each, lossless."""
    across = SIDE // TILE
    picture = colours().reshape(across, across, 3).astype(np.uint8)
    tifffile.imwrite(
        path,
        picture.repeat(TILE, 0).repeat(TILE, 1),
        tile=(TILE, TILE),
        compression="deflate",
        photometric="rgb",
        metadata=None,
        **HALF_UM,
    )


def read_all(slide: Any, seed: int) -> tuple[int, int]:
    """Read every tile once; how many came out wrong, and how many not at all."""
    wanted, wrong, errors = colours(), 0, 0
    for number in np.random.default_rng(seed).permutation(TILES):
        row, column = divmod(int(number), SIDE // TILE)
        try:
            read = slide.read(Box(column * TILE, row * TILE, TILE, TILE))
            wrong += not (read == wanted[number]).all()
        except SlideError:
            errors += 1
    return wrong, errors


INHERITED: list[Any] = []  # what a fork gets without a pickle


def read_inherited(seed: int) -> tuple[int, int]:
    """As `read_all`, of the slide that was open when this process was forked."""
    return read_all(INHERITED[0], seed)


class OneForAll(dict[int, Any]):
    """Handles as if they were not kept by process."""

    def get(self, _pid: int, _default: Any = None) -> Any:
        return super().get(0)

    def setdefault(self, _pid: int, handle: Any = None) -> Any:
        return super().setdefault(0, handle)

    def pop(self, _pid: int, _default: Any = None) -> Any:
        return super().pop(0, None)


def fetch_by_cursor(
    self: LocalRanges, offsets: Sequence[int], counts: Sequence[int]
) -> list[bytes]:
    """As `LocalRanges.fetch`, but with a cursor, which is the descriptor's."""
    found = []
    for offset, count in zip(offsets, counts, strict=True):
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        os.sched_yield()
        found.append(os.read(self._descriptor, count))
    return found


def run(path: Path, backend: str, guards: str, method: str) -> tuple[int, int]:
    """Wrong reads and errors of all workers; guards: guarded, cursor or shared."""
    if guards != "guarded":
        LocalRanges.fetch = fetch_by_cursor  # type: ignore[method-assign]
    slide: Any = open_slide(path, backend=backend)
    if guards == "shared":
        slide._handles = OneForAll(dict.fromkeys([0], slide._handles[os.getpid()]))
    slide.read(Box(0, 0, 1, 1))  # the handle is open when workers begin
    if method == "threads":
        pool: Any = ThreadPoolExecutor(WORKERS)
    else:
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([__spec__.name])
        pool = ProcessPoolExecutor(WORKERS, context)
    with pool:
        if method == "fork":
            INHERITED[:] = [slide]
            jobs = [pool.submit(read_inherited, seed) for seed in range(WORKERS)]
        else:
            jobs = [pool.submit(read_all, slide, seed) for seed in range(WORKERS)]
        found = [job.result() for job in jobs]
    return sum(wrong for wrong, _ in found), sum(errors for _, errors in found)


if __name__ == "__main__":
    place, backend, guards, *methods = sys.argv[1:]
    said = {m: run(Path(place), backend, guards, m) for m in methods}
    sys.stdout.write(json.dumps(said))
