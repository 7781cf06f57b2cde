"""The verbs around the pipeline: evaluate, synth, demo, report, check; and train."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.annotation_verbs import annotations
from wsi_pipeline.arguments import Json, Seed
from wsi_pipeline.console import print_json, terminal_of
from wsi_pipeline.evaluate_verbs import evaluate
from wsi_pipeline.inert import shown
from wsi_pipeline.train_verbs import train
from wsi_pipeline.verify_verbs import verify

tools = typer.Typer()
tools.add_typer(train, name="train")
tools.add_typer(evaluate, name="evaluate")
tools.add_typer(annotations, name="annotations")
tools.command()(verify)


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
    from wsi_pipeline.run_files import rewrite_report

    print(rewrite_report(out))


@tools.command()
def doctor(
    folder: Annotated[
        Path, typer.Argument(help="Where results are to go; else this folder.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Look at this machine: versions known to be safe, memory, disk, GPU, compiler.

    Asks nothing of the network. Exit codes: 0 slides can be run; 1 something is wrong.
    """
    from wsi_pipeline.doctor import examine, exit_code

    findings = examine(folder)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for one in findings:
            cure = f"  -> {one.cure}" if one.cure else ""
            print(shown(f"{one.level:>7}  {one.name}: {one.found}{cure}"))
    raise typer.Exit(exit_code(findings))


@tools.command("check-geojson")
def check_geojson_verb(
    files: Annotated[
        list[Path],
        typer.Argument(help="GeoJSON of any program: .geojson, .json, .gz, .zip."),
    ],
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Write a copy without the flaws beside each file that has some: "
            "a.geojson -> a.mended.geojson. No file is changed.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what QuPath 0.5 to 0.8 would refuse, leave out or alter in GeoJSON files.

    Exit codes: 0 nothing; 1 QuPath imports nothing of a file; 3 it alters something.
    With --fix: 0 all is mended; 1 a file cannot be mended; 3 a feature had to be left
    out.
    """
    from wsi_pipeline.annotations.verdict import check_file, fix_file, worst

    verdicts = [(fix_file if fix else check_file)(file) for file in files]
    if as_json:
        print_json([verdict.to_json() for verdict in verdicts])
    else:
        for verdict in verdicts:
            print("\n".join(map(shown, verdict.lines())))
    raise typer.Exit(worst(verdicts))
