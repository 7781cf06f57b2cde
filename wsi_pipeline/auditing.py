"""Turns an audit of rejected patches into what the screen has missed of the top M."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

_TAIL = 0.025  # on either side: 95 % in all


class MissEstimate(NamedTuple):
    """How many of a slide's top M were never looked at.

    ``estimate``; ``low`` and ``high``, 95 % limits; ``found``: audited patches that are
    better than the M-th of those that the screen kept.
    """

    estimate: float
    low: int
    high: int
    found: int


def estimate_misses(
    score: NDArray[np.float64],
    kept: NDArray[np.bool_],
    audited: NDArray[np.bool_],
    top_m: int,
) -> MissEstimate:
    """Estimate how many of the top M are among the patches that were not examined.

    Parameters
    ----------
    score : (n,) float64 array
        Of all patches that were examined; equal ones go to the lower patch id.
    kept : (n,) bool array
        What the screen kept: M patches at least.
    audited : (n,) bool array
        Drawn at random from the rejected; at least one where there are any.
    top_m : int
        M.

    Notes
    -----
    Let beats(r) be the number of audited patches that are better than the r-th best of
    the kept, and K(r) that of all rejected ones. A bound of K(r) follows from beats(r),
    as the share of successes of a draw. Of the rejected, m are in the top M exactly if
    at least m are better than the kept of rank M - m + 1, and no more than m better
    than that of rank M - m. Limits of m are thus where bounds of K cross a line; as
    both are monotone, a limit fails only if the bound at one fixed rank does, so that
    nothing is lost by looking at all ranks. Audited patches among the m are not missed.

    The estimate is that of rejected patches better than the M-th of the kept, within
    the limits. It errs on the safe side: these are as many as m where it is small, and
    more where it is not.

    Where none is found, the upper limit is 3.7 times the rejected over the audited: to
    vouch for few misses on one slide takes many draws.

    References
    ----------
    Clopper and Pearson, Biometrika 1934: limits of a share; without replacement, as
    here, they are wider than need be.
    """
    n, m = len(score), min(top_m, len(score))
    rejected, draws = n - int(kept.sum()), int(audited.sum())
    if not rejected:
        return MissEstimate(0.0, 0, 0, 0)
    seen = np.flatnonzero(kept | audited)
    own = kept[seen[np.lexsort((seen, -score[seen]))]]
    better = np.cumsum(own)[~own]  # kept patches better than each audited one
    beats = np.searchsorted(better, np.arange(m + 1))
    least, most = _limits(beats, draws, rejected)
    # least[::-1][j] bounds the rejected ones better than the kept of rank m - j
    high = int(np.argmax(most[::-1] <= np.arange(m + 1))) if most[0] <= m else m
    low = int((least[:0:-1] >= np.arange(1, m + 1)).sum())
    low = max(0, low - int(beats[m - low + 1])) if low else 0
    high = min(high - int(beats[m - high]), rejected - draws)
    found = int(beats[m])
    unseen = found * (rejected - draws) / draws
    return MissEstimate(round(min(max(unseen, low), high), 1), low, high, found)


def _limits(
    found: NDArray[np.int64], draws: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fewest and most successes among `count`, of which so many draws found some."""
    failures = draws - found
    low = betaincinv(np.maximum(found, 1), failures + 1, _TAIL) * (found > 0)
    high = np.where(
        failures > 0, betaincinv(found + 1, np.maximum(failures, 1), 1 - _TAIL), 1.0
    )
    least = np.maximum(np.ceil(low * count), found)
    most = np.minimum(np.floor(high * count), found + count - draws)
    return least.astype(np.int64), most.astype(np.int64)
