"""Solves the pixels whose class a mesh does not tell, quad by quad, in closed form.

The same solution as in `quads`, all pixels of a quad at once.
"""

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import CERTAIN
from wsi_pipeline.models.compiling import compiled, inlined
from wsi_pipeline.models.meshes import MIXED, Mesh
from wsi_pipeline.models.quads import LEAST
from wsi_pipeline.models.spans import Place, Spans

_MIXED = np.uint8(MIXED)
_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
_LEAST, _CERTAIN = np.float32(LEAST), np.float32(CERTAIN)
# Pixels of a quad solved at once: their numbers stay in the first cache.
_MOST = 1024
# What is kept of each: place, weight, weights of the nodes, answers.
_X, _Y, _WEIGHT, _A, _B, _C, _D, _TOP, _BEST, _SUM = range(10)


@compiled
def solve_region(
    mesh: Mesh,
    place: Place,
    spans: Spans,
    band: NDArray[np.uint8],
    total: NDArray[np.float32],
    sure: NDArray[np.uint8],
) -> None:
    """Solve the pixels of a band that are MIXED after all regions were laid.

    Parameters
    ----------
    mesh : Mesh
    place : Place
    spans : Spans
        As `lay_region` left them.
    band : (m, W) uint8 array
        Gets the class where no other region is.
    total : (m * W, c) float32 array
        Gets weighted probabilities added elsewhere; for `settle`.
    sure : (m, W) uint8 array, or (0, 0)
        Gets 254 * probability of the class where no other region is.
    """
    w = mesh.nodes.shape[2]
    # spans by quad, those on other regions apart: the last, and the one before each
    last = np.full((2, len(mesh.pure)), -1, np.int32)
    before = np.empty(spans.first[len(place.ys)], np.int32)
    line = np.empty(len(before), np.int32)
    for m in range(len(place.ys)):
        for k in range(spans.first[m], spans.first[m + 1] - 1):
            quad, begin, end = spans.quad[k], spans.start[k], spans.start[k + 1]
            shared = int(begin < place.own_left or end > place.own_right)
            if quad >= 0 and (
                mesh.pure[quad] == MIXED or (shared and _any_mixed(band[m], begin, end))
            ):
                line[k], before[k], last[shared, quad] = m, last[shared, quad], k
    room, index = np.empty((10, _MOST), np.float32), np.empty(_MOST, np.int64)
    pixels, answers = band.reshape(-1), sure.reshape(-1)
    for shared in range(2):
        for quad in range(len(mesh.pure)):
            k, n = last[shared, quad], 0
            x = spans.start[k]
            while k >= 0:
                row, end = band[line[k]], spans.start[k + 1]
                while x < end and n < _MOST:
                    if row[x] == _MIXED:
                        _note(place, line[k], x, bool(shared), room, n)
                        index[n] = line[k] * len(row) + x
                        n += 1
                    x += 1
                if x == end:
                    k = before[k]
                    x = spans.start[k]
                if n == 0 or (k >= 0 and n < _MOST):
                    continue
                node = quad + quad // (w - 1)
                _weigh(mesh.nodes, node, room, n)
                if shared:
                    _add(mesh.values, node, w, room, index[:n], total)
                else:
                    _choose(mesh.values, node, w, room, n)
                    for i in range(n):
                        pixels[index[i]] = np.uint8(room[_BEST, i])
                    if len(answers):
                        for i in range(n):
                            answers[index[i]] = _scaled(room[_TOP, i], room[_SUM, i])
                n = 0


@compiled
def _any_mixed(row: NDArray[np.uint8], begin: int, end: int) -> bool:
    some = False
    for x in range(begin, end):
        some |= row[x] == _MIXED
    return some


@inlined
def _note(
    place: Place, m: int, x: int, shared: bool, room: NDArray[np.float32], n: int
) -> None:
    """Keep place and weight of a pixel as number n."""
    weight = _ONE
    if shared:
        weight = place.down[m] * place.across[x - place.left]
        if place.share.size:
            weight *= place.share[m, x]
    at = x * place.step + place.shift
    room[_X, n] = min(max(at, -place.reach), place.reach)
    room[_Y, n] = place.ys[m]
    room[_WEIGHT, n] = weight


