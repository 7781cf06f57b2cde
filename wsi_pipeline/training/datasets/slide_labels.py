"""Labels of a slide, drawn or painted, as classes of the pixels of any region."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize

from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, RegionError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.slide import SlideInfo
from wsi_pipeline.training.datasets.codes import IndexCodes
from wsi_pipeline.training.datasets.files import read_index
from wsi_pipeline.training.datasets.record import UNLABELLED


@dataclass(frozen=True)
class DrawnArea:
    """A drawn area: class, and geometry in level-0 pixels."""

    kind: int
    geometry: shapely.Geometry


Labels = tuple[DrawnArea, ...] | NDArray[np.uint8]


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
    """

    name: str
    path: Path
    labels: Path
    info: SlideInfo

    def load_labels(self, classes: tuple[MaskClass, ...], codes: IndexCodes) -> Labels:
        """Drawn areas, or the label image as (h, w) uint8.

        Raises
        ------
        ConfigError
            If the file cannot be read, an area has an unknown class, or a label image
            has other proportions than the slide.
        """
        if self.labels.suffix.lower() == ".png":
            return self._label_image(codes)
        bounds = self.info.bounds
        with naming(self.labels):
            drawn = read_annotations(self.labels, offset_px=(bounds.x, bounds.y))
        values = {kind.name: kind.value for kind in classes}
        found = []
        for item in drawn:
            if item.class_name is None or shapely.area(item.geometry) == 0:
                continue
            if item.class_name not in values:
                raise ConfigError(
                    f"{self.labels}: class {item.class_name!r} is not in classes.csv; "
                    f"there are {', '.join(values)}"
                )
            found.append(DrawnArea(values[item.class_name], item.geometry))
        if not found:
            raise ConfigError(f"{self.labels}: no area with a class")
        return tuple(found)

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


def draw_areas(areas: Sequence[DrawnArea], box: Box, side_px: int) -> NDArray[np.uint8]:
    """Areas as (side_px, side_px) classes; a pixel counts when its centre does."""
    corner, factor = np.array([box.x, box.y]), box.w / side_px
    frame = shapely.box(box.x, box.y, box.right, box.bottom)
    shapes = [
        (shapely.transform(one.geometry, lambda p: (p - corner) / factor), one.kind)
        for one in areas
        if shapely.intersects(one.geometry, frame)
    ]
    shape = side_px, side_px
    if not shapes:
        return np.full(shape, UNLABELLED, np.uint8)
    drawn = rasterize(shapes, out_shape=shape, fill=UNLABELLED, dtype="uint8")
    return np.asarray(drawn, np.uint8)


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
    except (SlideError, RegionError) as error:
        raise ConfigError(f"{path}: {error}") from error
