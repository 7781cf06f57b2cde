"""Peak memory of `wsi tile` on a 1-GP and a 4-GP synthetic slide, 2 workers.

    python tests/benchmarks/tile_memory.py [--gigapixels 1 4]

Prints one line per slide and the ratio of the peaks; exits 1 when the larger slide
takes 10 % more memory than the smaller, or either more than 2 GiB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigapixels", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--keep", type=Path, help="folder for the slides, kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        peaks = [measure(folder, size) for size in arguments.gigapixels]
    ratio = max(peaks) / min(peaks)
    print(f"largest / smallest peak: {ratio:.3f} (at most 1.10)")
    return int(ratio > 1.10 or max(peaks) > 2 * 2**30)


def measure(folder: Path, gigapixels: float) -> int:
    """Make a slide, tile it in a process of its own, return that one's peak RSS."""
    slide = folder / f"synthetic-{gigapixels:g}gp.tif"
    if not slide.exists():
        size = str(gigapixels * 1000)
        wsi("synth", slide, "--megapixels", size, "--kind", "section", "--no-geojson")
    start = time.perf_counter()
    peak = wsi(
        "tile", slide, "-o", folder / "tiles", "--target-mpp", "native",
        "--workers", "2",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(
        f"{gigapixels:g} GP: peak {peak / 2**20:.0f} MiB, {seconds:.0f} s, "
        f"{gigapixels * 1000 / seconds:.0f} MP/s"
    )
    return peak


def wsi(*arguments: object) -> int:
    """Run a verb and return the peak resident memory of its process, bytes."""
    command = [sys.executable, "-m", "wsi_pipeline", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
