"""Painted strips of prostate sections: a stand-in for PCa-Histo, which is not public.

A case is a painted section cut into landscape strips, as those of PCa-Histo were.
"""

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.synthesis.artefacts import scatter_artefacts
from wsi_pipeline.synthesis.boxes import paint_box
from wsi_pipeline.synthesis.layout import GLEASON_3
from wsi_pipeline.synthesis.noise import keys_of
from wsi_pipeline.synthesis.painting import World
from wsi_pipeline.synthesis.sections import SectionLayout, SlideKind, lay_section
from wsi_pipeline.synthetic import SYNTHETIC_CLASSES
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.ondemand import OnDemand
from wsi_pipeline.training.datasets.pca_histo import RULE_NODES
from wsi_pipeline.training.datasets.record import DatasetOptions, SegmentData

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]

HEIGHT_PX = 2000
_MPP = 0.5
_COARSEST_MPP = 8.0
"""Of painted tissue; scales below 1/16 show less of it."""
_SEED = 30_000
_CASES_PER_SEED = 100
_TRIES = 400
_MARGIN = 0.07
"""Share of the section's sides that is cut off as glass."""

# (width, strips, height of the last strip) of the 33 cases, counted in the list files
# of the paper's released code; dealt here so that the splits share no case
_TRAIN = (
    (7817, 12, 1417),
    (8284, 15, 422),
    (20440, 12, 2000),
    (15361, 9, 2000),
    (7986, 10, 368),
    (6997, 14, 2000),
    (7484, 12, 1742),
    (5543, 1, 2000),
    (8857, 4, 2000),
    (7078, 1, 2000),
    (12106, 12, 2000),
    (6230, 8, 2000),
    (5775, 10, 2000),
    (9517, 11, 1990),
    (4540, 11, 1648),
    (4240, 11, 2000),
    (11989, 2, 2000),
    (19741, 13, 2000),
    (3823, 1, 2000),
    (4758, 8, 2000),
    (4560, 1, 2000),
    (6685, 1, 2000),
    (4213, 1, 2000),
    (5392, 11, 2000),
    (8604, 9, 1065),
)
_VALIDATION = ((14970, 10, 2000), (3386, 9, 2000), (7771, 8, 229))
_TEST = (
    (7200, 13, 2000),
    (8814, 8, 2000),
    (11673, 12, 2000),
    (18873, 5, 2000),
    (11505, 1, 2000),
)
SPLITS = (("train", _TRAIN), ("validation", _VALIDATION), ("test", _TEST))


@dataclass(frozen=True)
class StripCase:
    """A painted section that is cut into strips.

    Parameters
    ----------
    number : int
        0 to 32; the name of the case.
    seed : int
        Of the painting.
    width_px : int
        Of every strip.
    heights_px : tuple of int
        Of the strips, from the top.
    mpp : float
        um/px.
    """

    number: int
    seed: int
    width_px: int
    heights_px: tuple[int, ...]
    mpp: float

    def paint(self, strip: int) -> Pair:
        """Strip as (3, h, w) uint8 RGB and (h, w) uint8 of SYNTHETIC_CLASSES.

        Notes
        -----
        Memory: 8 bytes per pixel of the strip and one block of 512 px.
        """
        top = sum(self.heights_px[:strip])
        world, origin = self.world()
        rgb, truth = paint_box(
            world,
            (origin[0], origin[1] + top),
            (self.width_px, self.heights_px[strip]),
            self.mpp,
        )
        return np.ascontiguousarray(rgb.transpose(2, 0, 1)), truth

    def world(self) -> tuple[World, tuple[int, int]]:
        """The section, and the pixel at which the topmost strip begins."""
        w_px = round(self.width_px / (1 - 2 * _MARGIN))
        h_px = round(sum(self.heights_px) / (1 - 2 * _MARGIN))
        size_um = w_px * self.mpp, h_px * self.mpp
        spots = scatter_artefacts(keys_of(self.seed, 3)[1], size_um, 1.0)
        world = World(self.seed, self._lay(size_um), 1.0, spots)
        return world, (round(w_px * _MARGIN), round(h_px * _MARGIN))

    def _lay(self, size_um: tuple[float, float]) -> SectionLayout:
        """The first layout of two lesions or more, one of a pattern dealt in turn."""
        kind: SlideKind = "strip" if size_um[0] > 2 * size_um[1] else "section"
        wanted = GLEASON_3 + self.number % 3
        for key in keys_of(self.seed, _TRIES):
            layout = lay_section(key, size_um, kind, "random")
            patterns = [lesion.pattern for lesion in layout.lesions]
            if len(patterns) > 1 and wanted in patterns:
                break
        return layout


