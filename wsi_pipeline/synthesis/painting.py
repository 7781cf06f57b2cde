"""Paints one block of a synthetic slide: places in um to colours and truth.

A block is the unit that everything is drawn in: blocks lie on a fixed grid of the
plane, so that any box, cut out of its blocks, agrees with every other box.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.synthesis.artefacts import Artefact, Effects, overlay
from wsi_pipeline.synthesis.glands import GlandFields, grow_glands
from wsi_pipeline.synthesis.layout import GLASS, STROMA, Layout
from wsi_pipeline.synthesis.noise import (
    Floats,
    cytoplasm_texture,
    enlarge,
    fibre_texture,
    keys_of,
    sensor_texture,
    smooth_field,
    texture_octave,
    window,
)
from wsi_pipeline.synthesis.nuclei import LARGEST_UM, Nuclei, place_nuclei, stamp_nuclei
from wsi_pipeline.synthesis.stain import Stain, draw_stain

BLOCK_PX = 512
_HALO_PX = 2
# (wavelength, amplitude) in um of the bending of all shapes
_WARPS = ((320.0, 17.0), (55.0, 3.0), (16.0, 0.8))
WARP_UM = 3.6 * sum(amplitude for _, amplitude in _WARPS)
"""The furthest that bending moves a point along x or y (noise stays within 3.6)."""
COARSEST_NATIVE_MPP = 1.5
"""Coarser pixels are painted finer and averaged, as a scanner would."""


@dataclass(frozen=True)
class World:
    """An endless plane of tissue: all that decides what a place looks like.

    Parameters
    ----------
    seed : int
        At least 0.
    layout : Layout
        Where what grows.
    stain_variation : float
        0 = the reference stain, 1 = as between laboratories.
    artefacts : tuple of Artefact
        In level-0 um of the plane.
    """

    seed: int
    layout: Layout
    stain_variation: float
    artefacts: tuple[Artefact, ...] = ()

    @property
    def keys(self) -> tuple[int, ...]:
        """64-bit keys, one per use."""
        return keys_of(self.seed, 24)

    @property
    def stain(self) -> Stain:
        """The slide's stain."""
        return draw_stain(self.keys[23], self.stain_variation)


