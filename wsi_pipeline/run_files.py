"""Writes what a run says of all its slides: run.json, slides.csv, report.html."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.exporters.qupath_script import publish_script
from wsi_pipeline.keys import model_facts
from wsi_pipeline.locking import Lock, clear_dead
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.outcomes import BatchResult
from wsi_pipeline.publishing import STAGING, publish_json
from wsi_pipeline.reporting import RunFacts, row_of, write_report
from wsi_pipeline.results import NOTICE, Manifest, SlideFolder


def write_run(
    out: Path,
    result: BatchResult,
    model: ModelFolder,
    config: RunConfig,
    started: datetime,
) -> None:
    """Write run.json, slides.csv, report.html and open_in_qupath.groovy.

    Raises
    ------
    ExportError
        If they cannot be written.
    """
    with _alone(out):
        _publish_run(out, result, model, config, started)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold what runs write of all slides, and remove what killed ones left of it."""
    with Lock(out / STAGING / "report.lock"):
        clear_dead(out / STAGING)
        yield


def _publish_run(
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
    with _alone(out):
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
