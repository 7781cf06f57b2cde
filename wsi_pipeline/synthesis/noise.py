"""Counter-based randomness: the same numbers at the same place, in whatever box.

Nothing here keeps state. A number is a hash of (key, lattice cell, channel), so any
box of the plane can be drawn alone and agrees with its neighbours.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, spatial

Floats = NDArray[np.float32]
_TEXTURE_PX = 1024
_UNIT = np.float64(2.0**-53)


def keys_of(seed: int, count: int) -> tuple[int, ...]:
    """`count` independent 64-bit keys of a seed (NumPy SeedSequence)."""
    state = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return tuple(int(value) for value in state)


def hashed(
    key: int, i: NDArray[np.int64], j: NDArray[np.int64], channel: int
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on (key, i, j, channel) alone.

    References
    ----------
    Finaliser of SplitMix64 (Steele, Lea, Flood 2014), applied once per input.
    """
    mask = (1 << 64) - 1
    start = np.uint64((key + 0x9E3779B97F4A7C15 * (channel + 1)) & mask)
    mixed = _mix(i.astype(np.int64).view(np.uint64) ^ start)
    mixed = _mix(mixed + j.astype(np.int64).view(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * _UNIT


def lattice(
    key: int,
    spacing_um: float,
    jitter: float,
    bounds_um: tuple[float, float, float, float],
    channels: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[NDArray[np.float64]]]:
    """Points of a jittered lattice whose cells touch a box, with random numbers.

    Parameters
    ----------
    spacing_um : float
        Side of a cell.
    jitter : float
        Largest shift from the cell's centre, in cells.
    bounds_um : tuple of float
        (left, top, right, bottom).
    channels : int
        How many uniform numbers to give with each point.

    Returns
    -------
    x, y : (n,) float64 arrays, um
    numbers : list of (n,) float64 arrays in [0, 1)
    """
    left, top, right, bottom = (v / spacing_um for v in bounds_um)
    columns = np.arange(np.floor(left), np.floor(right) + 1).astype(np.int64)
    rows = np.arange(np.floor(top), np.floor(bottom) + 1).astype(np.int64)
    i, j = (v.ravel() for v in np.meshgrid(columns, rows))
    x = (i + 0.5 + jitter * (2 * hashed(key, i, j, 0) - 1)) * spacing_um
    y = (j + 0.5 + jitter * (2 * hashed(key, i, j, 1) - 1)) * spacing_um
    return x, y, [hashed(key, i, j, 2 + c) for c in range(channels)]


def smooth_field(
    key: int, wavelength_um: float, x: NDArray[np.float64], y: NDArray[np.float64]
) -> Floats:
    """Smooth noise of about unit variance, never beyond 3.6, on a grid.

    Parameters
    ----------
    x, y : (w,) and (h,) float64 arrays
        Columns and rows of the grid, um.

    Returns
    -------
    (h, w) float32 array

    Notes
    -----
    Cubic B-spline over hashed lattice values; 3.6 undoes the smoothing's loss of
    variance.
    """
    first_x, weights_x = _spline_weights(x / wavelength_um)
    first_y, weights_y = _spline_weights(y / wavelength_um)
    i, j = np.meshgrid(
        first_x + np.arange(weights_x.shape[1]), first_y + np.arange(weights_y.shape[1])
    )
    values = (7.2 * hashed(key, i, j, 0) - 3.6).astype(np.float32)
    return np.asarray((weights_y @ values) @ weights_x.T)


def enlarge(nodes: Floats, factor: int, size_px: tuple[int, int]) -> Floats:
    """Linear interpolation between nodes that lie `factor` pixels apart.

    Parameters
    ----------
    nodes : (n, m) float32 array
        Node (k, l) sits on pixel (k * factor, l * factor).
    size_px : tuple of int
        (width, height) of the result, at most ``(m - 1) * factor`` each way.

    Returns
    -------
    (h, w) float32 array
    """
    w, h = size_px
    if factor == 1:
        return nodes[:h, :w]
    tall = np.empty(((nodes.shape[0] - 1) * factor, nodes.shape[1]), np.float32)
    step = np.diff(nodes, axis=0)
    for m in range(factor):
        np.multiply(step, np.float32(m / factor), out=tall[m::factor])
        tall[m::factor] += nodes[:-1]
    tall = tall[:h]
    wide = np.empty((h, (nodes.shape[1] - 1) * factor), np.float32)
    step = np.diff(tall, axis=1)
    for m in range(factor):
        wide[:, m::factor] = step * np.float32(m / factor) + tall[:, :-1]
    return wide[:, :w]


def window[T: np.generic](
    texture: NDArray[T], x: int, y: int, size_px: tuple[int, int]
) -> NDArray[T]:
    """Cut a (h, w) window at pixel (x, y) out of an endlessly repeated texture."""
    w, h = size_px
    side = texture.shape[0]
    rows = np.arange(y, y + h) % side
    columns = np.arange(x, x + w) % side
    return np.asarray(texture.take(rows, axis=0).take(columns, axis=1))


@lru_cache(maxsize=8)
def fibre_texture(octave: int) -> Floats:
    """Periodic fibrous texture in [0, 1], fibres along x, mean about 0.5.

    Parameters
    ----------
    octave : int
        Quarter octaves of um/px: `texture_octave` of the pixel size.
    """
    mpp = 2.0 ** (octave / 4)
    noise = _white(11)
    thin = _band(noise, 11 / mpp, 0.6 / mpp)
    bundle = _band(_white(12), 26 / mpp, 3.2 / mpp)
    grain = _band(_white(13), 1.2 / mpp, 1.0 / mpp)
    return _ranked(0.8 * thin + 0.65 * bundle + 0.5 * grain)


@lru_cache(maxsize=8)
def cytoplasm_texture(octave: int) -> Floats:
    """Periodic texture of cell bodies in [0, 1]: membranes high, vacuoles low."""
    mpp = 2.0 ** (octave / 4)
    side = _TEXTURE_PX
    count = max(16, round((side * mpp / 8.5) ** 2))
    points = np.random.Generator(np.random.PCG64(21)).random((count, 2)) * side
    tree = spatial.cKDTree(points, boxsize=side)
    half = 2  # found on a grid of half the resolution: this part is smooth
    axis = np.arange(0, side, half, dtype=np.float64)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    near = tree.query(grid.reshape(-1, 2), k=2)[0].reshape(*grid.shape[:2], 2)
    edge = np.exp(-(((near[..., 1] - near[..., 0]) * mpp / 1.3) ** 2))
    edge = edge.repeat(half, 0).repeat(half, 1).astype(np.float32)
    grain = _ranked(_band(_white(22), 0.9 / mpp, 0.9 / mpp))
    foam = _ranked(_band(_white(23), 2.2 / mpp, 2.2 / mpp))
    return np.asarray(np.clip(0.45 * edge + 0.5 * grain + 0.6 * foam - 0.2, 0, 1))


@lru_cache(maxsize=1)
def sensor_texture() -> NDArray[np.int16]:
    """Periodic noise of a camera, grey levels, deviation about 1.6."""
    generator = np.random.Generator(np.random.PCG64(31))
    noise = generator.standard_normal((509, 509, 3)) * 1.6
    return np.rint(noise).astype(np.int16)


def texture_octave(mpp: float) -> int:
    """Quarter octaves of um/px: textures are made for these and shared."""
    return round(4 * float(np.log2(mpp)))


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))