@inlined
def _weigh(
    nodes: NDArray[np.float64], node: int, room: NDArray[np.float32], n: int
) -> None:
    """Weights of the four nodes of a quad; as `Quads.of` and `Quads.solve`."""
    w = nodes.shape[2]
    i, j = node // w, node % w
    ax, bx, cx, dx = (
        nodes[0, i, j],
        nodes[0, i, j + 1],
        nodes[0, i + 1, j],
        nodes[0, i + 1, j + 1],
    )
    ay, by, cy, dy = (
        nodes[1, i, j],
        nodes[1, i, j + 1],
        nodes[1, i + 1, j],
        nodes[1, i + 1, j + 1],
    )
    ux, uy = (bx - ax + dx - cx) / 4, (by - ay + dy - cy) / 4
    vx, vy = (cx - ax + dx - bx) / 4, (cy - ay + dy - by) / 4
    tx, ty = (ax - bx - cx + dx) / 8, (ay - by - cy + dy) / 8
    area = ux * vy - uy * vx
    if area > LEAST:
        turn = vy / area, -vx / area, -uy / area, ux / area
        bend = (tx * vy - ty * vx) / area, (ux * ty - uy * tx) / area
    else:  # a line answers along it, a point with its middle
        length = max(ux * ux + uy * uy + vx * vx + vy * vy, LEAST)
        turn = ux / length, uy / length, vx / length, vy / length
        bend = 0.0, 0.0
    middle_x, middle_y = (
        np.float32((ax + bx + cx + dx) / 4),
        np.float32((ay + by + cy + dy) / 4),
    )
    xx, xy, yx, yy = (
        np.float32(turn[0]),
        np.float32(turn[1]),
        np.float32(turn[2]),
        np.float32(turn[3]),
    )
    bend_x, bend_y = np.float32(bend[0]), np.float32(bend[1])
    for k in range(n):
        x, y = room[_X, k] - middle_x, room[_Y, k] - middle_y
        p, q = xx * x + xy * y, yx * x + yy * y
        product = bend_y * p
        m = bend_x * q + _HALF - product
        square = m * m + _TWO * product
        s = p / (np.sqrt(square if square > _LEAST else _LEAST) + m)
        s = s if s > -_ONE else -_ONE
        s = s if s < _ONE else _ONE
        divisor = bend_y * s + _HALF
        t = q / (divisor if divisor > _LEAST else _LEAST)
        t = t if t > -_TWO else -_TWO
        t = t if t < _TWO else _TWO
        right, low = (s + _ONE) * _HALF, (t + _TWO) * (_HALF * _HALF)
        lower = low * room[_WEIGHT, k]
        upper = room[_WEIGHT, k] - lower
        b, d = right * upper, right * lower
        room[_A, k], room[_B, k], room[_C, k], room[_D, k] = upper - b, b, lower - d, d


@inlined
def _choose(
    values: NDArray[np.float32],
    node: int,
    w: int,
    room: NDArray[np.float32],
    n: int,
) -> None:
    """Likeliest class of the pixels, its probability, and the sum of all."""
    for i in range(n):
        room[_TOP, i], room[_BEST, i], room[_SUM, i] = -_ONE, _ZERO, _ZERO
    for k in range(values.shape[1]):
        a, b = values[node, k], values[node + 1, k]
        c, d = values[node + w, k], values[node + w + 1, k]
        name = np.float32(k)
        for i in range(n):
            upper = room[_A, i] * a + room[_B, i] * b
            value = upper + (room[_C, i] * c + room[_D, i] * d)
            better = value > room[_TOP, i]
            room[_BEST, i] = name if better else room[_BEST, i]
            room[_TOP, i] = value if better else room[_TOP, i]
            room[_SUM, i] += value


@inlined
def _add(
    values: NDArray[np.float32],
    node: int,
    w: int,
    room: NDArray[np.float32],
    index: NDArray[np.int64],
    total: NDArray[np.float32],
) -> None:
    """Add the pixels' weighted probabilities to what other regions say."""
    for k in range(values.shape[1]):
        a, b = values[node, k], values[node + 1, k]
        c, d = values[node + w, k], values[node + w + 1, k]
        for i in range(len(index)):
            upper = room[_A, i] * a + room[_B, i] * b
            room[_SUM, i] = upper + (room[_C, i] * c + room[_D, i] * d)
        for i in range(len(index)):
            total[index[i], k] += room[_SUM, i]


@compiled
def settle(
    band: NDArray[np.uint8], total: NDArray[np.float32], sure: NDArray[np.uint8]
) -> None:
    """Choose the class of what is still MIXED from the sums, which are set to 0.

    Parameters
    ----------
    band : (m, W) uint8 array
    total : (m * W, c) float32 array
        As `solve_region` left them for all regions.
    sure : (m, W) uint8 array, or (0, 0)
        Gets 254 * probability of the class.
    """
    rows, width = band.shape
    for y in range(rows):
        for x in range(width):
            if band[y, x] == _MIXED:
                sums = total[y * width + x]
                best, top, norm = 0, -_ONE, _ZERO
                for k in range(len(sums)):
                    value = sums[k]
                    norm += value
                    best = k if value > top else best
                    top = value if value > top else top
                    sums[k] = _ZERO
                band[y, x] = best
                if sure.size:
                    sure[y, x] = _scaled(top, norm)


@compiled
def _scaled(value: np.float32, norm: np.float32) -> int:
    """254 * the share of a value in a sum."""
    return int(np.rint(_CERTAIN * min(value / norm, _ONE))) if norm > 0 else 0
