"""Turns region predictions into the tables that `spans` walks through, a mesh each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.models.quads import LEAST, is_regular
from wsi_pipeline.regions import RegionPrediction

MIXED = 253
"""In place of a class: not known yet. Classes are the numbers below."""

OFF_TISSUE, NO_REGION = 254, 255
"""In place of a class: never to be known; no region is there."""

# Meshes made at once: their tables fit the second cache of a core.
_BATCH = 4


class Mesh(NamedTuple):
    """A region's mesh of (h, w) nodes; places are base pixels from its centre.

    Attributes
    ----------
    nodes : (2, h, w) float64 array
        x and y.
    lines : (2, h - 1, w) float64 array
        Columns of nodes as pieces of ``x = lines[0] + lines[1] * y``.
    extent : (2, w) float64 array
        Smallest and largest x of each column of nodes.
    values : (h * w, c) float32 array
        Probabilities.
    pure : ((h - 1) * (w - 1),) uint8 array
        The class that is likeliest at all four nodes of a quad, the lowest where
        classes tie, or MIXED. The bilinear mixture of the nodes has that class too.
    """

    nodes: NDArray[np.float64]
    lines: NDArray[np.float64]
    extent: NDArray[np.float64]
    values: NDArray[np.float32]
    pure: NDArray[np.uint8]


def build_meshes(regions: Sequence[RegionPrediction]) -> list[Mesh] | None:
    """Tables of regions that have the same number of nodes and classes.

    Parameters
    ----------
    regions : sequence of RegionPrediction
        With boxes in base pixels.

    Returns
    -------
    list of Mesh, or None
        None if one of them folds, has bent lines or a free border.

    Notes
    -----
    Memory: 33 + 4 c bytes per node for c classes.
    """
    meshes: list[Mesh] = []
    for start in range(0, len(regions), _BATCH):
        part = _build(regions[start : start + _BATCH])
        if part is None:
            return None
        meshes += part
    return meshes


def _build(regions: Sequence[RegionPrediction]) -> list[Mesh] | None:
    stacked = np.stack([region.grid for region in regions])  # (n, 2, h, w)
    grids = stacked.astype(np.float64) - 0.5
    n, _, h, w = grids.shape
    cells = np.array([w - 1, h - 1]).reshape(2, 1, 1)
    if not is_regular(torch.from_numpy(grids * (2 * cells)).permute(0, 2, 3, 1)):
        return None
    sides = [(region.box.w - 1, region.box.h - 1) for region in regions]
    nodes = grids * np.array(sides).reshape(n, 2, 1, 1)
    extent = np.stack([nodes[:, 0].min(axis=1), nodes[:, 0].max(axis=1)], axis=1)
    shares = np.stack([region.probabilities for region in regions])  # (n, c, h, w)
    best = shares.argmax(axis=1).astype(np.uint8)
    # torch reads float16 in vectors, NumPy does not
    found = torch.from_numpy(shares).permute(0, 2, 3, 1).contiguous().float()
    values = found.view(n, h * w, -1).numpy()
    rows = zip(nodes, _lines(nodes), extent, values, _pure(best), strict=True)
    return [Mesh(*row) for row in rows]


def _lines(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Offset and slope of columns of nodes: (n, 2, h - 1, w)."""
    x, y = nodes[:, 0], nodes[:, 1]
    slope = np.diff(x, axis=1) / np.maximum(np.diff(y, axis=1), LEAST)
    return np.stack([x[:, :-1] - slope * y[:, :-1], slope], axis=1)


def _pure(best: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Common class of the nodes of each quad, or MIXED: (n, quads)."""
    upper, lower = best[:, :-1], best[:, 1:]
    same = upper == lower
    same = same[..., :-1] & same[..., 1:] & (upper[..., :-1] == upper[..., 1:])
    pure = np.where(same, upper[..., :-1], np.uint8(MIXED))
    return pure.reshape(len(best), -1)
