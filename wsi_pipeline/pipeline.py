"""Takes one slide through the six acts; the only room that knows their order."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from wsi_pipeline.cluster import Workers
from wsi_pipeline.config import Options, RunConfig
from wsi_pipeline.errors import ConfigError, RegionError, SlideError
from wsi_pipeline.features import digest_features
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.places import Place, reaching, version_of
from wsi_pipeline.process import peak_resident_bytes, reset_peaks
from wsi_pipeline.publishing import STAGING, remove, sha256_file
from wsi_pipeline.results import (
    Manifest,
    SlideFolder,
    StageRecord,
    Status,
    checksums,
    size_of,
)
from wsi_pipeline.stages import (
    STAGES,
    Progress,
    SlideJob,
    SlideRun,
    check_features,
)

VERBS = STAGES.names()
# Options that change speed and memory, and results by rounding at most.
_FREE = {"workers", "scheduler", "gpu_memory", "memory", "device", "queue", "compile"}
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
    folder = SlideFolder(out / job.slide_id)
    for leftover in (folder.path, folder.pyramid / "labels"):
        remove(leftover / STAGING)  # of a run that was killed
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
            run_stage(verb, run)
    remove(folder.path / "error.txt")
    return publish_manifest(run)


def publish_manifest(run: SlideRun) -> Manifest:
    """Gather the records of all stages into manifest.json: the slide is finished.

    Raises
    ------
    RegionError
        If a stage has not been published.
    """
    model = run.need_model()
    records = _chain(run, VERBS)
    status, reason = _judge(records, model)
    manifest = Manifest(
        run.folder.slide_id,
        records["tile"].facts["name"],
        records["export"].key,
        status,
        reason,
        facts={verb: r.facts for verb, r in records.items()},
        config=_config_of(run, records).model_dump(mode="json"),
        model=model_facts(model),
        seconds={verb: r.seconds for verb, r in records.items()},
        peak_bytes={verb: r.peak_bytes for verb, r in records.items()},
        files=checksums(run.folder),
    )
    manifest.publish(run.folder)
    return manifest


def config_of(job: SlideJob, config: RunConfig) -> RunConfig:
    """The config with what the samplesheet says about this slide."""
    if job.tissue is not None:
        config = config.updated("tissue", mask=job.tissue)
    return config


def run_stage(verb: str, run: SlideRun) -> StageRecord:
    """Run one stage, or return its record where it is already published.

    Raises
    ------
    RegionError
        If the stage before it has not been published, or patches were laid for other
        features.
    """
    features = None
    if verb != VERBS[0]:
        before = VERBS[: VERBS.index(verb)]
        records = _chain(run, before)
        upstream = records[before[-1]].key
        features = _features_sha256(verb, run, records)
    elif run.job is None:
        raise ConfigError("tiling needs a slide")
    else:
        upstream = fingerprint(run.job, run.config)
    key = stage_key(verb, upstream, run.config, run.model, features_sha256=features)
    record = run.folder.record(verb)
    if record and record.key == key and _is_published(run, record):
        return record
    run.folder.prepare()
    run.folder.withdraw(VERBS[VERBS.index(verb) :])
    reset_peaks()
    start = time.perf_counter()
    outputs, facts = STAGES.load(verb)(run)
    record = StageRecord(
        verb,
        key,
        _options(verb, run.config).model_dump(mode="json"),
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


def final_key(job: SlideJob, model: ModelFolder, config: RunConfig) -> str:
    """Key that the manifest of a finished slide must hold to be used again."""
    config = config_of(job, config)
    features = digest_features(job.features) if job.features else None
    key = fingerprint(job, config)
    for verb in VERBS:
        key = stage_key(verb, key, config, model, features_sha256=features)
    return key


def fingerprint(job: SlideJob, config: RunConfig) -> str:
    """sha256 over a slide's file (for MIRAX its folder too) and the scale given.

    Raises
    ------
    SlideError
        If the slide is remote and cannot be reached.

    Notes
    -----
    Of a remote slide, size and version count, so that nothing is downloaded for it.
    """
    parts = _versions(job.path)
    return _digest([*parts, job.mpp if job.mpp is not None else config.mpp])


def _versions(slide: Place) -> list[str]:
    if not isinstance(slide, Path):
        with reaching(slide, SlideError):
            return version_of(slide)
    side = slide.with_suffix("")
    files = [slide]
    if slide.suffix.lower() == ".mrxs" and side.is_dir():
        files += sorted(side.rglob("*"))
    return [sha256_file(path) for path in files if path.is_file()]


def stage_key(
    verb: str,
    upstream: str,
    config: RunConfig,
    model: ModelFolder | None,
    mask_sha256: str | None = None,
    features_sha256: str | None = None,
) -> str:
    """sha256 over all that decides a stage's outputs.

    Parameters
    ----------
    verb : str
        The stage.
    upstream : str
        Key of the stage before it, or the slide's fingerprint.
    config : RunConfig
        Options; a tissue mask counts by its content, not its path.
    model : ModelFolder or None
        Its card counts as far as the stage uses it.
    mask_sha256 : str, optional
        Of the tissue mask that was used, where the file may be gone.
    features_sha256 : str, optional
        Of the features whose patches the stage "tissue" lays.

    Raises
    ------
    ConfigError
        If the tissue mask is not there.
    """
    options = _options(verb, config).model_dump(mode="json")
    mask = options.pop("mask", None)
    parts: list[Any] = [verb, version("wsi-pipeline"), upstream]
    parts.append({k: v for k, v in options.items() if k not in _FREE})
    if model:
        card = model.card
        parts.append(
            {
                "tile": card.finest_mpp,
                "tissue": [card.selector.mpp, card.selector.patch_px],
                "select": _selecting(config, model),
                "segment": card.segmenter and card.segmenter.model_dump(mode="json"),
            }.get(verb, [card.name, card.version, model_facts(model)["classes"]])
        )
    if mask is not None:
        parts.append(mask_sha256 or mask_digest(Path(mask)))
    if features_sha256 is not None and verb == "tissue":
        parts.append({"features": features_sha256})
    return _digest(parts)


def _selecting(config: RunConfig, model: ModelFolder) -> Any:  # Any: JSON values
    """What of a model decides which patches are chosen."""
    selector = model.card.selector.model_dump(mode="json")
    if config.select.screen == "off":
        return selector
    return [selector, model.card.need_screen().model_dump(mode="json")]


def mask_digest(mask: Path) -> str:
    """sha256 of a tissue mask.

    Raises
    ------
    ConfigError
        If it is not there.
    """
    if not mask.is_file():
        raise ConfigError(f"{mask}: no such tissue mask")
    return sha256_file(mask)


def model_facts(model: ModelFolder) -> dict[str, Any]:
    """What manifests and reports say of a model (JSON values)."""
    card = model.card
    return {
        "name": card.name,
        "version": card.version,
        "summary": card.summary,
        "limits": card.limits,
        "licence": card.licence,
        "classes": [[c.name, list(c.rgb)] for c in card.classes],
        "selector_sha256": card.selector.sha256,
        "segmenter_sha256": card.segmenter.sha256 if card.segmenter else None,
    }


def _judge(records: dict[str, StageRecord], model: ModelFolder) -> tuple[Status, str]:
    """Status of a slide whose stages all ended, and why in a sentence."""
    if records["tissue"].facts["tissue_mm2"] == 0:
        return "done", "no tissue found on the slide"
    tiled = records["tile"].facts
    finest = min(tiled["mpp"]) * tiled["base_downsample"]
    if finest > model.card.finest_mpp * _COARSE_FACTOR:
        return "degraded", (
            f"the pyramid has {finest:.3g} um/px, coarser than the "
            f"{model.card.finest_mpp:.3g} um/px that {model.card.name} was trained at"
        )
    return "done", ""


def _options(verb: str, config: RunConfig) -> Options:
    options: Options = getattr(config, verb)
    return options


def _digest(parts: Any) -> str:  # Any: whatever orjson can write
    data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()
