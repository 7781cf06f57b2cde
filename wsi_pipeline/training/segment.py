"""Trains the segmenter of each strategy on labelled images, and measures both alike."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models.bodies.pretrained import load_pretrained
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.cards import SegmenterCard
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.models.strategies import find_strategy
from wsi_pipeline.models.weights import load_state, save_state
from wsi_pipeline.publishing import make_folder, publish_json, sha256_file
from wsi_pipeline.training.arms import (
    PLACER_RATE,
    PLACER_STEPS,
    ArmOptions,
    LossOptions,
    fit_arm,
)
from wsi_pipeline.training.data import Views
from wsi_pipeline.training.datasets.record import SegmentData
from wsi_pipeline.training.frames import cropped
from wsi_pipeline.training.gallery import Gallery
from wsi_pipeline.training.loop import LoopOptions
from wsi_pipeline.training.validation import measure

REGION_PX = 512
WORKSHOP = "training"
"""Folder in the model's for what is made on the way."""
_RATE = 2e-3

Progress = Callable[[int, int], None]


def train_segment(
    data: SegmentData,
    out: Path,
    spec: SegmenterSpec | None = None,
    *,
    steps: int = 1500,
    seed: int = 0,
    device: str | None = "cpu",
    batch: int = 8,
    pretrained: Path | None = None,
    loss: LossOptions | None = None,
    devices: int = 1,
    progress: Progress | None = None,
) -> SegmenterCard:
    """Train, measure on the validation split, and write the segmenter's files.

    Parameters
    ----------
    data : SegmentData
        What to learn, and what to measure on.
    out : Path
        Folder of the model; gets ``segmenter.safetensors`` and
        ``segmenter.card.json``, the segmenter's part of the card, and in ``training``
        losses, pictures, and checkpoints from which an interrupted call goes on.
    spec : SegmenterSpec, optional
        What to train, for as many classes as the data has and a square of nodes; left
        out, its defaults.
    steps : int
        Optimizer steps per strategy.
    seed : int
        Of weights, batches and augmentation: the same for every strategy.
    device : str
        "cpu", "cuda" or "cuda:N"; None takes cuda where there is one.
    batch : int
        Regions per step.
    pretrained : Path, optional
        A local safetensors file that the body starts from, apart from its head.
    loss : LossOptions, optional
        What a wrong node costs; left out, cross entropy.
    devices : int
        GPUs to train on at once.
    progress : callable, optional
        Told (done, total) steps over all strategies.

    Returns
    -------
    SegmenterCard
        With the metrics of the stored weights, whatever they turned out to be.

    Raises
    ------
    UnknownNameError
        If there is no such strategy, body or base filter.
    ConfigError
        If there is no such device, a strategy needs the truth, or the folder holds a
        checkpoint of another training.
    ModelError
        If the body does not take its options, or the pretrained weights do not fit it.
    """
    spec = spec or SegmenterSpec(len(data.classes))
    for strategy in spec.strategies:
        if find_strategy(strategy).needs_truth:
            raise ConfigError(
                f"strategy {strategy!r} follows the truth: no slide can be segmented "
                "with it"
            )
    trial = SegmentNet(spec, spec.strategies[0])  # what cannot be built is said first
    if pretrained is not None:
        load_pretrained(trial.body, pretrained)
    target = str(resolve_device(device))
    if devices > 1:
        target = target.partition(":")[0]
    views = Views((REGION_PX, REGION_PX))
    workshop = out / WORKSHOP
    make_folder(workshop)
    arm = ArmOptions(
        views,
        batch,
        seed,
        loss or LossOptions(),
        folder=workshop,
        source=data.name,
        pretrained=pretrained,
    )
    options = LoopOptions(
        steps, device=target, precision="bf16-mixed", lr=_RATE, devices=devices
    )
    gallery = Gallery(workshop, cropped(data.validation, REGION_PX), data.classes)
    nets: dict[str, SegmentNet] = {}
    facts: dict[str, Any] = {}
    for index, strategy in enumerate(spec.strategies):

        def report(done: int, total: int, index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, len(spec.strategies) * total)

        start = time.perf_counter()
        nets[strategy], losses = fit_arm(
            spec,
            strategy,
            data.train,
            arm,
            options,
            progress=report,
            validate=partial(gallery.hang, strategy),
        )
        tail = losses[-max(1, steps // 20) :]
        facts[strategy] = {
            "final_loss": round(float(np.mean(tail)), 4) if tail else None,
            "seconds": round(time.perf_counter() - start),
        }
    file = out / "segmenter.safetensors"
    arms = nn.ModuleDict(nets)
    sha256 = save_state(arms, file, half=True)
    # what is measured is what is stored
    load_state(arms, file)
    training = {
        "dataset": data.name,
        "images": len(data.train),
        "batch": batch,
        "seed": seed,
        "placer_steps": PLACER_STEPS,
        "loss": asdict(arm.loss),
        "pretrained_sha256": sha256_file(pretrained) if pretrained else None,
        "strategies": facts,
        **asdict(replace(options, lr_scales={"placer.": PLACER_RATE})),
    }
    card = SegmenterCard(
        sha256=sha256,
        mpp=data.train.mpp,
        region_px=REGION_PX,
        nodes=spec.shape[0],
        architecture=spec.to_json(),
        training=training,
        metrics=measure(
            nets, data.validation, [c.name for c in data.classes], REGION_PX
        ),
    )
    publish_json(out / "segmenter.card.json", card.model_dump(mode="json"))
    return card
