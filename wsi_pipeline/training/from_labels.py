"""Trains a selector from slide-level labels alone."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from wsi_pipeline.errors import ConfigError, ModelError, WsiError
from wsi_pipeline.models.bodies.pretrained import load_pretrained
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.cards import SelectorCard
from wsi_pipeline.models.encoders import frozen_name, reads_features
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import load_state, save_state, tensor_names
from wsi_pipeline.publishing import make_folder, sha256_file
from wsi_pipeline.training.bag_score import measure_bags
from wsi_pipeline.training.bag_training import (
    Draw,
    PatchBag,
    Step,
    bag_losses,
    embed_patches,
    selection_pass,
)
from wsi_pipeline.training.journal import Journal
from wsi_pipeline.training.label_options import LabelTraining
from wsi_pipeline.training.labelled_bags import BagData
from wsi_pipeline.training.loop import LoopOptions, fit, rank, rank_seed

WORKSHOP = "training"
"""Folder in the model's for what is made on the way."""
_EPOCHS = 30
_COLOUR = 0.05
_WARM_UP = 0.05
_PRETRAINED_RATE = 0.1
_CHECKPOINT_STEPS, _JOURNAL_STEPS = 20, 10
_ORDER, _VIEW = 1, 2  # what a random number is for

Progress = Callable[[int, int], None]


def train_from_labels(
    data: BagData,
    out: Path,
    shape: SelectorShape,
    options: LabelTraining,
    *,
    progress: Progress | None = None,
) -> SelectorCard:
    """Train, measure on the validation slides, and write ``out/selector.safetensors``.

    Parameters
    ----------
    data : BagData
        Slides with their labels.
    out : Path
        Folder of the model; gets in ``training`` the losses, and a checkpoint from
        which an interrupted call goes on.
    shape : SelectorShape
        Sizes; see `fitting_shape`.
    options : LabelTraining
        Steps, rates, devices.
    progress : callable, optional
        Told (done, total) steps.

    Returns
    -------
    SelectorCard
        With the metrics of the stored weights.

    Raises
    ------
    ConfigError
        If there is no such device, or the folder holds a checkpoint of another
        training.
    ModelError
        If the encoder does not take the patches, or weights do not fit it.

    Notes
    -----
    In every step a share of the patches of its slides is encoded without gradient,
    chunk by chunk, of which the logits are kept; then the M chosen ones with it. What
    is drawn depends on the seed and the step alone, so that a training which goes on
    after an interruption ends with the same weights. Memory: see `bag_loss`.
    """
    target = str(resolve_device(options.device))
    if options.devices > 1:
        target = target.partition(":")[0]
    half = options.precision == "bf16-mixed"
    net = _begin(data, shape, options).to(target)
    steps = options.steps
    if steps is None:
        steps = -(-_EPOCHS * len(data.train) // (options.bags * options.devices))
    loop = LoopOptions(
        steps,
        device=target,
        precision=options.precision,
        lr=options.lr,
        weight_decay=0.05,
        warm_up_steps=max(1, round(_WARM_UP * steps)),
        # over the last hundred steps, or the last fifth of a short training
        average=1 - 1 / min(100, max(2, steps / 5)),
        lr_scales={"encoder.": _PRETRAINED_RATE} if options.pretrained else {},
        devices=options.devices,
    )
    workshop = out / WORKSHOP
    make_folder(workshop)
    words = replace(options, device="", devices=1, steps=None)
    with ExitStack() as stack:
        journal = None
        if rank() == 0:
            journal = Journal(workshop / "selector.csv", every=_JOURNAL_STEPS)
            stack.callback(journal.close)
        losses = fit(
            net,
            bag_losses(net, _drawing(data.train, options, half=half)),
            loop,
            progress=progress,
            checkpoint=workshop / "selector.checkpoint",
            every=_CHECKPOINT_STEPS,
            drawn_from=f"{data.name} ({data.digest}), {shape}, {words}",
            journal=journal,
        )
    file = out / "selector.safetensors"
    sha256 = save_state(net, file)
    return SelectorCard(
        sha256=sha256,
        mpp=data.mpp,
        patch_px=data.patch_px,
        top_m=options.top_m,
        tasks=data.tasks,
        architecture=shape.to_json(),
        training=_facts(data, options, loop, losses),
        metrics=measure_bags(
            net,
            data.train,
            data.validation,
            options.top_m,
            seed=options.seed,
            half=half,
        ),
    )


def fitting_shape(
    data: BagData, shape: SelectorShape, encoder: str | None, pretrained: Path | None
) -> SelectorShape:
    """The shape with the encoder that the data and the weights ask for.

    Parameters
    ----------
    encoder : str, optional
        The encoder that is asked for; left out, the small one, or a projector for
        features.
    pretrained : Path, optional
        Weights; where they hold batch statistics, the encoder keeps those.

    Raises
    ------
    ConfigError
        If features shall pass an encoder for pixels, or pixels a projector.
    ModelError
        If the weights cannot be read.
    """
    projector = f"features:{data.inputs}"
    name = encoder or (projector if data.inputs else shape.encoder)
    if reads_features(name) != bool(data.inputs):
        raise ConfigError(
            f"--encoder {name}: the patches are "
            + (f"features, {projector} reads them" if data.inputs else "pixels")
        )
    if pretrained is not None:
        if any(key.endswith("running_mean") for key in tensor_names(pretrained)):
            name = frozen_name(name)
    elif name.partition(":")[0].endswith("-frozen"):
        raise ConfigError(
            f"--encoder {name}: its batch statistics come with weights; --pretrained "
            "names their file, or leave '-frozen' out"
        )
    return replace(shape, encoder=name)


def _begin(data: BagData, shape: SelectorShape, options: LabelTraining) -> SelectorNet:
    """A net that is known to take the patches, maybe with pretrained weights."""
    torch.manual_seed(options.seed)
    net = SelectorNet(shape, data.tasks)
    file = options.pretrained
    if file is not None:
        if any(name.startswith("encoder.") for name in tensor_names(file)):
            load_state(net.encoder, file, prefix="encoder.")
        else:
            inner = getattr(net.encoder, "encoder", net.encoder)  # behind a resizer
            load_pretrained(getattr(inner, "body", inner), file)
    bag = data.train[0]
    try:
        with selection_pass(net):
            next(embed_patches(net, bag, np.arange(1)))
    except WsiError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"encoder {shape.encoder!r} does not take patches of {data.patch_px} px: "
            f"{error}; --resizer and --resized-px bring them to another size"
        ) from error
    return net


