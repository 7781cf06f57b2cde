"""The verbs of single stages, each on one slide's folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

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
    Formats,
    Frame,
    GpuMemory,
    Group,
    Gzip,
    JpegQuality,
    KeepPredictions,
    Memory,
    Mode,
    ModelName,
    Mpp,
    ObjectKind,
    OmeZarr,
    OneSlide,
    Precision,
    Queue,
    Scheduler,
    Screen,
    ShuffleSeed,
    Simplify,
    Strategy,
    TargetMpp,
    TissueMask,
    TopM,
    Unexamined,
    Workers,
    Zip,
)
from wsi_pipeline.config import RunConfig
from wsi_pipeline.console import terminal_of
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.inert import shown

stages = typer.Typer()


def read_config(
    path: Path | None, model: str | None = None, mpp: float | None = None
) -> RunConfig:
    """The file of settings, if one is given, with what the command line says."""
    config = RunConfig.from_toml(path) if path else RunConfig()
    return config.updated(None, model=model, mpp=mpp)


@stages.command()
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
        read_config(config, model=model, mpp=mpp)
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


@stages.command()
def tissue(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    tissue_mask: TissueMask = None,
    features: Features = None,
) -> None:
    """Find the tissue and lay the grid of patches."""
    settings = read_config(config, model=model).updated("tissue", mask=tissue_mask)
    _stage("tissue", _slide_run(folder, settings), features=features)


@stages.command()
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
        read_config(config, model=model)
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


@stages.command()
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
        read_config(config, model=model)
        .updated("segment", coverage=coverage, strategy=strategy, device=device)
        .updated("segment", gpu_memory=gpu_memory, memory=memory)
    )
    _stage("segment", _slide_run(folder, settings))


@stages.command()
def stitch(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    keep_predictions: KeepPredictions = None,
) -> None:
    """Stitch the regions into a slide-level mask and its coverage label."""
    settings = read_config(config, model=model).updated(
        "stitch", keep_predictions=keep_predictions
    )
    _stage("stitch", _slide_run(folder, settings))


@stages.command()
def export(
    folder: Folder,
    model: ModelName = None,
    config: ConfigFile = None,
    formats: Formats = None,
    simplify_um: Simplify = None,
    frame: Frame = None,
    gzip: Gzip = None,
    zip_: Zip = None,
    group: Group = None,
    objects: ObjectKind = None,
    unexamined: Unexamined = None,
    detections: Detections = None,
) -> None:
    """Write the mask as GeoJSON that QuPath opens, or as asked, and the manifest.

    Each object of the GeoJSON has its area, perimeter, mean and highest probability,
    and a selection score: the highest attention score of a patch that was examined and
    overlaps it; none where no such patch does.
    """
    settings = (
        read_config(config, model=model)
        .updated("export", simplify_um=simplify_um, frame=frame, gzip=gzip)
        .updated("export", detections=detections, zip=zip_)
        .updated("export", group=group, objects=objects, formats=formats or None)
        .updated("export", unexamined=unexamined)
    )
    slide_run = _slide_run(folder, settings)
    _stage("export", slide_run)
    from wsi_pipeline.pipeline import publish_manifest

    publish_manifest(slide_run)


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
        print(shown(str(slide_run.folder.place / name)))
