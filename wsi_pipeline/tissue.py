"""Turns a pyramid into a tissue mask, and the mask into a grid of patches."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from wsi_pipeline.annotations.masks import read_mask
from wsi_pipeline.classes import TISSUE_CLASSES
from wsi_pipeline.config import TissueOptions
from wsi_pipeline.geometry import Box
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.regions import PatchGrid, Tissue

STRIP_ROWS = 1024
"""Rows of the mask's level that are in memory as RGB at a time."""

# Optical density, ln(glass / pixel), is kept as int16 in hundredths.
_STEPS = 100
_STAIN_MIN, _STAIN_MAX = 0.02, 0.03  # Otsu's threshold stays between these
_BLACK = 24  # brightest channel of what a scanner or an editor filled with black
_GLASS_SHARE = 0.002  # fewer bright neutral pixels than this are no glass to go by
_BLUR_UM, _CLOSE_UM, _PEN_UM = 12.0, 40.0, 24.0
_STROKE_UM2 = 100_000.0


def find_tissue(pyramid: Pyramid, options: TissueOptions | None = None) -> Tissue:
    """Find tissue on the pyramid's level nearest to `options.mask_mpp`.

    Parameters
    ----------
    pyramid : Pyramid
        Image pyramid of the slide.
    options : TissueOptions, optional
        Scale and cleaning; or the user's own mask, which replaces the finder.

    Returns
    -------
    Tissue
        On the grid of one pyramid level; a blank slide has an empty mask.

    Raises
    ------
    RegionError
        If the user's own mask cannot be read or does not fit the slide.

    Notes
    -----
    Memory: 16 bytes per pixel of the mask, plus one RGB strip of 1024 rows. A glass
    slide of 75 x 26 mm has 30 million mask pixels at 8 um/px.
    """
    options = options or TissueOptions()
    # within sqrt(2) of what was asked for: the level that is nearest in log scale
    index = pyramid.level_for(options.mask_mpp * 1.4)
    level = pyramid.levels[index]
    if options.mask is not None:
        mask = read_mask(options.mask, pyramid.source, level, options.mask_frame)
    else:
        thumbnail = pyramid.read_level(pyramid.levels[-1].box, len(pyramid.levels) - 1)
        glass = _glass_colour(thumbnail.transpose(1, 2, 0))
        mpp = pyramid.source.scale.mean * level.downsample
        w, h = level.size_px
        stain = np.empty((h, w), np.uint8)
        pen, black = np.empty((h, w), np.bool_), np.empty((h, w), np.bool_)
        for y in range(0, h, STRIP_ROWS):
            box = level.box.intersect(Box(0, y, w, STRIP_ROWS))
            rgb = pyramid.read_level(box, index).transpose(1, 2, 0)
            stain[box.rows], pen[box.rows], black[box.rows] = _measure(rgb, glass)
        mask = _clean(stain, pen, black, mpp, options)
    return Tissue(mask, level.downsample, pyramid.source.scale)


def tissue_mask(
    rgb: NDArray[np.uint8], mpp: float, options: TissueOptions | None = None
) -> NDArray[np.bool_]:
    """Find tissue in an H&E picture.

    Glass is the colour of the brightest neutral pixels. What absorbs more green than
    red or blue, beyond a threshold (Otsu's, within limits), is tissue: haematoxylin and
    eosin both do, while grey, black and white absorb alike and blue or green ink
    absorbs more red.

    Parameters
    ----------
    rgb : (h, w, 3) uint8 array
        Brightfield picture, 2 to 150 um/px.
    mpp : float
        um/px.
    options : TissueOptions, optional
        Areas of pieces and holes; `mask` and `mask_mpp` are not used.

    Returns
    -------
    (h, w) bool array
        True = tissue. Pen, black fill and glass are False; holes up to
        `min_hole_um2` that tissue encloses are True unless they are pen or black.

    References
    ----------
    Ruifrok & Johnston 2001, Analytical and Quantitative Cytology and Histology 23(4):
    optical densities of the stains. Otsu 1979, IEEE Trans. SMC 9(1): the threshold.
    """
    glass = _glass_colour(rgb)
    return _clean(*_measure(rgb, glass), mpp, options or TissueOptions())


