"""Turns a mask that a person made, drawn or painted, into pixels on a slide's level."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shapely import area

from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.classing import IGNORE
from wsi_pipeline.annotations.frames import Extent, Frame
from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.annotations.shapes import only_areas
from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box, Level


def read_mask(
    path: Path, slide: Extent, level: Level, frame: Frame = "auto"
) -> NDArray[np.bool_]:
    """Read a mask of a slide from a PNG or from annotations.

    Parameters
    ----------
    path : Path
        A PNG of the whole slide in any size (what is not zero counts), or annotations
        with areas, of any class and format; those of QuPath's class "Ignore*" are
        left out, also where they lie on others that come before them.
    slide : SlideInfo or Source
        Its size and bounds.
    level : Level
        Grid of the result.
    frame : "auto", "qupath", "level0" or "halo"
        Where coordinates of annotations start.

    Returns
    -------
    (h, w) bool array
        A pixel counts when its centre does.

    Raises
    ------
    RegionError
        If the file cannot be read, has no area on the slide, or its shape differs from
        the slide's by more than 2 %.
    """
    if path.suffix.lower() == ".png":
        return _mask_from_png(path, slide.size_px, level)
    annotations = read_annotations(path, slide=slide, frame=frame)
    drawn = [item for item in annotations if area(item.geometry) > 0]
    if not drawn:
        raise RegionError(
            f"{path}: got {len(annotations)} annotations and none with an area; "
            "expected polygons around tissue (option tissue.mask)"
        )
    areas = Areas(
        np.array([only_areas(item.geometry) for item in drawn], dtype=object),
        np.array([item.class_name != IGNORE for item in drawn], np.uint8),
    )
    w, h = level.size_px
    whole = Box(0, 0, round(w * level.downsample), round(h * level.downsample))
    mask = areas.paint(whole, level.size_px).astype(np.bool_)
    if not mask.any():
        raise RegionError(
            f"{path}: no polygon covers any of the slide's {slide.size_px[0]} x "
            f"{slide.size_px[1]} px; expected level-0 pixels in the frame of the "
            "program that drew them (options tissue.mask and tissue.mask_frame)"
        )
    return mask


def _mask_from_png(
    path: Path, slide_size_px: tuple[int, int], level: Level
) -> NDArray[np.bool_]:
    """A PNG of the whole slide, not zero = tissue, by nearest pixel."""
    try:
        with Image.open(path) as image:
            plain = image.mode in ("1", "L", "I", "I;16")
            values = np.asarray(image if plain else image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise RegionError(
            f"{path}: cannot be read as a picture ({error}); expected a PNG or "
            "annotations (option tissue.mask)"
        ) from error
    found = values.any(axis=2) if values.ndim == 3 else values != 0
    (h, w), (slide_w, slide_h) = found.shape, slide_size_px
    # one pixel either way is rounding, which is much in a small mask
    if abs(w * slide_h / (h * slide_w) - 1) > 0.02 + 1 / min(w, h):
        raise RegionError(
            f"{path}: the mask is {w} x {h} px and the slide {slide_w} x {slide_h} px: "
            "their shapes differ by more than 2 %; expected a mask of the whole slide "
            "(option tissue.mask)"
        )
    columns, rows = (
        np.minimum((np.arange(n) + 0.5) * level.downsample / whole * m, m - 1)
        for n, whole, m in zip(level.size_px, slide_size_px, (w, h), strict=True)
    )
    return np.asarray(found[np.ix_(rows.astype(np.int64), columns.astype(np.int64))])
