"""Opens slides with what a selector found on them, for who learns from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.feeding import PyramidSource
from wsi_pipeline.models.cards import ModelFolder, SelectorCard
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Selection
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.screening import coarse_grid


@dataclass(frozen=True)
class Taught:
    """A slide with what the selector found on all its patches.

    Parameters
    ----------
    name : str
    pyramid : Pyramid
    selection : Selection
    """

    name: str
    pyramid: Pyramid
    selection: Selection

    @classmethod
    def open(cls, folder: SlideFolder, selector: SelectorCard) -> Self:
        """Open a slide's results; reads no pixel.

        Raises
        ------
        ConfigError
            If it has no selection, one of another selector, or one after a screening.
        PyramidError, RegionError
            If they cannot be read.
        """
        record = folder.record("select")
        if record is None or not folder.holds(record):
            raise ConfigError(f"{folder.path}: no results of 'select'; `wsi select`")
        if record.facts.get("selector_sha256") != selector.sha256:
            raise ConfigError(
                f"{folder.selection}: not made by this model's selector as it is now; "
                "run `wsi select` again"
            )
        selection = Selection.load(folder.selection)
        if selection.weight is not None:
            raise ConfigError(
                f"{folder.selection}: a screening left patches out, of which nothing "
                "can be learned; run `wsi select --screen off`"
            )
        return cls(folder.slide_id, Pyramid(folder.pyramid), selection)

    def __len__(self) -> int:
        return len(self.selection.grid)

    def coarse(self, card: SelectorCard, queue_bytes: int) -> PyramidSource:
        """The patches as a screen sees them."""
        grid = coarse_grid(self.selection.grid, card)
        return PyramidSource(self.pyramid, grid, queue_bytes)

    @property
    def salience(self) -> NDArray[np.float64]:
        """Log of the attention on each patch, (n,), with mean 0 and deviation 1."""
        logits = self.selection.logits.astype(np.float64)
        found = logsumexp(logits - logsumexp(logits, axis=0), axis=1)
        return np.asarray((found - found.mean()) / max(float(found.std()), 1e-9))


def find_taught(paths: Sequence[Path], model: ModelFolder) -> list[Taught]:
    """Slides with patches in folders of results, or those that are one slide's.

    Raises
    ------
    ConfigError
        If a folder holds no slide with a selection, or see `Taught.open`.
    """
    found = []
    for path in paths:
        inner = [path, *sorted(path.iterdir())] if path.is_dir() else []
        folders = [SlideFolder(place) for place in inner if place.is_dir()]
        chosen = [folder for folder in folders if folder.selection.is_file()]
        if not chosen:
            raise ConfigError(
                f"{path}: holds no selection.parquet, nor does a folder in it; "
                "`wsi run` or `wsi select` makes them"
            )
        found += [Taught.open(folder, model.card.selector) for folder in chosen]
    return [taught for taught in found if len(taught)]


def deal(slides: Sequence[Taught], seed: int) -> tuple[list[Taught], list[Taught]]:
    """A third to train on and the rest to calibrate on, by lot.

    Raises
    ------
    ConfigError
        If there are fewer than two.
    """
    if len(slides) < 2:
        raise ConfigError(
            f"{len(slides)} slides with patches: a screen needs some to learn from and "
            "others to calibrate on, 19 or more for a recall of 0.95"
        )
    order = np.random.default_rng(seed).permutation(len(slides)).tolist()
    cut = max(1, len(slides) // 3)
    return [slides[n] for n in order[:cut]], [slides[n] for n in order[cut:]]
