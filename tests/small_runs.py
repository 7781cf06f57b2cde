"""Whole runs on a slide of one megapixel, for tests that compare or count runs."""

import hashlib
import sys
from pathlib import Path

from wsi_pipeline.batch import run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.demo import write_truthful_slide
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.results import SlideFolder

MODEL = "synthetic"
BLOCKS = {"block_px": 512, "chunk_px": 64}  # several blocks, in two rounds
SMALL = RunConfig().updated("tile", scheduler="threads", **BLOCKS)


def small_slide(folder: Path, seed: int = 11) -> Path:
    """Write a slide with tissue."""
    made, *_ = write_truthful_slide(
        folder / "slide.tif", seed=seed, megapixels=1, workers=1
    )
    return made


def small_run(slide: Path, out: Path, config: RunConfig = SMALL) -> SlideFolder:
    """Run the whole pipeline on a slide."""
    result = run_batch([slide], out, find_model(MODEL), config)
    (outcome,) = result.outcomes
    assert outcome.manifest.status == "done", outcome.manifest.reason
    return SlideFolder(out / outcome.manifest.slide_id)


def manifest_sha256(folder: SlideFolder) -> str:
    """Digest of manifest.json, which lists every result with its own."""
    return hashlib.sha256(
        folder.path.joinpath("manifest.json").read_bytes()
    ).hexdigest()


if __name__ == "__main__":  # in a process of its own: python -m tests.small_runs
    slide, out, scheduler, workers = sys.argv[1:]
    told = SMALL.updated("tile", scheduler=scheduler, workers=int(workers))
    sys.stdout.write(manifest_sha256(small_run(Path(slide), Path(out), told)))
