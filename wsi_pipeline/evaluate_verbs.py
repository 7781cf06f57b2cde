"""The verbs that compare with the truth: `wsi evaluate masks` and `... segment`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_pipeline.arguments import (
    DRAWN,
    ClassMapFile,
    Data,
    DrawnFrame,
    Json,
    OverlapRule,
)
from wsi_pipeline.console import print_json, terminal_of
from wsi_pipeline.train_verbs import ClassSet, SegmentDataset, TrainDevice

if TYPE_CHECKING:
    from wsi_pipeline.evaluation import Comparison, Pair

evaluate = typer.Typer(no_args_is_help=True, help="Compare results with the truth.")


@evaluate.command("masks")
def evaluate_masks_verb(
    predicted: Annotated[
        Path,
        typer.Argument(
            help="A slide's results, or a folder of such; an OME-Zarr label; or "
            "annotations (QuPath, ImageScope, ASAP, HALO, Darwin), or a folder of such."
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            help="A label or annotations; a folder of them, named as the slides; or a "
            "table with the columns sample,truth[,patient]."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for tables and pictures, as files."),
    ] = None,
    class_map: ClassMapFile = None,
    overlap: OverlapRule = "last",
    frame: DrawnFrame = "auto",
    within: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="Only what lies in the truth's areas of this class counts.",
            rich_help_panel=DRAWN,
        ),
    ] = None,
    slide: Annotated[
        Path | None,
        typer.Option(
            help="The slide, where a prediction that was drawn does not state it.",
            rich_help_panel=DRAWN,
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="um/px to compare at; else the finest that both have, or 0.5."
        ),
    ] = None,
    min_region_um2: Annotated[
        float, typer.Option(min=0, help="Smaller changed regions are not listed.")
    ] = 200.0,
    as_json: Json = False,
) -> None:
    """Compare masks with the truth or with a pathologist's corrections.

    Dice, IoU, areas, and regions added and removed, per class; with 95 % intervals
    when patients are drawn anew, from two on. What the prediction did not compute
    counts apart.

    OUT gets report.json, report.md, classes.csv, slides.csv, regions.csv, and a
    picture per slide in changes/.
    """
    from wsi_pipeline.annotations.classing import ClassMap, check_overlap
    from wsi_pipeline.annotations.frames import check_frame
    from wsi_pipeline.evaluation import DrawnOptions, evaluate_pairs, find_pairs
    from wsi_pipeline.evaluation.opening import find_source
    from wsi_pipeline.evaluation.report import markdown, publish_scores
    from wsi_pipeline.publishing import make_folder

    options = DrawnOptions(
        ClassMap.load(class_map) if class_map else ClassMap(),
        check_overlap(overlap),
        check_frame(frame),
        within,
    )
    pairs, left_out = find_pairs(predicted, truth)
    source = find_source(slide) if slide else None
    if out is not None:
        make_folder(out)
    with terminal_of() as terminal:
        scores = evaluate_pairs(
            pairs,
            left_out,
            options,
            slide=source,
            mpp=mpp,
            min_region_um2=min_region_um2,
            show=None if out is None else _drawing(out / "changes"),
            progress=terminal.ticker("evaluate"),
        )
    if out is not None:
        publish_scores(out, scores)
    if as_json:
        print_json(scores.to_json())
    else:
        print("\n".join(markdown(scores)))
    if scores.left_out:
        raise typer.Exit(3 if scores.slides else 1)


def _drawing(folder: Path) -> Callable[["Pair", "Comparison"], None]:
    """Writes the picture of each comparison."""
    from wsi_pipeline.evaluation.opening import find_picture
    from wsi_pipeline.pictures import publish_picture
    from wsi_pipeline.pictures.changes import changes
    from wsi_pipeline.publishing import make_folder

    make_folder(folder)

    def draw(pair: "Pair", found: "Comparison") -> None:
        regions = sorted((*found.added, *found.removed), key=lambda one: -one.pixels)
        image = changes(
            find_picture(pair.predicted),
            found.shares,
            found.picture_downsample,
            found.source.scale.mean,
            [region.box.scaled_up(found.downsample) for region in regions],
        )
        publish_picture(folder / f"{pair.name}.png", image)

    return draw


@evaluate.command("segment")
def evaluate_segmenter_verb(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Names or folders; those that differ in their seed share a row.",
        ),
    ],
    dataset: SegmentDataset,
    data: Data = Path("../shared/data"),
    split: Annotated[str, typer.Option(help="train, validation or test.")] = (
        "validation"
    ),
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="What to evaluate (may be repeated); all there are."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to paint.")] = 96,
    classes: ClassSet = None,
    device: TrainDevice = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for report and plot, as files."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure segmenters on labelled images, at full resolution and at their nodes.

    Regions lie side by side and each counts alone; cards count whole images, stitched
    from overlapping regions as slides are, which gives a little more.

    OUT gets report.json, report.md, and budget.svg and .png: mIoU against pixels.
    """
    from wsi_pipeline.models.cards import find_model
    from wsi_pipeline.publishing import make_folder
    from wsi_pipeline.training.datasets import load_dataset
    from wsi_pipeline.training.evaluating import (
        evaluate_segmenter,
        markdown,
        publish_reports,
    )

    folders = [find_model(model) for model in models]
    found = load_dataset(dataset, data, images=images, classes=classes)
    if out is not None:
        make_folder(out)
    reports = evaluate_segmenter(
        folders, found.split(split), found.classes, strategy or (), device=device
    )
    if out is not None:
        publish_reports(out, reports)
    if as_json:
        print_json([report.to_json() for report in reports])
    else:
        print("\n".join(markdown(reports)))