@dataclass(frozen=True)
class _Strips:
    """Paints the n-th of some strips."""

    rows: tuple[tuple[StripCase, int], ...]

    def __call__(self, row: int) -> Pair:
        case, strip = self.rows[row]
        return case.paint(strip)


@dataclass(frozen=True)
class _Part:
    """Hands out one of each pair: 0 = image, 1 = label."""

    pairs: OnDemand[Pair]
    part: int

    def __call__(self, row: int) -> NDArray[np.uint8]:
        return self.pairs[row][self.part]


def lay_cases(split: str, options: DatasetOptions) -> tuple[StripCase, ...]:
    """Cases of a split, in order; nothing is painted.

    Parameters
    ----------
    split : str
        "train", "validation" or "test".
    options : DatasetOptions
        `scale`, `seed`, and `mpp` (0.2 to 8; left out, 0.5 / scale, at most 8: strips
        of every size show the same tissue, 1 mm high).

    Raises
    ------
    ConfigError
        If there is no such split, or mpp is out of range.
    """
    names = [name for name, _ in SPLITS]
    if split not in names:
        raise ConfigError(f"split must be one of {', '.join(names)}, got {split!r}")
    mpp = options.mpp
    if mpp is None:
        mpp = min(_MPP / options.scale, _COARSEST_MPP)
    if not 0.2 <= mpp <= _COARSEST_MPP:
        raise ConfigError(f"mpp of painted strips must be 0.2 to 8, got {mpp}")
    first = [0, *accumulate(len(rows) for _, rows in SPLITS)][names.index(split)]
    found = []
    for number, (width, strips, last) in enumerate(dict(SPLITS)[split], first):
        heights = (*(HEIGHT_PX,) * (strips - 1), last)
        found.append(
            StripCase(
                number,
                _SEED + _CASES_PER_SEED * options.seed + number,
                round(width * options.scale),
                tuple(max(1, round(h * options.scale)) for h in heights),
                mpp,
            )
        )
    return tuple(found)


def paint_split(split: str, options: DatasetOptions) -> LabelledImages:
    """Strips of a split, painted when asked for; see `lay_cases`."""
    cases = lay_cases(split, options)
    rows = tuple((case, n) for case in cases for n in range(len(case.heights_px)))
    pairs = OnDemand(len(rows), _Strips(rows), keep=2)
    return LabelledImages(
        OnDemand(len(rows), _Part(pairs, 0), keep=0),
        OnDemand(len(rows), _Part(pairs, 1), keep=0),
        tuple(f"{case.number}_{n}" for case, n in rows),
        tuple(str(case.number) for case, _ in rows),
        cases[0].mpp,
    )


def synthetic_strips(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """Painted strips as a dataset: 200 / 27 / 39 strips of 25 / 3 / 5 cases.

    Parameters
    ----------
    data_dir : Path or None
        Not used.
    options : DatasetOptions
        `scale` (1 = the paper's sizes: 2000 px high, 3386 to 20440 wide), `seed`,
        `mpp`. `images` is not used.

    Notes
    -----
    Memory: two strips. Painting takes about 0.7 s per megapixel and core each time a
    strip is asked for again: to train for long, write them with `paint_strips`.
    """
    del data_dir
    if options.classes is not None:
        raise ConfigError(
            f"dataset 'synthetic-strips' has no classes {options.classes!r}"
        )
    train, validation, test = (paint_split(name, options) for name, _ in SPLITS)
    return SegmentData(
        name="synthetic-strips",
        classes=SYNTHETIC_CLASSES,
        train=train,
        validation=validation,
        test=test,
        frame_px=None,
        budgets=(RULE_NODES,),
        cases_disjoint=True,
        licence="Apache-2.0 (painted by this package)",
        note="Painted stand-in with the sizes and counts of PCa-Histo, not its tissue "
        f"or classes; scale {options.scale}. The budget is a rule (`strip_nodes`).",
    )
