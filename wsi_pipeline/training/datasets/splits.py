"""Deals images into training, validation and test so that no group is torn apart."""

import hashlib
from collections.abc import Sequence

from wsi_pipeline.errors import ConfigError

Rows = tuple[int, ...]
SHARES = (0.7, 0.15, 0.15)
"""Of images in training, validation and test, as far as whole groups allow."""


def split_groups(
    groups: Sequence[str],
    shares: Sequence[float] = SHARES,
    *,
    seed: int = 0,
    what: str = "dataset",
) -> tuple[Rows, ...]:
    """Deal rows by the hash of their group.

    Parameters
    ----------
    groups : sequence of str
        Group of each row.
    shares : sequence of float
        Wanted share of rows of each split, the first one takes what is left over.
    seed : int
        Another seed is another split.
    what : str
        Named in the message.

    Returns
    -------
    tuple of tuple of int
        Rows of each split in order; together all rows, none twice, and all rows of a
        group in one split. No split is empty.

    Raises
    ------
    ConfigError
        If there are fewer groups than splits.
    """
    names = sorted(set(groups), key=lambda name: _lot(seed, name))
    if len(names) < len(shares):
        raise ConfigError(
            f"{what}: {len(shares)} splits need {len(shares)} groups (patients or "
            f"cases), got {len(names)}: {', '.join(names[:8])}"
        )
    sizes = dict.fromkeys(names, 0)
    for group in groups:
        sizes[group] += 1
    split_of: dict[str, int] = {}
    for split in range(len(shares) - 1, 0, -1):
        wanted, taken = shares[split] * len(groups), 0
        # one group each is left for the splits that come after
        while names and len(names) > split and (taken == 0 or taken < wanted):
            name = names.pop(0)
            if taken and taken + sizes[name] / 2 > wanted:
                names.insert(0, name)
                break
            split_of[name] = split
            taken += sizes[name]
    return tuple(
        tuple(row for row, group in enumerate(groups) if split_of.get(group, 0) == n)
        for n in range(len(shares))
    )


def _lot(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()
