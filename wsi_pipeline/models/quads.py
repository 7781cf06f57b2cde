"""The quads of a mesh of nodes: whether they are regular, and which place is where."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 1e-12
"""Areas, lengths and slopes below this count as none."""

# What float32 nodes are rounded by at most, as a share of the longer side.
_ROUNDING = 2.4e-7


def corners(nodes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Upper left, upper right, lower left, lower right of each quad of (h, w, 2)."""
    upper, lower = nodes[:-1], nodes[1:]
    return upper[:, :-1], upper[:, 1:], lower[:, :-1], lower[:, 1:]


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Signed area of the parallelogram of two (..., 2) tensors."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def is_regular(nodes: Tensor) -> bool:
    """Whether lines advance, quads are convex and the border is in place.

    Parameters
    ----------
    nodes : (..., h, w, 2) float64 tensor
        x and y in half cells of an even grid, counted from its middle; of one mesh or
        of several, which must all be regular.

    Notes
    -----
    All up to the rounding of float32 nodes: where cells collapse, it alone decides
    which of two nodes comes first.
    """
    x, y = (part.contiguous() for part in nodes.unbind(-1))  # half the time
    h, w = x.shape[-2:]
    slack = _ROUNDING * max(h, w)
    along, down = (x.diff(dim=-1), y.diff(dim=-1)), (x.diff(dim=-2), y.diff(dim=-2))
    far, deep = (torch.maximum(u.abs(), v.abs()) for u, v in (along, down))
    first, last = slice(None, -1), slice(1, None)
    least = [along[0].amin(), down[1].amin()]
    for row in (first, last):  # upper and lower side of each quad
        for column in (first, last):  # left and right one
            turn = along[0][..., row, :] * down[1][..., column]
            turn -= along[1][..., row, :] * down[0][..., column]
            length = far[..., row, :] + deep[..., column]
            least.append((turn / length.clamp_min(1)).amin())
    border = (
        x[..., 0] + w - 1,
        x[..., -1] - w + 1,
        y[..., 0, :] + h - 1,
        y[..., -1, :] - h + 1,
    )
    least += [-part.abs().amax() for part in border]
    return bool(torch.stack(least).amin() >= -slack)  # false for NaN


@dataclass(frozen=True)
class Quads:
    """Quads as ``centre + M (s + 2 bend s_x s_y)``, s in -1 to 1; each (quads,).

    Coordinates are half cells of an even grid, counted from its middle.

    Parameters
    ----------
    centre : two tensors
        x and y.
    turn : four tensors
        Rows of the inverse of M, the derivative at the centre; of its pseudo-inverse
        where the quad is a line or a point.
    bend : two tensors
        Half of what bends the quad, in the frame of M.
    shape : (int, int)
        h - 1, w - 1.
    """

    centre: Sequence[Tensor]
    turn: Sequence[Tensor]
    bend: Sequence[Tensor]
    shape: tuple[int, int]

    @classmethod
    def of(cls, nodes: Tensor, dtype: torch.dtype) -> "Quads":
        """From (h, w, 2) float64 nodes; solves in `dtype`."""
        a, b, c, d = corners(nodes)
        along, down, twist = (
            (b - a + d - c) / 4,
            (c - a + d - b) / 4,
            (a - b - c + d) / 4,
        )
        area = cross(along, down)
        flat_quad = area <= LEAST
        scale = torch.where(flat_quad, 0, 1 / area)
        turn = [down[..., 1], -down[..., 0], -along[..., 1], along[..., 0]]
        # a quad that is a line answers along it, one that is a point with its middle
        length = (along.square() + down.square()).sum(dim=-1).clamp_min(LEAST)
        line = [along[..., 0], along[..., 1], down[..., 0], down[..., 1]]
        turn = [
            torch.where(flat_quad, part / length, turned * scale)
            for part, turned in zip(line, turn, strict=True)
        ]
        bend = [cross(twist, down) * scale / 2, cross(along, twist) * scale / 2]

        def flat(parts: Sequence[Tensor]) -> list[Tensor]:
            return [part.reshape(-1).to(dtype).contiguous() for part in parts]

        return cls(
            flat(((a + b + c + d) / 4).unbind(-1)),
            flat(turn),
            flat(bend),
            (area.shape[0], area.shape[1]),
        )

    def solve(self, i: Tensor, j: Tensor, xs: Tensor, ys: Tensor, out: Tensor) -> None:
        """Solve places whose quads are known.

        Parameters
        ----------
        i, j : (m, s) int16 tensors
            Row and column of the quad of each place.
        xs, ys : (s,) and (m, 1) tensors
            Places.
        out : (m, s, 2) tensor
            Gets x and y in the grid, -1 to 1.
        """
        h, w = self.shape
        quad = i.int().mul_(w).add_(j).reshape(-1)

        def read(table: Tensor) -> Tensor:
            return table.index_select(0, quad).view(j.shape)

        x = read(self.centre[0]).neg_().add_(xs)
        y = read(self.centre[1]).neg_().add_(ys)
        xx, xy, yx, yy = self.turn
        p = read(xx).mul_(x).addcmul_(read(xy), y)
        q = y.mul_(read(yy)).addcmul_(read(yx), x)
        # p = s + 2 bend_x s t, q = t + 2 bend_y s t: bend_y s^2 + m s - p / 2 = 0,
        # where m = 1/2 + bend_x q - bend_y p is positive in a convex quad
        bend = read(self.bend[1])
        product = torch.mul(bend, p, out=x)
        m = read(self.bend[0]).mul_(q).add_(0.5).sub_(product)
        root = torch.mul(m, m).add_(product, alpha=2).clamp_min_(LEAST).sqrt_()
        s = p.div_(root.add_(m)).clamp_(-1, 1)
        # the divisor is 0 where a side of the quad is a point
        divisor = bend.mul_(s).add_(0.5).clamp_min_(LEAST)
        t_twice = q.div_(divisor).clamp_(-2, 2)
        for axis, (corner, n, found, share) in enumerate(
            ((j, w, s, 1.0), (i, h, t_twice, 0.5))
        ):
            middle = corner.mul_(2).add_(1 - n).to(out.dtype)
            torch.mul(middle.add_(found, alpha=share), 1 / n, out=out[..., axis])
