"""How fast patches go from Zarr through `select_patches`, against the encoder alone.

    python tests/benchmarks/select_speed.py [--megapixels 400] [--rounds 5] [--only RE]

Makes a lossless pyramid (one painted block, again and again), and for each encoder and
precision takes turns: the encoder on patches in memory, then `select_patches` on as
many patches in whole shards of the pyramid, at the same batch. A ratio is that of two
neighbouring turns, so that both see the same machine; the median is what counts.
"cpu_ratio" compares the processor time instead, which programs beside it disturb less.
Rows "off scale" have patches one pixel larger than the encoder wants, as of a scanner
whose um/px are not quite the model's. One line of JSON per row.
"""

import argparse
import json
import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from wsi_pipeline.config import SelectOptions
from wsi_pipeline.feeding import Batch, Ids, PyramidSource
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.models.cards import (
    ClassCard,
    ModelCard,
    ModelFolder,
    SelectorCard,
)
from wsi_pipeline.models.scoring import open_scorer, settle
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import save_state
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.selection import select_from
from wsi_pipeline.shards import BlockLevel
from wsi_pipeline.synthetic import paint_region

GOAL = 0.85
MPP, BLOCK_PX, SEED = 0.5, 2048, 1
LAYOUT = Layout()


class Case(NamedTuple):
    """An encoder on patches of patch_px, cut from size_px; 16.8 MP shards a turn."""

    encoder: str
    patch_px: int
    precision: str
    size_px: int
    shards: int

    @property
    def name(self) -> str:
        scale = "" if self.size_px == self.patch_px else ", off scale"
        return f"{self.encoder} {self.patch_px} px {self.precision}{scale}"


class Rate(NamedTuple):
    """Patches per second, and milliseconds of processor time per patch."""

    per_s: float
    cpu_ms: float


