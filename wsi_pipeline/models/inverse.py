"""Inverts a sampling grid: places in a region to fractional nodes, exactly.

The nodes span a mesh of quads, each a bilinear patch. Which quad holds a place is
counted (how many lines of nodes lie before it, along x and along y); the place is then
solved in closed form in that quad, so no place stays empty.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.models.quads import LEAST, Quads, corners, cross, is_regular
from wsi_pipeline.models.raster import invert_raster

# Places solved at once: what fits the second cache of a core, or fills a GPU.
_BAND = {"cpu": 1 << 17}
_BAND_ELSEWHERE = 1 << 22
# Places this close to even spacing count as even; a share of the step.
_EVEN = 1e-9


def invert_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each pixel of a region lies in the grid of its nodes.

    Parameters
    ----------
    grid : (n, h, w, 2) float32 or float64 tensor
        x and y of the nodes, -1 to 1; h and w at least 2.
    size : (int, int)
        H, W of the region in pixels; -1 and 1 are its outermost pixel centres.

    Returns
    -------
    (n, H, W, 2) tensor of the same dtype and device
        x and y in the grid, -1 its first node, 1 its last: what ``grid_sample(logits,
        ..., align_corners=True)`` takes. Differentiable in `grid`.

    Raises
    ------
    ValueError
        If the grid is not (n, h, w, 2) with h and w at least 2.

    Notes
    -----
    Coordinates are relative to the quad's centre before they are multiplied, so float32
    misses the place by its own rounding, whatever the size; see `tests/test_inverse.py`
    for numbers. A mesh with folds, bent lines or a free border goes to `invert_raster`
    on the CPU: slower, and places outside the mesh take the nearest node.
    Memory: the output (8 bytes per pixel in float32), about 40 bytes for each of the
    ``h W + w H`` places where lines of nodes cross rows and columns of pixels, and
    about 100 bytes for each of the 2**17 (CPU) or 2**22 (GPU) pixels solved at once;
    the backward pass about 200. Images are solved one by one.

    References
    ----------
    Closed-form inverse of a bilinear patch: Quilez, "inverse bilinear interpolation",
    here in the frame of the quad's centre, where its root needs no case distinction.
    """
    if grid.ndim != 4 or grid.shape[-1] != 2 or min(grid.shape[1:3]) < 2:
        raise ValueError(
            f"grid must be (n, h, w, 2), h and w at least 2, got {tuple(grid.shape)}"
        )
    found: Tensor = _Inverse.apply(grid, size)
    return found


class _Inverse(torch.autograd.Function):
    """`invert_grid` with the gradient of the implicit function."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, size: tuple[int, int]) -> Tensor:  # Any: torch
        # x and y in planes: what is written and sampled fastest
        out = grid.new_empty(len(grid), 2, *size).permute(0, 2, 3, 1)
        xs, ys = (
            torch.linspace(-1, 1, side, dtype=torch.float64, device=grid.device)
            for side in size[::-1]
        )
        for one, target in zip(grid.detach(), out, strict=True):
            invert_places(one, xs, ys, target)
        ctx.save_for_backward(grid, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # Any: torch
        grid, out = ctx.saved_tensors
        pull = [_pull_back(*one) for one in zip(grid, out, gradient, strict=True)]
        return torch.stack(pull), None


def invert_places(grid: Tensor, xs: Tensor, ys: Tensor, out: Tensor) -> None:
    """Invert one grid at a raster of places; see `invert_grid`.

    Parameters
    ----------
    grid : (h, w, 2) float tensor
        x and y of the nodes, -1 to 1.
    xs, ys : (W,) and (H,) float64 tensors, ascending
        Columns and rows of the raster, -1 to 1.
    out : (H, W, 2) tensor
        Gets x and y in the grid, -1 to 1.
    """
    if not out.numel():
        return
    h, w = grid.shape[:2]
    # half cells of an even grid, from its middle
    spans = torch.tensor([w - 1, h - 1], dtype=torch.float64, device=grid.device)
    nodes = grid.double() * spans
    if not is_regular(nodes):
        _invert_irregular(grid, xs, ys, out)
        return
    columns, rows = xs * (w - 1), ys * (h - 1)
    quads = Quads.of(nodes, out.dtype)
    x, y = nodes.unbind(-1)
    # the first row below each row line, and the first column right of each column line
    top = _first_beyond(x[1:-1], y[1:-1], columns, rows)  # (W, h - 2)
    left = _first_beyond(y.T[1:-1], x.T[1:-1], rows, columns)  # (H, w - 2)
    highest, lowest = (part.cpu().numpy() for part in _extent(top))
    across, down = columns.to(out.dtype), rows.to(out.dtype)[:, None]
    step = max(1, _BAND.get(grid.device.type, _BAND_ELSEWHERE) // len(xs))
    for start in range(0, len(ys), step):
        band = slice(start, start + step)
        n = len(rows[band])
        # lines that are above all the band are only counted, those below left out
        above = int(np.searchsorted(lowest, start, side="right"))
        below = max(above, int(np.searchsorted(highest, start + n)))
        i = _counts((top[:, above:below] - start).clamp_(0, n), n)
        i = i.T.contiguous().add_(above)
        quads.solve(i, _counts(left[band], len(xs)), across, down[band], out[band])


def _invert_irregular(grid: Tensor, xs: Tensor, ys: Tensor, out: Tensor) -> None:
    """`invert_places` for any mesh, on the CPU."""
    unit = (grid.double().permute(2, 0, 1).cpu().numpy() + 1) / 2
    places = ((v.cpu().numpy() + 1) / 2 for v in (xs, ys))
    rows, columns = invert_raster(unit, *places)
    for axis, found in enumerate((columns, rows)):
        scale = 2 / (unit.shape[2 - axis] - 1)
        out[..., axis] = torch.from_numpy(found).to(out) * scale - 1


def _extent(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each line, (m, k) to two (k,)."""
    return lines.amin(dim=0), lines.amax(dim=0)


