"""Where the time of a run goes: each stage as a share of the whole, and tiling
against its floor, decoding every tile of the slide once on one thread.

    python tests/benchmarks/pipeline_time.py [--megapixels 100]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from wsi_pipeline.batch import run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.demo import write_truthful_slide
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.readers import open_slide


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=100.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        slide, *_ = write_truthful_slide(
            Path(temporary) / "slide.tif", seed=5, megapixels=arguments.megapixels
        )
        floor = decode_once(slide)
        result = run_batch(
            [slide],
            Path(temporary) / "out",
            find_model("synthetic"),
            RunConfig().updated("segment", coverage="all"),
        )
    seconds = result.outcomes[0].manifest.seconds
    whole = sum(seconds.values())
    for stage, value in seconds.items():
        print(f"{stage:>8}  {value:7.1f} s  {value / whole:5.1%}")
    print(f"tile / decoding once on one thread: {seconds['tile'] / floor:.2f}")
    after = (seconds["stitch"] + seconds["export"]) / whole
    print(f"after the network: {after:.1%} of the run")
    return 0


def decode_once(slide: Path) -> float:
    """Seconds to read all of level 0 once, in blocks of 2048 px."""
    start = time.perf_counter()
    with open_slide(slide) as handle:
        for block in handle.info.box.blocks(2048):
            handle.read(block)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
