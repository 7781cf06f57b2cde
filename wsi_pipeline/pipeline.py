"""Takes one slide through the six acts; the only room that knows their order."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from wsi_pipeline.cluster import Workers
from wsi_pipeline.config import RunConfig
from wsi_pipeline.crates import publish_crate
from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.features import digest_features
from wsi_pipeline.inputs import list_inputs
from wsi_pipeline.keys import (
    VERBS,
    config_of,
    fingerprint,
    model_facts,
    options_of,
    stage_key,
)
from wsi_pipeline.locking import Lock
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.process import peak_resident_bytes, reset_peaks
from wsi_pipeline.publishing import publish_bytes, remove
from wsi_pipeline.readability import percent
from wsi_pipeline.repeating import split_config, to_toml
from wsi_pipeline.results import (
    Manifest,
    SlideFolder,
    StageRecord,
    Status,
    checksums,
    size_of,
)
from wsi_pipeline.software import installed_software
from wsi_pipeline.stages import (
    STAGES,
    Progress,
    SlideJob,
    SlideRun,
    check_features,
)

_COARSE_FACTOR = 1.25  # a slide this much coarser than its model is judged "degraded"


def run_slide(
    job: SlideJob,
    out: Path,
    model: ModelFolder,
    config: RunConfig,
    *,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> Manifest:
    """Run all stages on one slide; stages already published for this input are reused.

    Parameters
    ----------
    job : SlideJob
        The slide.
    out : Path
        Results folder; the slide's own is ``out / job.slide_id``.
    model : ModelFolder
        The model.
    config : RunConfig
        Options of all acts.
    progress : callable, optional
        Called with (stage, done, total).
    workers : Workers, optional
        Who tiles; left out, those that the config asks for.

    Returns
    -------
    Manifest
        As published in ``manifest.json``.

    Raises
    ------
    WsiError
        Whatever an act raises; no manifest is written then.
    """
    with SlideFolder(out / job.slide_id).lock() as lock:
        return run_locked(
            job, out, model, config, lock, progress=progress, workers=workers
        )


def run_locked(
    job: SlideJob,
    out: Path,
    model: ModelFolder,
    config: RunConfig,
    lock: Lock,
    *,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> Manifest:
    """`run_slide` for those who hold the lock of the slide's folder."""
    folder = SlideFolder(out / job.slide_id)
    folder.clear()
    with nullcontext(workers) if workers else Workers.of(config.tile) as tilers:
        run = SlideRun(
            folder,
            config_of(job, config),
            model,
            job,
            progress,
            tilers,
            job.features,
        )
        run.open_features()  # what is wrong with them shows before hours of tiling
        for verb in VERBS:
            _run_stage(verb, run)
            lock.check()
    remove(folder.path / "error.txt")
    folder.clear(finished=True)
    return _publish_manifest(run)


def publish_manifest(run: SlideRun) -> Manifest:
    """Gather the records of all stages into manifest.json: the slide is finished.

    Raises
    ------
    RegionError
        If a stage has not been published.
    """
    with run.folder.lock():
        return _publish_manifest(run)


