"""The choice among patches: attention logits to scores, ranks and the top M."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ModelError


class Choice(NamedTuple):
    """Scores of n patches and the choice among them.

    ``score`` (n,) float64 sums to 1; ``rank`` (n,) int64, 0 = most salient, the chosen
    before the others; ``chosen`` (n,) bool.
    """

    score: NDArray[np.float64]
    rank: NDArray[np.int64]
    chosen: NDArray[np.bool_]

    def spread(self, ids: NDArray[np.int64], count: int) -> "Choice":
        """The choice among n patches of which these were examined, all others after.

        Parameters
        ----------
        ids : (k,) int64 array
            Ascending.
        count : int
            n.

        Returns
        -------
        Choice
            The others have no score (NaN) and the last ranks, by id.
        """
        score, rank = np.full(count, np.nan), np.empty(count, np.int64)
        chosen, others = np.zeros(count, np.bool_), np.ones(count, np.bool_)
        others[ids] = False
        score[ids], rank[ids], chosen[ids] = self
        rank[others] = np.arange(len(ids), count)
        return Choice(score, rank, chosen)


def choose_patches(
    logits: NDArray[np.floating],
    top_m: int,
    weight: NDArray[np.float64] | None = None,
) -> Choice:
    """Exact selection: one softmax over all patches per channel, mean, top M.

    Parameters
    ----------
    logits : (n, C) float array
        Attention logit per patch and channel.
    top_m : int
        M; all patches are chosen where there are no more.
    weight : (n,) float64 array, optional
        How many patches each stands for in the softmax; left out, for itself.

    Returns
    -------
    Choice
        Equal scores go to the lower patch id.

    Raises
    ------
    ModelError
        If a logit is not finite: there is no order among such patches.

    Notes
    -----
    Ranked in float64, so that neither the batch nor the order of the patches matters.
    Memory: two (n, C) float64 arrays, 32 MB for 250,000 patches and 8 channels.

    References
    ----------
    Bergner et al., ICLR 2023: attention averaged over heads, then over queries; here
    with the normaliser of all patches instead of the current buffer's.
    """
    score = _attention(finite(logits), weight)
    rank = _rank(-score)
    return Choice(score, rank, rank < top_m)


def choose_as_published(
    logits: NDArray[np.floating],
    top_m: int,
    chunk: int,
    order: NDArray[np.integer],
    weight: NDArray[np.float64] | None = None,
) -> Choice:
    """Iterative selection: a buffer of M patches meets the others, a chunk at a time.

    Parameters
    ----------
    logits : (n, C) float array
        Attention logit per patch and channel.
    top_m : int
        M; all patches are chosen where there are no more.
    chunk : int
        I, patches that meet the buffer per round; the last round may have fewer.
    order : (n,) int array
        Patch ids as they come; the first M fill the buffer.
    weight : (n,) float64 array, optional
        See `choose_patches`; the buffer knows none.

    Returns
    -------
    Choice
        ``chosen`` is the last buffer. ``score`` is that of `choose_patches`, which
        compares all patches; the buffers' own scores only say who stays. The chosen
        rank before the others, each group by score, equal scores by patch id.

    Raises
    ------
    ModelError
        If a logit is not finite: there is no order among such patches.

    Notes
    -----
    With more than one channel the choice depends on `chunk` and `order`: a softmax
    over the buffer weighs the channels differently in every round.

    References
    ----------
    Bergner et al., ICLR 2023, algorithm 1, and its official code (benbergner/ips,
    4c17c1d), where ties fall as the device's top-k has it; here to the lower patch id.
    """
    wide = finite(logits)
    buffer = order[:top_m]
    for start in range(top_m, len(order), chunk):
        met = np.concatenate([buffer, order[start : start + chunk]])
        buffer = met[np.lexsort((met, -_attention(wide[met])))[:top_m]]
    chosen = np.zeros(len(wide), np.bool_)
    chosen[buffer] = True
    score = _attention(wide, weight)
    return Choice(score, _rank(-score, ~chosen), chosen)


def finite(logits: NDArray[np.floating], net: str = "selector") -> NDArray[np.float64]:
    """Widen logits, (n, C); among numbers that are not finite there is no order.

    Raises
    ------
    ModelError
        If one is not finite; names the net.
    """
    wrong = ~np.isfinite(logits).all(axis=1)
    if wrong.any():
        raise ModelError(
            f"the {net} gave no finite logit for {int(wrong.sum())} of "
            f"{len(logits)} patches, the first is patch {int(wrong.argmax())}; "
            "its weights are damaged or do not fit"
        )
    return logits.astype(np.float64)


def _attention(
    logits: NDArray[np.float64], weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Softmax over the patches per channel, mean over the channels: (n, C) to (n,)."""
    share = np.exp(logits - logits.max(axis=0, initial=-np.inf))
    share /= share.sum(axis=0) if weight is None else weight @ share
    return share.mean(axis=1)


def _rank(*keys: NDArray[np.generic]) -> NDArray[np.int64]:
    """Place of each patch in ascending order of the last key, then of those before."""
    rank = np.empty(len(keys[0]), np.int64)
    rank[np.lexsort(keys)] = np.arange(len(rank))
    return rank
