"""The verbs for files of annotations: `wsi annotations show`, `convert`, `label`."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_pipeline.arguments import ClassMapFile, DrawnFrame, Folder, OverlapRule
from wsi_pipeline.inert import shown

annotations = typer.Typer(
    no_args_is_help=True,
    help="Read what people drew: QuPath, ImageScope, ASAP, HALO, Darwin, CAMELYON.",
)
Drawn = Annotated[Path, typer.Argument(metavar="FILE", help="File of annotations.")]


@annotations.command()
def show(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Files of annotations.")
    ],
) -> None:
    """List the classes in files of annotations, as a class map would name them."""
    from shapely import area

    from wsi_pipeline.annotations import read_drawing
    from wsi_pipeline.annotations.classing import drawn_name
    from wsi_pipeline.console import print_json
    from wsi_pipeline.errors import WsiError

    failed = 0
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            drawing = read_drawing(path)
        except WsiError as error:
            failed += 1
            rows.append({"file": str(path), "refused": str(error)})
            continue
        counts: Counter[str] = Counter()
        areas: dict[str, float] = defaultdict(float)
        for one in drawing.annotations:
            counts[drawn_name(one)] += 1
            areas[drawn_name(one)] += float(area(one.geometry))
        classes = {
            name: {"objects": count, "area_px": round(areas[name])}
            for name, count in counts.items()
        }
        rows.append({"file": str(path), "frame": drawing.frame, "classes": classes})
    print_json(rows)
    if failed:
        raise typer.Exit(3 if failed < len(files) else 1)


@annotations.command()
def convert(
    file: Drawn,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="GeoJSON to write, .geojson[.gz].")
    ],
    slide: Annotated[
        Path | None,
        typer.Option(
            help="The slide (or its results), where its scan has bounds: QuPath counts "
            "from them."
        ),
    ] = None,
    frame: DrawnFrame = "auto",
) -> None:
    """Write annotations of any program as GeoJSON that QuPath imports."""
    from wsi_pipeline.annotations import read_annotations
    from wsi_pipeline.annotations.frames import check_frame
    from wsi_pipeline.annotations.writing import write_annotations
    from wsi_pipeline.evaluation.opening import find_source

    source = find_source(slide) if slide else None
    drawn = read_annotations(file, slide=source, frame=check_frame(frame))
    corner = (source.bounds.x, source.bounds.y) if source else (0, 0)
    count = write_annotations(out, drawn, corner)
    print(f"{shown(str(out))}: {count} of {len(drawn)} annotations")


@annotations.command()
def label(
    folder: Folder,
    file: Drawn,
    like: Annotated[
        str | None,
        typer.Option(help="Label whose classes it gets; else the model's."),
    ] = None,
    class_map: ClassMapFile = None,
    overlap: OverlapRule = "last",
    frame: DrawnFrame = "auto",
) -> None:
    """Write annotations as a label of the slide, beside the model's."""
    from wsi_pipeline.annotations.classing import ClassMap, check_overlap
    from wsi_pipeline.annotations.frames import check_frame
    from wsi_pipeline.evaluation import DrawnOptions, PyramidView, open_drawn
    from wsi_pipeline.evaluation.opening import find_label
    from wsi_pipeline.labelling import label_areas
    from wsi_pipeline.pyramid import Pyramid
    from wsi_pipeline.results import SlideFolder

    place = SlideFolder(folder)
    pyramid = Pyramid(place.pyramid)
    masks = pyramid.masks(like or find_label(folder))
    options = DrawnOptions(
        ClassMap.load(class_map) if class_map else ClassMap(),
        check_overlap(overlap),
        check_frame(frame),
    )
    view = open_drawn(file, PyramidView(masks), options)
    label_areas(pyramid, view.areas, view.classes, place.label("annotations"))
    pyramid.publish_labels_list()
    print(place.label("annotations"))