def paint_block(
    world: World, column: int, row: int, mpp: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Paint block (column, row) of the plane.

    Parameters
    ----------
    column, row : int
        The block covers pixels ``column * BLOCK_PX`` and on.
    mpp : float
        um per pixel, at most `COARSEST_NATIVE_MPP`.

    Returns
    -------
    rgb : (BLOCK_PX, BLOCK_PX, 3) uint8 array
    truth : (BLOCK_PX, BLOCK_PX) uint8 array
        Class values 0 to 5.

    Notes
    -----
    Memory: about 60 bytes per pixel of the block, 20 MB.
    """
    keys = world.keys
    factor = 4 if mpp <= 0.3 else 2
    # nodes: every `factor` pixels, reaching beyond the block by a nucleus
    spare = int(np.ceil((LARGEST_UM / 2 + 4) / (mpp * factor))) + 1
    first_x = column * BLOCK_PX - _HALO_PX - spare * factor
    first_y = row * BLOCK_PX - _HALO_PX - spare * factor
    side = BLOCK_PX + 2 * _HALO_PX
    count = -(-side // factor) + 1 + 2 * spare
    x = (first_x + 0.5 + factor * np.arange(count, dtype=np.float64)) * mpp
    y = (first_y + 0.5 + factor * np.arange(count, dtype=np.float64)) * mpp
    shift_x, shift_y = _warp(keys, x, y)
    grid = (x.astype(np.float32) + shift_x, y.astype(np.float32)[:, None] + shift_y)
    survey = world.layout.survey(*grid)
    tissue = survey.tissue_um.astype(np.float32)
    if tissue.max() < -LARGEST_UM:
        glands = None
    else:
        bounds = (float(x[0]), float(y[0]), float(x[-1]), float(y[-1]))
        glands = grow_glands(
            keys[:5], world.layout, bounds, grid, survey, (x, y), WARP_UM
        )
    px = (column * BLOCK_PX - _HALO_PX, row * BLOCK_PX - _HALO_PX)
    frame = _Frame(px, mpp, factor, (x[spare:], y[spare:]))
    amounts = np.zeros((2, side, side), np.float32)
    truth = np.full((side, side), GLASS, np.uint8)
    effects = overlay(world.artefacts, keys[17], *frame.axes_um)
    if glands is not None:
        bend = _bend(keys, x, y)
        cut = (slice(spare, None), slice(spare, None))
        near = GlandFields(glands.depth_um[cut], glands.lumen_um[cut], glands.kind[cut])
        truth = _lay_tissue(
            amounts, world, frame, near, tissue[cut], (bend[0][cut], bend[1][cut])
        )
        node_um = float(x[1] - x[0])
        angle = _fibre_angle(bend[1], node_um)
        nuclei = place_nuclei(keys[6], bounds, glands, tissue, angle, node_um)
        _stain_nuclei(amounts, nuclei, frame)
    return _develop(world, amounts, truth, effects, frame)


@dataclass(frozen=True)
class _Frame:
    """Where a block with its halo lies: first pixel, um/px, nodes."""

    px: tuple[int, int]
    mpp: float
    factor: int
    axes_um: tuple[NDArray[np.float64], NDArray[np.float64]]

    def enlarge(self, nodes: Floats) -> Floats:
        """A field on nodes as a field on pixels."""
        side = BLOCK_PX + 2 * _HALO_PX
        return enlarge(nodes, self.factor, (side, side))


def _lay_tissue(
    amounts: Floats,
    world: World,
    frame: _Frame,
    glands: GlandFields,
    tissue_nodes: Floats,
    bend: tuple[Floats, Floats],
) -> NDArray[np.uint8]:
    """Fill in stroma, epithelium and lumen; return the truth."""
    keys, mpp = world.keys, frame.mpp
    soft = max(1.0, mpp)
    octave = texture_octave(mpp)
    side = amounts.shape[1]
    depth = frame.enlarge(glands.depth_um)
    lumen = frame.enlarge(glands.lumen_um)
    tissue = frame.enlarge(tissue_nodes)
    kind = glands.kind.repeat(frame.factor, 0).repeat(frame.factor, 1)[:side, :side]

    texture = fibre_texture(octave)
    wrap = texture.shape[0] - 1
    # whole periods added, as truncation is no floor below 0
    ahead = 8 * (wrap + 1)
    column = np.arange(side, dtype=np.float32) + np.float32(ahead + frame.px[0] % ahead)
    row = np.arange(side, dtype=np.float32) + np.float32(ahead + frame.px[1] % ahead)
    u = (frame.enlarge(bend[0] / np.float32(mpp)) + column).astype(np.int32) & wrap
    v = frame.enlarge(bend[1] / np.float32(mpp)) + row[:, None]
    v = v.astype(np.int32) & wrap
    fibre = texture.ravel().take(v * (wrap + 1) + u)
    broad = frame.enlarge(smooth_field(keys[18], 140, *frame.axes_um))
    cell = window(cytoplasm_texture(octave), *frame.px, (side, side))

    # stroma: collagen with pale clefts where the fibre texture is lowest
    eosin = 0.4 + 0.42 * fibre + 0.07 * broad
    loose = frame.enlarge(smooth_field(keys[19], 90, *frame.axes_um))
    eosin *= np.clip((fibre - 0.05 * loose) * 12 + 0.25, 0.15, 1)
    blue = 0.02 + 0.05 * fibre
    # epithelium: the same in every kind of gland
    inside = np.clip(depth / soft + 0.5, 0, 1)
    eosin += inside * (0.13 + 0.4 * cell + 0.02 * broad - eosin)
    blue += inside * (0.05 + 0.19 * cell - blue)
    # a thin pink line around glands: basement membrane and retraction
    rim = np.exp(-((depth + 1.6) ** 2) * np.float32(0.5))
    eosin += 0.16 * rim
    # lumen: empty, here and there with thin secretion
    secretion = np.clip(0.12 * broad - 0.12, 0, 0.2) * (0.6 + 0.8 * fibre)
    hollow = np.clip(lumen / soft + 0.5, 0, 1) * inside
    eosin += hollow * (0.02 + secretion - eosin)
    blue += hollow * (0.01 - blue)

    solid = np.clip(tissue / soft + 0.5, 0, 1)
    np.multiply(eosin, solid, out=amounts[1])
    np.multiply(blue, solid, out=amounts[0])
    truth = np.where(depth > 0, kind, np.uint8(STROMA))
    truth[tissue <= 0] = GLASS
    return truth


def _stain_nuclei(amounts: Floats, nuclei: Nuclei, frame: _Frame) -> None:
    place = ((frame.px[0] + 0.5) * frame.mpp, (frame.px[1] + 0.5) * frame.mpp)
    drawn = np.zeros_like(amounts[0])
    stamp_nuclei(drawn, nuclei, place, frame.mpp)
    amounts[1] *= 1 - 0.6 * np.minimum(drawn, 1)
    np.maximum(amounts[0], drawn, out=amounts[0])


def _develop(
    world: World,
    amounts: Floats,
    truth: NDArray[np.uint8],
    effects: Effects | None,
    frame: _Frame,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Optics and camera: blur, fold, pen, Beer-Lambert, noise; cut the halo."""
    inner = slice(_HALO_PX, _HALO_PX + BLOCK_PX)
    soft = [_blur(layer)[inner, inner] for layer in amounts]
    truth = truth[inner, inner]
    light = np.ones((BLOCK_PX, BLOCK_PX, 3), np.float32)
    if effects is not None:
        for c in range(3):
            layer = np.ascontiguousarray(effects.light[..., c])
            light[..., c] = frame.enlarge(layer)[inner, inner]
        thick = frame.enlarge(effects.thickness)[inner, inner]
        soft = [layer * thick for layer in soft]
        hidden = frame.enlarge(effects.hidden)[inner, inner] > 0.5
        truth = np.where(hidden, np.uint8(GLASS), truth)
    rgb = world.stain.mix(soft[0], soft[1], light)
    x, y = frame.px[0] + _HALO_PX, frame.px[1] + _HALO_PX
    noise = window(sensor_texture(), x, y, (BLOCK_PX, BLOCK_PX))
    rgb += noise
    np.clip(rgb, 0, 255, out=rgb)
    return (rgb + 0.5).astype(np.uint8), np.ascontiguousarray(truth)


def _blur(layer: Floats) -> Floats:
    """Blur (1, 6, 1) / 8 along both axes; the outermost pixels stay."""
    out = layer.copy()
    for axis in (0, 1):
        view = np.moveaxis(out, axis, 0)
        sums = view[:-2] + view[2:]
        sums += 6 * view[1:-1]
        sums *= np.float32(0.125)
        view[1:-1] = sums
    return out


def _warp(
    keys: tuple[int, ...], x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[Floats, Floats]:
    shape = (len(y), len(x))
    shift_x, shift_y = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for n, (wavelength, amplitude) in enumerate(_WARPS):
        shift_x += amplitude * smooth_field(keys[8 + n], wavelength, x, y)
        shift_y += amplitude * smooth_field(keys[11 + n], wavelength, x, y)
    return shift_x, shift_y


def _bend(
    keys: tuple[int, ...], x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """Shift (um) of the fibres' texture: gives them their waves and directions."""
    bend_x = 80 * smooth_field(keys[14], 210, x, y)
    bend_y = 120 * smooth_field(keys[15], 270, x, y)
    bend_y += 9 * smooth_field(keys[16], 55, x, y)
    return bend_x, bend_y


def _fibre_angle(bend_y: Floats, node_um: float) -> Floats:
    """Direction of the fibres, which follow lines of equal ``y + bend_y``."""
    slope_y, slope_x = np.gradient(bend_y, node_um)
    return np.asarray(np.arctan2(-slope_x, 1 + slope_y))