def _spline_weights(at: NDArray[np.float64]) -> tuple[int, Floats]:
    """First node and the (n, nodes) weights of a cubic B-spline at points."""
    cell = np.floor(at).astype(np.int64)
    t = at - cell
    first = int(cell.min()) - 1
    weights = np.zeros((len(at), int(cell.max()) - first + 3), np.float32)
    rows = np.arange(len(at))
    parts = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    for offset, part in enumerate(parts):
        weights[rows, cell - 1 + offset - first] = part
    return first, weights


def _white(stream: int) -> Floats:
    generator = np.random.Generator(np.random.PCG64(stream))
    return generator.standard_normal((_TEXTURE_PX, _TEXTURE_PX), np.float32)


def _band(noise: Floats, sigma_x: float, sigma_y: float) -> Floats:
    """Gaussian-blurred noise, periodic, unit variance."""
    side = noise.shape[0]
    pass_y = np.exp(-2 * (np.pi * sigma_y * fft.fftfreq(side)) ** 2)
    pass_x = np.exp(-2 * (np.pi * sigma_x * fft.rfftfreq(side)) ** 2)
    spectrum = fft.rfft2(noise)
    spectrum *= np.outer(pass_y, pass_x).astype(np.float32)
    smooth = fft.irfft2(spectrum, noise.shape)
    return np.asarray(smooth / smooth.std(), np.float32)


def _ranked(noise: Floats) -> Floats:
    """Noise squeezed into [0, 1] by a logistic curve."""
    return np.asarray(1 / (1 + np.exp(-1.7 * noise / noise.std())), np.float32)
