"""Takes many slides through the pipeline, each on its own: statuses and run.json."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wsi_pipeline.cluster import Workers
from wsi_pipeline.config import RunConfig
from wsi_pipeline.deidentifying import pseudonymous
from wsi_pipeline.errors import (
    ExportError,
    NotASlideError,
    SlideError,
    WsiError,
)
from wsi_pipeline.keys import final_key, model_facts
from wsi_pipeline.locking import Lock
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.outcomes import BatchResult, Outcome
from wsi_pipeline.pipeline import run_locked
from wsi_pipeline.places import Place
from wsi_pipeline.preflight import check_config
from wsi_pipeline.publishing import (
    list_files,
    make_folder,
    printable,
    publish_bytes,
)
from wsi_pipeline.readers.probe import Prober
from wsi_pipeline.results import Manifest, SlideFolder
from wsi_pipeline.run_files import write_run
from wsi_pipeline.samplesheet import Entry, list_entries, pick_samples
from wsi_pipeline.stages import Progress, SlideJob, check_features


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
    deid: Path | None = None,
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
    deid : Path, optional
        Table of pseudonyms, under which the slides then run; see `pseudonymous`.
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
    apart = sum(not entry.skip for entry in entries) > 1
    hiding: AbstractContextManager[tuple[list[Entry], RunConfig]]
    hiding = nullcontext((entries, config))
    if deid:
        hiding = pseudonymous(entries, config, deid, out)
    with (
        hiding as (entries, config),
        Workers.of(config.tile, apart=apart) as workers,
        Prober(config.probe) as prober,
    ):
        make_folder(out)
        worker = _Worker(out, model, config, retry, prober, workers, hooks.stage)
        started = datetime.now(UTC)
        outcomes: dict[int, Outcome] = {}
        left = list(enumerate(entries, 1))
        # what another run is at work on comes last: it may be finished by then
        taken: list[tuple[int, Entry]] = []
        interrupted = True
        try:
            while left or taken:
                wait = not left
                number, entry = (left or taken).pop(0)
                if hooks.started:
                    hooks.started(number, len(entries), entry.path)
                outcome = worker.outcome(entry, wait=wait)
                if outcome is None:
                    taken.append((number, entry))
                    continue
                outcomes[number] = outcome
                if hooks.ended:
                    hooks.ended(outcome)
            interrupted = False
        finally:
            ordered = tuple(outcomes[number] for number in sorted(outcomes))
            result = BatchResult(ordered, interrupted)
            if not only:
                write_run(out, result, model, config, started)
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

    def outcome(self, entry: Entry, *, wait: bool) -> Outcome | None:
        """What became of it; None if another run holds it and `wait` is false."""
        name = printable(entry.path.name)
        if entry.skip:
            reason = _one_line(entry.skip)
            manifest = Manifest(entry.slide_id, name, "", "skipped", reason)
            return Outcome(entry.path, manifest)
        lock = SlideFolder(self.out / entry.slide_id).lock()
        try:
            if not wait and not lock.acquire():
                return None
            with lock:
                return self._outcome(entry, lock)
        except ExportError as error:
            return Outcome(entry.path, self._failed(entry, "", str(error)))

    def _outcome(self, entry: Entry, lock: Lock) -> Outcome:
        name = printable(entry.path.name)
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
                folder.clear(finished=kept.status != "failed")
                return Outcome(entry.path, kept, reused=True)
            mpp, source = job.given_scale(self.config)
            self.prober.probe(job.path, mpp=mpp, mpp_source=source)
            manifest = run_locked(
                job,
                self.out,
                self.model,
                self.config,
                lock,
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
        manifest = self._failed(entry, key, reason, lasting=lasting)
        try:
            lock.check()  # what another run has taken over is its to write
            folder.prepare()
            if details:
                publish_bytes(folder.path / "error.txt", details)
            manifest.publish(folder)
        except ExportError:
            pass  # run.json still tells of the failure
        return Outcome(entry.path, manifest)

    def _failed(
        self, entry: Entry, key: str, reason: str, *, lasting: bool = False
    ) -> Manifest:
        name = printable(entry.path.name)
        return Manifest(
            entry.slide_id,
            name,
            key,
            "failed",
            _one_line(reason).removeprefix(f"{name}: "),
            facts={"lasting": lasting},
            config=self.config.model_dump(mode="json"),
            model=model_facts(self.model),
        )

    def _finished(self, folder: SlideFolder, key: str) -> Manifest | None:
        """The manifest of an earlier run, where it still holds for what is asked."""
        manifest = Manifest.load(folder)
        if manifest is None or manifest.key != key:
            return None
        if manifest.status == "failed":
            # what is wrong with a slide stays wrong; memory, disks and devices do not
            lasting = manifest.facts.get("lasting", False)
            limits = self.config.probe.model_dump(mode="json")
            same = manifest.config.get("probe") == limits
            return manifest if lasting and same and not self.retry else None
        there = {
            path.relative_to(folder.path).as_posix(): path.stat().st_size
            for path in list_files(folder.path)
        }
        whole = all(
            there.get(name) == facts["size"] for name, facts in manifest.files.items()
        )
        return manifest if whole else None


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
