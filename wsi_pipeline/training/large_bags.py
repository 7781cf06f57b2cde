"""Fits the attention to bags as large as slides, on embeddings that are kept.

The encoder stays as it is, so a bag of thousands of patches costs a matrix product.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.models.selector import SelectorNet, choose_patches
from wsi_pipeline.training.bags import SHOWN
from wsi_pipeline.training.loop import LoopOptions, fit
from wsi_pipeline.training.score import Table

_BAGS = 8
_LARGEST = 4000
_MOST_SHOWN = 60


class Pooling(nn.Module):
    """The part of a selector after its encoder; shares the selector's weights."""

    def __init__(self, net: SelectorNet) -> None:
        super().__init__()
        self.attention, self.outputs = net.attention, net.outputs

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Logit of the first task: (b, n, D) and (b, n) bool to (b,)."""
        first: Tensor = self.outputs[0](self.attention(x, real)[:, 0])[:, 0]
        return first


def fit_large_bags(
    net: SelectorNet, table: Table, keep: int, steps: int, seed: int
) -> list[float]:
    """Train attention and head so that a benign slide's worst M patches stay benign.

    Parameters
    ----------
    net : SelectorNet
        With one task; its attention and head are changed.
    table : Table
        Encoded patches of the training areas.
    keep : int
        M that the selector will be used with.
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
        batch = torch.zeros(_BAGS, keep, table.embeddings.shape[1], device=device)
        real = torch.zeros(_BAGS, keep, dtype=torch.bool, device=device)
        for row in range(_BAGS):
            x = torch.from_numpy(table.embeddings[_draw(table, row % 2 == 0, rng)])
            with torch.no_grad():
                logits = net.logits(x.to(device)).cpu().numpy()
            chosen = x[torch.from_numpy(choose_patches(logits, keep).chosen)]
            batch[row, : len(chosen)] = chosen.to(device)
            real[row, : len(chosen)] = True
        labels = (torch.arange(_BAGS, device=device) % 2 == 0).float()
        return nn.functional.binary_cross_entropy_with_logits(
            module(batch, real), labels
        )

    options = LoopOptions(
        steps, device=str(device), lr=3e-4, weight_decay=0.05, average=0.98
    )
    losses = fit(Pooling(net), loss_of, options)
    net.eval()
    return losses


def _draw(table: Table, positive: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ids of a bag: clean patches of some areas, and lesion patches if positive."""
    areas = rng.permutation(len(table.malignant))
    some = areas[: int(np.exp(rng.uniform(np.log(8), np.log(len(areas) + 8))))]
    clean = table.clean[np.isin(table.area[table.clean], some)]
    clean = rng.permutation(clean)[:_LARGEST]
    if not positive:
        return clean
    shown = np.flatnonzero(table.share >= SHOWN)
    count = int(np.exp(rng.uniform(0, np.log(_MOST_SHOWN))))
    return np.concatenate([clean, rng.choice(shown, count)])
