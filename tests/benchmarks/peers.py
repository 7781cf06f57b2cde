"""The conversions that are timed, ours and the peers', each in a process of its own.

    python tests/benchmarks/peers.py NAME SLIDE OUT --threads 2
    python tests/benchmarks/peers.py check SLIDE OUT

As a script, prints one line of JSON: the seconds of the call alone, without imports,
or why it was skipped; `check` compares random places of what was written with the
slide's pixels. Imported, starts such processes and says what they took.
"""

import argparse
import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from threading import Timer
from typing import Any

JPEG_QUALITY = 80
SIDE, SAMPLES = 512, 24  # px and number of the places compared


LOSSY_MEAN = 4.0  # grey values that a second JPEG compression may be off on average


class SkippedError(Exception):
    """A contestant that cannot run here; the message says why."""


class ChildError(Exception):
    """A process that failed or took too long; the message says which."""


# A contestant imports its libraries, then returns the call that is timed. The peers
# have a Python of their own, in which nothing else need be installed.
Contestant = Callable[[Path, Path, int], Callable[[], object]]
RESOURCES = ExitStack()
"""What a contestant holds until its process ends."""


def ours(backend: str | None = None, **options: object) -> Contestant:
    """`tile_slide` with these options, on processes that are running already."""

    def prepare(slide: Path, out: Path, threads: int) -> Callable[[], object]:
        from wsi_pipeline import open_slide, tile_slide
        from wsi_pipeline.cluster import Workers
        from wsi_pipeline.config import TileOptions
        from wsi_pipeline.process import peak_resident_bytes

        unknown = ", ".join(set(options) - set(TileOptions.model_fields))
        if unknown:
            raise SkippedError(f"TileOptions has no {unknown}")
        values = {"target_mpp": "native", "workers": threads} | options
        handle = open_slide(slide, backend=backend)
        workers = Workers("processes" if threads > 1 else "threads", threads)
        pool = RESOURCES.enter_context(workers).pool_for(handle.info)
        if pool is not None:
            list(pool.map(begin, range(8 * threads)))

        def convert() -> int:
            tile_slide(handle, out, TileOptions(**values), pool=pool)
            return peak_resident_bytes(of_all=True)

        return convert

    return prepare


def begin(_: int) -> None:
    """Import what tiling needs, and leave the next call to another process."""
    for name in ("tiling", "readers.tiff", "readers.openslide"):
        importlib.import_module(f"wsi_pipeline.{name}")
    time.sleep(0.1)


def vips_tiff(slide: Path, out: Path, threads: int) -> Callable[[], object]:
    """The pyramidal JPEG TIFF of libvips."""
    pyvips = imported("pyvips")

    def convert() -> None:
        image = pyvips.Image.tiffload(str(slide), access="sequential")
        image.tiffsave(
            str(out),
            tile=True,
            tile_width=256,
            tile_height=256,
            pyramid=True,
            compression="jpeg",
            Q=JPEG_QUALITY,
            bigtiff=True,
        )

    return convert


def vips_dzsave(slide: Path, out: Path, threads: int) -> Callable[[], object]:
    """The DeepZoom folder of libvips: a JPEG file per tile."""
    pyvips = imported("pyvips")

    def convert() -> None:
        image = pyvips.Image.tiffload(str(slide), access="sequential")
        suffix = f".jpg[Q={JPEG_QUALITY}]"
        image.dzsave(str(out / "slide"), tile_size=256, overlap=0, suffix=suffix)

    out.mkdir()
    return convert


def ngff_zarr(slide: Path, out: Path, threads: int) -> Callable[[], object]:
    """The command of ngff-zarr with the fastest of its methods, a 2 x 2 mean."""
    dask, cli = imported("dask"), imported("ngff_zarr.cli")
    dask.config.set(num_workers=threads)
    words = f"ngff-zarr -q -i {slide} -o {out} -d y x c -c 512 -m dask_bin_shrink"
    sys.argv = words.split()
    return lambda: cli.main()


def plain_script(slide: Path, out: Path, threads: int) -> Callable[[], object]:
    """OpenSlide, Dask and Zarr."""
    script = imported("plain_script")
    return lambda: script.convert(str(slide), str(out), threads)


