"""Labels of a slide, drawn or painted, as classes of the pixels of any region."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.classing import ClassMap, class_areas
from wsi_pipeline.annotations.frames import Frame
from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, RegionError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.slide import SlideInfo
from wsi_pipeline.training.datasets.codes import IndexCodes
from wsi_pipeline.training.datasets.files import read_index
from wsi_pipeline.training.datasets.record import UNLABELLED

Labels = Areas | NDArray[np.uint8]
"""Drawn areas in level-0 pixels, or a label image of the whole slide."""


@dataclass(frozen=True)
class LabelledSlide:
    """A slide with its annotations.

    Parameters
    ----------
    name : str
        Stem of the annotations.
    path, labels : Path
        Of the slide and the annotations.
    info : SlideInfo
    frame : "auto", "qupath", "level0" or "halo"
        Where coordinates of annotations start.
    """

    name: str
    path: Path
    labels: Path
    info: SlideInfo
    frame: Frame = "auto"

    def load_labels(
        self,
        classes: tuple[MaskClass, ...],
        codes: IndexCodes,
        class_map: ClassMap = ClassMap(),  # noqa: B008  # frozen
    ) -> Labels:
        """Drawn areas, or the label image as (h, w) uint8.

        Raises
        ------
        ConfigError
            If the file cannot be read, an area has an unknown class, or a label image
            has other proportions than the slide.
        """
        if self.labels.suffix.lower() == ".png":
            return self._label_image(codes)
        with naming(self.labels):
            drawn = read_annotations(self.labels, slide=self.info, frame=self.frame)
            areas = class_areas(drawn, classes, class_map, unnamed="leave out")
        if not areas:
            raise ConfigError(f"{self.labels}: no area with a class")
        return areas

    def _label_image(self, codes: IndexCodes) -> NDArray[np.uint8]:
        labels = codes.decode(read_index(self.labels), self.labels)
        (h, w), (slide_w, slide_h) = labels.shape, self.info.size_px
        # one pixel either way is rounding, which is much in a small image
        if abs(w * slide_h / (h * slide_w) - 1) > 0.02 + 1 / min(w, h):
            raise ConfigError(
                f"{self.labels}: is {w} x {h} px and the slide {slide_w} x {slide_h}: "
                "expected a label image of the whole slide"
            )
        return labels


def label_region(
    labels: Labels, slide_px: tuple[int, int], box: Box, side_px: int
) -> NDArray[np.uint8]:
    """Classes under a square box of a slide, (side_px, side_px); 255 = no label."""
    if isinstance(labels, Areas):
        return labels.paint(box, (side_px, side_px), UNLABELLED)
    return sample_labels(labels, slide_px, box, side_px)


def sample_labels(
    labels: NDArray[np.uint8], slide_px: tuple[int, int], box: Box, side_px: int
) -> NDArray[np.uint8]:
    """A label image under a box by nearest pixel; 255 outside the slide."""
    out = np.full((side_px, side_px), UNLABELLED, np.uint8)
    places = []
    for first, whole, count in (
        (box.y, slide_px[1], labels.shape[0]),
        (box.x, slide_px[0], labels.shape[1]),
    ):
        at = first + (np.arange(side_px) + 0.5) * box.w / side_px
        inside = np.flatnonzero((at >= 0) & (at < whole))
        near = np.minimum(at[inside] / whole * count, count - 1).astype(np.int64)
        places.append((inside, near))
    (rows, i), (columns, j) = places
    out[np.ix_(rows, columns)] = labels[np.ix_(i, j)]
    return out


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Turn refusals of slides and annotations into one that names the file."""
    try:
        yield
    except (SlideError, RegionError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error
