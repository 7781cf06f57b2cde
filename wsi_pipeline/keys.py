"""Digests of all that decides results: slide, options, model, version."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.features import digest_features
from wsi_pipeline.inputs import list_inputs, versions_of
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.options import Options
from wsi_pipeline.publishing import sha256_file
from wsi_pipeline.repeating import FREE
from wsi_pipeline.stages import STAGES, SlideJob

VERBS = STAGES.names()


def config_of(job: SlideJob, config: RunConfig) -> RunConfig:
    """The config with what the samplesheet says about this slide."""
    if job.tissue is not None:
        config = config.updated("tissue", mask=job.tissue)
    return config


def final_key(job: SlideJob, model: ModelFolder, config: RunConfig) -> str:
    """Key that the manifest of a finished slide must hold to be used again."""
    config = config_of(job, config)
    features = digest_features(job.features) if job.features else None
    key = fingerprint(job, config, list_inputs(job.path))
    for verb in VERBS:
        key = stage_key(verb, key, config, model, features_sha256=features)
    return key


def fingerprint(
    job: SlideJob, config: RunConfig, inputs: Sequence[Mapping[str, Any]]
) -> str:
    """sha256 over a slide's files, see `list_inputs`, and the scale given."""
    mpp = job.mpp if job.mpp is not None else config.mpp
    return _digest([*versions_of(inputs), mpp])


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
    options = options_of(verb, config).model_dump(mode="json")
    mask = options.pop("mask", None)
    parts: list[Any] = [verb, version("wsi-pipeline"), upstream]
    parts.append({k: v for k, v in options.items() if k not in FREE})
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
        "intended_use": card.intended_use,
        "limits": card.limits,
        "licence": card.licence,
        "classes": [[c.name, list(c.rgb)] for c in card.classes],
        "selector_sha256": card.selector.sha256,
        "segmenter_sha256": card.segmenter.sha256 if card.segmenter else None,
        "screen_sha256": card.screen.sha256 if card.screen else None,
    }


def options_of(verb: str, config: RunConfig) -> Options:
    """One act's options."""
    options: Options = getattr(config, verb)
    return options


def _digest(parts: Any) -> str:  # Any: whatever orjson can write
    data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()
