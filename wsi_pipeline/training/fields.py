"""Places near class boundaries that a field placer learns: Marin's convex energy."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from wsi_pipeline.training.losses import boundaries


@torch.no_grad()
def boundary_field(
    labels: Tensor, lattice: tuple[int, int], *, smoothness: float = 1.0
) -> Tensor:
    """Places that are near boundaries and near their neighbours' places.

    Parameters
    ----------
    labels : (n, H, W) int tensor
        Class per sample, evenly spread; 255 = ignored.
    lattice : (int, int)
        Rows h and columns w of the places.
    smoothness : float
        Weight lambda of neighbours; towards 0 places hug boundaries, towards infinity
        they are spread evenly.

    Returns
    -------
    (n, 2, h, w) float32 tensor
        x and y in [-1, 1]. First and last columns are at x = -1 and 1, first and last
        rows at y = -1 and 1.

    Notes
    -----
    The minimum is exact: along each axis the graph's Laplacian is diagonal in a basis
    of its own, so each coordinate takes four small matrix products.

    References
    ----------
    Marin et al. 2019, "Efficient Segmentation: Learning Downsampling Near Semantic
    Boundaries", eq. 4 and 5.
    """
    edge = boundaries(labels).cpu().numpy()
    nearest = np.stack([_nearest(one, lattice) for one in edge])  # (n, 2, h, w)
    h, w = lattice
    x = _solve(nearest[:, 0], smoothness)
    y = _solve(nearest[:, 1].transpose(0, 2, 1), smoothness).transpose(0, 2, 1)
    field = torch.from_numpy(np.stack([x, y], axis=1).astype(np.float32))
    if field.shape[-2:] != (h, w):
        raise ValueError(f"lattice {lattice} became {tuple(field.shape[-2:])}")
    return field.to(labels.device)


def _nearest(edge: NDArray[np.bool_], lattice: tuple[int, int]) -> NDArray[np.float64]:
    """Places (x, y) of the boundary sample that is nearest to each place, (2, h, w)."""
    rows, columns = (np.linspace(-1, 1, n) for n in lattice)
    if not edge.any():
        return np.stack(np.meshgrid(columns, rows))
    # (2, H, W): row and column of the nearest boundary sample
    indices = distance_transform_edt(~edge, return_distances=False, return_indices=True)
    height, width = edge.shape
    i = np.rint((rows + 1) / 2 * (height - 1)).astype(int)
    j = np.rint((columns + 1) / 2 * (width - 1)).astype(int)
    y, x = indices[:, i[:, None], j[None]]
    return np.stack([x / (width - 1), y / (height - 1)]) * 2 - 1


def _solve(wanted: NDArray[np.float64], smoothness: float) -> NDArray[np.float64]:
    """Minimise the energy for (n, h, w) coordinates pinned to -1 and 1 at the sides.

    With F = even + G, G is 0 in the first and last column; the even coordinate rises
    linearly, so that it adds nothing to the energy's gradient inside.
    """
    _, h, w = wanted.shape
    even = np.linspace(-1, 1, w)
    down, along = _path_laplacian(h), _path_laplacian(w)[1:-1, 1:-1]
    low, u = np.linalg.eigh(down)
    high, v = np.linalg.eigh(along)
    inner = (wanted - even)[:, :, 1:-1]
    spread = 1 + smoothness * (low[:, None] + high)
    moved = u @ ((u.T @ inner @ v) / spread) @ v.T
    out = np.broadcast_to(even, wanted.shape).copy()
    out[:, :, 1:-1] += moved
    return out


def _path_laplacian(n: int) -> NDArray[np.float64]:
    """Laplacian of a path of n nodes."""
    steps = np.diff(np.eye(n), axis=0)
    out: NDArray[np.float64] = steps.T @ steps
    return out