def _index_of(values: Tensor, places: Tensor) -> Tensor:
    """Number of the first place at or after each value, `len(places)` if none is."""
    n = len(places)
    step = (places[-1] - places[0]) / max(n - 1, 1)
    even = places[0] + step * torch.arange(n, device=places.device)
    if n > 1 and bool((places - even).abs().amax() < _EVEN * step):
        # one pass: places are counted from the first in steps
        first = torch.addcmul(-places[0] / step, values, 1 / step)
        return first.ceil_().clamp_(0, n).long()
    return torch.searchsorted(places, values.contiguous())


def _counts(starts: Tensor, size: int) -> Tensor:
    """How many lines begin at or before each place, (m, k) starts to (m, size) int16.

    Places are numbered from 0; a line that starts at `size` lies behind them all.
    """
    marks = starts.new_zeros(len(starts), size + 1, dtype=torch.int16)
    one = torch.ones((), dtype=torch.int16, device=marks.device)
    marks.scatter_add_(1, starts, one.expand_as(starts))
    return marks[:, :-1].cumsum(dim=1, dtype=torch.int16)


def _first_beyond(
    knots: Tensor, values: Tensor, places: Tensor, targets: Tensor
) -> Tensor:
    """Where k lines cross the places: number of the first target beyond.

    (k, m) ascending knots and their values, (s,) places to (s, k) int64.
    """
    lines, many = knots.shape
    segment = _counts(_index_of(knots[:, 1:-1], places), len(places))  # (k, s)
    segment = segment.T.int()
    segment += many * torch.arange(lines, dtype=torch.int32, device=knots.device)
    flat = segment.reshape(-1)
    slopes = values.diff(dim=1) / knots.diff(dim=1).clamp_min(LEAST)
    slopes = functional.pad(slopes, (0, 1))
    begin, value, slope = (
        part.reshape(-1).index_select(0, flat).view_as(segment)
        for part in (knots, values, slopes)
    )
    crossings = value.addcmul_(slope, begin.neg_().add_(places[:, None]))
    return _index_of(crossings, targets)


def _pull_back(grid: Tensor, found: Tensor, gradient: Tensor) -> Tensor:
    """Gradient with respect to one grid: (h, w, 2).

    A node that moves by v moves the place by its bilinear weight times v; the answer
    moves by minus the inverse derivative of the patch times that.
    """
    h, w = grid.shape[:2]
    total = torch.zeros_like(grid)
    a, b, c, d = (part.reshape(-1, 2) for part in corners(grid))
    along, down, twist = b - a, c - a, a - b - c + d
    per_node = grid.new_tensor([2 / (w - 1), 2 / (h - 1)])
    most = grid.new_tensor([w - 2, h - 2])
    step = max(1, _BAND.get(grid.device.type, _BAND_ELSEWHERE) // found.shape[1])
    for start in range(0, len(found), step):
        places = found[start : start + step]
        nodes = (places + 1) / per_node
        corner = nodes.floor().clamp_min(0).minimum(most)
        quad = (corner[..., 1] * (w - 1) + corner[..., 0]).long()
        st = nodes - corner
        x = along[quad] + twist[quad] * st[..., 1:]
        y = down[quad] + twist[quad] * st[..., :1]
        area = cross(x, y)
        x_pull, y_pull = (gradient[start : start + step] * per_node).unbind(-1)
        pull = torch.stack(
            [
                y_pull * x[..., 1] - x_pull * y[..., 1],
                x_pull * y[..., 0] - y_pull * x[..., 0],
            ]
        )
        pull *= torch.where(area > LEAST, 1 / area, 0)
        total += _spread(pull, places, (h, w))
    return total


def _spread(values: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum values (2, m, s) into nodes by bilinear weight: (h, w, 2).

    What sampling does, transposed.
    """
    with torch.enable_grad():
        field = values.new_zeros(1, 2, *size, requires_grad=True)
        sampled = functional.grid_sample(
            field, places[None], padding_mode="border", align_corners=True
        )
    (total,) = torch.autograd.grad(sampled, field, values[None])
    return total[0].permute(1, 2, 0)
