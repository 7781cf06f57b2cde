"""A selector from slide-level labels alone: painted slides, half of them with one small
lesion, of which training is told yes or no; measured on slides of other seeds.

    python tests/benchmarks/select_labels.py FOLDER [--slides 320] [--held-out 80]

Goes on where it was stopped; other options are those of `wsi train select`. FOLDER
keeps the tiled slides, the model and report.json: AUC on the held-out slides with its
interval, and on how many slides with a lesion one of its patches is in the top M. It
takes hours.
"""

import argparse
import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from wsi_pipeline.config import SelectOptions, TileOptions
from wsi_pipeline.models.cards import SHIPPED, find_model
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import publish_json, remove
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.readers import open_slide
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.selection import select_patches
from wsi_pipeline.synthetic import write_slide
from wsi_pipeline.tiling import tile_slide
from wsi_pipeline.tissue import find_tissue, lay_patches
from wsi_pipeline.training.score import auc_facts

TRAIN, HELD_OUT = 60_000, 70_000
"""First seeds: no other training, test or demo uses them."""
PATCH_PX, MPP, MEGAPIXELS = 128, 1.0, 40.0
SHOWN = 0.05
"""Share of lesion pixels from which a patch counts as showing it."""


def make_slide(root: Path, seed: int) -> None:
    """Paint, tile, find the tissue; keep the pyramid, the patches and the truth."""
    folder = SlideFolder(root / f"s{seed}")
    if (folder.path / "truth.json").exists():
        return
    folder.prepare()
    painted = write_slide(
        folder.path / "slide.tif",
        seed=seed,
        megapixels=MEGAPIXELS,
        mpp=MPP,
        kind="section",
        lesions="one" if seed % 2 else "none",
    )
    with open_slide(painted.slide_path) as slide:
        pyramid = tile_slide(slide, folder.pyramid, TileOptions(codec="jpeg"))
    size_px = pyramid.source.size_px
    grid = lay_patches(find_tissue(pyramid), size_px, PATCH_PX, MPP)
    grid.save(folder.patches)
    truth = MaskPyramid(painted.truth_path)
    pixels = truth.count_pixels()
    lesion = sum(pixels.get(value, 0) for value in (3, 4, 5))
    level = truth.levels[0]
    shares = [
        float((truth.read_level(level.cover(grid.box(n)), 0) >= 3).mean())
        for n in (range(len(grid)) if lesion else ())
    ]
    facts = {
        "lesion_share": lesion / sum(n for value, n in pixels.items() if value),
        "shown": np.flatnonzero(np.array(shares) >= SHOWN).tolist(),
        "patches": len(grid),
    }
    remove(painted.slide_path)
    remove(painted.truth_path)
    publish_json(folder.path / "truth.json", facts)


def truth_of(root: Path, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(
        (root / f"s{seed}" / "truth.json").read_bytes()
    )
    return found


def train(root: Path, model: Path, seeds: list[int], more: list[str]) -> None:
    """`wsi train select` on the sheet of these slides."""
    sheet = root / "sheet.csv"
    rows = [f"s{seed},s{seed}.tif,{seed % 2}" for seed in seeds]
    sheet.write_text("\n".join(["sample,slide,lesion", *rows]) + "\n")
    pretrained = SHIPPED / "glas" / "selector.safetensors"
    command = [
        sys.executable, "-m", "wsi_pipeline", "train", "select", str(sheet),
        "--out", str(model), "--results", str(root), "--precision", "bf16-mixed",
        "--pretrained", str(pretrained), *more,
    ]  # fmt: skip
    subprocess.run(command, check=True)


def measure(root: Path, folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Select on held-out slides as a user would, and compare with the truth."""
    model = find_model(folder)
    scores, hits, found = [], [], []
    for seed in seeds:
        slide = SlideFolder(root / f"s{seed}")
        selection = select_patches(
            Pyramid(slide.pyramid),
            PatchGrid.load(slide.patches),
            model,
            SelectOptions(device="cpu"),
        )
        scores.append(selection.facts["predictions"]["lesion"])
        shown = truth_of(root, seed)["shown"]
        if shown:
            hits.append(bool(selection.chosen[shown].any()))
            found.append(float(selection.chosen[shown].mean()))
    labels = np.array([seed % 2 == 1 for seed in seeds])
    return {
        "auc": auc_facts(np.array(scores), labels, 0),
        "slides": len(seeds),
        "lesion_in_top_m": float(np.mean(hits)),
        "lesion_patches_in_top_m": float(np.mean(found)),
        "m": model.card.selector.top_m,
        "patches": float(np.mean([truth_of(root, s)["patches"] for s in seeds])),
        "largest_lesion_share": max(truth_of(root, s)["lesion_share"] for s in seeds),
        "training": model.card.selector.metrics,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int, default=320)
    parser.add_argument("--held-out", type=int, default=80)
    known, more = parser.parse_known_args()
    root, model = known.folder / "slides", known.folder / "from-labels"
    seeds = [TRAIN + n for n in range(known.slides)]
    held_out = [HELD_OUT + n for n in range(known.held_out)]
    with get_context("spawn").Pool(cpu_count()) as pool:
        for done, _ in enumerate(
            pool.imap_unordered(partial(make_slide, root), seeds + held_out), 1
        ):
            print(f"\r{done} of {len(seeds + held_out)} slides", end="", flush=True)
    print()
    if not (model / "card.json").exists():
        train(root, model, seeds, more)
    report = measure(root, model, held_out)
    publish_json(known.folder / "report.json", report)
    print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    passed = report["auc"]["value"] >= 0.95 and report["lesion_in_top_m"] >= 0.95
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
