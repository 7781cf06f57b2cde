"""The verbs around the pipeline: train, evaluate, synth, demo, report, check."""

from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_pipeline.arguments import Data, Seed
from wsi_pipeline.console import print_json, terminal_of

Dataset = Annotated[str, typer.Argument(help="'synthetic' or 'glas'.")]
ModelOut = Annotated[Path, typer.Option("--out", "-o", help="The model's folder.")]
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
    seed: Seed = 0,
    device: TrainDevice = "cpu",
) -> None:
    """Train a selector from slide-level labels."""
    from wsi_pipeline.training.describing import check_request, publish_part
    from wsi_pipeline.training.select import train_select

    check_request(dataset, out)
    with terminal_of() as terminal:
        tick = terminal.ticker("train select")
        part = train_select(
            dataset, out, data_dir=data, steps=steps, seed=seed, device=device,
            progress=tick,
        )  # fmt: skip
    _say(publish_part(out, dataset, part), "segment", part.metrics)


@train.command("segment")
def train_segmenter(
    dataset: Dataset,
    out: ModelOut,
    data: Data = Path("../shared/data"),
    steps: Annotated[int, typer.Option(help="Training steps of each arm.")] = 1000,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
) -> None:
    """Train a segmenter with its deformed downsampler, and the uniform arm beside."""
    from wsi_pipeline.training.describing import check_request, publish_part
    from wsi_pipeline.training.segment import train_segment

    check_request(dataset, out)
    with terminal_of() as terminal:
        tick = terminal.ticker("train segment")
        part = train_segment(
            dataset, out, data_dir=data, steps=steps, seed=seed, device=device,
            progress=tick,
        )  # fmt: skip
    _say(publish_part(out, dataset, part), "select", part.metrics)


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
