"""An audit's limits hold the number of top patches that a screen has missed."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from wsi_pipeline.auditing import _limits, estimate_misses

N, M = 800, 40


def kept_by(score: NDArray[np.float64], noise: float, count: int, seed: int):
    """What a screen keeps that sees scores through noise."""
    seen = score + noise * np.random.default_rng(seed).normal(size=len(score))
    kept = np.zeros(len(score), np.bool_)
    kept[np.argsort(-seen)[:count]] = True
    return kept


def audit_of(kept: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.bool_]:
    audited = np.zeros_like(kept)
    draw = np.random.default_rng(seed)
    audited[draw.choice(np.flatnonzero(~kept), count, replace=False)] = True
    return audited


def truly_missed(score, kept, audited, top_m: int = M) -> int:
    top = np.argsort(-score, kind="stable")[:top_m]
    return int((~(kept | audited))[top].sum())


SCORE = np.random.default_rng(0).normal(size=N)


# few, some, and most of the top missed; the last keeps patches without looking
@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0, 1e9])
@pytest.mark.parametrize("draws", [30, 200])
def test_limits_hold_the_truth_and_the_estimate_is_not_below_it_on_average(
    noise: float, draws: int
) -> None:
    kept = kept_by(SCORE, noise, 100, seed=1)
    inside, errors, truths = [], [], []
    for seed in range(300):
        audited = audit_of(kept, draws, seed)
        missed = truly_missed(SCORE, kept, audited)
        found = estimate_misses(SCORE, kept, audited, M)
        inside.append(found.low <= missed <= found.high)
        errors.append(found.estimate - missed)
        truths.append(missed)
        assert 0 <= found.low <= found.high <= M
    # 95 % at least, less 2 deviations of 300 trials
    assert np.mean(inside) >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 300)
    chance = 3 * np.std(errors) / np.sqrt(300)
    assert np.mean(errors) >= -chance
    if noise < 1:  # a screen worth using
        assert np.mean(errors) <= 0.3 * np.mean(truths) + chance


def test_limits_close_in_with_the_audit_and_tell_a_bad_screen() -> None:
    good, bad = (kept_by(SCORE, noise, 100, seed=2) for noise in (0.1, 1e9))
    widths = []
    for draws in (20, 80, 320, 699):
        found = estimate_misses(SCORE, good, audit_of(good, draws, 5), M)
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]
    found = estimate_misses(SCORE, bad, audit_of(bad, 200, 5), M)
    assert found.low >= 10
    assert found.found > 0


def test_what_was_drawn_is_not_missed() -> None:
    """Without it, half of an audit's finds would count as missed for ever."""
    kept = np.arange(N) >= 2 * M
    score = -np.arange(N, dtype=np.float64)  # the top M were rejected, and others
    for draws in (2 * M, 2 * M - 1):
        audited = audit_of(kept, draws, seed=3)
        missed = truly_missed(score, kept, audited)
        found = estimate_misses(score, kept, audited, M)
        assert found.low <= missed <= found.high <= 2 * M - draws
    whole = estimate_misses(score, kept, ~kept, M)
    assert whole[:3] == (0.0, 0, 0)
    assert whole.found == 2 * M


def test_nothing_rejected_is_nothing_missed() -> None:
    kept = np.ones(5, np.bool_)
    assert estimate_misses(np.arange(5.0), kept, ~kept, 3) == (0.0, 0, 0, 0)
    none = np.zeros(0, np.bool_)
    assert estimate_misses(np.zeros(0), none, none, 3) == (0.0, 0, 0, 0)


def test_of_a_clean_audit_the_upper_limit_is_that_of_clopper_and_pearson() -> None:
    n, draws, rejected = 4100, 256, 4000
    score = -np.arange(n, dtype=np.float64)
    kept = np.arange(n) < n - rejected
    audited = audit_of(kept, draws, seed=0)
    found = estimate_misses(score, kept, audited, 64)
    share = binomtest(0, draws).proportion_ci(0.95, method="exact").high
    assert found == (0.0, 0, int(share * rejected), 0)
    assert found.high == 57
    # no more than M can be missed
    assert estimate_misses(score, kept, audited, 20).high == 20


def test_equal_scores_go_to_the_lower_patch() -> None:
    score = np.zeros(10)
    kept = np.arange(10) < 5
    audited = np.arange(10) == 9
    assert estimate_misses(score, kept, audited, 5).found == 0
    kept, audited = np.arange(10) >= 5, np.arange(10) == 0
    assert estimate_misses(score, kept, audited, 5).found == 1


@pytest.mark.parametrize("draws", [1, 7, 256])
def test_limits_of_a_share_are_those_of_a_library(draws: int) -> None:
    rejected = 5000
    found = np.arange(draws + 1)
    least, most = _limits(found, draws, rejected)
    for k, low, high in zip(found.tolist(), least, most, strict=True):
        exact = binomtest(k, draws).proportion_ci(0.95, method="exact")
        assert low == max(k, np.ceil(exact.low * rejected - 1e-6))
        assert high == min(k + rejected - draws, np.floor(exact.high * rejected + 1e-6))