def tifffile_zarr(slide: Path, out: Path, threads: int) -> Callable[[], object]:
    """Tiles by tifffile, means by NumPy, shards by zarr-python, block by block."""
    np, tifffile, zarr = imported("numpy"), imported("tifffile"), imported("zarr")
    block, depth = 4096, 4  # a block's share of level 3 is one chunk of 512 px
    with tifffile.TiffFile(slide) as file:
        page = file.pages.first
        (h, w), decode = page.shape[:2], page.decode
        stream, columns = slide.read_bytes(), -(-w // 256)

    def create(group: Any, index: int) -> Any:
        side = max(512, block >> index)
        return group.create_array(
            str(index),
            shape=(3, -(-h // 2**index), -(-w // 2**index)),
            dtype="uint8",
            chunks=(3, 512, 512),
            shards=(3, side, side),
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
        )

    def halve(pixels: Any) -> Any:
        odd = [(0, n % 2) for n in pixels.shape[:2]]
        p = np.pad(pixels, [*odd, (0, 0)], mode="edge").astype(np.uint16)
        total = p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]
        return ((total + 2) >> 2).astype(np.uint8)

    def read(y: int, x: int) -> Any:
        pixels = np.empty((min(block, h - y), min(block, w - x), 3), np.uint8)
        for top in range(0, pixels.shape[0], 256):
            for left in range(0, pixels.shape[1], 256):
                index = (y + top) // 256 * columns + (x + left) // 256
                start = page.dataoffsets[index]
                data = stream[start : start + page.databytecounts[index]]
                part = pixels[top : top + 256, left : left + 256]
                tile = decode(data, index, jpegtables=page.jpegtables)[0][0]
                part[:] = tile[: part.shape[0], : part.shape[1]]
        return pixels

    def convert() -> None:
        count = max(1, (max(h, w) - 1).bit_length() - 8)  # until at most 512 px
        group = zarr.create_group(out)
        arrays = [create(group, index) for index in range(count)]
        top = np.empty((-(-h // 2**depth), -(-w // 2**depth), 3), np.uint8)

        def write(corner: tuple[int, int]) -> None:
            y, x = corner
            pixels = read(y, x)
            for array in arrays[:depth]:
                n, m = pixels.shape[:2]
                array[:, y : y + n, x : x + m] = pixels.transpose(2, 0, 1)
                pixels, y, x = halve(pixels), y // 2, x // 2
            top[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

        corners = [(y, x) for y in range(0, h, block) for x in range(0, w, block)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(write, corners))
        pixels = top
        for array in arrays[depth:]:
            array[:] = pixels.transpose(2, 0, 1)
            pixels = halve(pixels)

    return convert


CONTESTANTS: dict[str, Contestant] = {
    "zstd": ours(),
    "jpeg": ours(codec="jpeg", jpeg_quality=JPEG_QUALITY),
    "ome-zarr-0.4": ours(ome_zarr="0.4"),
    "openslide": ours(backend="openslide"),
    "vips-tiff": vips_tiff,
    "vips-dzsave": vips_dzsave,
    "ngff-zarr": ngff_zarr,
    "tifffile-zarr": tifffile_zarr,
    "plain-script": plain_script,
}


def imported(name: str) -> Any:  # Any: a module that may not be there
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise SkippedError(f"cannot import {name}: {error}") from error


def check(slide: Path, out: Path) -> dict[str, float]:
    """Largest and mean difference of random places of level 0 from the slide.

    Notes
    -----
    The last place of the grid is among them, so edges are compared too.
    """
    import numpy as np
    import tifffile
    import zarr

    truth = zarr.open_array(tifffile.TiffFile(slide).aszarr(), mode="r")
    h, w = truth.shape[:2]
    read = reader(out)
    lot = random.Random(1)  # noqa: S311  # places, not secrets
    rows, columns = -(-h // SIDE), -(-w // SIDE)
    places = [(lot.randrange(rows), lot.randrange(columns)) for _ in range(SAMPLES)]
    apart = []
    for row, column in [*places, (rows - 1, columns - 1)]:
        ys = slice(row * SIDE, min((row + 1) * SIDE, h))
        xs = slice(column * SIDE, min((column + 1) * SIDE, w))
        wanted, found = truth[ys, xs], read(ys, xs)
        if found.shape != wanted.shape:
            return {"max": 255, "mean": 255}
        apart.append(np.abs(wanted.astype(np.int16) - found).ravel())
    every = np.concatenate(apart)
    return {"max": int(every.max()), "mean": float(every.mean())}


def reader(out: Path) -> Callable[[slice, slice], Any]:
    """Reads (h, w, 3) pixels of level 0 of whatever a contestant wrote."""
    import imagecodecs
    import numpy as np
    import tifffile
    import zarr
    from imagecodecs.zarr import register_codecs

    if (out / "slide_files").exists():
        folder = max((out / "slide_files").glob("[0-9]*"), key=lambda p: int(p.name))

        def tile(x: int, y: int) -> Any:
            return imagecodecs.jpeg8_decode((folder / f"{x}_{y}.jpg").read_bytes())

        def read(ys: slice, xs: slice) -> Any:
            rows, columns = (range(s.start // 256, -(-s.stop // 256)) for s in (ys, xs))
            strips = [np.concatenate([tile(x, y) for x in columns], 1) for y in rows]
            return np.concatenate(strips)

        return read
    if out.is_file():
        array: Any = zarr.open_array(tifffile.TiffFile(out).series[0].aszarr(level=0))
        return lambda ys, xs: array[ys, xs]
    register_codecs()
    group = zarr.open_group(out, mode="r")
    facts: Any = group.attrs.get("ome", group.attrs)
    multiscales = facts.get("multiscales")
    array = group[multiscales[0]["datasets"][0]["path"] if multiscales else "0"]
    if array.shape[0] == 3:
        return lambda ys, xs: array[:, ys, xs].transpose(1, 2, 0)
    return lambda ys, xs: array[ys, xs]


@dataclass(frozen=True)
class Outcome:
    """What a conversion took, or the note why it did not come to an end.

    Parameters
    ----------
    seconds : float
        nan where there was none.
    peak_bytes : int
        Largest resident memory of its process, of ours with its workers.
    out_bytes, base_bytes : int
        Size of all that was written, and of level 0 alone (0 in foreign layouts).
    note : str
        Why it was skipped or failed, or that its pixels are wrong.
    """

    seconds: float = math.nan
    peak_bytes: int = 0
    out_bytes: int = 0
    base_bytes: int = 0
    note: str = ""


def convert_timed(
    words: list[Any], slide: Path, out: Path, threads: int, limit: float, lossy: bool
) -> Outcome:
    """Run a command line and compare what it wrote with the slide.

    Seconds are its own word where it is this script's, else the whole time.
    """
    remove(out)
    with slide.open("rb") as stream:
        while stream.read(2**20):  # the page cache is warm
            pass
    os.sync()  # nobody waits for what the one before wrote
    start = time.perf_counter()
    try:
        output, peak = child(words, threads, limit)
        seconds = time.perf_counter() - start
        if Path(__file__) in words:
            told = json.loads(output)
            if "skipped" in told:
                return Outcome(note=f"skipped: {told['skipped']}")
            seconds = told["seconds"]
            peak = told["peak_bytes"] or peak
        else:
            out = next(out.glob("*/slide.ome.zarr"))
            record = out.parent / "stages" / "tile.json"
            peak = json.loads(record.read_bytes())["peak_bytes"]
        check_words = [sys.executable, __file__, "check", slide, out]
        found = json.loads(child(check_words, threads, limit)[0])
    except ChildError as error:
        return Outcome(note=str(error))
    wrong = found["mean"] > LOSSY_MEAN if lossy else found["max"]
    note = f"WRONG PIXELS, {found}" if wrong else ""
    return Outcome(seconds, peak, size_of(out), size_of(out / "0"), note)


def child(words: list[Any], threads: int, limit: float) -> tuple[str, int]:
    """Last line of output and peak resident bytes of a process on so many cores.

    Raises
    ------
    ChildError
        If it takes longer than `limit` seconds or fails.
    """
    cores = available_cores()
    count = {"OMP_NUM_THREADS": str(threads), "VIPS_CONCURRENCY": str(threads)}
    with tempfile.TemporaryFile("w+") as errors:
        pin(cores[:threads])  # a process inherits the cores of the one that starts it
        process = subprocess.Popen(
            [str(word) for word in words],
            env=os.environ | count,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        pin(cores)
        start = time.monotonic()
        timer = Timer(limit, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode:
        late = time.monotonic() - start >= limit
        why = said[-1] if said else process.returncode
        raise ChildError(f"not done after {limit:.0f} s" if late else f"failed: {why}")
    return ["", *output.strip().splitlines()][-1], usage.ru_maxrss * 1024


def available_cores() -> list[int]:
    """Cores that this process may use; empty where the system does not tell."""
    tell = getattr(os, "sched_getaffinity", None)
    return sorted(tell(0)) if tell else []


def pin(cores: list[int]) -> None:
    """Keep this thread, and what it starts, on the given cores."""
    if cores:
        os.sched_setaffinity(0, cores)


def size_of(path: Path) -> int:
    """Bytes of a file or of all files of a folder; 0 where there is neither."""
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir():
        rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*CONTESTANTS, "check"])
    parser.add_argument("slide", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    name, slide, out = arguments.name, arguments.slide, arguments.out
    if name == "check":
        print(json.dumps(check(slide, out)))
        return 0
    try:
        convert = CONTESTANTS[name](slide, out, arguments.threads)
        with RESOURCES:
            start = time.perf_counter()
            told = convert()
            seconds = time.perf_counter() - start
        peak = told if isinstance(told, int) else 0
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
    except SkippedError as reason:
        print(json.dumps({"skipped": str(reason)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
