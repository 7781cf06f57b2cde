"""A user's slides with annotations, read region by region at the wanted um/px.

::

    slides/a.svs            any slide that `open_slide` takes
    annotations/a.geojson   drawn areas with classes: QuPath (also .json, .gz), Darwin;
                            a.xml of ImageScope or ASAP; a.annotations of HALO
    annotations/a.png       or: a label image of the whole slide, one value per pixel
    classes.csv             value,name,r,g,b; drawn areas go by the name
    class_map.csv           optional: drawn,class for names that are not the classes'
    frame.txt               optional: where drawn coordinates start, if not as usual for
                            their program: qupath (the scan's bounds), level0 or halo
    mpp.txt                 wanted um/px, one number (or the option mpp)
    split.csv               optional: name,group and, optional, split, a row per slide

What nobody drew is no label, nor are areas without a class. Of areas that overlap the
later one in the file counts, so children win over their parents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.annotations import ending_of, endings
from wsi_pipeline.annotations.classing import ClassMap
from wsi_pipeline.annotations.frames import Frame, check_frame
from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import open_slide
from wsi_pipeline.slide import Slide
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets.codes import IndexCodes
from wsi_pipeline.training.datasets.folder import deal_rows, read_classes, read_mpp
from wsi_pipeline.training.datasets.ondemand import OnDemand
from wsi_pipeline.training.datasets.record import (
    UNLABELLED,
    DatasetOptions,
    SegmentData,
)
from wsi_pipeline.training.datasets.slide_labels import (
    LabelledSlide,
    Labels,
    label_region,
    naming,
)

_KEEP_SLIDES = 4


@dataclass(frozen=True)
class SlideRegion:
    """A square of a slide.

    Parameters
    ----------
    slide : int
        Which slide.
    box : Box
        Level-0 pixels.
    """

    slide: int
    box: Box


@dataclass(frozen=True)
class _Slides:
    """Opens the n-th slide."""

    rows: tuple[LabelledSlide, ...]

    def __call__(self, row: int) -> Slide:
        path = self.rows[row].path
        with naming(path):
            return open_slide(path)


@dataclass(frozen=True)
class _SlideLabels:
    """Loads the labels of the n-th slide."""

    rows: tuple[LabelledSlide, ...]
    classes: tuple[MaskClass, ...]
    codes: IndexCodes
    class_map: ClassMap

    def __call__(self, row: int) -> Labels:
        return self.rows[row].load_labels(self.classes, self.codes, self.class_map)


@dataclass(frozen=True)
class _RegionImages:
    """Reads the n-th region."""

    regions: tuple[SlideRegion, ...]
    slides: OnDemand[Slide]
    side_px: int

    def __call__(self, row: int) -> NDArray[np.uint8]:
        region = self.regions[row]
        slide = self.slides[region.slide]
        wanted = region.box.w / self.side_px
        fits = [
            n
            for n, level in enumerate(slide.info.levels)
            if n == 0 or level.downsample <= wanted * 1.001
        ]
        with naming(slide.info.path):
            pixels = slide.read(region.box, fits[-1])
        size = self.side_px, self.side_px
        if pixels.shape[:2] != size:
            image = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
            pixels = np.asarray(image)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True)
class _RegionLabels:
    """Labels of the n-th region."""

    regions: tuple[SlideRegion, ...]
    rows: tuple[LabelledSlide, ...]
    labels: OnDemand[Labels]
    side_px: int

    def __call__(self, row: int) -> NDArray[np.uint8]:
        region = self.regions[row]
        size_px = self.rows[region.slide].info.size_px
        return label_region(
            self.labels[region.slide], size_px, region.box, self.side_px
        )


def slides(data_dir: Path | None, options: DatasetOptions) -> SegmentData:
    """A user's slides as a dataset; the module's text shows the files.

    Parameters
    ----------
    data_dir : Path
        The folder.
    options : DatasetOptions
        `mpp` wanted, if there is no mpp.txt; `region_px`, the side of a region at that
        scale; `seed` of the split if there is none.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit; it is named.

    Notes
    -----
    Memory: two regions, four open slides and the annotations of four slides.
    """
    if data_dir is None:
        raise ConfigError("dataset 'slides' needs a folder; --data gives it")
    if options.classes is not None or options.split is not None:
        raise ConfigError("dataset 'slides' takes classes and split from its tables")
    classes, codes = read_classes(data_dir / "classes.csv")
    own = data_dir / "class_map.csv"
    class_map = ClassMap.load(own) if own.exists() else ClassMap()
    mpp = read_mpp(data_dir, options)
    rows = tuple(_find_slides(data_dir, _read_frame(data_dir)))
    groups, dealt, note = deal_rows(data_dir, [one.name for one in rows], options.seed)
    labels: OnDemand[Labels] = OnDemand(
        len(rows), _SlideLabels(rows, classes, codes, class_map), _KEEP_SLIDES
    )
    opened: OnDemand[Slide] = OnDemand(len(rows), _Slides(rows), _KEEP_SLIDES)
    side = options.region_px

    def part(which: Sequence[int]) -> LabelledImages:
        regions = tuple(
            SlideRegion(n, box)
            for n in which
            for box in _labelled_boxes(rows[n], labels[n], mpp, side)
        )
        names = [f"{rows[r.slide].name}-{r.box.x}-{r.box.y}" for r in regions]
        return LabelledImages(
            OnDemand(len(regions), _RegionImages(regions, opened, side)),
            OnDemand(len(regions), _RegionLabels(regions, rows, labels, side)),
            tuple(names),
            tuple(groups[r.slide] for r in regions),
            mpp,
        )

    return SegmentData(
        name="slides",
        classes=classes,
        train=part(dealt[0]),
        validation=part(dealt[1]),
        test=part(dealt[2]) if dealt[2] else None,
        frame_px=(side, side),
        budgets=(),
        cases_disjoint=not note,
        licence="as the slides' owner states",
        note=f"{note}{len(rows)} slides; regions without labels are left out.",
    )


def _read_frame(folder: Path) -> Frame:
    path = folder / "frame.txt"
    if not path.exists():
        return "auto"
    with naming(path):
        return check_frame(path.read_text(encoding="utf-8").strip())


def _find_slides(folder: Path, frame: Frame) -> Iterator[LabelledSlide]:
    """The slide of every file of annotations."""
    drawn = folder / "annotations"
    if not drawn.is_dir():
        raise ConfigError(f"{drawn}: no such folder")
    seen: set[str] = set()
    for labels in sorted(drawn.iterdir()):
        painted = labels.suffix.lower() == ".png"
        ending = labels.suffix if painted else ending_of(labels.name)
        if ending is None or labels.name.startswith("."):
            continue
        name = labels.name[: -len(ending)]
        if name in seen:
            raise ConfigError(f"{labels}: slide {name!r} has two files of annotations")
        seen.add(name)
        files = [path for path in folder.glob(f"slides/{name}.*") if path.is_file()]
        if len(files) != 1:
            raise ConfigError(
                f"{folder}/slides/{name}.*: expected one slide for {labels.name}, got "
                f"{len(files)}"
            )
        with naming(files[0]), open_slide(files[0]) as slide:
            yield LabelledSlide(name, files[0], labels, slide.info, frame)
    if not seen:
        known = ", ".join((*endings(), ".png"))
        raise ConfigError(f"{drawn}: no annotations; expected {known}")


def _labelled_boxes(
    slide: LabelledSlide, labels: Labels, mpp: float, side_px: int
) -> list[Box]:
    """Cells of a lattice over the scan that hold a labelled pixel."""
    factor = mpp / slide.info.scale.mean
    if factor < 0.999:
        raise ConfigError(
            f"{slide.path}: has {slide.info.scale.mean:.4g} um/px; {mpp:.4g} cannot be "
            "read from it, choose a larger mpp"
        )
    side, bounds = max(1, round(side_px * factor)), slide.info.bounds
    boxes = [
        Box(x, y, side, side)
        for y in range(bounds.y, bounds.bottom, side)
        for x in range(bounds.x, bounds.right, side)
    ]
    if isinstance(labels, Areas):
        # the tree first: few of a slide's cells hold anything
        frames = [shapely.box(b.x, b.y, b.right, b.bottom) for b in boxes]
        tree = shapely.STRtree(labels.geometries)
        hit = set(tree.query(frames, predicate="intersects")[0].tolist())
        boxes = [box for n, box in enumerate(boxes) if n in hit]
    size_px = slide.info.size_px
    return [
        b for b in boxes if (label_region(labels, size_px, b, 64) != UNLABELLED).any()
    ]
