"""What learned downsampling is worth at equal pixels: one table of trained arms.

    python tests/benchmarks/segment_table.py [--minutes 60] [--jobs 2] [--only REGEX]

Trains and measures cell after cell of the plan (segment_plan.py) and adds each as a
line to segment_cells.jsonl; cells that are there already are not run again, so that
the command goes on where it stopped. `--table` prints what there is; `--plot FILE`
draws the binary frames, as .svg or .png. Every arm has the same frames, batches, steps,
augmentation, taps per cell, soft labels, and logits that are read back bilinearly
through the exact inverse.
"""

import argparse
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from segment_plan import PLAN, Cell, Frames, cells_of, paint_missing_strips
from segment_report import class_table, plain_frames, summary, table

from wsi_pipeline.models.sampling import cell_areas
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.training.arms import ArmOptions, fit_arm
from wsi_pipeline.training.comparing import Frame, compare_frames
from wsi_pipeline.training.gallery import Gallery
from wsi_pipeline.training.loop import LoopOptions
from wsi_pipeline.training.plots import draw_budgets, publish_figure

HERE = Path(__file__).parent
DATA = HERE.parent.parent.parent / "shared" / "data"
CELLS = HERE / "segment_cells.jsonl"
PICTURES = HERE.parent.parent / "build" / "segment"
BLUR_SHARE = 0.15
"""Sigma of the test blur, as a share of the distance between even nodes."""
RATE = 3e-3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="start none later")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--only", default="", help="regular expression on cells")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, default=DATA, help="holds labelled/glas")
    parser.add_argument(
        "--dataset", help="instead of the plan, one of the table of datasets you have"
    )
    parser.add_argument("--cells", type=Path, default=CELLS, help="results so far")
    parser.add_argument("--list", action="store_true", help="print the plan")
    parser.add_argument("--table", action="store_true", help="print the table only")
    parser.add_argument("--plot", type=Path, help=".svg or .png to draw in")
    given = parser.parse_args()
    done = read_cells(given.cells)
    if given.plot:
        plain = plain_frames(done)
        if not plain:
            lacking = "no binary frames yet" if done else "missing or empty"
            print(f"{given.cells}: {lacking}; nothing to draw", file=sys.stderr)
            return 1
        publish_figure(given.plot, draw_budgets(plain))
        return 0
    if given.table:
        print("\n".join([*summary(done), "", *table(done), "", *class_table(done)]))
        return 0
    names = {row["name"] for row in done}
    plan = cells_of(given.dataset, given.data) if given.dataset else PLAN
    left = [c for c in plan if re.search(given.only, c.name) and c.name not in names]
    if given.list:
        print(
            "\n".join(f"{'done' if c.name in names else 'open'} {c.name}" for c in plan)
        )
        return 0
    if any(cell.data == "strips" for cell in left):
        paint_missing_strips()
    start = time.monotonic()
    context = get_context("spawn")
    with ProcessPoolExecutor(given.jobs, context, max_tasks_per_child=1) as pool:
        running = {}
        while left or running:
            late = time.monotonic() - start > given.minutes * 60
            while left and len(running) < given.jobs and not late:
                cell = left.pop(0)
                running[pool.submit(run, cell, given.data, given.device)] = cell
            if not running:
                break
            future = next(as_completed(running))
            cell = running.pop(future)
            row = future.result()
            with given.cells.open("ab") as stream:
                stream.write(orjson.dumps(row) + b"\n")
            print(cell.name, row["miou"], f"{row['train_seconds']} s", flush=True)
    print("\n".join(table(read_cells(given.cells))))
    return 0


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Results so far."""
    if not path.exists():
        return []
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def run(cell: Cell, data_dir: Path, device: str) -> dict[str, Any]:
    """Train and measure a cell."""
    torch.set_num_threads(1)
    data = cell.load(data_dir)
    spec = SegmenterSpec(len(data.classes), nodes=cell.nodes, **dict(cell.changes))
    arm = ArmOptions(data.views, cell.batch, cell.seed, nodes=data.nodes)
    loop = LoopOptions(cell.steps, device=device, precision="bf16-mixed", lr=RATE)
    start = time.perf_counter()
    net, losses = fit_arm(spec, cell.strategy, data.train, arm, loop)
    seconds = time.perf_counter() - start
    if data.rule is None:
        folder = PICTURES / re.sub(r"[^\w.=+-]+", "-", cell.name)
        folder.mkdir(parents=True, exist_ok=True)
        Gallery(folder, data.validation, data.classes).hang(
            cell.strategy, net, cell.steps
        )
    scores = compare_frames(net, data.validation, nodes=data.rule)
    blur_px = BLUR_SHARE * cell.budget**0.5
    blurred = compare_frames(net, data.validation, blur_px=blur_px, nodes=data.rule)
    return {
        "name": cell.name,
        **{k: v for k, v in asdict(cell).items() if k != "changes"},
        "changes": dict(cell.changes),
        "miou": round(miou(scores.full.sum(axis=0)), 4),
        "patients": list(data.validation.groups),
        "classes": [c.name for c in data.classes],
        "full": scores.full.tolist(),
        "at_nodes": scores.nodes.tolist(),
        "bound": scores.bound.tolist(),
        "blurred": blurred.full.tolist(),
        "near": scores.near.sum(axis=0).tolist(),
        "gflops": round(scores.flops / 1e9, 4),
        "seconds_per_mp": round(scores.seconds, 3),
        "cell_area_5_50_95": areas_of(net, data),
        "final_loss": round(float(np.mean(losses[-50:])), 4),
        "train_seconds": round(seconds),
        "device": device_name(device),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def miou(counts: np.ndarray) -> float:
    from wsi_pipeline.metrics import mean_iou

    return mean_iou(counts)


@torch.no_grad()
def areas_of(net: SegmentNet, data: Frames) -> list[float]:
    """Percentiles of the nodes' areas: whether a sampler moves, or collapses."""
    areas = []
    for index in range(len(data.validation)):
        frame = Frame.of(net, data.validation, index, nodes=data.rule)
        areas.append(cell_areas(frame.segment().grid).flatten().cpu().numpy())
    found = np.percentile(np.concatenate(areas), [5, 50, 95])
    return [round(float(v), 3) for v in found]


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return "CPU, 1 thread"


if __name__ == "__main__":
    sys.exit(main())
