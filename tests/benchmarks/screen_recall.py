"""What a screen loses of the top patches and how much work it saves, on painted slides.

    python tests/benchmarks/screen_recall.py FOLDER [--slides 20] [--calibration 33]
        [--train 6] [--megapixels 80] [--recall 0.95] [--top-m 64] [--audit 128]

Paints slides, selects on all of them with the shipped model "synthetic", trains a
screen on some, calibrates it on others, and selects with it on the last, which it has
not seen. Prints a row per such slide: recall of the full top M, encoder work by FLOPs,
the misses, and what the audit says of them. FOLDER keeps the slides, the model and
report.json; goes on where it was stopped.
"""

import argparse
import logging
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from wsi_pipeline.config import RunConfig, SelectOptions
from wsi_pipeline.models.cards import ModelFolder, find_model
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import publish_json, remove
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Selection
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.selection import select_patches
from wsi_pipeline.stages import SlideJob, SlideRun
from wsi_pipeline.synthetic import write_slide
from wsi_pipeline.training.screen import train_screen
from wsi_pipeline.training.screen_options import ScreenTraining
from wsi_pipeline.training.taught import find_taught

SEEDS = {"train": 80_000, "calibration": 81_000, "slides": 83_000}
"""First seeds: no other training, test or demo uses them."""


def make_slide(root: Path, megapixels: float, place: tuple[str, int]) -> None:
    """Paint a slide and select its patches as `wsi run` does, without a screen."""
    part, seed = place
    folder = SlideFolder(root / part / f"s{seed}")
    if folder.record("select"):
        return
    logging.disable(logging.WARNING)  # each slide tells anew how JPEG chunks are read
    folder.prepare()
    painted = write_slide(
        folder.path / "slide.tif",
        seed=seed,
        megapixels=megapixels,
        mpp=1.0,
        kind="section",
    )
    config = RunConfig().updated("tile", codec="jpeg", workers=1, scheduler="threads")
    job = SlideJob(folder.slide_id, painted.slide_path)
    run = SlideRun(folder, config, find_model("synthetic"), job)
    for verb in ("tile", "tissue", "select"):
        run_stage(verb, run)
    remove(painted.slide_path)
    remove(painted.truth_path)


def measure(
    folder: SlideFolder, model: ModelFolder, options: SelectOptions
) -> dict[str, Any]:
    """Select with a screen, and compare with the selection of all patches."""
    whole = Selection.load(folder.selection)
    top_m = options.top_m or model.card.selector.top_m
    top = whole.rank < top_m
    found = select_patches(Pyramid(folder.pyramid), whole.grid, model, options)
    screen = found.facts["screen"]
    missed, told = int((top & ~found.examined).sum()), screen["missed"]
    return {
        "slide": folder.slide_id,
        "patches": len(top),
        "fraction": screen["fraction"],
        "kept": screen["kept"],
        "recall": float((found.chosen & top).sum() / top.sum()),
        "work": screen["encoder_work"],
        "missed": missed,
        **told,
        "bracketed": told["low"] <= missed <= told["high"],
        "mass": float(whole.score[found.chosen].sum()),
        "mass_estimate": found.captured_mass,
        "mass_of_top": float(whole.score[top].sum()),
    }


def summary(rows: list[dict[str, Any]], model: ModelFolder) -> dict[str, Any]:
    """Means over the slides, and whether the goals are met."""
    screen = model.card.need_screen()
    recalls, work = ([row[key] for row in rows] for key in ("recall", "work"))
    return {
        "recall": float(np.mean(recalls)),
        "least_recall": min(recalls),
        "less_work": 1 / float(np.mean(work)),
        "bracketed": sum(row["bracketed"] for row in rows),
        "slides": len(rows),
        "missed": sum(row["missed"] for row in rows),
        "missed_estimate": round(sum(row["estimate"] for row in rows), 1),
        "worst_mass_estimate": max(
            abs(row["mass_estimate"] - row["mass"]) for row in rows
        ),
        "screen_bytes": (model.path / screen.file).stat().st_size,
        "calibration": screen.metrics,
        "training": screen.training,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=6)
    parser.add_argument("--calibration", type=int, default=33)
    parser.add_argument("--slides", type=int, default=20)
    parser.add_argument("--megapixels", type=float, default=80.0)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--top-m", type=int)
    parser.add_argument("--audit", type=int, default=128)
    parser.add_argument("--factor", type=int, default=ScreenTraining.factor)
    parser.add_argument("--steps", type=int, default=ScreenTraining.steps)
    given = parser.parse_args()
    root: Path = given.folder
    places = [
        (part, first + n)
        for part, first in SEEDS.items()
        for n in range(getattr(given, part))
    ]
    with get_context("spawn").Pool(cpu_count()) as pool:
        make = partial(make_slide, root, given.megapixels)
        for done, _ in enumerate(pool.imap_unordered(make, places), 1):
            print(f"\r{done} of {len(places)} slides", end="", file=sys.stderr)
    print(file=sys.stderr)
    model, out = find_model("synthetic"), root / "model" / "synthetic"
    if not (out / "card.json").exists():
        parts = [find_taught([root / part], model) for part in ("train", "calibration")]
        training = ScreenTraining(given.factor, given.steps)
        train_screen(model, parts[0], parts[1], out, training)
    screened = find_model(out)
    options = SelectOptions(
        device="cpu", screen=given.recall, audit=given.audit, top_m=given.top_m
    )
    rows: list[dict[str, Any]] = []
    shown = (
        *("slide", "patches", "kept", "recall", "work", "missed", "estimate"),
        *("low", "high", "mass", "mass_estimate"),
    )
    print(*(f"{name:>13}" for name in shown))
    for part, seed in places:
        if part == "slides":
            folder = SlideFolder(root / part / f"s{seed}")
            rows.append(measure(folder, screened, options))
            values = (rows[-1][name] for name in shown)
            cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
            print(*(f"{cell:>13}" for cell in cells), flush=True)
    report = summary(rows, screened)
    publish_json(root / "report.json", {"rows": rows} | report)
    print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    held = report["recall"] >= given.recall and report["less_work"] >= 5
    return 0 if held and report["bracketed"] >= 0.95 * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
