"""Warms an encoder up on what masks say of single patches, before any bag is seen."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wsi_pipeline.models.selector import SelectorNet
from wsi_pipeline.training.bags import Area
from wsi_pipeline.training.loop import LoopOptions, fit

_AREAS, _PATCHES = 10, 8
_GLAND = 0.3


class PatchProbe(nn.Module):
    """An encoder with two outputs per patch: share of gland, malignancy."""

    def __init__(self, net: SelectorNet) -> None:
        super().__init__()
        self.encoder = net.encoder
        self.line = nn.Linear(net.shape.width, 2)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits: (n, 3, p, p) to (n, 2)."""
        logits: Tensor = self.line(self.encoder(patches))
        return logits


def fit_patches(
    net: SelectorNet,
    areas: Sequence[Area],
    patch_px: int,
    steps: int,
    tint: Callable[[Tensor], Tensor],
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train the encoder to tell the share of gland in a patch, and its grade.

    Parameters
    ----------
    areas : sequence of Area
        With masks of the glands and a grade per image.
    tint : callable
        Augments the patches of one area, uint8 to float.

    Returns
    -------
    list of float
        Loss per step.

    Notes
    -----
    From a hundred images' bags alone an encoder with fresh weights learns nothing in
    minutes. Patches with under 30 % gland say nothing about the grade.
    """
    device = next(net.parameters()).device

    def loss_of(module: nn.Module, step: int) -> Tensor:
        del step
        pixels, shares, grades = [], [], []
        for index in rng.permutation(len(areas))[:_AREAS]:
            area = areas[int(index)]
            patches, share = area.cut(patch_px, patch_px // 2, rng)
            # glands cover most of an image: draw so that half of the patches show few
            odds = np.where(share < _GLAND, 1 / (1 + (share < _GLAND).sum()), 0)
            odds = odds + np.where(
                share >= _GLAND, 1 / (1 + (share >= _GLAND).sum()), 0
            )
            some = rng.choice(len(share), _PATCHES, p=odds / odds.sum())
            pixels.append(tint(torch.from_numpy(patches[some]).to(device)))
            shares.append(share[some])
            grades.append(np.where(share[some] >= _GLAND, area.malignant, np.nan))
        logits = module(torch.cat(pixels))
        columns = np.concatenate(shares), np.concatenate(grades)
        labels = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
        known = ~labels.isnan()
        return nn.functional.binary_cross_entropy_with_logits(
            logits[known.to(device)], labels[known].to(device)
        )

    options = LoopOptions(
        steps, device=str(device), lr=1e-3, weight_decay=0.05, warm_up_steps=30
    )
    return fit(PatchProbe(net), loss_of, options, progress=progress)
