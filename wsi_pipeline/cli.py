"""The command `wsi`: parse, call, print, exit code; no logic of its own."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_pipeline.arguments import (
    AnyOut,
    Audit,
    Chunk,
    Codec,
    Compile,
    ConfigFile,
    Coverage,
    Detections,
    Device,
    Features,
    Folder,
    Frame,
    GpuMemory,
    Group,
    Gzip,
    JpegQuality,
    Json,
    KeepPredictions,
    Memory,
    Mode,
    ModelName,
    Mpp,
    ObjectKind,
    OmeZarr,
    OneSlide,
    Out,
    Precision,
    Queue,
    Scheduler,
    Screen,
    ShuffleSeed,
    Simplify,
    Slides,
    Strategy,
    TargetMpp,
    TissueMask,
    TopM,
    Workers,
    Zip,
)
from wsi_pipeline.config import RunConfig
from wsi_pipeline.console import print_json, terminal_of
from wsi_pipeline.errors import ConfigError, UnknownNameError, WsiError
from wsi_pipeline.workbench import tools

# the root of typer's usage errors, which it gives no public name
_UsageProblem: type[typer.BadParameter] = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130

app = typer.Typer(
    name="wsi",
    help="Gigapixel histology slides in; slide-level masks and QuPath GeoJSON out. "
    "Research use only, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.")
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"wsi {installed('wsi-pipeline')}: research use only, not for diagnosis")
        raise typer.Exit


@app.command()
def info(slides: Slides, mpp: Mpp = None, as_json: Json = False) -> None:
    """Say what slides are: size, levels, scale and where it came from."""
    from wsi_pipeline.publishing import printable
    from wsi_pipeline.samplesheet import list_entries
    from wsi_pipeline.stages import SlideJob
    from wsi_pipeline.terminal import slide_facts

    config = RunConfig().updated(None, mpp=mpp)
    rows: list[dict[str, Any]] = []
    failed = 0
    for entry in list_entries(slides):
        name = printable(str(entry.path))
        if entry.skip:
            rows.append({"slide": name, "skipped": entry.skip})
            continue
        try:
            with SlideJob(entry.slide_id, entry.path, entry.mpp).open(config) as slide:
                rows.append(slide_facts(slide.info))
        except WsiError as error:
            failed += 1
            rows.append({"slide": name, "error": printable(str(error))})
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print("\n".join(f"{key:>12}  {value}" for key, value in row.items()), "\n")
    good = sum("mpp" in row for row in rows)
    if failed or not good:
        raise typer.Exit(3 if good else 1)


@app.command()
def run(
    slides: Slides,
    out: Out,
    model: ModelName = None,
    config: ConfigFile = None,
    mpp: Mpp = None,
    tissue_mask: TissueMask = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try failed slides again.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this sample of the sheet (may be repeated); `wsi report` gathers."
        ),
    ] = None,
    coverage: Coverage = None,
    strategy: Strategy = None,
    top_m: TopM = None,
    mode: Mode = None,
    chunk: Chunk = None,
    seed: ShuffleSeed = None,
    screen: Screen = None,
    audit: Audit = None,
    precision: Precision = None,
    compile_: Compile = None,
    queue: Queue = None,
    gpu_memory: GpuMemory = None,
    memory: Memory = None,
    device: Device = None,
    keep_predictions: KeepPredictions = None,
    target_mpp: TargetMpp = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    codec: Codec = None,
    jpeg_quality: JpegQuality = None,
    ome_zarr: OmeZarr = None,
    simplify_um: Simplify = None,
    frame: Frame = None,
    gzip: Gzip = None,
    zip_: Zip = None,
    group: Group = None,
    objects: ObjectKind = None,
    detections: Detections = None,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on slides, folders or a samplesheet.

    Each slide is on its own: one that fails is listed with its cause and the others
    go on. Finished slides are skipped on a rerun. Exit code 0: all done; 1: nothing
    done; 2: wrong usage; 3: some slides failed or degraded; 130: interrupted.
    """
    settings = (
        _config(config, model=model, mpp=mpp)
        .updated("tissue", mask=tissue_mask)
        .updated("select", top_m=top_m, gpu_memory=gpu_memory, memory=memory)
        .updated("select", device=device, precision=precision, compile=compile_)
        .updated("select", queue=queue)
        .updated(
            "select", mode=mode, chunk=chunk, seed=seed, screen=screen, audit=audit
        )
        .updated("segment", coverage=coverage, strategy=strategy, device=device)
        .updated("segment", gpu_memory=gpu_memory, memory=memory)
        .updated("stitch", keep_predictions=keep_predictions)
        .updated("tile", target_mpp=target_mpp, workers=workers, scheduler=scheduler)
        .updated("tile", codec=codec, ome_zarr=ome_zarr, jpeg_quality=jpeg_quality)
        .updated("export", simplify_um=simplify_um, frame=frame, gzip=gzip)
        .updated("export", detections=detections, zip=zip_)
        .updated("export", group=group, objects=objects)
    )
    from wsi_pipeline.models.cards import find_model

    folder = find_model(settings.model)
    from wsi_pipeline.batch import BatchHooks, run_batch

    with terminal_of(quiet=as_json) as terminal:
        hooks = BatchHooks(terminal.started, terminal.stage, terminal.ended)
        result = run_batch(
            slides, out, folder, settings, retry=retry, only=only or (), hooks=hooks
        )
    if as_json:
        print_json(result.to_json())
    else:
        terminal.summary(result, out)
    raise typer.Exit(result.exit_code)


