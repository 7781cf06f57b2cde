"""Evaluates segmenters on a labelled dataset: figures, JSON, Markdown and a plot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.inert import markdown_cell
from wsi_pipeline.metrics import bootstrap_interval, by_group, dice, iou, mean_iou
from wsi_pipeline.models.cards import ModelFolder, SegmenterCard
from wsi_pipeline.models.segmenter import load_segmenter
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.process import peak_resident_bytes, reset_peaks
from wsi_pipeline.publishing import make_folder, publish_bytes, publish_json
from wsi_pipeline.training.comparing import TRIMAP_PX, FrameScores, compare_frames
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.frames import cropped
from wsi_pipeline.training.plots import Measured, draw_budgets, publish_figure

_NEAR_PX = 8
_NO_CHOICE = frozenset({"seed", "device", "strategies"})
"""What a card says of a training that makes it no other one; the last are results."""
_OWN_COLUMNS = frozenset({"classes", "nodes", "strategies"})
"""Parts of an architecture that the report shows in another place."""


@dataclass(frozen=True)
class SeedScores:
    """What one model reaches.

    Parameters
    ----------
    model : str
        Its folder.
    seed : int or None
        Of its training; None where the card does not state it.
    scores : FrameScores
        Counts per region.
    peak_bytes : int
        Largest resident memory while it ran.
    """

    model: str
    seed: int | None
    scores: FrameScores
    peak_bytes: int

    @property
    def miou(self) -> float:
        """Mean IoU over classes that occur, all regions together, full resolution."""
        return mean_iou(self.scores.full.sum(axis=0))

    @property
    def at_nodes(self) -> float:
        """Mean IoU between nodes."""
        return mean_iou(self.scores.nodes.sum(axis=0))

    @property
    def bound(self) -> float:
        """Mean IoU of the nodes' true classes, read back as a prediction is."""
        return mean_iou(self.scores.bound.sum(axis=0))

    def to_json(self) -> dict[str, Any]:
        """What differs between seeds, as JSON values."""
        return {
            "model": self.model,
            "seed": self.seed,
            "miou": self.miou,
            "miou_at_nodes": self.at_nodes,
            "miou_bound": self.bound,
            "counts": self.scores.full.sum(axis=0).tolist(),
        }


@dataclass(frozen=True)
class ArmReport:
    """What one strategy reaches, trained with one seed or several.

    Parameters
    ----------
    strategy : str
        Its name.
    name : str
        The strategy, and what else of its training differs from the other reports'.
    region_px : int
        Side of a region.
    nodes : (int, int)
        Rows and columns of a region.
    classes : tuple of str
        Names of the classes, by value.
    groups : tuple of str
        Patient of each region.
    seeds : tuple of SeedScores
        At least one, of the same regions.
    """

    strategy: str
    name: str
    region_px: int
    nodes: tuple[int, int]
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    seeds: tuple[SeedScores, ...]

    @property
    def pixels_per_node(self) -> float:
        """Pixels of a region per node."""
        return self.region_px**2 / (self.nodes[0] * self.nodes[1])

    @property
    def miou(self) -> float:
        """Mean over seeds of their mIoU."""
        return float(np.mean([seed.miou for seed in self.seeds]))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval of mIoU when patients are drawn anew, all seeds."""
        counts = np.concatenate([seed.scores.full for seed in self.seeds])
        patients = by_group(counts, self.groups * len(self.seeds))
        return bootstrap_interval(patients, mean_iou)

    @property
    def gflops(self) -> float:
        """Of a region; the same for every seed."""
        return self.seeds[0].scores.flops / 1e9

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values; classes that do not occur are null."""
        scores = [seed.scores for seed in self.seeds]
        full = np.sum([part.full.sum(axis=0) for part in scores], axis=0)
        near = np.sum([part.near.sum(axis=0) for part in scores], axis=0)
        return {
            "strategy": self.strategy,
            "name": self.name,
            "region_px": self.region_px,
            "nodes": list(self.nodes),
            "pixels_per_node": self.pixels_per_node,
            "patients": len(set(self.groups)),
            "regions": len(self.groups),
            "seeds": [seed.to_json() for seed in self.seeds],
            "miou": self.miou,
            "miou_interval_by_patient": list(self.interval),
            "iou": self._named(iou(full)),
            "dice": self._named(dice(full)),
            "miou_at_nodes": float(np.mean([seed.at_nodes for seed in self.seeds])),
            "miou_bound": float(np.mean([seed.bound for seed in self.seeds])),
            "accuracy_within_px": {
                str(width): float(right / total) if total else None
                for width, (right, total) in zip(TRIMAP_PX, near, strict=True)
            },
            "gflops_per_region": self.gflops,
            "seconds_per_megapixel": float(np.mean([part.seconds for part in scores])),
            "peak_bytes": max(seed.peak_bytes for seed in self.seeds),
            "counts": full.tolist(),
        }

    def _named(self, values: NDArray[np.float64]) -> dict[str, float | None]:
        return {
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(self.classes, values, strict=True)
        }


