"""What stitching costs, against writing the same labels once.

    python tests/benchmarks/stitch_speed.py [--megapixels 64] [--rounds 3] [--workers 0]
        [--device cpu]

Predictions are made up: glands of six classes, regions of 512 px that overlap by an
eighth, 64 x 64 nodes on grids that a net learns; 85 % of the quads have one class. Each
row is a process of its own; the best of `--rounds` counts. The floor writes mask,
coverage and confidence from memory, all levels, with zarr-python; beside it stands what
the package's own writer takes. Processor time, which programs beside disturb less,
decides. Exits 1 if stitching costs more than three times the floor.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sampling_speed import learned_grid
from scipy import ndimage

from wsi_pipeline.classes import COVERAGE_CLASSES, MaskClass
from wsi_pipeline.config import StitchOptions
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.models.meshes import MIXED, build_meshes
from wsi_pipeline.models.sampling import to_unit
from wsi_pipeline.ngff import Source
from wsi_pipeline.process import peak_resident_bytes
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import DETAIL, RegionPrediction, Tissue
from wsi_pipeline.segmentation import Lattice
from wsi_pipeline.stitching import stitch_masks

ASKED_RATIO = 3.0
SIDE_PX, NODES, OVERLAP = 512, 64, 0.125
FIELD_STEP, GLAND_PX = 8, 54
CLASSES = tuple(
    MaskClass(k, name, (40 * k, 80, 255 - 40 * k))
    for k, name in enumerate(("Background", "A", "B", "C", "D", "E"))
)
ROWS = ("stitching", "zarr", "own writer")


@dataclass(frozen=True)
class Row:
    """What one process measured: seconds of the work, and resident bytes at most."""

    seconds: float
    cpu_seconds: float
    peak: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="0 = all CPUs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", nargs=2, metavar=("ROW", "FOLDER"))
    given = parser.parse_args()
    if given.run:
        row = measure(given.run[0], Path(given.run[1]), given.workers, given.device)
        print(json.dumps(asdict(row)))
        return 0
    side = round((given.megapixels * 1e6) ** 0.5)
    with tempfile.TemporaryDirectory() as temporary:
        pure = make_predictions(Path(temporary), side)
        print(f"{side} x {side} px, {pure:.0%} of the quads have one class")
        found = {name: best_of(name, Path(temporary), given) for name in ROWS}
    for name, row in found.items():
        print(
            f"{name:>10}  {row.seconds:6.2f} s  {row.cpu_seconds:6.2f} s of processors,"
            f"{row.cpu_seconds / side**2 * 1e9:6.1f} ns per pixel, "
            f"at most {row.peak / 2**20:.0f} MiB"
        )
    cost = found["stitching"].cpu_seconds
    ratio = cost / found["zarr"].cpu_seconds
    print(f"stitching / writing once with zarr-python: {ratio:.2f}")
    print(f"stitching / own writer: {cost / found['own writer'].cpu_seconds:.2f}")
    return int(ratio > ASKED_RATIO)


def best_of(name: str, folder: Path, given: argparse.Namespace) -> Row:
    """The round that took the least processor time."""
    command = [sys.executable, __file__, "--run", name, str(folder)]
    command += ["--workers", str(given.workers), "--device", given.device]
    lines = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for _ in range(given.rounds)
    ]
    return min((Row(**json.loads(line)) for line in lines), key=lambda r: r.cpu_seconds)


def make_predictions(folder: Path, side: int) -> float:
    """Write a pyramid without pixels and its predictions; share of pure quads."""
    whole = Box(0, 0, side, side)
    source = Source("made up", (side, side), Scale(0.5, 0.5), "made up", whole)
    Pyramid.create(folder / "slide.ome.zarr", source, 1, Layout())
    lattice = Lattice.over((side, side), SIDE_PX, OVERLAP, 1)
    boxes = lattice.boxes(~lattice.none())
    _, grids = learned_grid(NODES, 4, "cpu")
    glands = make_field(side)
    store = RegionStore.create(
        folder / "predictions.zarr",
        boxes,
        [DETAIL] * len(boxes),
        len(CLASSES),
        (NODES, NODES),
    )
    pure = []
    for start in range(0, len(boxes), 16):
        regions = [
            read_field(glands, box, to_unit(grids)[(start + i) % 4].numpy())
            for i, box in enumerate(boxes[start : start + 16])
        ]
        store.put(start, regions)
        pure += [(mesh.pure != MIXED).mean() for mesh in build_meshes(regions) or []]
    return float(np.mean(pure))


def make_field(side: int) -> NDArray[np.float32]:
    """Smooth random logits of each class, every FIELD_STEP pixels."""
    random = np.random.default_rng(0)
    shape = (len(CLASSES), side // FIELD_STEP + 1, side // FIELD_STEP + 1)
    noise = random.standard_normal(shape, np.float32)
    sigma = GLAND_PX / FIELD_STEP
    smooth = ndimage.gaussian_filter(noise, (0, sigma, sigma))
    return np.asarray(8 * smooth / smooth.std())


def read_field(
    glands: NDArray[np.float32], box: Box, grid: NDArray[np.float32]
) -> RegionPrediction:
    """Probabilities at the nodes of a region."""
    places = (
        (box.y + grid[1] * (box.h - 1)) / FIELD_STEP,
        (box.x + grid[0] * (box.w - 1)) / FIELD_STEP,
    )
    logits = [
        ndimage.map_coordinates(plane, places, order=1, mode="nearest")
        for plane in glands
    ]
    values = torch.from_numpy(np.stack(logits)).softmax(dim=0).numpy()
    return RegionPrediction(box, values.astype(np.float16), grid)


def measure(row: str, folder: Path, workers: int, device: str) -> Row:
    """Do the work of a row; code is compiled before."""
    torch.set_num_threads(1)
    store = folder / "predictions.zarr"
    labels = folder / "labels"
    if row == "stitching":
        small = folder / "small"
        if not small.exists():  # compiles, and keeps the code
            small.mkdir()
            make_predictions(small, 2 * SIDE_PX)
        stitch(small, small / "predictions.zarr", small / "labels", 1, device)

        def work() -> None:
            stitch(folder, store, labels, workers, device)

    elif row == "zarr":
        arrays = read_levels(labels)
        work = prepare_writing(folder / "again", labels, arrays, write_with_zarr)
    else:
        arrays = read_levels(labels)
        work = prepare_writing(folder / "own", labels, arrays, write_filled)
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return Row(seconds, cpu_seconds, peak_resident_bytes())


def stitch(folder: Path, store: Path, labels: Path, workers: int, device: str) -> None:
    pyramid = Pyramid(folder / "slide.ome.zarr")
    w, h = pyramid.levels[0].size_px
    stitch_masks(
        pyramid,
        RegionStore(store),
        Tissue(np.ones((-(-h // 16), -(-w // 16)), np.bool_), 16.0, Scale(0.5, 0.5)),
        CLASSES,
        labels / "mask",
        labels / "coverage",
        StitchOptions(keep_predictions=True, device=device),
        confidence_path=labels / "confidence",
        workers=workers,
    )


type Levels = dict[str, list[NDArray[np.uint8]]]


def read_levels(labels: Path) -> Levels:
    """All levels of the stitched labels."""
    return {
        path.name: [
            MaskPyramid(path).read_level(level.box, index)
            for index, level in enumerate(MaskPyramid(path).levels)
        ]
        for path in sorted(labels.iterdir())
    }


def prepare_writing(
    folder: Path,
    labels: Path,
    arrays: Levels,
    write: Callable[[MaskPyramid, list[NDArray[np.uint8]]], None],
) -> Callable[[], None]:
    """Make empty labels as stitching does; the rest is to be timed."""
    number = len(list(folder.iterdir())) if folder.exists() else 0
    made = []
    for name, levels in arrays.items():
        old = MaskPyramid(labels / name)
        label = MaskPyramid.create(
            folder / f"{number} {name}",
            old.source,
            int(old.levels[0].downsample),
            COVERAGE_CLASSES,
            levels=len(levels),
            block_px=old.shard_px(0),
        )
        made.append((label, levels))

    def work() -> None:
        for label, levels in made:
            write(label, levels)

    return work


def write_with_zarr(label: MaskPyramid, levels: list[NDArray[np.uint8]]) -> None:
    """Shard by shard, as zarr-python does it."""
    for index, values in enumerate(levels):
        for block in label.levels[index].box.blocks(label.shard_px(index)):
            label.put(index, block, values[block.rows, block.columns])


def write_filled(label: MaskPyramid, levels: list[NDArray[np.uint8]]) -> None:
    """The base by blocks with their coarser levels, then the others."""
    for block in label.levels[0].box.blocks(label.shard_px(0)):
        label.fill(0, block, levels[0][block.rows, block.columns])
    label.write_coarser(filled=True)


if __name__ == "__main__":
    sys.exit(main())
