"""Trains the segmenter of each strategy on labelled images, and measures both alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.cards import SegmenterCard
from wsi_pipeline.models.sampling import cell_areas, identity_grid
from wsi_pipeline.models.segmenter import (
    Segmented,
    SegmenterSpec,
    SegmentNet,
    centred,
)
from wsi_pipeline.models.segmenting import COARSER_LEVELS
from wsi_pipeline.models.weights import load_state, save_state
from wsi_pipeline.publishing import publish_json
from wsi_pipeline.synthetic import SYNTHETIC_CLASSES
from wsi_pipeline.training.data import (
    LabelledImages,
    RegionBatch,
    RegionSource,
    class_shares,
    load_glas,
    paint_images,
)
from wsi_pipeline.training.loop import LoopOptions, fit
from wsi_pipeline.training.losses import (
    boundary_density,
    density_divergence,
    soft_cross_entropy,
)
from wsi_pipeline.training.validation import measure

REGION_PX = 512
_RATE = 2e-3
_EDGE_LOSS = 0.1
_DENSITY_STEPS = 100
_DENSITY_RATE = 0.3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SegmentData:
    """A dataset that a segmenter can be trained on.

    Parameters
    ----------
    classes : tuple of MaskClass
        Of the masks.
    train, validation : LabelledImages
        Without a common patient or seed.
    """

    classes: tuple[MaskClass, ...]
    train: LabelledImages
    validation: LabelledImages


GLAS_CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Benign gland", (0, 158, 115)),
    MaskClass(2, "Malignant gland", (213, 94, 0)),
)


def load_dataset(name: str, data_dir: Path | None, images: int) -> SegmentData:
    """Load or paint a dataset.

    Parameters
    ----------
    name : str
        "glas" or "synthetic".
    data_dir : Path or None
        Folder with the labelled images; "synthetic" needs none.
    images : int
        Training images to paint, and a quarter of it for validation; seeds from
        10,000 and from 20,000 on.

    Raises
    ------
    UnknownNameError
        If there is no such dataset.
    ConfigError
        If its files are not there.
    """
    if name == "glas":
        if data_dir is None:
            raise ConfigError("dataset 'glas' needs a data folder; --data gives it")
        return SegmentData(
            GLAS_CLASSES, load_glas(data_dir, "train"), load_glas(data_dir, "val")
        )
    if name == "synthetic":
        validation = range(20_000, 20_000 + max(1, images // 4))
        return SegmentData(
            tuple(SYNTHETIC_CLASSES),
            paint_images(range(10_000, 10_000 + images), 1024, 1.0),
            paint_images(validation, 1024, 1.0),
        )
    raise UnknownNameError(f"unknown dataset {name!r}; there are: glas, synthetic")


def train_segment(
    dataset: str,
    out: Path,
    *,
    data_dir: Path | None = None,
    steps: int = 1500,
    seed: int = 0,
    device: str | None = "cpu",
    strategies: Sequence[str] = ("learned", "uniform"),
    batch: int = 8,
    images: int = 96,
    progress: Progress | None = None,
) -> SegmenterCard:
    """Train, measure on the validation split, and write the segmenter's files.

    Parameters
    ----------
    dataset : str
        "glas" or "synthetic".
    out : Path
        Folder of the model; gets ``segmenter.safetensors`` and
        ``segmenter.card.json``, the segmenter's part of the card.
    data_dir : Path, optional
        Folder with the labelled images.
    steps : int
        Optimizer steps per strategy.
    seed : int
        Of weights, batches and augmentation: the same for every strategy.
    device : str
        "cpu", "cuda" or "cuda:N"; None takes cuda where there is one.
    strategies : sequence of str
        What to train.
    batch : int
        Regions per step.
    images : int
        Training images to paint for "synthetic".
    progress : callable, optional
        Told (done, total) steps over all strategies.

    Returns
    -------
    SegmenterCard
        With the metrics of the stored weights, whatever they turned out to be.

    Raises
    ------
    UnknownNameError, ConfigError
        From `load_dataset`.
    """
    data = load_dataset(dataset, data_dir, images)
    spec = SegmenterSpec(len(data.classes), strategies=tuple(strategies))
    target = str(resolve_device(device))
    options = LoopOptions(steps, device=target, precision="bf16-mixed", lr=_RATE)
    nets: dict[str, SegmentNet] = {}
    facts: dict[str, Any] = {}
    for index, strategy in enumerate(strategies):

        def report(done: int, total: int, index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, len(strategies) * total)

        start = time.perf_counter()
        nets[strategy], losses = fit_strategy(
            spec,
            strategy,
            data.train,
            options,
            batch=batch,
            seed=seed,
            progress=report,
        )
        tail = losses[-max(1, steps // 20) :]
        facts[strategy] = {
            "final_loss": round(float(np.mean(tail)), 4),
            "seconds": round(time.perf_counter() - start),
        }
    file = out / "segmenter.safetensors"
    arms = nn.ModuleDict(nets)
    sha256 = save_state(arms, file, half=True)
    # what is measured is what is stored
    load_state(arms, file)
    training = {
        "dataset": dataset,
        "images": len(data.train),
        "batch": batch,
        "seed": seed,
        "density_warm_up_steps": _DENSITY_STEPS,
        "edge_loss": _EDGE_LOSS,
        "strategies": facts,
        **asdict(replace(options, lr_scales={"density.": _DENSITY_RATE})),
    }
    card = SegmenterCard(
        sha256=sha256,
        mpp=data.train.mpp,
        region_px=REGION_PX,
        nodes=spec.nodes,
        architecture=spec.to_json(),
        training=training,
        metrics=measure(
            nets, data.validation, [c.name for c in data.classes], REGION_PX
        ),
    )
    publish_json(out / "segmenter.card.json", card.model_dump(mode="json"))
    return card


def fit_strategy(
    spec: SegmenterSpec,
    strategy: str,
    data: LabelledImages,
    options: LoopOptions,
    *,
    batch: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SegmentNet, list[float]]:
    """Train one strategy; the net comes back in eval mode, with the loss per step.

    Notes
    -----
    The density net first learns alone where boundaries are; then both nets learn
    together, the density net at a smaller rate. The batches are the same for every
    strategy.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SegmentNet(spec, strategy)
    net = net.to(memory_format=torch.channels_last)
    source = RegionSource(data, REGION_PX, COARSER_LEVELS + 2)
    even = identity_grid(spec.nodes, spec.nodes).to(options.device)
    even = even.expand(batch, -1, -1, -1)

    def target_of(drawn: RegionBatch) -> Tensor:
        labels = drawn.tap_labels(even, spec.taps)
        return boundary_density(labels, spec.nodes, floor=spec.floor)

    def edge_loss(module: nn.Module, step: int) -> Tensor:
        drawn = source.draw(batch, _random(seed, 1, step), options.device)
        density = module(centred(drawn.sample(even)))
        return density_divergence(density, target_of(drawn))

    def joint_loss(module: nn.Module, step: int) -> Tensor:
        drawn = source.draw(batch, _random(seed, 0, step), options.device)
        result: Segmented = module(drawn.sample, batch)
        labels = drawn.tap_labels(result.grid, spec.taps)
        soft = class_shares(labels, spec.classes, spec.taps)
        loss = soft_cross_entropy(result.logits, soft, cell_areas(result.grid))
        if result.density is None:
            return loss
        edges = density_divergence(result.density, target_of(drawn))
        return loss + _EDGE_LOSS * edges

    if net.density is not None:
        alone = replace(options, steps=min(_DENSITY_STEPS, options.steps))
        fit(net.density, edge_loss, alone)
    scales = {"density.": _DENSITY_RATE}
    losses = fit(net, joint_loss, replace(options, lr_scales=scales), progress=progress)
    return net, losses


def _random(seed: int, phase: int, step: int) -> np.random.Generator:
    return np.random.default_rng([seed, phase, step])
