"""Synthetic H&E slides of prostate whose truth is known to the pixel."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import LABEL_SHARD_PX
from wsi_pipeline.ngff import Source
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.synthesis.artefacts import scatter_artefacts
from wsi_pipeline.synthesis.blocks import BlockTask, join_boxes, run_tasks
from wsi_pipeline.synthesis.boxes import paint_box
from wsi_pipeline.synthesis.layout import Mosaic
from wsi_pipeline.synthesis.noise import keys_of
from wsi_pipeline.synthesis.painting import World
from wsi_pipeline.synthesis.plans import SlidePlan
from wsi_pipeline.synthesis.sections import LesionPlan, SectionLayout, SlideKind
from wsi_pipeline.synthesis.spooling import Spool, level_sizes, write_tiff

Progress = Callable[[int, int], None]

SYNTHETIC_CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Stroma", (204, 121, 167)),
    MaskClass(2, "Benign gland", (0, 158, 115)),
    MaskClass(3, "Gleason 3", (240, 228, 66)),
    MaskClass(4, "Gleason 4", (230, 159, 0)),
    MaskClass(5, "Gleason 5", (0, 114, 178)),
)
"""Colours of Okabe and Ito (2008), told apart by colour-blind readers too."""

EQUAL_MIX = (1.0,) * 6


@dataclass(frozen=True)
class PlantedLesion:
    """A lesion of a synthetic slide.

    Parameters
    ----------
    box : Box
        Level-0 pixels; the smallest box (exact up to the truth's pixel) around what
        is labelled Gleason 3 to 5 within the lesion's reach. Empty where nothing grew.
    pattern : int
        3, 4 or 5.
    """

    box: Box
    pattern: int


@dataclass(frozen=True)
class SyntheticSlide:
    """What `write_slide` wrote.

    Parameters
    ----------
    slide_path : Path
        Pyramidal TIFF.
    truth_path : Path
        Folder of the `MaskPyramid`.
    size_px : tuple of int
        (width, height) of level 0.
    mpp : float
        um per pixel of level 0.
    lesions : tuple of PlantedLesion
    """

    slide_path: Path
    truth_path: Path
    size_px: tuple[int, int]
    mpp: float
    lesions: tuple[PlantedLesion, ...]


def paint_region(
    seed: int,
    size_px: tuple[int, int],
    mpp: float,
    *,
    mix: tuple[float, ...] = EQUAL_MIX,
    patch_um: float | None = None,
    origin_px: tuple[int, int] = (0, 0),
    stain_variation: float = 1.0,
    artefacts: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Paint a box of an endless plane of tissue.

    Parameters
    ----------
    seed : int
        At least 0; the same seed gives the same plane.
    size_px : tuple of int
        (width, height).
    mpp : float
        um per pixel, 0.2 to 8.
    mix : tuple of float
        Share of the areas of glass, stroma, benign glands, Gleason 3, 4 and 5. Equal
        shares (0 for what is not wanted) are dealt in turn, so that each comes within
        a box of the default `patch_um`; unequal ones are drawn by lot.
    patch_um : float, optional
        Mean side of an area of one pattern; left out, such that every wanted pattern
        fits in the box once or twice, 270 to 1500 um: boxes from about 900 um on
        show every pattern.
    origin_px : tuple of int
        Left and top pixel of the box. Boxes of one seed, mpp, mix and `patch_um` agree
        exactly where they overlap.
    stain_variation : float
        0 = the reference stain, 1 = as between laboratories.
    artefacts : bool
        Pen, folds, bubbles and dust. They lie in a frame of the box's own size at the
        plane's corner. Under black pen the truth is 0; elsewhere it is the tissue's.

    Returns
    -------
    rgb : (h, w, 3) uint8 array
    truth : (h, w) uint8 array
        Values of SYNTHETIC_CLASSES.

    Raises
    ------
    ConfigError
        If a number is out of range.

    Notes
    -----
    Painted in blocks of 512 px on a fixed grid: sizes that are multiples of 512 px
    waste nothing.
    """
    w, h = size_px
    if w < 1 or h < 1:
        raise ConfigError(f"size_px must be at least 1 x 1, got {w} x {h}")
    if not 0.2 <= mpp <= 8:
        raise ConfigError(f"mpp must be 0.2 to 8 um/px, got {mpp}")
    if len(mix) != 6 or min(mix) < 0 or sum(mix) == 0:
        raise ConfigError(f"mix must be six shares, not all 0, got {mix}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}")
    if patch_um is not None and not patch_um >= 50:
        raise ConfigError(f"patch_um must be at least 50 um, got {patch_um}")
    if patch_um is None:
        wanted = sum(share > 0 for share in mix)
        patch_um = float(np.clip(np.sqrt(w * h / wanted / 1.5) * mpp, 270, 1500))
    keys = keys_of(seed, 3)
    spots = scatter_artefacts(keys[1], (w * mpp, h * mpp), 1.0) if artefacts else ()
    layout = Mosaic(keys[0], patch_um, tuple(mix))
    return paint_box(
        World(seed, layout, stain_variation, spots), origin_px, size_px, mpp
    )


def write_slide(
    path: Path,
    *,
    seed: int,
    megapixels: float = 20.0,
    size_px: tuple[int, int] | None = None,
    mpp: float = 0.5,
    kind: SlideKind = "strip",
    lesions: LesionPlan = "random",
    artefacts: bool = True,
    workers: int = 1,
    progress: Progress | None = None,
) -> SyntheticSlide:
    """Write a pyramidal TIFF and its truth.

    Parameters
    ----------
    path : Path
        The TIFF (``.tif`` or ``.tiff``); the truth goes beside it, as
        ``<stem>.truth.ome.zarr``: a `MaskPyramid` on the slide's own pixels, above
        200 MP on a grid of about 1 um.
    seed : int
        At least 0; the same arguments give the same bytes.
    megapixels : float
        Size of level 0, 0.25 to 40 000, unless `size_px` is given.
    size_px : tuple of int, optional
        (width, height) of level 0.
    mpp : float
        um per pixel, 0.2 to 1.5.
    kind : str
        "strip" (pieces side by side, aspect 2 to 10) or "section" (one round piece).
    lesions : str
        "random" (none to five), "none", or "one" (about 0.6 % of the tissue, but at
        least 220 um in radius: on slides below some 50 MP its share is larger).
    artefacts : bool
        Pen, folds, bubbles and dust. Under black pen the truth is background, under
        all else it is the tissue's class.
    workers : int
        Processes that paint; the bytes do not depend on it.
    progress : callable, optional
        Called with (blocks done, blocks in all).

    Returns
    -------
    SyntheticSlide

    Raises
    ------
    ConfigError
        If an argument is out of range or the name does not end in .tif or .tiff.
    ExportError
        If the folder cannot be written.

    Notes
    -----
    Memory: per worker about 200 MB (a block of 4096 px, its levels, its truth),
    whatever the slide's size. Meanwhile the disk holds the slide twice.
    """
    plan = SlidePlan(seed, megapixels, size_px, mpp, kind, lesions, artefacts)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"{path}: a synthetic slide is a .tif or .tiff")
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    truth_path = path.with_name(f"{path.stem}.truth.ome.zarr")
    with ExitStack() as stack:
        slide_name = stack.enter_context(staged(path))
        truth_name = stack.enter_context(staged(truth_path))
        folder = tempfile.TemporaryDirectory(dir=slide_name.parent)
        spool = Spool(Path(stack.enter_context(folder)), plan.jpeg_quality)
        truth = MaskPyramid.create(
            truth_name,
            _source(path.name, plan),
            plan.truth_downsample(),
            SYNTHETIC_CLASSES,
            {"synthetic": {"seed": plan.seed, "kind": plan.kind}},
        )
        planted = _paint_blocks(plan, spool, truth_name, workers, progress)
        truth.write_coarser()
        text = f"Synthetic H&E, seed {plan.seed}, {plan.kind}, {plan.mpp} um/px"
        levels = level_sizes(plan.shape_px())
        write_tiff(slide_name, spool, levels, plan.mpp, text)
    return SyntheticSlide(path, truth_path, plan.shape_px(), plan.mpp, planted)


