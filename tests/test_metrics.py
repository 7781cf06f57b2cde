"""Scores of masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.metrics import (
    bootstrap_interval,
    bootstrap_intervals,
    confusion,
    dice,
    iou,
    mean_iou,
)

TRUTH = np.array([[0, 0, 1, 1], [0, 2, 2, 255]], np.uint8)
FOUND = np.array([[0, 1, 1, 1], [0, 2, 255, 0]], np.uint8)


def test_confusion_counts_pairs_misses_and_nothing_else() -> None:
    expected = [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1]]
    assert confusion(TRUTH, FOUND, 3).tolist() == expected


def test_scores_have_the_textbook_values() -> None:
    counts = confusion(TRUTH, FOUND, 3)
    np.testing.assert_allclose(iou(counts), [2 / 3, 2 / 3, 1 / 2])
    np.testing.assert_allclose(dice(counts), [4 / 5, 4 / 5, 2 / 3])
    assert mean_iou(counts) == pytest.approx(11 / 18)


def test_a_class_that_never_occurs_does_not_count() -> None:
    counts = confusion(TRUTH, FOUND, 5)
    assert np.isnan(iou(counts)[3:]).all()
    assert mean_iou(counts) == pytest.approx(11 / 18)
    assert np.isnan(mean_iou(confusion(TRUTH[:0], FOUND[:0], 3)))


def test_a_class_that_is_only_invented_scores_zero() -> None:
    zeros = np.zeros(4, np.uint8)
    counts = confusion(zeros, np.array([0, 0, 0, 1], np.uint8), 2)
    np.testing.assert_allclose(iou(counts), [3 / 4, 0])


@given(seed=st.integers(0, 1000), n=st.integers(0, 50), k=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_parts_add_up_to_the_whole(seed: int, n: int, k: int) -> None:
    random = np.random.default_rng(seed)
    truth, found = random.integers(k, size=(2, n))
    whole = confusion(truth, found, k)
    cut = n // 3
    parts = (
        confusion(truth[:cut], found[:cut], k),
        confusion(truth[cut:], found[cut:], k),
    )
    assert (parts[0] + parts[1] == whole).all()
    assert whole.sum() == n
    same = confusion(truth, truth, k)
    assert n == 0 or mean_iou(same) == 1.0


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (np.zeros(3, int), np.zeros(4, int), r"\(3,\), prediction \(4,\)"),
        (np.array([0, 7]), np.array([0, 1]), "truth holds 0..7"),
        (np.array([0, 1]), np.array([0, 9]), "prediction holds 0..9"),
        (np.array([0, -1]), np.array([0, 1]), "truth holds -1..0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    truth: np.ndarray, found: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(truth, found, 3)


def test_interval_covers_the_score_and_repeats_itself() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(3, size=(20, 100))
    found = np.where(random.random((20, 100)) < 0.8, truth, 0)
    counts = np.stack([confusion(t, f, 3) for t, f in zip(truth, found, strict=True)])
    low, high = bootstrap_interval(counts, mean_iou, seed=1, repeats=200)
    assert low < mean_iou(counts.sum(axis=0)) < high
    assert (low, high) == bootstrap_interval(counts, mean_iou, seed=1, repeats=200)
    one = bootstrap_interval(counts[:1], mean_iou, repeats=10)
    assert one == (mean_iou(counts[0]),) * 2
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(counts[:0], mean_iou)


@given(seed=st.integers(0, 1000), k=st.integers(1, 6), flat=st.booleans())
@settings(max_examples=40, deadline=None)
def test_bytes_are_counted_as_other_numbers_are(seed: int, k: int, flat: bool) -> None:
    random = np.random.default_rng(seed)
    pair = random.choice([*range(k), 255], size=(2, 7, 9))
    if flat:  # of one value each
        pair[:] = pair[:, :1, :1]
    wide = confusion(*pair, k)
    assert (confusion(*pair.astype(np.uint8), k) == wide).all()
    for name, at in (("truth", 0), ("prediction", 1)):
        bad = np.zeros((2, 7, 9), np.int64)
        bad[at, 3, 3] = k  # one beyond the last class
        for kind in (np.int64, np.uint8):
            with pytest.raises(ValueError, match=f"{name} holds .*{k}, expected 0"):
                confusion(*bad.astype(kind), k)


def test_intervals_leave_out_draws_without_the_class() -> None:
    counts = np.zeros((2, 3, 4), np.int64)
    counts[:, 0, 0], counts[0, 1, 1], counts[0, 1, 0] = 10, 6, 2
    low, high = bootstrap_intervals(counts, dice, repeats=50)
    assert np.isnan([low[2], high[2]]).all()
    assert low[1] == high[1] == 12 / 14
    single = [bootstrap_interval(counts, lambda c: float(dice(c)[0]), repeats=50)]
    assert single == [(low[0], high[0])]
