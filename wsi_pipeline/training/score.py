"""Measures a selector on bags of held-out patches, beside simpler ways to pool them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from wsi_pipeline.models.choosing import choose_patches
from wsi_pipeline.models.selector import SelectorNet
from wsi_pipeline.training.bags import SHOWN, Area

_CHUNK = 64
_LARGE_BAG_LESION = 40


@dataclass(frozen=True)
class Table:
    """All patches of some areas, encoded.

    Parameters
    ----------
    embeddings : (n, D) float32 array
    logits : (n, C) float32 array
    share : (n,) float32 array
        Of each patch, how much shows the lesion (or gland).
    area : (n,) int64 array
        Which area each comes from.
    malignant : (areas,) bool array
        Label per area.
    """

    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32]
    share: NDArray[np.float32]
    area: NDArray[np.int64]
    malignant: NDArray[np.bool_]

    @property
    def clean(self) -> NDArray[np.int64]:
        """Patches without a pixel of what is looked for."""
        return np.flatnonzero(self.share == 0)


@torch.no_grad()
def cut_all(
    net: SelectorNet, areas: Sequence[Area], patch_px: int, stride_px: int
) -> Table:
    """Encode every patch of some areas, in eval mode."""
    net.eval()
    device = next(net.parameters()).device
    embeddings, logits, shares, owners = [], [], [], []
    for index, area in enumerate(areas):
        patches, share = area.cut(patch_px, stride_px, None)
        for start in range(0, len(patches), _CHUNK):
            part = torch.from_numpy(patches[start : start + _CHUNK])
            x = net.embed(part.to(device))
            embeddings.append(x.cpu().numpy())
            logits.append(net.logits(x).cpu().numpy())
        shares.append(share)
        owners.append(np.full(len(share), index, np.int64))
    return Table(
        np.concatenate(embeddings),
        np.concatenate(logits),
        np.concatenate(shares),
        np.concatenate(owners),
        np.array([area.malignant for area in areas]),
    )


def area_under_curve(scores: NDArray[Any], labels: NDArray[np.bool_]) -> float:
    """Chance that a positive outranks a negative, ties counted half."""
    ranks = rankdata(scores)
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / pairs)


def bootstrap_interval(
    scores: NDArray[Any], labels: NDArray[np.bool_], seed: int, times: int = 500
) -> list[float]:
    """95 % percentile interval of the AUC, bags drawn with replacement per label."""
    rng = np.random.default_rng(seed)
    groups = np.flatnonzero(labels), np.flatnonzero(~labels)
    values = []
    for _ in range(times):
        drawn = np.concatenate([rng.choice(g, len(g)) for g in groups])
        values.append(area_under_curve(scores[drawn], labels[drawn]))
    return [round(float(v), 4) for v in np.percentile(values, [2.5, 97.5])]


def measure_cancer(
    net: SelectorNet, train: Table, validation: Table, top_m: int, seed: int
) -> dict[str, Any]:  # Any: JSON values for the card
    """Metrics of the task "cancer" on composed bags of validation patches."""
    rng = np.random.default_rng(seed)
    keep, bag = 16, 200
    bags = [_draw_bag(validation, bag, i % 2 == 0, rng) for i in range(200)]
    labels = np.arange(200) % 2 == 0
    report = _compare(net, validation, bags, labels, keep, seed)
    fitting = [_draw_bag(train, bag, i % 2 == 0, rng) for i in range(200)]
    pooled = mean_pooling(_means(train, fitting), labels, _means(validation, bags))
    report["auc_mean_pooling"] = auc_facts(pooled, labels, seed)
    report |= {
        "bags": 200,
        "patches_per_bag": bag,
        "m": keep,
        "lesion_share": "0.5-6 %",
    }
    shown = np.flatnonzero(validation.share >= SHOWN)
    hits = [_found(validation, ids, keep) for ids in bags[::2]]
    report["positives_with_lesion_in_top_m"] = round(float(np.mean(hits)), 4)
    found, best = [], []
    for _ in range(20):
        lesion = rng.choice(shown, _LARGE_BAG_LESION)
        ids = np.concatenate([lesion, validation.clean])
        rank = choose_patches(validation.logits[ids], top_m).rank[: len(lesion)]
        found.append(float((rank < top_m).mean()))
        best.append(int(rank.min()))
    report["large_bag"] = {
        "patches": len(validation.clean) + _LARGE_BAG_LESION,
        "lesion_patches": _LARGE_BAG_LESION,
        "m": top_m,
        "lesion_patches_found": round(float(np.mean(found)), 4),
        "worst_best_rank": max(best),
    }
    return report


def measure_glas(
    net: SelectorNet, train: Table, validation: Table, top_m: int, seed: int
) -> dict[str, Any]:  # Any: JSON values for the card
    """Metrics of the tasks "malignant" and "gland"; a bag is an image."""
    count = len(validation.malignant)
    bags = [np.flatnonzero(validation.area == i) for i in range(count)]
    fitting = [np.flatnonzero(train.area == i) for i in range(len(train.malignant))]
    report = _compare(net, validation, bags, validation.malignant, 16, seed)
    pooled = mean_pooling(
        _means(train, fitting), train.malignant, _means(validation, bags)
    )
    report["auc_mean_pooling"] = auc_facts(pooled, validation.malignant, seed)
    report |= {"bags": count, "m": 16}
    shown = validation.share >= 0.3
    kept = shown | (validation.share == 0)
    for name, wanted in (
        ("all", np.ones(count, bool)),
        ("benign", ~validation.malignant),
    ):
        part = np.flatnonzero(kept & wanted[validation.area])
        choice = choose_patches(validation.logits[part], top_m)
        report[f"gland_above_stroma_{name}"] = {
            "auc_of_score": round(area_under_curve(choice.score, shown[part]), 4),
            "gland_share_of_top_m": round(float(shown[part][choice.chosen].mean()), 4),
            "gland_share_of_all": round(float(shown[part].mean()), 4),
            "m": top_m,
        }
    return report


def _compare(
    net: SelectorNet,
    table: Table,
    bags: Sequence[NDArray[np.int64]],
    labels: NDArray[np.bool_],
    keep: int,
    seed: int,
) -> dict[str, Any]:
    """AUC of the first task with selected, with random and with all patches."""
    rng = np.random.default_rng(seed)
    chosen, random, whole = [], [], []
    for ids in bags:
        choice = choose_patches(table.logits[ids], keep)
        chosen.append(_predict(net, table, ids[choice.chosen]))
        random.append(_predict(net, table, rng.permutation(ids)[:keep]))
        whole.append(_predict(net, table, ids))
    return {
        "auc": auc_facts(np.array(chosen), labels, seed),
        "auc_random_patches": auc_facts(np.array(random), labels, seed),
        "auc_all_patches": auc_facts(np.array(whole), labels, seed),
    }


def auc_facts(
    scores: NDArray[Any], labels: NDArray[np.bool_], seed: int
) -> dict[str, Any]:  # Any: JSON values for the card
    """AUC and its interval; labels of both kinds are there."""
    return {
        "value": round(area_under_curve(scores, labels), 4),
        "interval_95": bootstrap_interval(scores, labels, seed),
    }


@torch.no_grad()
def _predict(net: SelectorNet, table: Table, ids: NDArray[np.int64]) -> float:
    device = next(net.parameters()).device
    bag = torch.from_numpy(table.embeddings[ids])[None].to(device)
    return float(net.predict(bag)[0, 0])


def _draw_bag(
    table: Table, size: int, positive: bool, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Ids of a composed bag; in positive ones 1 patch to 6 % show the lesion."""
    count = int(rng.integers(1, max(2, size * 6 // 100))) if positive else 0
    shown = np.flatnonzero(table.share >= SHOWN)
    parts = [rng.choice(shown, count), rng.choice(table.clean, size - count)]
    return np.concatenate(parts)


def _found(table: Table, ids: NDArray[np.int64], keep: int) -> bool:
    """Whether a patch with the lesion is among the top M."""
    chosen = choose_patches(table.logits[ids], keep).chosen
    return bool((table.share[ids][chosen] >= SHOWN).any())


def mean_pooling(
    train: NDArray[np.float32],
    labels: NDArray[np.bool_],
    validation: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Scores of a logistic regression on the mean embedding of each bag.

    Parameters
    ----------
    train, validation : (bags, D) float32 arrays
        Mean embeddings.
    labels : (bags,) bool array
        Of the training bags.

    Returns
    -------
    (bags,) float32 array
        Of the validation bags.
    """
    x, y = torch.from_numpy(train), torch.from_numpy(validation)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, y = (x - mean) / std, (y - mean) / std
    target = torch.from_numpy(labels.astype(np.float32))
    line = nn.Linear(x.shape[1], 1)
    nn.init.zeros_(line.weight)
    nn.init.zeros_(line.bias)
    optimizer = torch.optim.AdamW(line.parameters(), lr=0.02, weight_decay=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(line(x)[:, 0], target)
        torch.autograd.backward(loss)
        optimizer.step()
    scores: NDArray[np.float32] = line(y)[:, 0].detach().numpy()
    return scores


def _means(table: Table, bags: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Mean embedding per bag."""
    return np.stack([table.embeddings[ids].mean(0) for ids in bags])
