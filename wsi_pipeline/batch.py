"""Takes many slides through the pipeline, each on its own: statuses and run.json."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from wsi_pipeline.cluster import Workers
from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import (
    ConfigError,
    ExportError,
    NotASlideError,
    SlideError,
    WsiError,
)
from wsi_pipeline.exporters.qupath_script import publish_script
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.pipeline import final_key, model_facts, run_slide
from wsi_pipeline.places import Place
from wsi_pipeline.preflight import check_config
from wsi_pipeline.publishing import (
    list_files,
    make_folder,
    printable,
    publish_bytes,
    publish_json,
)
from wsi_pipeline.readers.probe import Prober
from wsi_pipeline.reporting import RunFacts, row_of, write_report
from wsi_pipeline.results import NOTICE, Manifest, SlideFolder
from wsi_pipeline.samplesheet import Entry, list_entries, pick_samples
from wsi_pipeline.stages import Progress, SlideJob, check_features


@dataclass(frozen=True)
class Outcome:
    """What became of one file of a batch.

    Parameters
    ----------
    path : Path or UPath
        The file.
    manifest : Manifest
        Status, reason, areas, times; on disk too unless the file was skipped.
    reused : bool
        Whether an earlier run's result was kept.
    """

    path: Place
    manifest: Manifest
    reused: bool = False


@dataclass(frozen=True)
class BatchResult:
    """Outcomes of a batch, in order.

    Parameters
    ----------
    outcomes : tuple of Outcome
        One per file.
    interrupted : bool
        Whether the batch was stopped before its end.
    """

    outcomes: tuple[Outcome, ...]
    interrupted: bool = False

    def count(self, *statuses: str) -> int:
        """How many slides ended with one of these statuses."""
        return sum(o.manifest.status in statuses for o in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 all done, 1 nothing done, 3 some slides failed or degraded."""
        if self.count("done", "degraded") == 0:
            return 1
        return 3 if self.count("failed", "degraded") else 0

    def to_json(self) -> list[dict[str, Any]]:
        """One JSON object per file."""
        return [
            {
                "slide_id": o.manifest.slide_id,
                "slide": o.manifest.slide,
                "status": o.manifest.status,
                "reason": o.manifest.reason,
                "reused": o.reused,
                "seconds": o.manifest.seconds,
            }
            for o in self.outcomes
        ]


@dataclass(frozen=True)
class BatchHooks:
    """How a batch tells what it does; every hook may be left out.

    Parameters
    ----------
    started : callable
        Called with (number, files in all, file) as a slide starts.
    stage : callable
        Called with (stage, done, total) while a slide is worked on.
    ended : callable
        Called with the Outcome of each file.
    """

    started: Callable[[int, int, Place], None] | None = None
    stage: Progress | None = None
    ended: Callable[[Outcome], None] | None = None


def run_batch(
    slides: Sequence[Place | str],
    out: Path,
    model: ModelFolder,
    config: RunConfig,
    *,
    retry: bool = False,
    only: Sequence[str] = (),
    hooks: BatchHooks | None = None,
) -> BatchResult:
    """Run the pipeline on slides, folders, globs or one samplesheet.

    Parameters
    ----------
    slides : sequence of Path, UPath or str
        Slides, folders (searched below), glob patterns, URLs, or one ``.csv``
        samplesheet with the columns ``sample,slide[,mpp,tissue,features,label]``.
    out : Path
        Results folder.
    model : ModelFolder
        The model.
    config : RunConfig
        Options of all acts.
    retry : bool
        Try failed slides again although nothing changed.
    only : sequence of str
        Samples of the samplesheet to run; run.json and the report, which are about
        whole batches, are then left to `rewrite_report`.
    hooks : BatchHooks, optional
        Progress.

    Returns
    -------
    BatchResult
        One outcome per file; ``run.json``, ``slides.csv``, ``report.html`` and
        ``open_in_qupath.groovy`` are written, also when the batch is interrupted.

    Raises
    ------
    ConfigError
        If the samplesheet is wrong, two slides share an id, an option asks for
        what is not there (a device, a mask), or a slide has no features for a model
        that reads them, or has some for one that does not.
    UnknownNameError
        If an option names a format or strategy that is not there.
    SlideError
        If a path does not exist.
    ExportError
        If `out` cannot be written.
    KeyboardInterrupt
        After the finished outcomes were written down.
    """
    hooks = hooks or BatchHooks()
    entries = pick_samples(list(list_entries(slides)), only)
    check_config(config, model.card)
    for entry in entries:
        if not entry.skip:
            check_features(model.card, entry.features, entry.slide_id)
    with Workers.of(config.tile) as workers, Prober() as prober:
        make_folder(out)
        worker = _Worker(out, model, config, retry, prober, workers, hooks.stage)
        started = datetime.now(UTC)
        outcomes: list[Outcome] = []
        interrupted = True
        try:
            for number, entry in enumerate(entries, 1):
                if hooks.started:
                    hooks.started(number, len(entries), entry.path)
                outcomes.append(worker.outcome(entry))
                if hooks.ended:
                    hooks.ended(outcomes[-1])
            interrupted = False
        finally:
            result = BatchResult(tuple(outcomes), interrupted)
            if not only:
                _write_run(out, result, model, config, started)
    return result


