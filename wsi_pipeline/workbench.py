"""The verbs around the pipeline: train, evaluate, synth, demo, report, check."""

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from wsi_pipeline.arguments import Data, Json, Seed
from wsi_pipeline.console import print_json, terminal_of

Dataset = Annotated[str, typer.Argument(help="'synthetic' or 'glas'.")]
SegmentDataset = Annotated[
    str,
    typer.Argument(
        help="'synthetic', 'glas', 'folder' (your own images and masks), ...; an "
        "unknown name lists them all."
    ),
]
ClassSet = Annotated[
    str | None, typer.Option(help="Another set of classes, such as 'binary' of glas.")
]
ModelOut = Annotated[Path, typer.Option("--out", "-o", help="The model's folder.")]
ResizerBase = Annotated[
    str,
    typer.Option(
        "--resizer",
        metavar="BASE",
        help="Train a resizer before the net, which starts as this filter "
        "('bilinear', ...); an unknown name lists them all.",
    ),
]
TrainDevice = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]

tools = typer.Typer()
train = typer.Typer(no_args_is_help=True, help="Train the nets of a model.")
evaluate = typer.Typer(no_args_is_help=True, help="Compare results with the truth.")
tools.add_typer(train, name="train")
tools.add_typer(evaluate, name="evaluate")


@train.command("select")
def train_selector(
    dataset: Dataset,
    out: ModelOut,
    data: Data = Path("../shared/data"),
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    resizer: ResizerBase = "",
    resized_px: Annotated[
        int,
        typer.Option(
            "--resized-px",
            metavar="N",
            min=0,
            help="Side in px to which --resizer brings patches; goes with it.",
        ),
    ] = 0,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
) -> None:
    """Train a selector from slide-level labels."""
    from wsi_pipeline.models.selector import SelectorShape
    from wsi_pipeline.training.describing import check_folder, describe, publish_part
    from wsi_pipeline.training.select import train_select

    describe(dataset)
    check_folder(out)
    shape = SelectorShape(resizer=resizer, resized_px=resized_px)
    with terminal_of() as terminal:
        tick = terminal.ticker("train select")
        part = train_select(
            dataset, out, data_dir=data, steps=steps, seed=seed, device=device,
            shape=shape, progress=tick,
        )  # fmt: skip
    _say(publish_part(out, dataset, part), "segment", part.metrics)


@train.command("segment")
def train_segmenter(
    dataset: SegmentDataset,
    out: ModelOut,
    data: Data = Path("../shared/data"),
    steps: Annotated[int, typer.Option(help="Training steps of each arm.")] = 1000,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="What to train (may be repeated); learned and uniform."),
    ] = None,
    body: Annotated[str, typer.Option(help="Segmentation net.")] = "unet",
    body_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An option of the net (may be repeated), such as encoder=resnet34; an "
            "unknown name lists them.",
        ),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(help="Weights the net starts from: a safetensors file."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=16, help="Samples along a side.")] = 64,
    resizer: ResizerBase = "",
    batch: Annotated[int, typer.Option(min=1, help="Regions per step.")] = 8,
    images: Annotated[int, typer.Option(min=1, help="Images to paint.")] = 96,
    classes: ClassSet = None,
    mpp: Annotated[
        float | None, typer.Option(help="um/px, where the files do not state it.")
    ] = None,
    focus: Annotated[
        float, typer.Option(min=0, help="Exponent of the focal loss; 0 = plain.")
    ] = 0.0,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Rare classes count more.")
    ] = False,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="GPUs to train on.")] = 1,
) -> None:
    """Train a segmenter: its sampler, and an evenly sampled arm beside it.

    Interrupted, it goes on where it stopped when it is called again; OUT/training
    holds losses and pictures.
    """
    from wsi_pipeline.models.resizer import check_base
    from wsi_pipeline.models.spec import SegmenterSpec
    from wsi_pipeline.training.arms import LossOptions
    from wsi_pipeline.training.datasets import DatasetOptions, load_dataset
    from wsi_pipeline.training.describing import check_folder, facts_of, publish_part
    from wsi_pipeline.training.segment import train_segment

    check_folder(out)
    options = dict(_named_value(text) for text in body_option or ())
    if resizer:
        check_base(resizer)
    wanted = DatasetOptions(images=images, classes=classes, mpp=mpp, seed=seed)
    found = load_dataset(dataset, data, options=wanted)
    spec = SegmenterSpec(
        len(found.classes), nodes=nodes, body=body, body_options=options,
        resizer=resizer, strategies=tuple(strategy or ("learned", "uniform")),
    )  # fmt: skip
    with terminal_of() as terminal:
        part = train_segment(
            found, out, spec, steps=steps, seed=seed, device=device, batch=batch,
            pretrained=pretrained, loss=LossOptions(focus, balanced), devices=devices,
            progress=terminal.ticker("train segment"),
        )  # fmt: skip
    card = publish_part(out, found.name, part, facts_of(found))
    _say(card, "select", part.metrics)


def _named_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value JSON where it is JSON and text else."""
    from wsi_pipeline.errors import ConfigError

    name, sign, value = text.partition("=")
    if not (name and sign):
        raise ConfigError(f"--body-option {text!r}: expected NAME=VALUE")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _say(card: Path | None, other: str, metrics: dict[str, Any]) -> None:
    print_json(metrics)
    print(card or f"no card yet: train the other part with `wsi train {other}`")


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
