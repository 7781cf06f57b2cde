"""Measures a selector on labelled bags, beside mean pooling and random patches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.models.choosing import choose_patches
from wsi_pipeline.models.selector import SelectorNet
from wsi_pipeline.training.bag_training import (
    Ids,
    PatchBag,
    embed_patches,
    places_of,
    selection_pass,
)
from wsi_pipeline.training.score import auc_facts, mean_pooling


class _Bag(NamedTuple):
    """Mean embedding (D,), and logits (T,) of the chosen and of random patches."""

    mean: NDArray[np.float32]
    chosen: NDArray[np.float32]
    random: NDArray[np.float32]


def measure_bags(
    net: SelectorNet,
    train: Sequence[PatchBag],
    validation: Sequence[PatchBag],
    top_m: int,
    *,
    seed: int,
    half: bool = False,
) -> dict[str, Any]:  # Any: JSON values for the card
    """AUC per task on the validation bags, with 95 % bootstrap intervals.

    Parameters
    ----------
    net : SelectorNet
        Put into eval mode.
    train, validation : sequence of PatchBag
        Mean pooling learns from the first, everything is measured on the second.
    top_m : int
        M; as many patches are drawn at random beside.
    half : bool
        Whether patches are encoded in bfloat16.

    Returns
    -------
    dict
        "m", and per task: bags with a label, those with label 1, and what
        `auc_facts` says of chosen patches, random ones and mean pooling; None where
        all labels are of one kind.

    Notes
    -----
    Memory: a chunk of patches, logits of one bag, and a mean embedding per bag.
    """
    rng = np.random.default_rng(seed)
    with selection_pass(net):
        means = np.stack([_read(net, bag, half)[0] for bag in train])
        found = [_judge(net, bag, top_m, rng, half) for bag in validation]
    known = np.stack([bag.labels for bag in train])
    labels = np.stack([bag.labels for bag in validation])
    held_out = np.stack([one.mean for one in found])
    tasks: dict[str, Any] = {}
    for t, task in enumerate(net.tasks):
        rows, fitting = ~np.isnan(labels[:, t]), ~np.isnan(known[:, t])
        truth = labels[rows, t] == 1
        facts: dict[str, Any] = {"bags": len(truth), "positives": int(truth.sum())}
        pooled = mean_pooling(means[fitting], known[fitting, t] == 1, held_out)
        for name, scores in (
            ("auc", np.array([one.chosen[t] for one in found])),
            ("auc_random_patches", np.array([one.random[t] for one in found])),
            ("auc_mean_pooling", pooled),
        ):
            both = truth.any() and not truth.all()
            facts[name] = auc_facts(scores[rows], truth, seed) if both else None
        tasks[task] = facts
    return {"m": top_m, "tasks": tasks}


def _judge(
    net: SelectorNet, bag: PatchBag, top_m: int, rng: np.random.Generator, half: bool
) -> _Bag:
    mean, logits = _read(net, bag, half)
    chosen = np.flatnonzero(choose_patches(logits, top_m).chosen)
    random = np.sort(rng.permutation(len(bag))[:top_m])
    return _Bag(mean, *(_predict(net, bag, ids, half) for ids in (chosen, random)))


def _read(
    net: SelectorNet, bag: PatchBag, half: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean embedding (D,) and attention logits (n, C) of a bag's patches."""
    logits = np.empty((len(bag), net.channels), np.float32)
    total = torch.zeros(net.shape.width, dtype=torch.float64)
    for ids, x in embed_patches(net, bag, bag.order, half=half):
        logits[ids] = net.logits(x, places_of(net, bag, ids)).cpu().numpy()
        total += x.double().sum(0).cpu()
    return (total / len(bag)).float().numpy(), logits


def _predict(
    net: SelectorNet, bag: PatchBag, ids: Ids, half: bool
) -> NDArray[np.float32]:
    """Logit per task from some patches."""
    parts = embed_patches(net, bag, ids, half=half)
    x = torch.cat([x for _, x in parts])
    places = places_of(net, bag, ids)
    logits = net.predict(x[None], None, None if places is None else places[None])
    return logits[0].float().cpu().numpy()
