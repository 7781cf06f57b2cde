"""Losses of the deformed segmenter: area-weighted soft labels, and where edges are."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_AREA_RANGE = 0.1, 10.0


def area_weights(areas: Tensor) -> Tensor:
    """Weight of each node so that a mean over nodes is a mean over the region.

    Parameters
    ----------
    areas : (n, 1, h, w) float tensor
        Area of the nodes' cells, any unit.

    Returns
    -------
    (n, 1, h, w) float tensor
        Mean 1 per region; clipped to 0.1-10 of the mean area before.
    """
    relative = areas / areas.mean(dim=(2, 3), keepdim=True)
    clipped = relative.clamp(*_AREA_RANGE)
    return clipped / clipped.mean(dim=(2, 3), keepdim=True)


def soft_cross_entropy(
    logits: Tensor,
    soft: Tensor,
    areas: Tensor,
    *,
    focus: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy against class shares, weighted by area.

    Parameters
    ----------
    logits : (n, c, h, w) float tensor
        Per node.
    soft : (n, c, h, w) float tensor
        Share of each class in the node's cell; what is missing to 1 is ignored.
    areas : (n, 1, h, w) float tensor
        Area of the nodes' cells.
    focus : float
        Exponent gamma of the focal loss: what is known counts less.
    class_weights : (c,) float tensor, optional
        Weight of each class.

    Returns
    -------
    scalar tensor
        Mean over the labelled, weighted area, in nats.

    References
    ----------
    Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4 and 5.
    """
    chances = logits.float().log_softmax(dim=1)
    weighted = soft
    if class_weights is not None:
        weighted = soft * class_weights.view(1, -1, 1, 1)
    terms = weighted * chances
    if focus:
        terms = terms * (1 - chances.exp()) ** focus
    weight = area_weights(areas)
    loss = -terms.sum(dim=1, keepdim=True)
    labelled = (weighted.sum(dim=1, keepdim=True) * weight).sum()
    return (loss * weight).sum() / labelled.clamp_min(1e-6)


def balanced_weights(labels: Iterable[NDArray[np.uint8]], classes: int) -> Tensor:
    """Weights by which rare classes count more: the inverse root of their share.

    Parameters
    ----------
    labels : iterable of uint8 arrays
        Of a dataset; 255 counts for no class.
    classes : int
        Number of classes c.

    Returns
    -------
    (c,) float32 tensor
        Mean 1 over the labelled pixels; 0 for classes that never occur.
    """
    counts = np.zeros(256, np.int64)
    for label in labels:
        counts += np.bincount(label.ravel(), minlength=256)
    found = counts[:classes].astype(np.float64)
    share = found / max(found.sum(), 1)
    weights = np.divide(1, np.sqrt(share), out=np.zeros(classes), where=share > 0)
    mean = (weights * share).sum()
    return torch.from_numpy((weights / (mean or 1)).astype(np.float32))


def boundary_density(
    labels: Tensor,
    nodes: tuple[int, int],
    *,
    blur_nodes: float = 0.7,
    floor: float = 0.2,
) -> Tensor:
    """Density that a perfect guess of the class boundaries would ask for.

    Parameters
    ----------
    labels : (n, h, w) int tensor
        Class per sample, h and w multiples of `nodes`; 255 = ignored.
    nodes : (int, int)
        Rows and columns of the density.
    blur_nodes : float
        Sigma of the Gaussian that widens the boundaries, nodes.
    floor : float
        Share that is spread evenly.

    Returns
    -------
    (n, 1, *nodes) float tensor
        Sums to 1; even where a region has no boundary.
    """
    pooled = functional.adaptive_avg_pool2d(boundaries(labels).float()[:, None], nodes)
    blurred = _blur(pooled, blur_nodes)
    total = blurred.sum(dim=(2, 3), keepdim=True)
    even = torch.full_like(blurred, 1 / (nodes[0] * nodes[1]))
    peaked = torch.where(total > 0, blurred / total.clamp_min(1e-12), even)
    return (1 - floor) * peaked + floor * even


def boundaries(labels: Tensor) -> Tensor:
    """Where the class changes between 4-neighbours, on both sides of the change.

    Parameters
    ----------
    labels : (n, h, w) int tensor
        255 = ignored: its edges are no boundaries.

    Returns
    -------
    (n, h, w) bool tensor
    """
    edge = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for axis in (1, 2):
        size = labels.shape[axis] - 1
        a, b = labels.narrow(axis, 0, size), labels.narrow(axis, 1, size)
        change = (a != b) & (a != 255) & (b != 255)
        for start in (0, 1):
            edge.narrow(axis, start, size).logical_or_(change)
    return edge


def _blur(planes: Tensor, sigma: float) -> Tensor:
    """Gaussian of (n, 1, h, w), borders repeated."""
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, device=planes.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(planes, (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel.view(1, 1, -1, 1))


def density_divergence(density: Tensor, target: Tensor) -> Tensor:
    """KL(target || density), mean over regions, nats.

    Parameters
    ----------
    density, target : (n, 1, h, w) float tensors
        Positive, sums 1.
    """
    terms = target * (target.log() - density.clamp_min(1e-12).log())
    return terms.sum(dim=(1, 2, 3)).mean()


def minmax_error(density: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of densities that are each scaled to 0 ... 1 per region.

    Parameters
    ----------
    density, target : (n, 1, h, w) float tensors

    References
    ----------
    Jin et al. 2022, edge loss; the released code scales over the whole batch, so that
    one region with a spike flattens the targets of the others.
    """

    def scaled(values: Tensor) -> Tensor:
        low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
        return (values - low) / (high - low).clamp_min(1e-12)

    return functional.mse_loss(scaled(density), scaled(target))
