"""Measures segmenters on labelled images at full resolution, as masks are made in use."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.metrics import bootstrap_interval, confusion, dice, iou, mean_iou
from wsi_pipeline.models.sampling import mip_levels, sample_at
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.segmenting import RegionSegmenter
from wsi_pipeline.training.data import LabelledImages

_OVERLAP = 0.125


def measure(arms: nn.ModuleDict, data: SegmentData, device: str) -> dict[str, Any]:
    """Scores of every strategy on whole validation images, at full resolution.

    Returns
    -------
    dict
        JSON values for the card: per strategy mIoU with its 95 % interval over
        images, IoU and Dice per class; and the difference learned - uniform.
    """
    names = [c.name for c in data.classes]
    images = data.validation
    out: dict[str, Any] = {"split": "validation", "images": len(images)}
    for strategy, net in arms.items():
        counts = validate(net.to(device), images, len(names))
        total = counts.sum(axis=0)
        interval = bootstrap_interval(counts, mean_iou)
        out[strategy] = {
            "miou": _rounded(mean_iou(total)),
            "miou_interval": [_rounded(edge) for edge in interval],
            "iou": _by_class(names, iou(total)),
            "dice": _by_class(names, dice(total)),
        }
    if {"learned", "uniform"} <= set(arms):
        out["learned_minus_uniform"] = _rounded(
            out["learned"]["miou"] - out["uniform"]["miou"]
        )
    return out


def validate(net: nn.Module, images: LabelledImages, classes: int) -> NDArray[np.int64]:
    """Confusion per image, (n, k, k + 1) int64, as masks are made in use."""
    if not isinstance(net, SegmentNet):
        raise TypeError(f"expected a SegmentNet, got {type(net).__name__}")
    segmenter = RegionSegmenter(net.eval(), batch=1)
    return np.stack(
        [
            confusion(labels, predict_image(segmenter, image), classes)
            for image, labels in zip(images.images, images.labels, strict=True)
        ]
    )


def predict_image(
    segmenter: RegionSegmenter, image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Segment an image from overlapping regions.

    Parameters
    ----------
    segmenter : RegionSegmenter
        The model.
    image : (3, h, w) uint8 array
        At the model's mpp; white is added where it is smaller than a region.

    Returns
    -------
    (h, w) uint8 array
        Class per pixel.
    """
    h, w = image.shape[1:]
    level = segmenter.level_for(REGION_PX)
    step = 2**level
    padded = np.full((3, max(h, REGION_PX) + step, max(w, REGION_PX) + step), 255)
    padded[:, :h, :w] = image
    coarse = mip_levels(torch.from_numpy(padded)[None].float(), level + 1)[level][0]
    pixels = coarse.round().to(torch.uint8).numpy()
    side = REGION_PX // step
    votes = np.zeros((segmenter.classes, *padded.shape[1:]), np.float32)
    unit = np.linspace(0, 1, REGION_PX)
    tent = np.minimum(np.minimum(unit, 1 - unit) / _OVERLAP + 1e-3, 1)
    weight = (tent[:, None] * tent).astype(np.float32)
    for y in _starts(h, step):
        for x in _starts(w, step):
            part = pixels[:, y // step :, x // step :][None, :, :side, :side]
            probabilities, grids = segmenter(part, level)
            votes[:, y : y + REGION_PX, x : x + REGION_PX] += weight * sample_at(
                probabilities[0], grids[0], unit, unit
            )
    return votes[:, :h, :w].argmax(axis=0).astype(np.uint8)


def _starts(length: int, step: int) -> list[int]:
    """First pixels of overlapping regions that cover a length, multiples of step."""
    room = max(0, length - REGION_PX)
    count = math.ceil(room / (REGION_PX * (1 - _OVERLAP))) + 1
    last = -(-room // step) * step
    return [round(last * i / max(1, count - 1) / step) * step for i in range(count)]


def _by_class(names: list[str], values: NDArray[np.float64]) -> dict[str, Any]:
    return {name: _rounded(v) for name, v in zip(names, values, strict=True)}


def _rounded(value: float) -> float | None:
    """Four digits; None where a class does not occur (JSON knows no NaN)."""
    return round(float(value), 4) if math.isfinite(value) else None
