"""Fits the attention to bags as large as slides, on embeddings that are kept.

The encoder stays as it is, so a bag of thousands of patches costs a matrix product.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.models.choosing import choose_patches
from wsi_pipeline.models.selector import SelectorNet, answer_tokens
from wsi_pipeline.training.bags import SHOWN, UNKNOWN
from wsi_pipeline.training.loop import LoopOptions, fit
from wsi_pipeline.training.score import Table

_BAGS = 8
_LARGEST = 4000
_MOST_SHOWN = 60
_GLAND = 0.3


class Pooling(nn.Module):
    """The part of a selector after its encoder; shares the selector's weights."""

    def __init__(self, net: SelectorNet) -> None:
        super().__init__()
        self.attention, self.outputs = net.attention, net.outputs

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Logit per task: (b, n, D) and (b, n) bool to (b, T)."""
        return answer_tokens(self.outputs, self.attention(x, real))


Draw = Callable[
    [Table, int, np.random.Generator], tuple[NDArray[np.int64], list[float]]
]
"""Table, index of the bag in its step, generator: to patch ids, a label per task."""


def fit_large_bags(
    net: SelectorNet,
    table: Table,
    draw: Draw,
    kept: tuple[int, ...],
    steps: int,
    seed: int,
) -> list[float]:
    """Train attention and heads on bags as they occur in use.

    Parameters
    ----------
    net : SelectorNet
        Its attention and heads are changed, its encoder is not.
    table : Table
        Encoded patches.
    draw : callable
        Composes a bag.
    kept : tuple of int
        Values of M, one drawn per step.
    steps : int
        Optimizer steps of 8 bags.

    Returns
    -------
    list of float
        Loss per step.

    Notes
    -----
    Among thousands of benign patches the most suspicious look worse than among a
    hundred: what was trained on small bags calls many a large benign one malignant.
    """
    rng = np.random.default_rng(seed)
    device = next(net.parameters()).device

    def loss_of(module: nn.Module, step: int) -> Tensor:
        del step
        keep = int(rng.choice(kept))
        batch = torch.zeros(_BAGS, keep, table.embeddings.shape[1], device=device)
        real = torch.zeros(_BAGS, keep, dtype=torch.bool, device=device)
        labels = torch.zeros(_BAGS, len(net.tasks), device=device)
        for row in range(_BAGS):
            ids, values = draw(table, row, rng)
            x = torch.from_numpy(table.embeddings[ids])
            with torch.no_grad():
                logits = net.logits(x.to(device)).cpu().numpy()
            chosen = x[torch.from_numpy(choose_patches(logits, keep).chosen)]
            batch[row, : len(chosen)] = chosen.to(device)
            real[row, : len(chosen)] = True
            labels[row] = torch.tensor(values, device=device)
        known = ~labels.isnan()
        return nn.functional.binary_cross_entropy_with_logits(
            module(batch, real)[known], labels[known]
        )

    options = LoopOptions(
        steps, device=str(device), lr=3e-4, weight_decay=0.05, average=0.98
    )
    losses = fit(Pooling(net), loss_of, options)
    net.eval()
    return losses


def draw_cancer(
    table: Table, index: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], list[float]]:
    """Clean patches of some areas, and in every other bag 1 to 60 lesion patches."""
    areas = rng.permutation(len(table.malignant))
    some = areas[: int(np.exp(rng.uniform(np.log(8), np.log(len(areas) + 8))))]
    clean = table.clean[np.isin(table.area[table.clean], some)]
    clean = rng.permutation(clean)[:_LARGEST]
    if index % 2:
        return clean, [0.0]
    shown = np.flatnonzero(table.share >= SHOWN)
    count = int(np.exp(rng.uniform(0, np.log(_MOST_SHOWN))))
    return np.concatenate([clean, rng.choice(shown, count)]), [1.0]


def draw_glas(
    table: Table, index: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], list[float]]:
    """An image; or few of its glands among gland-free patches; or only the latter."""
    same = np.flatnonzero(table.malignant == (index % 2 == 0))
    image = int(rng.choice(same))
    malignant = float(table.malignant[image])
    own = table.area == image
    if index % 4 < 2:
        return np.flatnonzero(own), [malignant, 1.0]
    clean = rng.permutation(table.clean)[: int(rng.integers(40, 400))]
    glands = np.flatnonzero(own & (table.share >= _GLAND))
    if index >= _BAGS - 2 or not len(glands):
        return clean, [UNKNOWN, 0.0]
    some = rng.permutation(glands)[: int(rng.integers(4, 40))]
    return np.concatenate([clean, some]), [malignant, 1.0]