CASES = [
    Case(encoder, px, precision, px + more, shards)
    for more in (0, 1)
    for encoder, px, shards in (("small", 128, 4), ("resnet18-frozen", 224, 1))
    for precision in ("float32", "bfloat16")
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name this finds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pyramid = write_pyramid(folder / "slide.ome.zarr", given.megapixels)
        for case in CASES:
            if re.search(given.only, case.name):
                row = measure(case, pyramid, folder, given)
                print(json.dumps(row), flush=True)
                verdict = "holds" if row["ratio"] >= GOAL else "does not hold"
                log(f"{case.name}: {row['ratio']:.2f}, at least {GOAL} {verdict}")
    return 0


def measure(
    case: Case, pyramid: Pyramid, folder: Path, given: argparse.Namespace
) -> dict[str, object]:
    """Rates and ratios of a case, from turns on ever other shards."""
    model = write_model(folder, case)
    options = SelectOptions(device=given.device, precision=case.precision)
    across = pyramid.levels[0].size_px[0] // LAYOUT.block_px
    turns: list[tuple[Rate, Rate]] = []
    facts: dict[str, object] = {}
    for turn in range(given.rounds + 1):
        cells = [
            divmod((turn * case.shards + i) % across**2, across)
            for i in range(case.shards)
        ]
        grid = grid_of(case, cells)
        alone = rate_alone(pyramid, grid, model, options)
        fed, facts = rate_from_zarr(pyramid, grid, model, options)
        if turn:  # the first one warms up
            turns.append((alone, fed))
    ratios = [fed.per_s / alone.per_s for alone, fed in turns]
    cpu = [alone.cpu_ms / fed.cpu_ms for alone, fed in turns]
    return {
        "case": case.name,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_ratio": round(statistics.median(cpu), 3),
        "alone": middle([alone for alone, _ in turns]),
        "from_zarr": middle([fed for _, fed in turns]),
        "patches_per_turn": len(grid),
        "batch": facts["batch"],
        "reading": facts["reading"],
        "threads": torch.get_num_threads(),
        "load": round(load(), 1),
    }


def middle(rates: list[Rate]) -> dict[str, float]:
    columns = zip(*rates, strict=True)
    values = [round(statistics.median(column), 3) for column in columns]
    return dict(zip(Rate._fields, values, strict=True))


def rate_alone(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder, options: SelectOptions
) -> Rate:
    """Of the encoder and scorer on patches in memory."""
    source = PyramidSource(pyramid, grid, 1 << 30)
    with open_scorer(model, options, len(grid)) as scorer:
        batches = list(source.batches(source.order, scorer.plan.batch))
        watch = Watch()
        for _ in scorer.score_all(batches):
            pass
        return watch.rate(len(grid))


def rate_from_zarr(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder, options: SelectOptions
) -> tuple[Rate, dict[str, object]]:
    """Of what `select_patches` does, from the first batch that it asks for."""
    source = WatchedSource(pyramid, grid, settle(options).queue_bytes)
    rates: list[Rate] = []

    def tick(done: int, total: int) -> None:
        if done == total:
            rates.append(source.watches[0].rate(total))

    scale = pyramid.source.scale
    found = select_from(source, grid, scale, model, options, progress=tick)
    return rates[0], {"batch": found.facts["batch"], "reading": source.facts()}


class Watch:
    """Starts when it is made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def rate(self, patches: int) -> Rate:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return Rate(patches / wall, 1000 * cpu / patches)


class WatchedSource(PyramidSource):
    """Starts a watch whenever batches are asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.watches: list[Watch] = []

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        self.watches.append(Watch())
        return super().batches(ids, size)


def grid_of(case: Case, cells: list[tuple[int, int]]) -> PatchGrid:
    """All whole patches of some shards."""
    starts = np.arange(0, LAYOUT.block_px - case.size_px + 1, case.size_px)
    y, x = np.meshgrid(starts, starts, indexing="ij")
    local = np.stack([x.ravel(), y.ravel()], axis=1)
    parts = [local + LAYOUT.block_px * np.array([c, r]) for r, c in cells]
    corners = np.concatenate(parts).astype(np.int64)
    mpp = MPP * case.size_px / case.patch_px
    tissue = np.ones(len(corners), np.float32)
    return PatchGrid(corners, case.size_px, case.patch_px, mpp, tissue)


def write_pyramid(path: Path, megapixels: float) -> Pyramid:
    """A square pyramid of whole shards, of which only level 0 is filled."""
    log("making the pyramid")
    across = max(1, round(math.sqrt(megapixels * 1e6) / LAYOUT.block_px))
    size = across * LAYOUT.block_px, across * LAYOUT.block_px
    source = Source("painted", size, Scale(MPP, MPP), "test", Box(0, 0, *size))
    pyramid = Pyramid.create(path, source, 1, LAYOUT)
    painted = paint_region(SEED, (BLOCK_PX, BLOCK_PX), MPP, mix=(0, 1, 1, 1, 1, 1))[0]
    planes = np.ascontiguousarray(painted.transpose(2, 0, 1))
    chunk = LAYOUT.chunk_px
    encoded = {
        (cell.x, cell.y): LAYOUT.codec.encode(
            np.ascontiguousarray(planes[:, cell.rows, cell.columns])
        )
        for cell in Box(0, 0, BLOCK_PX, BLOCK_PX).blocks(chunk)
    }
    with ThreadPoolExecutor(1) as disk:
        for box in pyramid.levels[0].box.blocks(LAYOUT.block_px):
            with BlockLevel(path / "0", LAYOUT, 0, box, disk) as shard:
                for cell in box.blocks(chunk):
                    data = encoded[cell.x % BLOCK_PX, cell.y % BLOCK_PX]
                    shard.put_encoded(cell.x, cell.y, data)
    return pyramid


def write_model(folder: Path, case: Case) -> ModelFolder:
    """A selector of random weights; they do not change the time."""
    torch.manual_seed(SEED)
    net = SelectorNet(SelectorShape(case.encoder), ("lesion",))
    selector = SelectorCard(
        sha256=save_state(net, folder / "selector.safetensors"),
        mpp=MPP * case.size_px / case.patch_px,
        patch_px=case.patch_px,
        top_m=1,  # reading the chosen again is not in the rate
        tasks=net.tasks,
        architecture=net.shape.to_json(),
        training={},
        metrics={},
    )
    card = ModelCard(
        name="random",
        version="1",
        summary="random weights",
        intended_use="benchmarks",
        limits="knows nothing",
        licence="Apache-2.0",
        data="none",
        classes=(ClassCard(value=0, name="Background", rgb=(255, 255, 255)),),
        selector=selector,
    )
    return ModelFolder(folder, card)


def load() -> float:
    """Processes that wanted a core in the last minute, on average."""
    return float(Path("/proc/loadavg").read_text().split()[0])


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