@app.command()
def tile(
    slide: OneSlide,
    out: AnyOut,
    model: ModelName = None,
    config: ConfigFile = None,
    mpp: Mpp = None,
    target_mpp: TargetMpp = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    codec: Codec = None,
    jpeg_quality: JpegQuality = None,
    ome_zarr: OmeZarr = None,
) -> None:
    """Stream a slide into an OME-Zarr pyramid: OUT/<slide id>/slide.ome.zarr."""
    settings = (
        _config(config, model=model, mpp=mpp)
        .updated("tile", target_mpp=target_mpp, workers=workers, scheduler=scheduler)
        .updated("tile", codec=codec, ome_zarr=ome_zarr, jpeg_quality=jpeg_quality)
    )
    from wsi_pipeline.cluster import Workers
    from wsi_pipeline.models.cards import find_model
    from wsi_pipeline.readers.discovery import find_slides, slide_id
    from wsi_pipeline.results import SlideFolder
    from wsi_pipeline.stages import SlideJob, SlideRun

    found = find_slides([slide])
    if len(found) != 1 or found[0].kind == "skip":
        reason = found[0].reason if len(found) == 1 else f"{len(found)} files"
        name = found[0].path if found else "no file"  # a URL without its secrets
        raise ConfigError(f"{name}: one slide expected, got {reason}")
    job = SlideJob(slide_id(found[0]), found[0].path)
    folder = SlideFolder(out / job.slide_id)
    found_model = find_model(settings.model) if settings.model else None
    with Workers.of(settings.tile) as tilers:
        _stage("tile", SlideRun(folder, settings, found_model, job, workers=tilers))


@app.command()
def tissue(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    tissue_mask: TissueMask = None,
    features: Features = None,
) -> None:
    """Find the tissue and lay the grid of patches."""
    settings = _config(config, model=model).updated("tissue", mask=tissue_mask)
    _stage("tissue", _slide_run(folder, settings), features=features)