def lay_patches(
    tissue: Tissue,
    slide_size_px: tuple[int, int],
    patch_px: int,
    mpp: float,
    options: TissueOptions | None = None,
) -> PatchGrid:
    """Lay a lattice of square patches and keep those with enough tissue.

    Parameters
    ----------
    tissue : Tissue
        Where there is tissue.
    slide_size_px : tuple of int
        (width, height) of the slide's level 0.
    patch_px : int
        Side of a patch in pixels at `mpp`.
    mpp : float
        um/px at which patches are encoded.
    options : TissueOptions, optional
        `min_patch_tissue`.

    Returns
    -------
    PatchGrid
        Sorted by y, then x. Patches touch without overlap; those of the last row and
        column are moved inside the slide. A slide narrower than a patch has one patch
        there, which sticks out. Patches without any tissue are never kept.

    Notes
    -----
    The share of tissue is the exact area of mask pixels, fractions of pixels included,
    over the patch's area inside the slide. Memory: 4 bytes per mask pixel.
    """
    options = options or TissueOptions()
    size_px = max(1, round(patch_px * mpp / tissue.scale.mean))
    starts = [_starts(length, size_px) for length in slide_size_px]
    xs, ys = starts
    ends_x, ends_y = (
        np.minimum(start + size_px, length)
        for start, length in zip(starts, slide_size_px, strict=True)
    )
    # summed areas: table[i, j] counts tissue in the first i rows and j columns
    h, w = tissue.mask.shape
    table = np.zeros((h + 1, w + 1), np.int32)
    np.cumsum(tissue.mask, axis=0, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    factor = tissue.downsample
    top, bottom = (_between(table, y / factor, 0) for y in (ys, ends_y))
    band = bottom - top
    found = _between(band, ends_x / factor, 1) - _between(band, xs / factor, 1)
    inside = np.outer(ends_y - ys, ends_x - xs) / factor**2
    share = np.clip(found / inside, 0, 1)
    kept = (share > 0) & (share >= options.min_patch_tissue)
    rows, columns = np.nonzero(kept)
    corners = np.stack([xs[columns], ys[rows]], axis=1).astype(np.int64)
    return PatchGrid(corners, size_px, patch_px, mpp, share[kept].astype(np.float32))


def _starts(length: int, size_px: int) -> NDArray[np.int64]:
    """Lattice of patch starts along one axis, the last one moved inside."""
    starts = np.arange(0, max(length, 1), size_px, dtype=np.int64)
    return np.minimum(starts, max(0, length - size_px))


def _between(
    table: NDArray[np.generic], at: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """Values of a summed-area table at fractional places: linear, hence exact."""
    last = table.shape[axis] - 1
    at = np.minimum(at, last)
    low = np.minimum(at.astype(np.int64), max(0, last - 1))
    part = (at - low)[:, None] if axis == 0 else (at - low)[None, :]
    below = table.take(low, axis).astype(np.float64)
    above = table.take(low + 1, axis).astype(np.float64)
    return np.asarray(below + (above - below) * part)


def _glass_colour(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(3,) colour of the brightest near-neutral pixels; without any, light grey."""
    # averaged first: noise must not lend pale tissue a few neutral pixels
    step = max(2, math.isqrt(rgb.shape[0] * rgb.shape[1] // 250_000))
    reduced = Image.fromarray(np.ascontiguousarray(rgb)).reduce(step)
    pixels = np.asarray(reduced).reshape(-1, 3).astype(np.int16)
    high, low = pixels.max(1), pixels.min(1)
    # glass may be tinted, though not towards the magenta of the stains
    stained = np.minimum(pixels[:, 0], pixels[:, 2]) - pixels[:, 1]
    neutral = (high - low <= 0.12 * high) & (stained <= 0.05 * high)
    bright = pixels[(low >= 150) & neutral]
    if len(bright) < max(1, _GLASS_SHARE * len(pixels)):
        return np.array([244.0, 244.0, 244.0])
    light = bright.sum(1)
    top = bright[light >= 0.97 * np.percentile(light, 95)]
    return np.asarray(np.median(top, axis=0))


def _measure(
    rgb: NDArray[np.uint8], glass: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """(h, w) arrays: coded stain (uint8), what is ink, what is black fill (bool)."""
    values = np.maximum(np.arange(256), 1)
    densities = [
        np.clip(np.log(colour / values) * _STEPS, 0, None).astype(np.int16)
        for colour in glass
    ]
    planes = [np.ascontiguousarray(rgb[..., channel]) for channel in range(3)]
    red, green, blue = (
        density[plane] for density, plane in zip(densities, planes, strict=True)
    )
    high = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    low = np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    black = high <= _BLACK
    spread = high - low
    # Inks by density: green and blue absorb red most; a red marker absorbs green and
    # blue and hardly any red; a black one absorbs all alike (nuclei stay violet).
    cold = (red > 25) & (10 * red > 11 * green)
    warm = (green > 70) & (10 * red < 2 * green) & (20 * blue > 12 * green)
    warm |= (green > 110) & (10 * red < 3 * green) & (20 * blue > 11 * green)
    dark = (high < 100) & (spread < 40)
    pen = (cold | warm | dark) & ~black
    stain = _code()[np.clip(green - np.minimum(red, blue), 0, 255)]
    stain[black | pen] = 0
    return stain, pen, black


def _code() -> NDArray[np.uint8]:
    """Table from stain in hundredths to uint8: the root evens out pale and dark."""
    return np.round(np.sqrt(np.arange(256)) * 16).clip(0, 255).astype(np.uint8)


def _clean(
    stain: NDArray[np.uint8],
    pen: NDArray[np.bool_],
    black: NDArray[np.bool_],
    mpp: float,
    options: TissueOptions,
) -> NDArray[np.bool_]:
    """Threshold the coded stain, drop pen and specks, fill small holes."""
    sigma = min(3.0, max(0.7, _BLUR_UM / mpp))
    smooth = np.asarray(
        Image.fromarray(stain).filter(ImageFilter.GaussianBlur(sigma)), np.uint8
    )
    never = black
    if pen.any():
        # strokes are wide and long: what is narrow or short is a nucleus or a fold
        radius = _radius(_PEN_UM, mpp)
        stroke = _box_mean(pen, radius) > 127
        stroke = _without_small(stroke, max(25.0, _STROKE_UM2 / mpp**2), holes=False)
        never = black | _dilated(stroke, radius)
    code = _code()
    lowest, highest = (int(code[round(v * _STEPS)]) for v in (_STAIN_MIN, _STAIN_MAX))
    threshold = min(max(_otsu(smooth[~never]), lowest), highest)
    mask = smooth > threshold
    mask = _closed(mask, _radius(_CLOSE_UM, mpp))
    mask = _without_small(mask, options.min_hole_um2 / mpp**2, holes=True)
    mask &= ~never
    return _without_small(mask, max(2.0, options.min_area_um2 / mpp**2), holes=False)


def _otsu(values: NDArray[np.uint8]) -> int:
    """Otsu's threshold of uint8 values: the upper class lies above it."""
    counts = np.bincount(values, minlength=256).astype(np.float64)
    weight = np.cumsum(counts)
    moment = np.cumsum(counts * np.arange(256))
    split = weight * (weight[-1] - weight)
    gain = (moment[-1] * weight - moment * weight[-1]) ** 2
    return int(np.argmax(np.divide(gain, split, out=np.zeros(256), where=split > 0)))


def _radius(length_um: float, mpp: float) -> int:
    """A length as a radius of 1 to 7 px: 7 is as far as an 8-bit box mean sees."""
    return min(7, max(1, round(length_um / mpp)))


def _box_mean(mask: NDArray[np.bool_], radius: int) -> NDArray[np.uint8]:
    """Share of True in the square around each pixel, 0 to 255."""
    blurred = Image.fromarray(mask.view(np.uint8) * 255).filter(
        ImageFilter.BoxBlur(radius)
    )
    return np.asarray(blurred)


def _dilated(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels with True in the square around them."""
    return _box_mean(mask, radius) > 0


def _closed(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Fill gaps narrower than the square; the picture's edge is no tissue."""
    rim = radius + 1
    padded = np.pad(mask, rim)
    return ~_dilated(~_dilated(padded, radius), radius)[rim:-rim, rim:-rim]


def _without_small(
    mask: NDArray[np.bool_], least_px: float, *, holes: bool
) -> NDArray[np.bool_]:
    """Drop pieces below an area; or fill holes below it that tissue encloses."""
    labels, count = ndimage.label(~mask if holes else mask)
    sizes = np.zeros(count + 1, np.int64)
    for y in range(0, len(labels), STRIP_ROWS):  # bincount makes an 8-byte copy
        strip = labels[y : y + STRIP_ROWS].ravel()
        sizes += np.bincount(strip, minlength=count + 1)
    change = sizes < least_px
    change[0] = False
    if holes:
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            change[edge] = False  # open to the picture's edge: not enclosed
        return np.asarray(mask | change[labels])
    return np.asarray(mask & ~change[labels])


def label_tissue(pyramid: Pyramid, tissue: Tissue, path: Path) -> MaskPyramid:
    """Publish the tissue mask as a label on the pyramid's own grid.

    Parameters
    ----------
    pyramid : Pyramid
        The slide's pixels.
    tissue : Tissue
        The mask; each base pixel takes the value of the mask pixel it lies in.
    path : Path
        Folder of the label; replaced if it is there.

    Raises
    ------
    ExportError
        If it cannot be written.

    Notes
    -----
    Memory: two label shards (32 MB), kept by going block by block.
    """
    base = pyramid.levels[0].downsample
    h, w = tissue.mask.shape
    with staged(path) as temporary:
        label = MaskPyramid.create(
            temporary,
            pyramid.source,
            int(base),
            TISSUE_CLASSES,
            version=pyramid.version,
        )
        for block in label.levels[0].box.blocks(label.shard_px(0)):
            centres = base / tissue.downsample
            y = ((np.arange(block.y, block.bottom) + 0.5) * centres).astype(np.int64)
            x = ((np.arange(block.x, block.right) + 0.5) * centres).astype(np.int64)
            part = tissue.mask[np.minimum(y, h - 1)[:, None], np.minimum(x, w - 1)]
            label.put(0, block, part.astype(np.uint8))
        label.write_coarser()
    return MaskPyramid(path)
