"""Opens what a person names as a prediction or as the truth: results, labels, files."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely

from wsi_pipeline.annotations import (
    Annotation,
    Drawing,
    read_annotations,
    read_drawing,
)
from wsi_pipeline.annotations.classing import (
    IGNORE,
    LEFT_OUT,
    REGION,
    ClassMap,
    Overlap,
    class_areas,
)
from wsi_pipeline.annotations.frames import Frame, find_offset, move
from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.classes import (
    ACCOUNTED_FOR,
    COVERAGE_CLASSES,
    NOT_COMPUTED,
    MaskClass,
)
from wsi_pipeline.errors import ConfigError, PyramidError, RegionError
from wsi_pipeline.evaluation.views import DrawnView, MaskView, PyramidView
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.models.cards import OWN_LABELS
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid, Multiscale, Pyramid
from wsi_pipeline.readers import open_slide
from wsi_pipeline.results import SlideFolder

_GROUND = MaskClass(0, "Background", (255, 255, 255))
_GREY = (128, 128, 128)
_UNSEEN = tuple(
    kind.name for kind in COVERAGE_CLASSES if kind.value not in ACCOUNTED_FOR
)


@dataclass(frozen=True)
class DrawnOptions:
    """How files of annotations are read.

    Parameters
    ----------
    class_map : ClassMap
        What the names in them mean.
    overlap : "last", "smallest" or "listed"
        Which of two areas wins.
    frame : "auto", "qupath", "level0" or "halo"
        Where the truth's coordinates start.
    within : str, optional
        Class of the truth's areas outside of which it says nothing.
    """

    class_map: ClassMap = field(default_factory=ClassMap)
    overlap: Overlap = "last"
    frame: Frame = "auto"
    within: str | None = None


def is_pyramid(path: Path) -> bool:
    """Whether a folder is an OME-Zarr group."""
    return (path / "zarr.json").is_file() or (path / ".zattrs").is_file()


def is_slide_folder(path: Path) -> bool:
    """Whether a folder holds one slide's results."""
    return is_pyramid(SlideFolder(path).path / "slide.ome.zarr")


def open_prediction(
    path: Path, options: DrawnOptions, slide: Source | None = None
) -> MaskView:
    """Open a slide's results, a label, or annotations.

    Parameters
    ----------
    path : Path
        Folder of one slide's results, an OME-Zarr label, or a file of annotations.
    options : DrawnOptions
        For annotations.
    slide : Source, optional
        Of annotations that do not state their own slide's size and scale.

    Raises
    ------
    PyramidError, RegionError
        If it cannot be read.
    ConfigError
        If annotations need the slide, or results have several labels of models.
    """
    if is_slide_folder(path):
        return PyramidView(Pyramid(SlideFolder(path).pyramid).masks(find_label(path)))
    if path.is_dir():
        return PyramidView(MaskPyramid(path))
    drawing = read_drawing(path)
    source = slide or _stated_source(path, drawing)
    drawn = move(drawing, find_offset(drawing, source))
    unseen = [one for one in drawn if _is_unseen(one)]
    found = [one for one in drawn if not _is_unseen(one)]
    classes = _classes_of(found, (_GROUND,), options.class_map, named=True)
    areas = _areas(path, found, classes, options)
    # the last ones win: what was not looked at lies over everything
    ignored = ClassMap(tuple((name, IGNORE) for name in (*_UNSEEN, REGION)))
    blind = class_areas(unseen, (), ignored)
    both = Areas(
        np.concatenate([areas.geometries, blind.geometries]),
        np.concatenate([areas.values, blind.values]),
    )
    return DrawnView(path, source, classes, both)


def _is_unseen(one: Annotation) -> bool:
    """Whether an area is what the prediction says it did not look at."""
    return (one.name if one.class_name == REGION else one.class_name) in _UNSEEN


def open_truth(path: Path, predicted: MaskView, options: DrawnOptions) -> MaskView:
    """Open what a prediction is compared with: a label, or annotations of its slide.

    Parameters
    ----------
    path : Path
        An OME-Zarr label or a file of annotations.
    predicted : MaskView
        Whose slide and classes it has.
    options : DrawnOptions
        For annotations.

    Raises
    ------
    PyramidError, RegionError
        If it cannot be read, or has areas of classes that neither the prediction nor
        the class map has.
    ConfigError
        If `within` names a class that no area has.
    """
    if path.is_dir():
        return PyramidView(MaskPyramid(path))
    return open_drawn(path, predicted, options)


