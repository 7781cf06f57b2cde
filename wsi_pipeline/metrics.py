"""Scores of masks: confusion counts to IoU and Dice, with bootstrap intervals."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import NOT_COMPUTED

_PIECE_PX = 1 << 20


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

    Notes
    -----
    Memory: about 50 MB, kept by going through a million pixels at a time.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, prediction {predicted.shape}")
    bytewise = truth.dtype == predicted.dtype == np.uint8 and 0 <= ignore < 256
    if bytewise and truth.size:
        return _confusion_of_bytes(truth, predicted, classes, ignore)
    pairs = truth.ravel(), predicted.ravel()
    counts = np.zeros(classes * (classes + 1), np.int64)
    for start in range(0, truth.size, _PIECE_PX):
        piece = slice(start, start + _PIECE_PX)
        t, p = (values[piece].astype(np.int64) for values in pairs)
        t, p = t[t != ignore], p[t != ignore]
        _check_range("truth", t, classes, ignore)
        _check_range("prediction", p[p != ignore], classes, ignore)
        p[p == ignore] = classes
        counts += np.bincount(t * (classes + 1) + p, minlength=len(counts))
    return counts.reshape(classes, classes + 1)


def _confusion_of_bytes(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    classes: int,
    ignore: int,
) -> NDArray[np.int64]:
    """`confusion` of uint8 arrays by way of a table of all pairs, which is faster."""
    table = np.zeros(1 << 16, np.int64)
    if truth.min() == truth.max() and predicted.min() == predicted.max():
        table[int(truth.flat[0]) << 8 | int(predicted.flat[0])] = truth.size
    else:
        pairs = truth.ravel(), predicted.ravel()
        for start in range(0, truth.size, _PIECE_PX):
            t, p = (values[start : start + _PIECE_PX] for values in pairs)
            table += np.bincount(t.astype(np.uint16) << 8 | p, minlength=len(table))
    square = table.reshape(256, 256)
    square[ignore] = 0
    seen = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
    _check_range("truth", seen[0], classes, ignore)
    _check_range("prediction", seen[1][seen[1] != ignore], classes, ignore)
    return np.column_stack([square[:classes, :classes], square[:classes, ignore]])


def _check_range(
    name: str, values: NDArray[np.int64], classes: int, ignore: int
) -> None:
    if values.size and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(
            f"{name} holds {values.min()}..{values.max()}, expected 0.."
            f"{classes - 1} or {ignore}"
        )


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


def by_group(counts: NDArray[np.int64], groups: Sequence[str]) -> NDArray[np.int64]:
    """Sum (n, k, k + 1) counts over what belongs together, (groups, k, k + 1)."""
    names = sorted(set(groups))
    owner = np.array([names.index(group) for group in groups])
    return np.stack([counts[owner == index].sum(axis=0) for index in range(len(names))])


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
    counts, seed, repeats, level
        See `bootstrap_intervals`.
    score : callable
        Summed confusion to a number, e.g. `mean_iou`.

    Returns
    -------
    low, high : float

    Raises
    ------
    ValueError
        If there is no image.
    """
    low, high = bootstrap_intervals(
        counts,
        lambda total: np.array([score(total)]),
        seed=seed,
        repeats=repeats,
        level=level,
    )
    return float(low[0]), float(high[0])


def bootstrap_intervals(
    counts: NDArray[np.int64],
    scores: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    *,
    seed: int = 0,
    repeats: int = 1000,
    level: float = 0.95,
) -> NDArray[np.float64]:
    """Percentile intervals of several scores, from the same draws of images.

    Parameters
    ----------
    counts : (n, k, k + 1) int64 array
        One confusion per image (or patient: whatever is independent).
    scores : callable
        Summed confusion to (m,) numbers, e.g. `dice`.
    seed : int
        Seed of the draws.
    repeats : int
        Draws of n images with replacement.
    level : float
        Share of the draws inside the interval.

    Returns
    -------
    (2, m) float64 array
        Low and high; over the draws in which a score is a number, NaN if in none.

    Raises
    ------
    ValueError
        If there is no image.
    """
    if not len(counts):
        raise ValueError("a bootstrap needs at least one image")
    random = np.random.default_rng(seed)
    draws = random.integers(len(counts), size=(repeats, len(counts)))
    found = np.stack([scores(counts[draw].sum(axis=0)) for draw in draws])
    tail = (1 - level) / 2
    bounds = np.full((2, found.shape[1]), np.nan)
    there = np.isfinite(found).any(axis=0)
    bounds[:, there] = np.nanquantile(found[:, there], [tail, 1 - tail], axis=0)
    return bounds


def _totals(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Hits, true pixels and found pixels per class."""
    square = counts[..., : counts.shape[-2]]
    hits = np.diagonal(square, axis1=-2, axis2=-1)
    return hits, counts.sum(axis=-1), square.sum(axis=-2)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
