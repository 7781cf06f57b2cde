"""Trains a selector from bag labels: a selection pass without gradient, then a step.

References
----------
Bergner et al., ICLR 2023, section 3: the gradient reaches the M selected patches only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wsi_pipeline.errors import UnknownNameError
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.cards import SelectorCard
from wsi_pipeline.models.selector import SelectorNet, SelectorShape, choose_patches
from wsi_pipeline.models.weights import load_state, save_state
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
_CHUNK = 64


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

    def loss_of(module: nn.Module, step: int) -> Tensor:
        phase = next(p for p in recipe.phases if step < p.until * steps)
        keep = int(rng.choice(phase.kept))
        bags = [
            _compose(dataset, train, phase.size, index, rng)
            for index in range(phase.bags)
        ]
        return bag_loss(module, net, bags, keep, recipe.colour, rng)

    options = LoopOptions(
        steps, device=str(target), lr=recipe.lr, weight_decay=0.05, warm_up_steps=30
    )
    losses = fit(net, loss_of, options, progress=progress)
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


def bag_loss(
    module: nn.Module,
    net: SelectorNet,
    bags: Sequence[Bag],
    keep: int,
    colour: float,
    rng: np.random.Generator,
) -> Tensor:
    """Select M patches per bag without gradient, then the loss of the bags' labels.

    Parameters
    ----------
    module : nn.Module
        What is trained: `net`, or `net` wrapped for a device and precision.
    net : SelectorNet
        The same net, unwrapped.
    keep : int
        M.
    colour : float
        Strength of the colour augmentation.

    Returns
    -------
    Tensor
        Mean cross-entropy of the labels that are known.
    """
    device = next(net.parameters()).device
    side = bags[0].patches.shape[-1]
    batch = torch.zeros(len(bags), keep, 3, side, side, device=device)
    real = torch.zeros(len(bags), keep, dtype=torch.bool, device=device)
    for row, bag in enumerate(bags):
        pixels = augment(torch.from_numpy(bag.patches).to(device), colour, rng)
        ids = select_bag(net, pixels, keep)
        batch[row, : len(ids)] = pixels[ids]
        real[row, : len(ids)] = True
    labels = torch.from_numpy(np.stack([bag.labels for bag in bags])).to(device)
    known = ~labels.isnan()
    return nn.functional.binary_cross_entropy_with_logits(
        module(batch, real)[known], labels[known]
    )


def select_bag(net: SelectorNet, pixels: Tensor, keep: int) -> Tensor:
    """Ids of the M patches that attention prefers, (min(M, n),) int64, ascending."""
    if len(pixels) <= keep:
        return torch.arange(len(pixels), device=pixels.device)
    with selection_pass(net):
        starts = range(0, len(pixels), _CHUNK)
        parts = [net.logits(net.embed(pixels[i : i + _CHUNK])) for i in starts]
    chosen = choose_patches(torch.cat(parts).cpu().numpy(), keep).chosen
    return torch.from_numpy(np.flatnonzero(chosen)).to(pixels.device)


@contextmanager
def selection_pass(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; every module's mode is restored, errors or not."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def augment(patches: Tensor, colour: float, rng: np.random.Generator) -> Tensor:
    """Flip, turn and tint a bag: (n, 3, p, p) uint8 to float32 in [0, 1].

    Parameters
    ----------
    colour : float
        Deviation of the entries of the colour matrix and of twice the shift.
    """
    pixels = patches.float() / 255
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    pixels = pixels.rot90(int(rng.integers(4)), (2, 3))
    matrix = np.eye(3) + rng.normal(0, colour, (3, 3)) * (0.5 + 0.5 * np.eye(3))
    shift = rng.normal(0, colour / 2, (3, 1, 1))
    mixed = torch.einsum(
        "ij,njyx->niyx", torch.tensor(matrix, dtype=torch.float32), pixels
    )
    return (mixed + torch.tensor(shift, dtype=torch.float32)).clamp(0, 1)


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
