"""Measures segmenters on labelled images at full resolution, through the inverse."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.metrics import bootstrap_interval, confusion, dice, iou, mean_iou
from wsi_pipeline.models.sampling import mip_levels, sample_at
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.segmenting import RegionSegmenter
from wsi_pipeline.segmentation import Lattice
from wsi_pipeline.training.data import LabelledImages

_OVERLAP = 0.125


def measure(
    nets: Mapping[str, SegmentNet],
    images: LabelledImages,
    names: Sequence[str],
    region_px: int,
) -> dict[str, Any]:
    """Score every strategy on whole images.

    Parameters
    ----------
    nets : mapping of str to SegmentNet
        Strategy to net, on its device.
    images : LabelledImages
        Images that no net was trained on.
    names : sequence of str
        Names of the classes.
    region_px : int
        Side of a region.

    Returns
    -------
    dict
        JSON values for the card: per strategy mIoU with its 95 % interval over
        images, IoU and Dice per class; the mIoU of regions twice as wide, which
        coarse coverage uses; and the difference learned - uniform.
    """
    out: dict[str, Any] = {"split": "validation", "images": len(images)}
    for strategy, net in nets.items():
        segmenter = RegionSegmenter(net.eval(), batch=1)
        counts = _count(segmenter, images, region_px)
        coarse = _count(segmenter, images, 2 * region_px)
        total = counts.sum(axis=0)
        interval = bootstrap_interval(counts, mean_iou)
        out[strategy] = {
            "miou": _rounded(mean_iou(total)),
            "miou_interval": [_rounded(edge) for edge in interval],
            "iou": _by_class(names, iou(total)),
            "dice": _by_class(names, dice(total)),
            "miou_coarse": _rounded(mean_iou(coarse.sum(axis=0))),
        }
    if {"learned", "uniform"} <= set(nets):
        out["learned_minus_uniform"] = _rounded(
            out["learned"]["miou"] - out["uniform"]["miou"]
        )
    return out


def _count(
    segmenter: RegionSegmenter, images: LabelledImages, region_px: int
) -> NDArray[np.int64]:
    """Confusion per image, (n, k, k + 1) int64."""
    counts = [
        confusion(labels, predict_image(segmenter, image, region_px), segmenter.classes)
        for image, labels in zip(images.images, images.labels, strict=True)
    ]
    return np.stack(counts)


def predict_image(
    segmenter: RegionSegmenter, image: NDArray[np.uint8], region_px: int
) -> NDArray[np.uint8]:
    """Segment an image from overlapping regions.

    Parameters
    ----------
    segmenter : RegionSegmenter
        The model.
    image : (3, h, w) uint8 array
        At the model's mpp; white is added where it is smaller than a region.
    region_px : int
        Side of a region.

    Returns
    -------
    (h, w) uint8 array
        Class per pixel.
    """
    h, w = image.shape[1:]
    level = segmenter.level_for(region_px)
    step = 2**level
    lattice = Lattice.over((w, h), region_px, _OVERLAP, step)
    padded = np.full((3, lattice.ys[-1] + region_px, lattice.xs[-1] + region_px), 255)
    padded[:, :h, :w] = image
    coarse = mip_levels(torch.from_numpy(padded)[None].float(), level + 1)[level]
    pixels = coarse.round().to(torch.uint8).numpy()
    side = region_px // step
    votes = np.zeros((segmenter.classes, *padded.shape[1:]), np.float32)
    unit = np.linspace(0, 1, region_px)
    tent = np.minimum(np.minimum(unit, 1 - unit) / _OVERLAP + 1e-3, 1)
    weight = (tent[:, None] * tent).astype(np.float32)
    for y, x in product(lattice.ys, lattice.xs):
        part = pixels[..., y // step :, x // step :][..., :side, :side]
        probabilities, grids = segmenter(part, level)
        read = sample_at(probabilities[0], grids[0], unit, unit)
        votes[:, y : y + region_px, x : x + region_px] += weight * read
    return votes[:, :h, :w].argmax(axis=0).astype(np.uint8)


def _by_class(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, Any]:
    return {name: _rounded(v) for name, v in zip(names, values, strict=True)}


def _rounded(value: float) -> float | None:
    """Four digits; None where a class does not occur (JSON knows no NaN)."""
    return round(float(value), 4) if math.isfinite(value) else None