def open_drawn(path: Path, predicted: MaskView, options: DrawnOptions) -> DrawnView:
    """Annotations of a prediction's slide; see `open_truth`."""
    source = predicted.source
    drawn = read_annotations(path, slide=source, frame=options.frame)
    limits = [one for one in drawn if one.class_name == options.within]
    if options.within:
        drawn = [one for one in drawn if one.class_name != options.within]
        if not limits:
            raise ConfigError(f"{path}: no area of class {options.within!r} (--within)")
    classes = _classes_of(drawn, predicted.classes, options.class_map)
    view = DrawnView(path, source, classes, _areas(path, drawn, classes, options))
    if not options.within:
        return view
    shapes = np.array([one.geometry for one in limits], dtype=object)
    return view.limited(Areas(shapes, np.ones(len(limits), np.uint8)))


def find_source(path: Path, mpp: float | None = None) -> Source:
    """The slide that a slide file, a pyramid or a slide's results are of.

    Raises
    ------
    SlideError
        If it is neither a pyramid nor a slide with a scale.
    """
    for folder in (path / "slide.ome.zarr", path):
        if is_pyramid(folder):
            return Multiscale(folder).source
    with open_slide(path, mpp=mpp, mpp_source="--slide-mpp") as slide:
        info = slide.info
    return Source(path.name, info.size_px, info.scale, info.scale_source, info.bounds)


def find_picture(path: Path) -> Pyramid | None:
    """The image that a prediction lies on, where there is one."""
    folder = path / "slide.ome.zarr" if is_slide_folder(path) else path.parent.parent
    try:
        return Pyramid(folder)
    except PyramidError:
        return None


def find_label(path: Path) -> str:
    """Name of the label that the model wrote in a slide's results.

    Raises
    ------
    ConfigError
        If there is none, or more than one.
    """
    labels = SlideFolder(path).path / "slide.ome.zarr" / "labels"
    names = [
        one.name
        for one in (sorted(labels.iterdir()) if labels.is_dir() else [])
        if is_pyramid(one) and one.name not in OWN_LABELS
    ]
    if len(names) != 1:
        raise ConfigError(
            f"{path}: expected the label of one model, got {names or 'none'}; name the "
            "label's own folder"
        )
    return names[0]


def _stated_source(path: Path, drawing: Drawing) -> Source:
    """The slide as a file of this package states it, as far as its frame reaches."""
    if not (drawing.offset_px and drawing.size_px and drawing.mpp):
        raise ConfigError(
            f"{path}: does not state its slide's size and scale, as files of this "
            "package do; --slide names the slide, or its pyramid"
        )
    (x, y), (w, h) = drawing.offset_px, drawing.size_px
    return Source(
        path.name, (x + w, y + h), Scale(*drawing.mpp), "the file", Box(x, y, w, h)
    )


def _areas(
    path: Path,
    drawn: list[Annotation],
    classes: tuple[MaskClass, ...],
    options: DrawnOptions,
) -> Areas:
    try:
        return class_areas(drawn, classes, options.class_map, overlap=options.overlap)
    except RegionError as error:
        raise RegionError(f"{path}: {error}") from error


def _classes_of(
    drawn: list[Annotation],
    known: tuple[MaskClass, ...],
    class_map: ClassMap,
    *,
    named: bool = False,
) -> tuple[MaskClass, ...]:
    """Known classes, and those that the map makes; all that are `named` if wanted."""
    classes = list(known)
    names = {kind.name for kind in known} | {IGNORE, ""}
    for one in drawn:
        row = class_map.find(one)
        own = one.class_name if named and one.class_name not in LEFT_OUT else ""
        name = row[1] if row else own or ""
        if name not in names and shapely.area(one.geometry) > 0:
            names.add(name)
            value = max((kind.value for kind in classes), default=-1) + 1
            if value == NOT_COMPUTED:
                raise RegionError("more than 254 classes")
            classes.append(MaskClass(value, name, one.rgb or _GREY))
    return tuple(classes)