@dataclass(frozen=True)
class _Worker:
    """Works on one entry at a time and never lets a slide's error out."""

    out: Path
    model: ModelFolder
    config: RunConfig
    retry: bool
    prober: Prober
    workers: Workers
    progress: Progress | None

    def outcome(self, entry: Entry) -> Outcome:
        name = printable(entry.path.name)
        if entry.skip:
            manifest = Manifest(entry.slide_id, name, "", "skipped", entry.skip)
            return Outcome(entry.path, manifest)
        folder = SlideFolder(self.out / entry.slide_id)
        job = SlideJob(
            entry.slide_id, entry.path, entry.mpp, entry.tissue, entry.features
        )
        key = ""
        lasting, details = False, b""
        try:
            key = final_key(job, self.model, self.config)
            kept = self._finished(folder, key)
            if kept:
                return Outcome(entry.path, kept, reused=True)
            mpp = self.config.mpp if job.mpp is None else job.mpp
            source = "--mpp" if job.mpp is None else "samplesheet"
            self.prober.probe(job.path, mpp=mpp, mpp_source=source)
            manifest = run_slide(
                job,
                self.out,
                self.model,
                self.config,
                progress=self.progress,
                workers=self.workers,
            )
            return Outcome(entry.path, manifest)
        except NotASlideError as error:
            reason = _one_line(str(error)).removeprefix(f"{name}: ")
            manifest = Manifest(entry.slide_id, name, "", "skipped", reason)
            return Outcome(entry.path, manifest)
        except WsiError as error:
            reason = str(error)
            # connections fail for a moment, files for good
            lasting = isinstance(error, SlideError) and isinstance(job.path, Path)
        except Exception as error:  # one slide never takes the batch with it
            reason = f"unexpected {type(error).__name__}: {error} (see error.txt)"
            details = printable(traceback.format_exc()).encode()
        manifest = Manifest(
            entry.slide_id,
            name,
            key,
            "failed",
            _one_line(reason).removeprefix(f"{name}: "),
            facts={"lasting": lasting},
            config=self.config.model_dump(mode="json"),
            model=model_facts(self.model),
        )
        try:
            folder.prepare()
            if details:
                publish_bytes(folder.path / "error.txt", details)
            manifest.publish(folder)
        except ExportError:
            pass  # run.json still tells of the failure
        return Outcome(entry.path, manifest)

    def _finished(self, folder: SlideFolder, key: str) -> Manifest | None:
        """The manifest of an earlier run, where it still holds for what is asked."""
        manifest = Manifest.load(folder)
        if manifest is None or manifest.key != key:
            return None
        if manifest.status == "failed":
            # what is wrong with a slide stays wrong; memory, disks and devices do not
            kept = manifest.facts.get("lasting", False) and not self.retry
            return manifest if kept else None
        there = {
            path.relative_to(folder.path).as_posix(): path.stat().st_size
            for path in list_files(folder.path)
        }
        whole = all(
            there.get(name) == facts["size"] for name, facts in manifest.files.items()
        )
        return manifest if whole else None


def _write_run(
    out: Path,
    result: BatchResult,
    model: ModelFolder,
    config: RunConfig,
    started: datetime,
) -> None:
    rows = [row_of(out, o.manifest, reused=o.reused) for o in result.outcomes]
    ended = datetime.now(UTC)
    publish_json(
        out / "run.json",
        {
            "version": version("wsi-pipeline"),
            "notice": NOTICE,
            "model": model_facts(model),
            "config": config.model_dump(mode="json"),
            "interrupted": result.interrupted,
            "times": {
                "started": started.isoformat(),
                "ended": ended.isoformat(),
            },
            "slides": result.to_json(),
        },
    )
    seconds = (ended - started).total_seconds()
    shown = started.strftime("%Y-%m-%d %H:%M UTC")
    write_report(out, rows, _run_facts(model_facts(model), shown, seconds))
    publish_script(out)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def rewrite_report(out: Path) -> Path:
    """Write slides.csv and report.html anew from the manifests below a folder.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ConfigError
        If `out` holds no results of a run.
    """
    manifests = [
        manifest
        for path in sorted(out.glob("*/manifest.json"))
        if (manifest := Manifest.load(SlideFolder(path.parent)))
    ]
    manifests += _skipped(out)
    if not manifests:
        raise ConfigError(f"{out}: no results of `wsi run` (no */manifest.json)")
    rows = [row_of(out, m, reused=False) for m in manifests]
    seconds = sum(sum(m.seconds.values()) for m in manifests)
    model = next(m.model for m in manifests if m.model)
    write_report(out, rows, _run_facts(model, "", seconds))
    publish_script(out)
    return out / "report.html"


def _skipped(out: Path) -> list[Manifest]:
    """What the last run listed as no slide: such files have no folder."""
    try:
        rows = orjson.loads((out / "run.json").read_bytes())["slides"]
    except (OSError, KeyError, orjson.JSONDecodeError):
        return []
    return [
        Manifest(row["slide_id"], row["slide"], "", "skipped", row["reason"])
        for row in rows
        if row["status"] == "skipped"
    ]


def _run_facts(model: Mapping[str, Any], started: str, seconds: float) -> RunFacts:
    limits = f"{model['licence']}. {model['limits']}"
    return RunFacts(
        f"{model['name']} {model['version']}",
        model["summary"],
        limits,
        version("wsi-pipeline"),
        started,
        seconds,
    )
