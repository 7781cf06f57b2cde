"""The command `wsi`: parse, call, print, exit code; no logic of its own."""

import os
import signal
import sys
from typing import Annotated, Any

import typer

from wsi_pipeline.arguments import (
    Audit,
    Chunk,
    Codec,
    Compile,
    ConfigFile,
    Coverage,
    Deid,
    Detections,
    Device,
    Formats,
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
    Unexamined,
    Workers,
    Zip,
)
from wsi_pipeline.config import RunConfig
from wsi_pipeline.console import print_json, terminal_of
from wsi_pipeline.errors import ConfigError, UnknownNameError, WsiError
from wsi_pipeline.inert import shown
from wsi_pipeline.stage_verbs import read_config, stages
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
    from wsi_pipeline.readers.probe import Prober
    from wsi_pipeline.samplesheet import list_entries
    from wsi_pipeline.stages import SlideJob
    from wsi_pipeline.terminal import slide_facts

    config = RunConfig().updated(None, mpp=mpp)
    rows: list[dict[str, Any]] = []
    failed = 0
    with Prober(config.probe) as prober:
        for entry in list_entries(slides):
            name = printable(str(entry.path))
            if entry.skip:
                rows.append({"slide": name, "skipped": printable(entry.skip)})
                continue
            job = SlideJob(entry.slide_id, entry.path, entry.mpp)
            given, source = job.given_scale(config)
            try:
                facts = prober.probe(job.path, mpp=given, mpp_source=source)
                rows.append(slide_facts(facts))
            except WsiError as error:
                failed += 1
                rows.append({"slide": name, "error": printable(str(error))})
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            lines = [f"{key:>12}  {shown(str(value))}" for key, value in row.items()]
            print("\n".join(lines), "\n")
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
    deid: Deid = None,
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
    formats: Formats = None,
    simplify_um: Simplify = None,
    frame: Frame = None,
    gzip: Gzip = None,
    zip_: Zip = None,
    group: Group = None,
    objects: ObjectKind = None,
    unexamined: Unexamined = None,
    detections: Detections = None,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on slides, folders or a samplesheet.

    Each slide is on its own: one that fails is listed with its cause and the others
    go on. Finished slides are skipped on a rerun. Exit code 0: all done; 1: nothing
    done; 2: wrong usage; 3: some slides failed or degraded; 130: interrupted.
    """
    settings = (
        read_config(config, model=model, mpp=mpp)
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
        .updated("export", group=group, objects=objects, formats=formats or None)
        .updated("export", unexamined=unexamined)
    )
    from wsi_pipeline.models.cards import find_model

    folder = find_model(settings.model)
    from wsi_pipeline.batch import BatchHooks, run_batch

    with terminal_of(quiet=as_json) as terminal:
        hooks = BatchHooks(terminal.started, terminal.stage, terminal.ended)
        result = run_batch(
            slides,
            out,
            folder,
            settings,
            retry=retry,
            only=only or (),
            deid=deid,
            hooks=hooks,
        )
    if as_json:
        print_json(result.to_json())
    else:
        terminal.summary(result, out)
    raise typer.Exit(result.exit_code)


app.add_typer(stages)
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
    print(f"wsi: {shown(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


def _terminate(*_: object) -> None:
    print("wsi: terminated; what is finished is kept", file=sys.stderr)
    sys.exit(143)