def _drawing(bags: Sequence[PatchBag], options: LabelTraining, *, half: bool) -> Draw:
    """Every slide once per round, each process its own part of them."""

    def draw(step: int) -> tuple[list[PatchBag], Step, np.random.Generator]:
        first = (step * _ranks() + rank()) * options.bags
        chosen = [
            bags[_nth(n, len(bags), options.seed)]
            for n in range(first, first + options.bags)
        ]
        rng = np.random.default_rng(rank_seed([options.seed, _VIEW, step]))
        return chosen, Step(options.top_m, _COLOUR, options.share, half), rng

    return draw


def _ranks() -> int:
    """Number of processes that train together, once `fit` has started them."""
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def _nth(n: int, count: int, seed: int) -> int:
    """Number of the n-th slide, in a new order every round."""
    turn, place = divmod(n, count)
    order = np.random.default_rng([seed, _ORDER, turn]).permutation(count)
    return int(order[place])


def _facts(
    data: BagData, options: LabelTraining, loop: LoopOptions, losses: list[float]
) -> dict[str, Any]:  # Any: JSON values for the card
    ends = {"first_losses": losses[:20], "last_losses": losses[-20:]}
    return {
        "dataset": data.name,
        "labels": "slides",
        "data": f"{len(data.train)} slides of {data.name!r} with slide-level "
        f"labels for training, {len(data.validation)} for validation. {data.note}",
        "data_digest": data.digest,
        "steps": loop.steps,
        "bags": options.bags,
        "devices": loop.devices,
        "share": options.share,
        "precision": loop.precision,
        "seed": options.seed,
        "optimizer": "AdamW, warm-up and cosine, moving average of the weights",
        "lr": loop.lr,
        "pretrained_sha256": (
            sha256_file(options.pretrained) if options.pretrained else None
        ),
        **{k: round(float(np.mean(v)), 4) if v else None for k, v in ends.items()},
    }
