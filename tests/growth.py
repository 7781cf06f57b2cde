"""A process of its own that runs a net and prints how its resident memory grew.

``python -m tests.growth '{"net": "small", "side": 64, "batch": 64}'``
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.models import selector_model
from wsi_pipeline.config import NetOptions, SegmentOptions, SelectOptions
from wsi_pipeline.models.budget import held_bytes, measure_peak
from wsi_pipeline.models.cards import (
    ModelFolder,
    find_model,
    read_card,
)
from wsi_pipeline.models.encoders import ENCODERS
from wsi_pipeline.models.planning import Workload, planned
from wsi_pipeline.models.scoring import open_scorer
from wsi_pipeline.models.segmenter import load_segmenter
from wsi_pipeline.models.segmenting import RegionSegmenter, open_segmenter
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.tracing import resident_bytes
from wsi_pipeline.process import peak_resident_bytes, reset_peaks

CPU = torch.device("cpu")
TINY_PX = 32
type Run = Callable[[int], object]


class TinyEncoder(nn.Module):
    """The mean colour of a patch, turned into D numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(3, width)

    def forward(self, patches: Tensor) -> Tensor:
        out: Tensor = self.project(patches.to(self.project.weight.dtype).mean((2, 3)))
        return out


ENCODERS._rows["tiny"] = f"{__name__}:TinyEncoder"


def tiny_selector(folder: Path) -> ModelFolder:
    """Write a model whose selector costs next to nothing: D = 8, one channel."""
    torch.manual_seed(0)
    shape = SelectorShape("tiny", 8, 1, 8, 8)
    net = SelectorNet(shape, ("one",))
    return selector_model(folder, net, patch_px=TINY_PX, top_m=4, mpp=1.0)


def lazy_patches(count: int, size: int = 500) -> Iterator[np.ndarray]:
    """Patches that are made when they are asked for, `size` at a time."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (size, 3, TINY_PX, TINY_PX), dtype=np.uint8)
    for start in range(0, count, size):
        yield base[: count - start] + np.uint8(start // size % 256)


def grown(**wanted: Any) -> dict[str, Any]:
    """Run this file in a fresh process; see `main`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.growth", json.dumps(wanted)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(wanted: dict[str, Any]) -> dict[str, Any]:
    """Grow.

    With "stream", a folder: score so many patches with its selector, and tell the peak
    after each of "counts". Else run "net" on items of "side" px, "batch" at a time, or
    as many as the budget "memory" allows up to "largest". Bytes; growth is above the
    idle process, its modules imported.
    """
    if wanted.get("net") in ENCODERS.names():
        ENCODERS.load(wanted["net"])  # torchvision alone brings 160 MiB
    gc.collect()
    reset_peaks()
    idle = peak_resident_bytes()
    if "stream" in wanted:
        return {"peaks": _stream(Path(wanted["stream"]), wanted["counts"])}
    with _opened(wanted) as (run, facts):
        for _ in range(wanted.get("passes", 3)):
            run(facts["batch"])
        return facts | {"grown": peak_resident_bytes() - idle}


def _stream(folder: Path, counts: list[int]) -> list[int]:
    """Peak of the process after so many patches, for each count."""
    model = ModelFolder(folder, read_card(folder))
    peaks = []
    logits = np.empty((max(counts), 1), np.float32)
    with open_scorer(model, SelectOptions(device="cpu"), max(counts)) as scorer:
        done = 0
        for patches in lazy_patches(max(counts)):
            logits[done : done + len(patches)] = scorer.score(patches)
            done += len(patches)
            if done in counts:
                peaks.append(peak_resident_bytes())
    assert np.isfinite(logits).all()
    return peaks


@contextmanager
def _opened(wanted: dict[str, Any]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """A net under its plan: what runs it, and the facts."""
    memory, largest = wanted.get("memory", "100%"), wanted.get("largest", 1)
    if wanted["net"] == "segmenter" and "batch" not in wanted:
        options = SegmentOptions(device="cpu", memory=memory)
        with open_segmenter(find_model("glas"), options, 512.0) as segmenter:
            assert segmenter.plan is not None
            side = 256
            pixels = np.full((segmenter.batch, 3, side, side), 7, np.uint8)
            facts = {
                "batch": segmenter.batch,
                "counted": segmenter.plan.counted_bytes,
            }
            yield (lambda _: segmenter(pixels, 1)), facts
        return
    net, run = _built(wanted["net"], wanted["side"])
    held = held_bytes(net)
    if "batch" in wanted:
        batch = wanted["batch"]
        traced = measure_peak(CPU, lambda: run(batch), held)
        counted = resident_bytes(traced, held)
        facts = {"held": held, "traced": traced, "counted": counted, "batch": batch}
        yield run, facts
        return
    options = NetOptions(device="cpu", memory=memory)
    workload = Workload(wanted["net"], net, (), run, largest)
    with planned(workload, CPU, options) as plan:
        yield run, {"batch": plan.batch, "counted": plan.counted_bytes}


def _built(name: str, side: int) -> tuple[nn.Module, Run]:
    """A net of the table below `resident_bytes`, and what runs it on noise."""
    if name == "segmenter":
        arm = load_segmenter(find_model("glas"), "learned", "cpu")
        arm = arm.to(memory_format=torch.channels_last)
        return arm, lambda batch: RegionSegmenter(arm, batch).warm_up(side)
    net = SelectorNet(SelectorShape(encoder=name), ("one",)).eval()

    @torch.inference_mode()
    def run(batch: int) -> object:
        patches = torch.zeros((batch, 3, side, side), dtype=torch.uint8)
        patches.random_(0, 256)
        return net.logits(net.embed(patches)).numpy()

    return net, run


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
