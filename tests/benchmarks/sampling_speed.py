"""What deformed sampling costs, as ratios of times taken in the same run.

    python tests/benchmarks/sampling_speed.py [--device cuda] [--threads 1] [--rounds 9]

First the exact inverse of a grid against plain bilinear upsampling of the same logits;
then density net, map and sampling against segmentation nets, part by part. Each
number is the median of the rounds, its parts timed in turn; weights are random, since
they do not change the time. The grid is one that a net learns: cells of mixed size.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.models.bodies import build_body
from wsi_pipeline.models.density import DensityNet, density_to_grid
from wsi_pipeline.models.inverse import invert_grid
from wsi_pipeline.models.sampling import (
    cell_areas,
    identity_grid,
    mip_levels,
    sample_image,
)
from wsi_pipeline.models.spec import SegmenterSpec

INVERSE_GOAL, NET_GOAL = 2.0, 0.1
SPEC = SegmenterSpec(classes=5)
BODIES: dict[str, dict[str, object]] = {
    "unet": {"widths": list(SPEC.widths)},
    "fpn": {},
    "pspnet": {},
    "deeplabv3plus": {},
    "hrnet-w48": {},
}
"""Shipped, and those of the papers."""


class Case(NamedTuple):
    """Regions of side_px with so many nodes per side, in a batch."""

    nodes: int
    side_px: int
    batch: int


CASES = (Case(64, 512, 8), Case(256, 2048, 1))


def median_ms(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each part, measured in turn so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 2):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(took) for name, took in seconds.items()}


def learned_grid(nodes: int, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """A smooth random density and its grid."""
    generator = torch.Generator().manual_seed(0)
    coarse = 1.5 * torch.randn(batch, 1, 12, 12, generator=generator)
    logits = functional.interpolate(coarse, size=(nodes, nodes), mode="bicubic")
    density = logits.flatten(1).softmax(dim=1).view_as(logits).to(device)
    return density, density_to_grid(density, SPEC.sigma, floor=SPEC.floor)


def time_inverse(device: str, rounds: int) -> None:
    """Print the inverse against upsampling, 2048 px from 256 nodes."""
    _, grid = learned_grid(256, 1, device)
    areas = cell_areas(grid).flatten()
    low, high = areas.quantile(0.01), areas.quantile(0.99)
    print(f"cells, 1st to 99th percentile: {low:.2f} to {high:.2f} of an even one")
    size = (2048, 2048)
    for classes in (4, 5, 6):
        logits = torch.randn(1, classes, 256, 256, device=device)
        found = invert_grid(grid, size)

        def upsample(logits: Tensor = logits) -> Tensor:
            return functional.interpolate(
                logits, size, mode="bilinear", align_corners=True
            )

        def read(logits: Tensor = logits, found: Tensor = found) -> Tensor:
            return functional.grid_sample(logits, found, align_corners=True)

        took = median_ms(
            {
                "upsampling": upsample,
                "inverse": lambda: invert_grid(grid, size),
                "reading": read,
            },
            rounds,
        )
        ratio = took["inverse"] / took["upsampling"]
        print(
            f"{classes} classes: "
            + ", ".join(f"{name} {ms:.1f} ms" for name, ms in took.items())
            + f"; inverse / upsampling = {ratio:.2f} ({verdict(ratio, INVERSE_GOAL)})"
        )


def time_nets(case: Case, device: str, rounds: int) -> None:
    """Print density net, map and sampling against segmentation nets."""
    torch.manual_seed(0)
    layout = torch.channels_last
    bodies = {
        name: build_body(name, classes=SPEC.classes, options=chosen)
        .eval()
        .to(device)
        .to(memory_format=layout)
        for name, chosen in BODIES.items()
    }
    net = DensityNet(SPEC.density_widths, SPEC.floor, SPEC.temperature).eval()
    net = net.to(device).to(memory_format=layout)
    pixels = torch.rand(case.batch, 3, case.side_px, case.side_px, device=device)
    levels = mip_levels(pixels, 3)
    even = identity_grid(case.nodes, case.nodes).to(device)
    even = even.expand(case.batch, -1, -1, -1)
    density, grid = learned_grid(case.nodes, case.batch, device)
    view = sample_image(levels, even)
    took = median_ms(
        {
            **{name: partial(body, view) for name, body in bodies.items()},
            "density net": lambda: net(view),
            "map": lambda: density_to_grid(density, SPEC.sigma),
            "even sampling": lambda: sample_image(levels, even),
            "deformed sampling": lambda: sample_image(levels, grid),
        },
        rounds,
    )
    base = {name: took.pop(name) for name in bodies}
    whole = sum(took.values())
    more = whole - took["even sampling"]
    print(f"{case.batch} x {case.nodes} x {case.nodes} nodes")
    for name, ms in took.items():
        print(f"  {name:18} {ms:7.1f} ms")
    for name, ms in base.items():
        print(
            f"  body {name:13} {ms:7.1f} ms; all of the above {whole / ms:.1%} of it "
            f"({verdict(whole / ms, NET_GOAL)}), what even nodes do not need "
            f"{more / ms:.1%}"
        )


def verdict(ratio: float, goal: float) -> str:
    """Whether a ratio keeps its promise."""
    if ratio <= goal:
        return f"goal {goal:g} kept"
    return f"goal {goal:g} missed by a factor of {ratio / goal:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.device}, {options.threads} thread(s), torch {torch.__version__}")
    with torch.inference_mode():
        time_inverse(options.device, options.rounds)
        for case in CASES:
            time_nets(case, options.device, options.rounds)


if __name__ == "__main__":
    main()
