"""Scores of masks: confusion counts to IoU and Dice, with bootstrap intervals."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import NOT_COMPUTED


def confusion(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    classes: int,
    *,
    ignore: int = NOT_COMPUTED,
) -> NDArray[np.int64]:
    """Count pixels per pair of true and predicted class.

    Parameters
    ----------
    truth, predicted : integer arrays of the same shape
        Class per pixel. Pixels whose truth is `ignore` do not count; a prediction of
        `ignore` counts as a miss of its true class.
    classes : int
        Number of classes k; values are 0 to k - 1.
    ignore : int
        Value of pixels without an answer.

    Returns
    -------
    (k, k + 1) int64 array
        Rows: truth. Columns: prediction, the last one for "no answer".

    Raises
    ------
    ValueError
        If shapes differ or a value is neither a class nor `ignore`.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, prediction {predicted.shape}")
    counted = truth != ignore
    t = truth[counted].astype(np.int64)
    p = predicted[counted].astype(np.int64)
    p[p == ignore] = classes
    for name, values, limit in (("truth", t, classes), ("prediction", p, classes + 1)):
        if values.size and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(
                f"{name} holds {values.min()}..{values.max()}, expected 0.."
                f"{classes - 1} or {ignore}"
            )
    counts = np.bincount(t * (classes + 1) + p, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union per class; NaN for classes that never occur.

    Parameters
    ----------
    counts : (..., k, k + 1) int64 array
        From `confusion`, summed over the images that belong together.

    Returns
    -------
    (..., k) float64 array
    """
    hits, truth, found = _totals(counts)
    return _ratio(hits, truth + found - hits)


def dice(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Dice coefficient per class; NaN for classes that never occur.

    Parameters
    ----------
    counts : (..., k, k + 1) int64 array
        From `confusion`.

    Returns
    -------
    (..., k) float64 array
    """
    hits, truth, found = _totals(counts)
    return _ratio(2 * hits, truth + found)


def mean_iou(counts: NDArray[np.int64]) -> float:
    """Mean IoU over the classes that occur; NaN if none does."""
    values = iou(counts)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def bootstrap_interval(
    counts: NDArray[np.int64],
    score: Callable[[NDArray[np.int64]], float],
    *,
    seed: int = 0,
    repeats: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a score when images are drawn anew.

    Parameters
    ----------
    counts : (n, k, k + 1) int64 array
        One confusion per image (or patient: whatever is independent).
    score : callable
        Summed confusion to a number, e.g. `mean_iou`.
    seed : int
        Seed of the draws.
    repeats : int
        Draws of n images with replacement.
    level : float
        Share of the draws inside the interval.

    Returns
    -------
    low, high : float

    Raises
    ------
    ValueError
        If there is no image.
    """
    if not len(counts):
        raise ValueError("bootstrap_interval needs at least one image")
    random = np.random.default_rng(seed)
    draws = random.integers(len(counts), size=(repeats, len(counts)))
    scores = [score(counts[draw].sum(axis=0)) for draw in draws]
    tail = (1 - level) / 2
    low, high = np.nanquantile(scores, [tail, 1 - tail])
    return float(low), float(high)


def _totals(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Hits, true pixels and found pixels per class."""
    square = counts[..., : counts.shape[-2]]
    hits = np.diagonal(square, axis1=-2, axis2=-1)
    return hits, counts.sum(axis=-1), square.sum(axis=-2)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
