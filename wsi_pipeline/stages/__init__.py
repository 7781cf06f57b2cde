"""Each act applied to a slide's folder: read one artefact, publish the next."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.cluster import Workers
from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.features import FeatureFile
from wsi_pipeline.models.cards import ModelCard, ModelFolder
from wsi_pipeline.places import Place
from wsi_pipeline.readers import open_slide
from wsi_pipeline.registry import Registry
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.slide import Slide

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
Published = tuple[list[Place], dict[str, Any]]
"""What a stage wrote, and the facts for its record (JSON values)."""


STAGES = Registry(
    "stage",
    {
        name: f"wsi_pipeline.stages.{name}:publish"
        for name in ("tile", "tissue", "select", "segment", "stitch", "export")
    },
)
"""In their order; loaded one by one, since some need torch and others do not."""


@dataclass(frozen=True)
class SlideJob:
    """One slide to work on.

    Parameters
    ----------
    slide_id : str
        Name of its results folder, ``[A-Za-z0-9._-]``.
    path : Path or UPath
        The slide.
    mpp : float, optional
        um/px of level 0 from the samplesheet.
    tissue : Path, optional
        The user's tissue mask for this slide.
    features : Path, optional
        Features of its patches, for a model that reads them.
    """

    slide_id: str
    path: Place
    mpp: float | None = None
    tissue: Path | None = None
    features: Path | None = None

    def given_scale(self, config: RunConfig) -> tuple[float | None, str]:
        """um/px of level 0 as the samplesheet or else the config says, and who."""
        if self.mpp is not None:
            return self.mpp, "samplesheet"
        return config.mpp, "--mpp"

    def open(self, config: RunConfig) -> Slide:
        """Open the slide with the scale from the samplesheet or the config.

        Raises
        ------
        SlideError
            If it cannot be opened; MissingScaleError if nobody knows its scale.
        """
        mpp, source = self.given_scale(config)
        return open_slide(self.path, mpp=mpp, mpp_source=source)


def check_features(card: ModelCard, features: Path | None, slide_id: str) -> None:
    """Refuse a slide without the features that its model reads, or with unused ones.

    Raises
    ------
    ConfigError
        In both cases; names the slide and the options.
    """
    inputs = card.selector.inputs
    if inputs and features is None:
        raise ConfigError(
            f"{slide_id}: model {card.name!r} reads features of length {inputs}, not "
            "pixels; name the slide's file of them in the samplesheet's column "
            "features, or with --features (`wsi tissue`, `wsi select`)"
        )
    if features is not None and not inputs:
        raise ConfigError(
            f"{slide_id}: model {card.name!r} reads pixels and would not use "
            f"{features}; leave the samplesheet's column features, or --features, out"
        )


@dataclass(frozen=True)
class SlideRun:
    """A slide's folder with all that its stages need.

    Parameters
    ----------
    folder : SlideFolder
        Where results go.
    config : RunConfig
        Options of all acts.
    model : ModelFolder or None
        Needed from "tissue" on.
    job : SlideJob or None
        Needed by "tile" only.
    progress : callable, optional
        Called with (stage, done, total).
    workers : Workers, optional
        Who tiles; left out, threads of this process.
    features : Path, optional
        Features of the slide's patches; needed by "tissue" and "select" where the
        model reads them.
    key : str
        Of the stage that runs; what a kill leaves of it is found again by it.
    """

    folder: SlideFolder
    config: RunConfig
    model: ModelFolder | None = None
    job: SlideJob | None = None
    progress: Progress | None = None
    workers: Workers | None = None
    features: Path | None = None
    key: str = ""

    def ticker(self, stage: str) -> Callable[[int, int], None]:
        """Progress of one stage."""

        def tick(done: int, total: int) -> None:
            if self.progress:
                self.progress(stage, done, total)

        return tick

    def need_model(self) -> ModelFolder:
        """The model.

        Raises
        ------
        ConfigError
            If none was given.
        """
        if self.model is None:
            raise ConfigError("this stage needs --model")
        return self.model

    def open_features(self) -> FeatureFile | None:
        """The features of the patches, none read yet; None where pixels are read.

        Raises
        ------
        ConfigError
            If the model reads features and there are none, or the other way round.
        RegionError
            If the file cannot be read, or the model reads features of another length.
        """
        card = self.need_model().card
        check_features(card, self.features, self.folder.slide_id)
        if self.features is None:
            return None
        file = FeatureFile.open(self.features)
        if file.width != card.selector.inputs:
            raise RegionError(
                f"{file.path}: features of length {file.width}, model {card.name!r} "
                f"reads {card.selector.inputs}; extract them as those it was trained on"
            )
        return file