def _publish_manifest(run: SlideRun) -> Manifest:
    model = run.need_model()
    records = _chain(run, VERBS)
    status, reason = _judge(records, model)
    config = _config_of(run, records).model_dump(mode="json")
    publish_bytes(run.folder.config, to_toml(split_config(config)[0]).encode())
    manifest = Manifest(
        run.folder.slide_id,
        records["tile"].facts["name"],
        records["export"].key,
        status,
        reason,
        facts={verb: r.facts for verb, r in records.items()},
        config=config,
        model=model_facts(model),
        seconds={verb: r.seconds for verb, r in records.items()},
        peak_bytes={verb: r.peak_bytes for verb, r in records.items()},
        files=checksums(run.folder),
        software=installed_software(),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    publish_crate(run.folder, manifest)
    manifest.publish(run.folder)
    return manifest


def run_stage(verb: str, run: SlideRun) -> StageRecord:
    """Run one stage, or return its record where it is already published.

    Another run that is at work in the slide's folder is waited for.

    Raises
    ------
    RegionError
        If the stage before it has not been published, or patches were laid for other
        features.
    """
    with run.folder.lock() if isinstance(run.folder.place, Path) else nullcontext():
        return _run_stage(verb, run)


def _run_stage(verb: str, run: SlideRun) -> StageRecord:
    features, inputs = None, None
    if verb != VERBS[0]:
        before = VERBS[: VERBS.index(verb)]
        records = _chain(run, before)
        upstream = records[before[-1]].key
        features = _features_sha256(verb, run, records)
    elif run.job is None:
        raise ConfigError("tiling needs a slide")
    else:
        inputs = list_inputs(run.job.path)
        upstream = fingerprint(run.job, run.config, inputs)
    key = stage_key(verb, upstream, run.config, run.model, features_sha256=features)
    record = run.folder.record(verb)
    if record and record.key == key and _is_published(run, record):
        return record
    run.folder.prepare()
    run.folder.withdraw(VERBS[VERBS.index(verb) :])
    reset_peaks()
    start = time.perf_counter()
    outputs, facts = STAGES.load(verb)(replace(run, key=key))
    if inputs:
        facts["inputs"] = inputs
    record = StageRecord(
        verb,
        key,
        options_of(verb, run.config).model_dump(mode="json"),
        {run.folder.name_of(path): size_of(path) for path in outputs},
        facts,
        round(time.perf_counter() - start, 3),
        peak_resident_bytes(of_all=True),
    )
    run.folder.publish_record(record)
    return record


def _features_sha256(
    verb: str, run: SlideRun, records: Mapping[str, StageRecord]
) -> str | None:
    """Of the features that a stage reads; refuses others than those of the patches."""
    if verb not in ("tissue", "select"):
        return None
    check_features(run.need_model().card, run.features, run.folder.slide_id)
    found = digest_features(run.features) if run.features else None
    if verb == "select" and found != records["tissue"].facts.get("features_sha256"):
        given = f"--features {run.features}" if run.features else "no --features"
        raise RegionError(
            f"{run.folder.place}: its patches were laid with other features than are "
            f"given now ({given}), or the file has changed; run `wsi tissue` again"
        )
    return found


def _require(run: SlideRun, verb: str) -> StageRecord:
    record = run.folder.record(verb)
    if record is None or not _is_published(run, record):
        raise RegionError(
            f"{run.folder.place}: no results of {verb!r}; run `wsi {verb}` on it"
        )
    return record


def _chain(run: SlideRun, verbs: Sequence[str]) -> dict[str, StageRecord]:
    """Records of consecutive stages, each made from the one before it.

    Raises
    ------
    RegionError
        If a stage is missing, or was made from something else.
    """
    records: dict[str, StageRecord] = {}
    for verb in verbs:
        record = _require(run, verb)
        if records:  # tiling has no stage before it
            config = _config_of(run, {verb: record})
            last = records[verbs[len(records) - 1]]
            mask, features = map(record.facts.get, ("mask_sha256", "features_sha256"))
            key = stage_key(verb, last.key, config, run.model, mask, features)
            if record.key != key:
                raise RegionError(
                    f"{run.folder.path}: the results of {verb!r} were not made from "
                    f"those of {last.verb!r} with this model; run `wsi {verb}` again"
                )
        records[verb] = record
    return records


def _config_of(run: SlideRun, records: Mapping[str, StageRecord]) -> RunConfig:
    """The config that the published stages were run with."""
    made = {verb: dict(record.options) for verb, record in records.items()}
    return RunConfig(**(run.config.model_dump() | made))


def _is_published(run: SlideRun, record: StageRecord) -> bool:
    """Whether a stage's outputs are there, or were dropped once they had served."""
    if run.folder.holds(record):
        return True
    if record.verb != "segment":
        return False
    stitched = run.folder.record("stitch")
    key = stage_key("stitch", record.key, run.config, run.model)
    return stitched is not None and stitched.key == key and run.folder.holds(stitched)


def _judge(records: dict[str, StageRecord], model: ModelFolder) -> tuple[Status, str]:
    """Status of a slide whose stages all ended, and why in a sentence."""
    tiled, found = records["tile"].facts, records["tissue"].facts
    if tiled.get("unreadable_tiles"):
        return "degraded", (
            f"{tiled['unreadable_tiles']} of {tiled['tiles']} tiles cannot be decoded, "
            f"{percent(found['unreadable_share'])} of the tissue: they are unreadable "
            "in the coverage label; copy the slide again from the scanner"
        )
    if found["tissue_mm2"] == 0:
        return "done", "no tissue found on the slide"
    finest = min(tiled["mpp"]) * tiled["base_downsample"]
    if finest > model.card.finest_mpp * _COARSE_FACTOR:
        return "degraded", (
            f"the pyramid has {finest:.3g} um/px, coarser than the "
            f"{model.card.finest_mpp:.3g} um/px that {model.card.name} was trained at"
        )
    return "done", ""
