"""Painted tissue with exact labels: squares of an endless plane."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.synthetic import SYNTHETIC_CLASSES, paint_region
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.record import DatasetOptions, SegmentData

_SIDE_PX = 1024
_MPP = 1.0
TRAIN_SEED, VALIDATION_SEED = 10_000, 20_000


@dataclass(frozen=True)
class _Painted:
    rgb: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def _paint(seed: int, side_px: int, mpp: float) -> _Painted:
    # areas of all patterns side by side, or few and large as on a slide
    patch_um = (None, 400.0, 1200.0)[seed % 3]
    rgb, truth = paint_region(
        seed, (side_px, side_px), mpp, patch_um=patch_um, artefacts=seed % 4 == 0
    )
    return _Painted(np.ascontiguousarray(rgb.transpose(2, 0, 1)), truth)


def paint_images(seeds: Iterable[int], side_px: int, mpp: float) -> LabelledImages:
    """Painted tissue with exact labels: areas of all patterns, small or large.

    Parameters
    ----------
    seeds : iterable of int
        One image each.
    side_px : int
        Side of an image; multiples of 512 are cheapest.
    mpp : float
        um/px.

    Notes
    -----
    Memory: 4 bytes per pixel of all images; they are painted at once.
    """
    numbers = tuple(seeds)
    painted = [_paint(seed, side_px, mpp) for seed in numbers]
    names = tuple(f"synthetic-{seed}" for seed in numbers)
    return LabelledImages(
        tuple(one.rgb for one in painted),
        tuple(one.truth for one in painted),
        names,
        names,
        mpp,
    )


def synthetic(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """Painted tissue as a dataset; no files are needed.

    Parameters
    ----------
    data_dir : Path or None
        Not used.
    options : DatasetOptions
        `images` to train on, and a quarter of it for validation; seeds from 10,000 and
        from 20,000 on.
    """
    del data_dir
    if options.classes is not None:
        raise ConfigError(f"dataset 'synthetic' has no classes {options.classes!r}")
    validation = range(VALIDATION_SEED, VALIDATION_SEED + max(1, options.images // 4))
    return SegmentData(
        name="synthetic",
        classes=SYNTHETIC_CLASSES,
        train=paint_images(
            range(TRAIN_SEED, TRAIN_SEED + options.images), _SIDE_PX, _MPP
        ),
        validation=paint_images(validation, _SIDE_PX, _MPP),
        test=None,
        frame_px=(_SIDE_PX, _SIDE_PX),
        budgets=((32, 32), (64, 64)),
        cases_disjoint=True,
        licence="Apache-2.0 (painted by this package)",
        note="Painted tissue: scores on it say nothing about real slides.",
    )