@app.command()
def select(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    features: Features = None,
    top_m: TopM = None,
    mode: Mode = None,
    chunk: Chunk = None,
    seed: ShuffleSeed = None,
    screen: Screen = None,
    audit: Audit = None,
    precision: Precision = None,
    compile_: Compile = None,
    queue: Queue = None,
    gpu_memory: GpuMemory = None,
    memory: Memory = None,
    device: Device = None,
    frame: Frame = None,
    gzip: Gzip = None,
    zip_: Zip = None,
    detections: Detections = None,
) -> None:
    """Score all patches with the IPS transformer and choose the top M."""
    settings = (
        _config(config, model=model)
        .updated("select", top_m=top_m, gpu_memory=gpu_memory, memory=memory)
        .updated("select", device=device, precision=precision, compile=compile_)
        .updated("select", queue=queue)
        .updated(
            "select", mode=mode, chunk=chunk, seed=seed, screen=screen, audit=audit
        )
        .updated("export", frame=frame, gzip=gzip, zip=zip_, detections=detections)
    )
    slide_run = _slide_run(folder, settings)
    _stage("select", slide_run, features=features)
    from wsi_pipeline.stages.detections import publish_detections

    for path in publish_detections(slide_run):
        print(path)


@app.command()
def segment(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    coverage: Coverage = None,
    strategy: Strategy = None,
    gpu_memory: GpuMemory = None,
    memory: Memory = None,
    device: Device = None,
) -> None:
    """Segment the regions around chosen patches through the deformed downsampler."""
    settings = (
        _config(config, model=model)
        .updated("segment", coverage=coverage, strategy=strategy, device=device)
        .updated("segment", gpu_memory=gpu_memory, memory=memory)
    )
    _stage("segment", _slide_run(folder, settings))


@app.command()
def stitch(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    keep_predictions: KeepPredictions = None,
) -> None:
    """Stitch the regions into a slide-level mask and its coverage label."""
    settings = _config(config, model=model).updated(
        "stitch", keep_predictions=keep_predictions
    )
    _stage("stitch", _slide_run(folder, settings))


@app.command()
def export(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    simplify_um: Simplify = None,
    frame: Frame = None,
    gzip: Gzip = None,
    zip_: Zip = None,
    group: Group = None,
    objects: ObjectKind = None,
    detections: Detections = None,
) -> None:
    """Write the mask as GeoJSON that QuPath opens, and the manifest."""
    settings = (
        _config(config, model=model)
        .updated("export", simplify_um=simplify_um, frame=frame, gzip=gzip)
        .updated("export", detections=detections, zip=zip_)
        .updated("export", group=group, objects=objects)
    )
    slide_run = _slide_run(folder, settings)
    _stage("export", slide_run)
    from wsi_pipeline.pipeline import publish_manifest

    publish_manifest(slide_run)


app.add_typer(tools)


def main() -> None:
    """Entry point: errors become one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    # before torch is loaded: threads that wait then sleep instead of spinning, which
    # halves the time of a run on cores that others use too
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except _UsageProblem as error:
        _fail(f"{error.format_message()} (`wsi --help` or `wsi VERB --help`)", 2)
    except (ConfigError, UnknownNameError) as error:
        _fail(str(error), 2)
    except WsiError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; what is finished is kept, run again to go on", _INTERRUPTED)


def _fail(message: str, code: int) -> None:
    print(f"wsi: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _terminate(*_: object) -> None:
    print("wsi: terminated; what is finished is kept", file=sys.stderr)
    sys.exit(143)


def _config(
    path: Path | None, model: str | None = None, mpp: float | None = None
) -> RunConfig:
    config = RunConfig.from_toml(path) if path else RunConfig()
    return config.updated(None, model=model, mpp=mpp)


def _slide_run(folder: Path, config: RunConfig) -> Any:  # Any: loads nothing heavy here
    from wsi_pipeline.models.cards import find_model
    from wsi_pipeline.results import SlideFolder
    from wsi_pipeline.stages import SlideRun

    return SlideRun(SlideFolder(folder), config, find_model(config.model))


def _stage(verb: str, slide_run: Any, features: Path | None = None) -> None:
    # Any: see _slide_run
    from wsi_pipeline.pipeline import run_stage

    with terminal_of() as terminal:
        given = replace(slide_run, progress=terminal.stage, features=features)
        record = run_stage(verb, given)
    for name in record.outputs:
        print(slide_run.folder.place / name)
