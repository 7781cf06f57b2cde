"""The verbs around the pipeline: evaluate, synth, demo, report, check; and train."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.arguments import Data, Json, Seed
from wsi_pipeline.console import print_json, terminal_of
from wsi_pipeline.train_verbs import ClassSet, SegmentDataset, TrainDevice, train

tools = typer.Typer()
evaluate = typer.Typer(no_args_is_help=True, help="Compare results with the truth.")
tools.add_typer(train, name="train")
tools.add_typer(evaluate, name="evaluate")


@evaluate.command("masks")
def evaluate_masks_verb(
    predicted: Annotated[Path, typer.Argument(help="OME-Zarr label: the prediction.")],
    truth: Annotated[Path, typer.Argument(help="OME-Zarr label: the truth.")],
) -> None:
    """Compare a predicted mask with the true one: IoU and Dice per class."""
    from wsi_pipeline.evaluation import evaluate_masks
    from wsi_pipeline.pyramid import MaskPyramid

    print_json(evaluate_masks(MaskPyramid(predicted), MaskPyramid(truth)).to_json())


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


@tools.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Slide to write, .tif or .tiff.")],
    megapixels: Annotated[
        float, typer.Option(min=0.1, max=30_000, help="Size of level 0.")
    ] = 8.0,
    mpp: Annotated[float, typer.Option(help="um/px of level 0.")] = 0.5,
    kind: Annotated[str, typer.Option(help="'strip' or 'section'.")] = "strip",
    lesions: Annotated[
        str, typer.Option(help="'random', 'none', or 'one' small lesion.")
    ] = "random",
    artefacts: Annotated[bool, typer.Option(help="Pen marks, folds, dust.")] = True,
    geojson: Annotated[
        bool, typer.Option(help="Write the truth as GeoJSON too (held in memory).")
    ] = True,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(help="0 = one per CPU.")] = 0,
) -> None:
    """Write a synthetic prostate slide whose truth is known to the pixel."""
    from wsi_pipeline.demo import write_truthful_slide

    with terminal_of() as terminal:
        paths = write_truthful_slide(
            out,
            seed=seed,
            megapixels=megapixels,
            mpp=mpp,
            kind=kind,
            lesions=lesions,
            artefacts=artefacts,
            geojson=geojson,
            workers=workers,
            progress=terminal.ticker("synth"),
        )
    for path in paths:
        print(path)


@tools.command("synth-strips")
def synth_strips(
    out: Annotated[Path, typer.Argument(help="Folder for images and masks.")],
    scale: Annotated[
        float,
        typer.Option(
            min=0.02, max=1, help="1: 2000 px of 0.5 um high; 0.25: 500 of 2."
        ),
    ] = 0.25,
    seed: Seed = 0,
) -> None:
    """Paint 266 labelled prostate strips to train on: `wsi train segment folder`."""
    from wsi_pipeline.training.datasets import DatasetOptions
    from wsi_pipeline.training.datasets.strip_files import paint_strips

    with terminal_of() as terminal:
        options = DatasetOptions(scale=scale, seed=seed)
        paint_strips(out, options, progress=terminal.ticker("synth-strips"))
    print(out)


@tools.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for slide and results.")] = Path(
        "demo"
    ),
    seed: Seed = 8,
) -> None:
    """Make a slide with known truth, run the pipeline on it, compare."""
    from wsi_pipeline.demo import run_demo

    with terminal_of() as terminal:
        outcome = run_demo(out, seed=seed, progress=terminal.stage)
    print(outcome.text())


@tools.command()
def report(
    out: Annotated[Path, typer.Argument(help="Results folder of `wsi run`.")],
) -> None:
    """Write slides.csv and report.html anew from the manifests."""
    from wsi_pipeline.batch import rewrite_report

    print(rewrite_report(out))


@tools.command("check-geojson")
def check_geojson_verb(
    files: Annotated[list[Path], typer.Argument(help="GeoJSON files.")],
) -> None:
    """Say what QuPath would refuse in GeoJSON files."""
    from wsi_pipeline.annotations.checking import check_geojson

    bad = 0
    for file in files:
        findings = check_geojson(file)
        bad += bool(findings)
        for finding in findings:
            print(f"{file}: {finding}")
        if not findings:
            print(f"{file}: fine")
    raise typer.Exit(1 if bad else 0)
