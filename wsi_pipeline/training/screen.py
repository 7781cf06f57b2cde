"""Trains a screen from what a selector has found: coarse patches to its attention.

No label and no annotation is read, only the slides and their selections.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.calibration import Calibration, MissTable
from wsi_pipeline.models.cards import ModelFolder, ScreenCard, SelectorCard, write_card
from wsi_pipeline.models.choosing import choose_patches
from wsi_pipeline.models.scoring import open_scorer, patch_flops, settle
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import save_state
from wsi_pipeline.publishing import make_folder, publish_bytes
from wsi_pipeline.screening import keep_best, reach, score_coarsely
from wsi_pipeline.training.bag_training import View
from wsi_pipeline.training.loop import LoopOptions, fit
from wsi_pipeline.training.screen_options import ScreenTraining
from wsi_pipeline.training.taught import Taught

_SHAPE = SelectorShape("coarse", 32, 1, 16, 32)
_TASK = "attention"
_LEAST_PX = 8
_BATCH, _COLOUR = 128, 0.03
_SALIENT = 1 / 8  # of a slide's patches; they are half of what is learned from
_MOST = 2048  # patches of either half that are kept in memory per slide: 12 MB at 32 px
_FRACTIONS = tuple(round(2 ** (-k / 8), 5) for k in range(64, -1, -1))
_SHARES_OF_M = 0.25, 0.5, 1, 2, 4
_TOLD = 0.8, 0.9, 0.95, 0.98  # recalls that the card's metrics speak of

Progress = Callable[[int, int], None]


def train_screen(
    model: ModelFolder,
    slides: Sequence[Taught],
    calibration: Sequence[Taught],
    out: Path,
    options: ScreenTraining = ScreenTraining(),  # noqa: B008  # frozen
    *,
    progress: Progress | None = None,
) -> ScreenCard:
    """Train a screen, measure what it loses, and publish the model with it.

    Parameters
    ----------
    model : ModelFolder
        Whose selector the screen is to foretell.
    slides, calibration : sequence of Taught
        To learn from, and to measure on; no patient should be in both.
    out : Path
        Folder for the model with its screen; may be the model's own.
    options : ScreenTraining
        Factor, steps, device, seed.
    progress : callable, optional
        Told (done, total) steps.

    Returns
    -------
    ScreenCard
        As it stands in ``out/card.json``.

    Raises
    ------
    ConfigError
        If there is no such device, a list is empty, or the factor does not fit.
    ExportError
        If the folder cannot be written.

    Notes
    -----
    Memory: up to 4096 coarse patches per slide to learn from, 12 MB at 32 px.
    """
    if not slides or not calibration:
        raise ConfigError("no slide with patches to learn from, or to calibrate on")
    target = str(resolve_device(options.device))
    torch.manual_seed(options.seed)
    net = SelectorNet(_SHAPE, (_TASK,))
    card = _sketch(model.card.selector, options.factor)
    losses = _learn(net.to(target), slides, card, target, options, progress)
    make_folder(out)
    with tempfile.TemporaryDirectory() as folder:
        draft = ModelFolder(Path(folder), model.card)
        sha256 = save_state(net, draft.path / card.file)
        card = card.model_copy(update={"sha256": sha256})
        found = calibrate(draft, card, calibration, options.device)
        weights = (draft.path / card.file).read_bytes()
    whole = ScreenCard(
        **card.model_dump()
        | {
            "selector_sha256": model.card.selector.sha256,
            "calibration": found,
            "training": _facts(slides, options, losses),
            "metrics": _metrics(found, card, model.card.selector),
        }
    )
    if out.resolve() != model.path.resolve():
        for name in (*_parts(model), "LICENSE"):
            if (model.path / name).is_file():
                publish_bytes(out / name, (model.path / name).read_bytes())
    publish_bytes(out / whole.file, weights)
    write_card(out, model.card.model_copy(update={"screen": whole}))
    return whole


def calibrate(
    model: ModelFolder,
    card: SelectorCard,
    slides: Sequence[Taught],
    device: str = "cpu",
) -> Calibration:
    """Measure what a screen loses of the top M on slides that it was not trained on.

    Parameters
    ----------
    model : ModelFolder
        Holds the screen's weights.
    card : SelectorCard
        The screen; tables are made for its M, and for halves and multiples of it.
    """
    options = SelectOptions(device=device)
    sizes = sorted({max(1, int(card.top_m * share)) for share in _SHARES_OF_M})
    lost = np.zeros((2, len(sizes), len(_FRACTIONS)))  # of the top M; patches kept
    most = max(len(slide) for slide in slides)
    with open_scorer(model, options, most, part=card) as scorer:
        for slide in slides:
            source = slide.coarse(card, settle(options).queue_bytes)
            grid, logits = slide.selection.grid, slide.selection.logits
            reached = reach(score_coarsely(source, scorer), grid)
            for m, top_m in enumerate(sizes):
                top = choose_patches(logits, top_m).chosen
                for f, fraction in enumerate(_FRACTIONS):
                    kept = keep_best(reached, fraction, top_m)
                    lost[:, m, f] += 1 - kept[top].mean(), kept.mean()
    missed, kept_share = np.round(lost / len(slides), 6).tolist()
    return Calibration(
        slides=len(slides),
        fractions=_FRACTIONS,
        tables=tuple(
            MissTable(top_m=top_m, missed=missed[m], kept=kept_share[m])
            for m, top_m in enumerate(sizes)
        ),
    )


class _Student(nn.Module):
    """What is fitted: coarse patches to their salience, (n, 3, p, p) to (n,)."""

    def __init__(self, net: SelectorNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, patches: Tensor) -> Tensor:
        return self.net.logits(self.net.embed(patches))[:, 0]


def _sketch(selector: SelectorCard, factor: int) -> SelectorCard:
    """The card of a screen that is not trained yet."""
    side, rest = divmod(selector.patch_px, factor)
    if rest or side < _LEAST_PX:
        raise ConfigError(
            f"--factor {factor}: patches of {selector.patch_px} px do not become whole "
            f"ones of {_LEAST_PX} px or more"
        )
    if selector.inputs:
        raise ConfigError("the selector reads features: a screen would save no work")
    return SelectorCard(
        file=ScreenCard.model_fields["file"].default,
        sha256="",
        mpp=selector.mpp * factor,
        patch_px=side,
        top_m=selector.top_m,
        tasks=(_TASK,),
        architecture=_SHAPE.to_json(),
        training={},
        metrics={},
    )


def _learn(
    net: SelectorNet,
    slides: Sequence[Taught],
    card: SelectorCard,
    target: str,
    options: ScreenTraining,
    progress: Progress | None,
) -> list[float]:
    """Fit the net to what the selector says of the slides' patches; the losses."""
    rng = np.random.default_rng(options.seed)
    bags = [_read(slide, card, rng) for slide in slides]

    def loss_of(module: nn.Module, step: int) -> Tensor:
        halves = bags[step % len(bags)]
        view = View.draw(_COLOUR, rng)
        picked = [rng.integers(len(wanted), size=_BATCH // 2) for _, wanted in halves]
        patches, wanted = (
            torch.from_numpy(
                np.concatenate(
                    [half[part][ids] for half, ids in zip(halves, picked, strict=True)]
                )
            ).to(target)
            for part in (0, 1)
        )
        return nn.functional.smooth_l1_loss(module(view(patches)), wanted)

    loop = LoopOptions(options.steps, device=target, lr=options.lr)
    return fit(_Student(net), loss_of, loop, progress=progress)


type _Half = tuple[NDArray[np.uint8], NDArray[np.float32]]


def _read(
    slide: Taught, card: SelectorCard, rng: np.random.Generator
) -> tuple[_Half, _Half]:
    """Coarse patches and their salience: of the best ones, and of all."""
    source = slide.coarse(card, settle(SelectOptions(device="cpu")).queue_bytes)
    n, wanted = len(slide), slide.salience.astype(np.float32)
    best = np.argsort(-wanted, kind="stable")[: max(1, round(_SALIENT * n))]
    halves = []
    for some in (best[:_MOST], rng.permutation(n)[:_MOST]):
        ids = source.order[np.isin(source.order, some)]
        parts = [patches for _, patches in source.batches(ids, _BATCH)]
        halves.append((np.concatenate(parts), wanted[ids]))
    return halves[0], halves[1]


def _parts(model: ModelFolder) -> list[str]:
    """File names of a model's weights."""
    card = model.card
    return [card.selector.file, *([card.segmenter.file] if card.segmenter else [])]


def _facts(
    slides: Sequence[Taught], options: ScreenTraining, losses: Sequence[float]
) -> dict[str, Any]:  # Any: JSON values for the card
    return {
        "slides": len(slides),
        "patches": sum(map(len, slides)),
        "steps": options.steps,
        "batch": _BATCH,
        "lr": options.lr,
        "seed": options.seed,
        "loss": "smooth L1 of the log attention, standardised per slide",
        "first_losses": round(float(np.mean(losses[:20])), 4),
        "last_losses": round(float(np.mean(losses[-20:])), 4),
    }


def _metrics(
    found: Calibration, card: SelectorCard, selector: SelectorCard
) -> dict[str, Any]:
    """What the calibration means for who selects the card's M."""
    table = found.table_for(card.top_m)
    kept = dict(zip(found.fractions, table.kept, strict=True))
    fractions = {recall: found.fraction_for(recall, card.top_m) for recall in _TOLD}
    return {
        "calibration_slides": found.slides,
        "flops_of_selector": round(patch_flops(card) / patch_flops(selector), 4),
        "kept_for_recall": {
            str(recall): round(kept[fraction], 4)
            for recall, fraction in fractions.items()
        },
    }
