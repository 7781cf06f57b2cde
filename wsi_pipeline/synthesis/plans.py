"""What a synthetic slide shall be: numbers in, checked, size and world out."""

from dataclasses import dataclass

import numpy as np

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.synthesis.artefacts import scatter_artefacts
from wsi_pipeline.synthesis.noise import keys_of
from wsi_pipeline.synthesis.painting import COARSEST_NATIVE_MPP, World
from wsi_pipeline.synthesis.sections import (
    LesionPlan,
    SectionLayout,
    SlideKind,
    lay_section,
)

_DETAILED_TRUTH_MP = 200
"""Slides up to this size carry truth per pixel, larger ones at about 1 um."""


@dataclass(frozen=True)
class SlidePlan:
    """What a synthetic slide shall be.

    Parameters
    ----------
    seed : int
        At least 0; the same plan gives the same bytes.
    megapixels : float
        Size of level 0, 0.25 to 40 000, unless `size_px` is given.
    size_px : tuple of int, optional
        (width, height) of level 0.
    mpp : float
        um per pixel, 0.2 to 1.5.
    kind : str
        "strip" (several pieces side by side, aspect 2 to 10) or "section" (one piece).
    lesions : str
        "random" (none to five), "none", or "one" (about 0.6 % of the tissue).
    artefacts : bool
        Pen, folds, bubbles and dust.
    stain_variation : float
        0 = the reference stain, 1 = as between laboratories.
    jpeg_quality : int
        1 to 95.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    seed: int
    megapixels: float = 20.0
    size_px: tuple[int, int] | None = None
    mpp: float = 0.5
    kind: SlideKind = "strip"
    lesions: LesionPlan = "random"
    artefacts: bool = True
    stain_variation: float = 1.0
    jpeg_quality: int = 85

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")
        if not 0.25 <= self.megapixels <= 40_000:
            raise ConfigError(f"megapixels must be 0.25..40000, got {self.megapixels}")
        if not 0.2 <= self.mpp <= COARSEST_NATIVE_MPP:
            raise ConfigError(f"mpp must be 0.2..1.5 um/px, got {self.mpp}")
        if self.size_px is not None and min(self.size_px) < 256:
            raise ConfigError(f"size_px must be at least 256, got {self.size_px}")
        if self.kind not in ("strip", "section"):
            raise ConfigError(f"kind must be strip or section, got {self.kind!r}")
        if self.lesions not in ("random", "none", "one"):
            raise ConfigError(
                f"lesions must be random, none or one, got {self.lesions!r}"
            )
        if not 1 <= self.jpeg_quality <= 95:
            raise ConfigError(f"jpeg_quality must be 1..95, got {self.jpeg_quality}")

    def shape_px(self) -> tuple[int, int]:
        """(width, height): as given, or of the wanted area and the kind's aspect."""
        if self.size_px is not None:
            return self.size_px
        key = keys_of(self.seed, 4)[3]
        lot = np.random.Generator(np.random.PCG64(key)).uniform()
        aspect = 1.2 + 0.3 * lot if self.kind == "section" else 2 * 5**lot
        height = round(np.sqrt(self.megapixels * 1e6 / aspect))
        return round(height * aspect), height

    def truth_downsample(self) -> int:
        """Level-0 pixels per pixel of the truth: 1, or about 1 um above 200 MP."""
        w, h = self.shape_px()
        if w * h <= _DETAILED_TRUTH_MP * 1e6:
            return 1
        return max(1, 1 << round(float(np.log2(1.0 / self.mpp))))

    def world(self) -> tuple[World, SectionLayout]:
        """The plane that the slide shows, and its layout."""
        keys = keys_of(self.seed, 3)
        w, h = self.shape_px()
        size_um = (w * self.mpp, h * self.mpp)
        layout = lay_section(keys[2], size_um, self.kind, self.lesions)
        spots = scatter_artefacts(keys[1], size_um, 1.0) if self.artefacts else ()
        return World(self.seed, layout, self.stain_variation, spots), layout