def _source(name: str, plan: SlidePlan) -> Source:
    size_px, scale = plan.shape_px(), Scale(plan.mpp, plan.mpp)
    return Source(name, size_px, scale, "synthetic", Box(0, 0, *size_px))


def _paint_blocks(
    plan: SlidePlan,
    spool: Spool,
    truth_path: Path,
    workers: int,
    progress: Progress | None,
) -> tuple[PlantedLesion, ...]:
    """Fill spool and truth; tell where each lesion came to lie."""
    size_px, base = plan.shape_px(), plan.truth_downsample()
    whole = Box(0, 0, *size_px)
    world, layout = plan.world()
    patterns = tuple(lesion.pattern for lesion in layout.lesions)
    tasks = [
        BlockTask(
            world=world,
            spool=spool,
            truth_path=truth_path,
            mpp=plan.mpp,
            levels=len(level_sizes(size_px)),
            truth_downsample=base,
            reaches=_reaches(layout, whole, plan.mpp),
            patterns=patterns,
            block=block,
        )
        for block in whole.blocks(LABEL_SHARD_PX * base)
    ]
    found = [Box(0, 0, 0, 0)] * len(patterns)
    if progress is not None:
        progress(0, len(tasks))
    with run_tasks(tasks, workers) as results:
        for done, boxes in enumerate(results, 1):
            found = [join_boxes(a, b) for a, b in zip(found, boxes, strict=True)]
            if progress is not None:
                progress(done, len(tasks))
    return tuple(
        PlantedLesion(box.intersect(whole), pattern)
        for box, pattern in zip(found, patterns, strict=True)
    )


def _reaches(layout: SectionLayout, whole: Box, mpp: float) -> tuple[Box, ...]:
    """Per lesion, level-0 pixels that nothing of it leaves."""
    found = []
    for lesion in layout.lesions:
        left, top, right, bottom = layout.reach_um(lesion)
        x, y = int(np.floor(left / mpp)), int(np.floor(top / mpp))
        box = Box(x, y, int(np.ceil(right / mpp)) - x, int(np.ceil(bottom / mpp)) - y)
        found.append(box.intersect(whole))
    return tuple(found)
