"""Evaluates a model's segmenter on a labelled dataset: figures, JSON and Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.metrics import bootstrap_interval, dice, iou, mean_iou
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.models.segmenter import load_segmenter
from wsi_pipeline.process import peak_resident_bytes, reset_peaks
from wsi_pipeline.training.comparing import TRIMAP_PX, FrameScores, compare_frames
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.frames import cropped


@dataclass(frozen=True)
class ArmReport:
    """What one strategy of a model reaches.

    Parameters
    ----------
    strategy : str
        Its name.
    classes : tuple of str
        Names of the classes, by value.
    groups : tuple of str
        Patient of each region.
    scores : FrameScores
        Counts per region.
    peak_bytes : int
        Largest resident memory while it ran.
    """

    strategy: str
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    scores: FrameScores
    peak_bytes: int

    @property
    def miou(self) -> float:
        """Mean IoU over classes that occur, all regions together, full resolution."""
        return mean_iou(self.scores.full.sum(axis=0))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval of `miou` when patients are drawn anew."""
        return bootstrap_interval(by_group(self.scores.full, self.groups), mean_iou)

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values; classes that do not occur are null."""
        full = self.scores.full.sum(axis=0)
        near = self.scores.near.sum(axis=0)
        return {
            "strategy": self.strategy,
            "patients": len(set(self.groups)),
            "regions": len(self.groups),
            "miou": self.miou,
            "miou_interval_by_patient": list(self.interval),
            "iou": self._named(iou(full)),
            "dice": self._named(dice(full)),
            "miou_at_nodes": mean_iou(self.scores.nodes.sum(axis=0)),
            "miou_bound": mean_iou(self.scores.bound.sum(axis=0)),
            "accuracy_within_px": {
                str(width): float(right / total) if total else None
                for width, (right, total) in zip(TRIMAP_PX, near, strict=True)
            },
            "gflops_per_region": self.scores.flops / 1e9,
            "seconds_per_megapixel": self.scores.seconds,
            "peak_bytes": self.peak_bytes,
            "counts": full.tolist(),
        }

    def _named(self, values: NDArray[np.float64]) -> dict[str, float | None]:
        return {
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(self.classes, values, strict=True)
        }


def evaluate_segmenter(
    model: ModelFolder,
    data: LabelledImages,
    classes: Sequence[MaskClass],
    strategies: Sequence[str] = (),
    *,
    device: str = "cpu",
) -> list[ArmReport]:
    """Segment labelled images region by region and compare with the truth.

    Parameters
    ----------
    model : ModelFolder
        The model.
    data : LabelledImages
        Images it was not trained on, at its um/px.
    classes : sequence of MaskClass
        Of the labels; by value, they are the model's.
    strategies : sequence of str
        What to evaluate; left out, all that the model has weights for.
    device : str
        "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ConfigError
        If the model has another number of classes.
    UnknownNameError
        If the model has no weights for a strategy.
    ModelError
        If its files do not fit its card.
    """
    card = model.card.segmenter
    names = tuple(c.name for c in model.card.classes)
    if len(classes) != len(names):
        raise ConfigError(
            f"model {model.card.name!r} has {len(names)} classes "
            f"({', '.join(names)}), the dataset {len(classes)} "
            f"({', '.join(c.name for c in classes)})"
        )
    wanted = tuple(strategies) or tuple(card.architecture["strategies"])
    regions = cropped(data, card.region_px)
    reports = []
    for strategy in wanted:
        net = load_segmenter(model, strategy, device)
        reset_peaks()
        scores = compare_frames(net, regions)
        reports.append(
            ArmReport(strategy, names, regions.groups, scores, peak_resident_bytes())
        )
    return reports


def by_group(counts: NDArray[np.int64], groups: Sequence[str]) -> NDArray[np.int64]:
    """Sum (n, k, k + 1) counts over what belongs together, (groups, k, k + 1)."""
    names = sorted(set(groups))
    owner = np.array([names.index(group) for group in groups])
    return np.stack([counts[owner == index].sum(axis=0) for index in range(len(names))])


def markdown(reports: Sequence[ArmReport]) -> Iterator[str]:
    """One line per strategy, and one table of IoU per class."""
    yield (
        "| strategy | mIoU | 95 % by patient | at nodes | bound | within 8 px | GFLOP "
        "| s/MP | MiB |"
    )
    yield "|---|--:|---|--:|--:|--:|--:|--:|--:|"
    for report in reports:
        right, total = report.scores.near.sum(axis=0)[TRIMAP_PX.index(8)]
        low, high = report.interval
        cells = (
            report.strategy,
            f"{report.miou:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{mean_iou(report.scores.nodes.sum(axis=0)):.3f}",
            f"{mean_iou(report.scores.bound.sum(axis=0)):.3f}",
            f"{right / total:.3f}" if total else "",
            f"{report.scores.flops / 1e9:.2f}",
            f"{report.scores.seconds:.2f}",
            f"{report.peak_bytes / 2**20:.0f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"| IoU of | {' | '.join(report.strategy for report in reports)} |"
    yield "|---|" + "--:|" * len(reports)
    columns = [report.to_json()["iou"] for report in reports]
    for name in reports[0].classes:
        found = [column[name] for column in columns]
        shown = ["" if value is None else f"{value:.3f}" for value in found]
        yield f"| {name} | {' | '.join(shown)} |"
