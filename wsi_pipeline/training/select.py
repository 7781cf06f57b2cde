"""Trains a selector on bags composed of painted areas or of GlaS images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wsi_pipeline.errors import UnknownNameError
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.cards import SelectorCard
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import load_state, save_state
from wsi_pipeline.training.bag_training import Step, augment, bag_losses
from wsi_pipeline.training.bags import (
    Area,
    Bag,
    BagSize,
    compose_cancer,
    compose_glas,
    paint_areas,
    read_glas,
)
from wsi_pipeline.training.large_bags import draw_cancer, draw_glas, fit_large_bags
from wsi_pipeline.training.loop import LoopOptions, fit
from wsi_pipeline.training.patch_labels import fit_patches
from wsi_pipeline.training.score import Table, cut_all, measure_cancer, measure_glas

PATCH_PX = 128
TRAIN_SEEDS, LARGE_SEEDS, VALIDATION_SEEDS = 30_000, 35_000, 40_000
_AREA_PX = 768


@dataclass(frozen=True)
class Phase:
    """A stretch of the training with bags of one size.

    Parameters
    ----------
    until : float
        Share of all steps at which it ends.
    bags : int
        Bags per step.
    size : BagSize
        How the bags are composed.
    kept : tuple of int
        Values of M, one drawn per step.
    """

    until: float
    bags: int
    size: BagSize
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """What a data set needs.

    Parameters
    ----------
    mpp : float
        um/px of the patches.
    tasks : tuple of str
        One per query token.
    steps : int
        Optimizer steps.
    phases : tuple of Phase
        Small bags first: from large ones a fresh encoder learns nothing.
    top_m : int
        M of the card.
    colour : float
        Strength of the colour augmentation.
    large_steps : int
        Steps on bags as large as slides, with the encoder held still.
    patch_steps : int
        Steps before the bags that train the encoder on the masks of single patches.
    lr : float
        Peak learning rate.
    """

    mpp: float
    tasks: tuple[str, ...]
    steps: int
    phases: tuple[Phase, ...]
    top_m: int
    colour: float
    large_steps: int = 0
    patch_steps: int = 0
    lr: float = 1e-3


RECIPES = {
    "synthetic": Recipe(
        mpp=1.0,
        tasks=("cancer",),
        steps=600,
        phases=(
            Phase(0.4, 8, BagSize(16, (0.1, 1.0)), (16,)),
            Phase(1.0, 4, BagSize(112, (1 / 112, 0.2)), (8, 16, 32)),
        ),
        top_m=64,
        colour=0.05,
        large_steps=300,
    ),
    "glas": Recipe(
        mpp=0.62,
        tasks=("malignant", "gland"),
        steps=220,
        phases=(
            Phase(0.5, 9, BagSize(12, (0.1, 1.0)), (12,)),
            Phase(1.0, 6, BagSize(40, (1 / 40, 0.4)), (8, 16)),
        ),
        top_m=64,
        colour=0.08,
        patch_steps=260,
        large_steps=300,
    ),
}


def train_select(
    dataset: str,
    out: Path,
    *,
    data_dir: Path,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    areas: tuple[int, int] = (400, 150),
    shape: SelectorShape = SelectorShape(),  # noqa: B008  # frozen
    start: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SelectorCard:
    """Train a selector and write ``out/selector.safetensors``.

    Parameters
    ----------
    dataset : str
        "synthetic" or "glas".
    out : Path
        Folder of the model.
    data_dir : Path
        Folder with ``labelled/glas``.
    steps : int, optional
        Optimizer steps; left out, the recipe's.
    areas : tuple of int
        Painted areas for training, and for large bags and for validation each
        (synthetic only).
    shape : SelectorShape
        Sizes of the selector, and whether a resizer stands before its encoder.
    start : Path, optional
        Weights whose encoder is the starting point.

    Returns
    -------
    SelectorCard
        With the metrics of the validation split.

    Raises
    ------
    UnknownNameError
        If there is no such data set.
    ModelError
        If the data is not there.
    """
    if dataset not in RECIPES:
        raise UnknownNameError(
            f"unknown data set {dataset!r}; there are: {', '.join(RECIPES)}"
        )
    recipe = RECIPES[dataset]
    steps = recipe.steps if steps is None else steps
    train, validation = _load(dataset, data_dir, recipe.mpp, areas)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    target = resolve_device(device)
    net = SelectorNet(shape, recipe.tasks).to(target)
    if start is not None:
        load_state(net.encoder, start, prefix="encoder.")
    warm = recipe.patch_steps * steps // recipe.steps
    if warm:
        fit_patches(
            net,
            train,
            PATCH_PX,
            warm,
            lambda patches: augment(patches, recipe.colour, rng),
            rng,
        )

    def draw(step: int) -> tuple[list[Bag], Step, np.random.Generator]:
        phase = next(p for p in recipe.phases if step < p.until * steps)
        keep = int(rng.choice(phase.kept))
        bags = [
            _compose(dataset, train, phase.size, index, rng)
            for index in range(phase.bags)
        ]
        return bags, Step(keep, recipe.colour), rng

    options = LoopOptions(
        steps, device=str(target), lr=recipe.lr, weight_decay=0.05, warm_up_steps=30
    )
    losses = fit(net, bag_losses(net, draw), options, progress=progress)
    large = recipe.large_steps * steps // recipe.steps
    if large and dataset == "glas":
        table = _table(net, train, dataset)
        fit_large_bags(net, table, draw_glas, (16, 32, 64), large, seed)
    elif large:
        # unseen areas: on those that it was trained on, the encoder is too sure
        fresh = _paint(LARGE_SEEDS, areas[1], recipe.mpp)
        table = _table(net, fresh, dataset)
        fit_large_bags(net, table, draw_cancer, (recipe.top_m,), large, seed)
    measure = measure_cancer if dataset == "synthetic" else measure_glas
    tables = [_table(net, part, dataset) for part in (train, validation)]
    out.mkdir(parents=True, exist_ok=True)
    sha256 = save_state(net, out / "selector.safetensors")
    return SelectorCard(
        sha256=sha256,
        mpp=recipe.mpp,
        patch_px=PATCH_PX,
        top_m=recipe.top_m,
        tasks=recipe.tasks,
        architecture=net.shape.to_json(),
        training={
            "dataset": dataset,
            "areas": [len(train), len(validation)],
            "steps": steps,
            "large_bag_steps": large,
            "patch_label_steps": warm,
            "seed": seed,
            "optimizer": "AdamW, warm-up and cosine, moving average of the weights",
            "lr": recipe.lr,
            "first_losses": round(float(np.mean(losses[:20])), 4) if losses else None,
            "last_losses": round(float(np.mean(losses[-20:])), 4) if losses else None,
            "started_from": None if start is None else start.parent.name,
        },
        metrics=measure(net, tables[0], tables[1], recipe.top_m, seed),
    )


def _load(
    dataset: str, data_dir: Path, mpp: float, areas: tuple[int, int]
) -> tuple[list[Area], list[Area]]:
    if dataset == "glas":
        return read_glas(data_dir, "train"), read_glas(data_dir, "val")
    train = _paint(TRAIN_SEEDS, areas[0], mpp)
    return train, _paint(VALIDATION_SEEDS, areas[1], mpp)


def _paint(first_seed: int, count: int, mpp: float) -> list[Area]:
    return paint_areas(range(first_seed, first_seed + count), _AREA_PX, mpp)


def _compose(
    dataset: str,
    areas: Sequence[Area],
    size: BagSize,
    index: int,
    rng: np.random.Generator,
) -> Bag:
    if dataset == "glas":
        return compose_glas(areas, PATCH_PX, size, (0, 1, 2)[index % 3], rng)
    return compose_cancer(areas, PATCH_PX, size, index % 2 == 0, rng)


def _table(net: SelectorNet, areas: Sequence[Area], dataset: str) -> Table:
    stride = PATCH_PX // 2 if dataset == "glas" else PATCH_PX
    return cut_all(net, areas, PATCH_PX, stride)
