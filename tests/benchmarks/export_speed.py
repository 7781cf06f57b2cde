"""How fast a mask goes to GeoJSON, against `rasterio.features.shapes` on the array.

    python tests/benchmarks/export_speed.py [--megapixels 1000] [--peer-megapixels 64]
        [--times 16] [--rounds 3]

The mask has about 110 gland-like objects per megapixel: a tile of the synthetic
generator, again and again, in a label store on the disk. Each row is a process of its
own that does nothing else, on `--workers` CPUs; the best of `--rounds` counts. `shapes`
gets the whole array in memory for nothing, and only polygonises. What people usually
combine does so on a part of the mask (`--peer-megapixels`); its seconds per megapixel
are printed beside. `--times` adds a mask so many times larger.

Prints a table, and what is asked: at most half of the time of `shapes`, 1.5 GiB, 2 s
for a blank mask, and 17 times the time for 16 times the mask. Exits 1 if that fails.
Processor time, which programs beside it disturb less, is printed too.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.exporters import export_masks
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import LABEL_SHARD_PX
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.synthetic import SYNTHETIC_CLASSES, paint_region

TILE_PX, SEED, MPP = 2048, 3, 1.0
ASKED_RATIO, ASKED_GIB, ASKED_BLANK_S = 0.5, 1.5, 2.0
SHARD_MP = LABEL_SHARD_PX**2 / 1e6
PEERS = ("rasterio + shapely + json", "skimage + json")

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """What one process measured.

    Parameters
    ----------
    seconds, cpu_seconds, objects, megabytes
        Of the work alone: time, processor time, objects found, size of the file.
    peak : int
        Resident memory of the process, bytes.
    """

    seconds: float
    cpu_seconds: float
    objects: int
    megabytes: float
    peak: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=1000)
    parser.add_argument("--peer-megapixels", type=float, default=64)
    parser.add_argument("--times", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="0 = all CPUs")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "STORE"))
    given = parser.parse_args()
    if given.run:
        work(given.run[0], Path(given.run[1]), given.workers)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return compare(given, Path(temporary))


def compare(given: argparse.Namespace, folder: Path) -> int:
    """Print the table; 1 if what is asked is not met."""
    tile = paint_region(SEED, (TILE_PX, TILE_PX), MPP)[1]
    glands, blank = folder / "glands.zarr", folder / "blank.zarr"
    size = make_store(glands, given.megapixels, tile)
    make_store(blank, given.megapixels, np.zeros_like(tile))
    print(
        f"{size} MP on {given.workers or os.cpu_count()} CPUs, best of {given.rounds}"
    )
    rows = {
        name: best(name, store, given)
        for name, store in (
            ("shapes", glands),
            ("ours, pixel edges", glands),
            ("ours, simplified", glands),
            ("shapes, blank", blank),
            ("ours, blank", blank),
        )
    }
    part = folder / "part.zarr"
    print(f"{make_store(part, given.peer_megapixels, tile)} MP")
    for name in (*PEERS, "ours, simplified"):
        best(name, part, given)
    floor = rows["shapes"].seconds
    ours = [rows["ours, pixel edges"], rows["ours, simplified"]]
    met = [
        check("time / shapes", max(row.seconds for row in ours) / floor, ASKED_RATIO),
        check("peak, GiB", max(row.peak for row in ours) / 2**30, ASKED_GIB),
        check("blank, s", rows["ours, blank"].seconds, ASKED_BLANK_S),
    ]
    if given.times:
        large = folder / "large.zarr"
        print(f"{make_store(large, given.megapixels * given.times, tile)} MP")
        found = best("ours, simplified", large, given)
        times = found.seconds / ours[1].seconds
        met.append(check(f"time x {given.times}", times, given.times * 17 / 16))
    return int(not all(met))


def check(name: str, value: float, most: float) -> bool:
    print(f"{name}: {value:.2f} (at most {most:g})")
    return value <= most


def best(name: str, store: Path, given: argparse.Namespace) -> Row:
    rows = [measure(name, store, given.workers) for _ in range(given.rounds)]
    row = min(rows, key=lambda row: row.seconds)
    print(
        f"{name:26} {row.seconds:7.2f} s {row.cpu_seconds:7.2f} cpu s "
        f"{row.peak / 2**30:5.2f} GiB "
        f"{row.objects:8} objects  {row.megabytes:7.1f} MB",
        flush=True,
    )
    return row


def measure(name: str, store: Path, workers: int) -> Row:
    """Run one row in a process of its own, on so many CPUs."""
    command = [sys.executable, __file__, "--run", name, str(store)]
    command += ["--workers", str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    return Row(**json.loads(told), peak=usage.ru_maxrss * 1024)


def work(name: str, store: Path, workers: int) -> None:
    """Do what a row measures and print its figures."""
    if workers and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    masks, path = MaskPyramid(store), store.with_name(f"{os.getpid()}.geojson")
    if name.startswith("ours"):
        simplify_um = 1.0 if name == "ours, simplified" else 0.0
        options = ExportOptions(simplify_um=simplify_um, min_area_um2=0, min_hole_um2=0)

        def run() -> int:
            return export_masks(masks, path, options, slide_id="bench").objects
    else:
        mask = masks.read_level(masks.levels[0].box, 0)
        peer = {PEERS[0]: combine_rasterio, PEERS[1]: combine_skimage}.get(name, shapes)

        def run() -> int:
            return peer(mask, path)

    start, cpu_start = time.perf_counter(), time.process_time()
    figures = {"objects": run()}
    figures["seconds"] = time.perf_counter() - start
    figures["cpu_seconds"] = time.process_time() - cpu_start
    figures["megabytes"] = path.stat().st_size / 1e6 if path.exists() else 0.0
    path.unlink(missing_ok=True)
    print(json.dumps(figures))


def shapes(mask: Mask, _: Path) -> int:
    """Polygons in memory and nothing else."""
    from rasterio.features import shapes as polygonise

    return len(list(polygonise(mask, mask=mask > 0, connectivity=4)))


def combine_rasterio(mask: Mask, path: Path) -> int:
    """As in most scripts: shapely objects, simplified one by one, json."""
    from rasterio.features import shapes as polygonise

    features = []
    for shape, value in polygonise(mask, mask=mask > 0, connectivity=4):
        outline = shapely.geometry.shape(shape).simplify(1.0)
        features.append(feature(shapely.geometry.mapping(outline), int(value)))
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return len(features)


def combine_skimage(mask: Mask, path: Path) -> int:
    """As in most scripts: label, regionprops, find_contours; holes become outlines."""
    from skimage.measure import find_contours, label, regionprops

    features = []
    for region in regionprops(label(mask, connectivity=1, background=0)):
        top, left, _, _ = region.bbox
        rings = [
            (contour[:, ::-1] + (left - 0.5, top - 0.5)).tolist()
            for contour in find_contours(np.pad(region.image, 1).astype(float), 0.5)
        ]
        outline = {"type": "Polygon", "coordinates": rings}
        features.append(feature(outline, int(mask[tuple(region.coords[0])])))
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return len(features)


def feature(geometry: object, value: int) -> dict[str, object]:
    kind = SYNTHETIC_CLASSES[value]
    about = {"classification": {"name": kind.name, "color": list(kind.rgb)}}
    return {"type": "Feature", "geometry": geometry, "properties": about}


def make_store(path: Path, megapixels: float, tile: Mask) -> int:
    """A label of one shard, again and again; returns its megapixels."""
    count = max(1, round(megapixels / SHARD_MP))
    columns = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
    if columns**2 * 4 < count:  # a strip: rather a few shards less
        columns = math.isqrt(count)
    rows = count // columns
    size = columns * LABEL_SHARD_PX, rows * LABEL_SHARD_PX
    source = Source("bench", size, Scale(MPP, MPP), "bench", Box(0, 0, *size))
    classes: tuple[MaskClass, ...] = SYNTHETIC_CLASSES
    masks = MaskPyramid.create(path, source, 1, classes)
    side = LABEL_SHARD_PX // TILE_PX
    masks.put(0, Box(0, 0, LABEL_SHARD_PX, LABEL_SHARD_PX), np.tile(tile, (side, side)))
    first = path / "0" / "c" / "0" / "0"
    for row in range(rows):
        first.parent.with_name(str(row)).mkdir(exist_ok=True)
        for column in range(columns):
            if row or column:
                shutil.copyfile(first, path / "0" / "c" / str(row) / str(column))
    return round(size[0] * size[1] / 1e6)


Peer = Callable[[Mask, Path], int]

if __name__ == "__main__":
    sys.exit(main())