def evaluate_segmenter(
    models: Sequence[ModelFolder],
    data: LabelledImages,
    classes: Sequence[MaskClass],
    strategies: Sequence[str] = (),
    *,
    device: str = "cpu",
) -> list[ArmReport]:
    """Segment labelled images region by region and compare with the truth.

    Parameters
    ----------
    models : sequence of ModelFolder
        The models; those whose cards differ in nothing but the seed share a report.
    data : LabelledImages
        Images that they were not trained on, at their um/px.
    classes : sequence of MaskClass
        Of the labels; by value, they are the models'.
    strategies : sequence of str
        What to evaluate; left out, all that a model has weights for.
    device : str
        "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ConfigError
        If a model has another number of classes, or nothing tells two models apart.
    UnknownNameError
        If a model has no weights for a strategy.
    ModelError
        If its files do not fit its card.
    """
    plan = _plan(models, classes, strategies)
    names = _names(list(plan))
    reports = []
    for name, (arm, members) in zip(names, plan.items(), strict=True):
        regions = cropped(data, arm.region_px)
        seeds = []
        for seed, model in members.items():
            net = load_segmenter(model, arm.strategy, device)
            reset_peaks()
            scores = compare_frames(net, regions)
            peak = peak_resident_bytes()
            seeds.append(SeedScores(str(model.path), seed, scores, peak))
        reports.append(
            ArmReport(
                arm.strategy,
                name,
                arm.region_px,
                arm.nodes,
                tuple(kind.name for kind in classes),
                regions.groups,
                tuple(seeds),
            )
        )
    return reports


@dataclass(frozen=True)
class _Arm:
    """What the seeds of a training have in common; `settings` are (key, text)."""

    strategy: str
    region_px: int
    nodes: tuple[int, int]
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, spec: SegmenterSpec, strategy: str, card: SegmenterCard) -> "_Arm":
        """A strategy of a model."""
        architecture, training = spec.to_json(), card.training
        settings = {
            **{k: v for k, v in training.items() if k not in _NO_CHOICE},
            **{k: v for k, v in architecture.items() if k not in _OWN_COLUMNS},
            "region_px": card.region_px,
            "mpp": card.mpp,
        }
        texts = sorted((key, _text(value)) for key, value in settings.items())
        return cls(strategy, card.region_px, spec.shape, tuple(texts))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _plan(
    models: Sequence[ModelFolder],
    classes: Sequence[MaskClass],
    strategies: Sequence[str],
) -> dict[_Arm, dict[int | None, ModelFolder]]:
    """What is measured, by training and seed; everything is checked here."""
    plan: dict[_Arm, dict[int | None, ModelFolder]] = {}
    for model in models:
        card = model.card.need_segmenter()
        names = [kind.name for kind in model.card.classes]
        if len(classes) != len(names):
            raise ConfigError(
                f"{model.path}: the model has {len(names)} classes "
                f"({', '.join(names)}), the dataset {len(classes)} "
                f"({', '.join(kind.name for kind in classes)})"
            )
        for strategy in strategies or card.architecture["strategies"]:
            # loaded again when its turn comes: a bad file shows before the first one's
            spec = load_segmenter(model, strategy, "cpu").spec
            members = plan.setdefault(_Arm.of(spec, strategy, card), {})
            seed = card.training.get("seed")
            if seed in members:
                raise ConfigError(
                    f"{members[seed].path} and {model.path}: by their cards the same "
                    f"training, seed {seed} of both; evaluate them one by one"
                )
            members[seed] = model
    return plan


def _names(arms: Sequence[_Arm]) -> list[str]:
    """Strategies, and those settings in which not all arms agree."""
    settings = [dict(arm.settings) for arm in arms]
    keys = sorted({key for found in settings for key in found})
    differ = [key for key in keys if len({found.get(key) for found in settings}) > 1]
    return [
        ", ".join([arm.strategy, *(f"{k} {found[k]}" for k in differ if k in found)])
        for arm, found in zip(arms, settings, strict=True)
    ]


def publish_reports(folder: Path, reports: Sequence[ArmReport]) -> None:
    """Write ``report.json``, ``report.md``, ``budget.svg`` and ``budget.png``.

    Raises
    ------
    ExportError
        If the folder cannot be written.
    """
    make_folder(folder)
    publish_json(folder / "report.json", [report.to_json() for report in reports])
    text = "\n".join(markdown(reports)) + "\n"
    publish_bytes(folder / "report.md", text.encode())
    figure = draw_budgets(
        [
            Measured(
                report.name,
                report.pixels_per_node,
                seed.seed,
                seed.miou,
                seed.bound,
                report.gflops,
            )
            for report in reports
            for seed in report.seeds
        ]
    )
    for suffix in ("svg", "png"):
        publish_figure(folder / f"budget.{suffix}", figure)


def markdown(reports: Sequence[ArmReport]) -> Iterator[str]:
    """One line per strategy, and one table of IoU per class."""
    yield (
        "| strategy | nodes | pixels per node | seeds | mIoU of each | mean "
        f"| 95 % by patient | at nodes | bound | within {_NEAR_PX} px | GFLOP | s/MP "
        "| MiB |"
    )
    yield "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|"
    found = [report.to_json() for report in reports]
    for report, values in zip(reports, found, strict=True):
        low, high = report.interval
        near = values["accuracy_within_px"][str(_NEAR_PX)]
        cells = (
            markdown_cell(report.name),
            f"{report.nodes[0]} x {report.nodes[1]}",
            f"{report.pixels_per_node:.0f}",
            " / ".join("" if s.seed is None else str(s.seed) for s in report.seeds),
            " / ".join(f"{seed.miou:.3f}" for seed in report.seeds),
            f"{report.miou:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{values['miou_at_nodes']:.3f}",
            f"{values['miou_bound']:.3f}",
            "" if near is None else f"{near:.3f}",
            f"{report.gflops:.2f}",
            f"{values['seconds_per_megapixel']:.2f}",
            f"{values['peak_bytes'] / 2**20:.0f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    titles = [
        f"{markdown_cell(report.name)} 1/{report.pixels_per_node:.0f}"
        for report in reports
    ]
    yield f"| IoU of | {' | '.join(titles)} |"
    yield "|---|" + "--:|" * len(reports)
    for name in reports[0].classes:
        shown = [values["iou"][name] for values in found]
        texts = ["" if value is None else f"{value:.3f}" for value in shown]
        yield f"| {markdown_cell(name)} | {' | '.join(texts)} |"
