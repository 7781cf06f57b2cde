"""Prints the measured cells of the segmentation table as Markdown."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segment_plan import BUDGETS, FRAME_PX, WIDER, Cell

from wsi_pipeline.metrics import bootstrap_interval, by_group, iou, mean_iou
from wsi_pipeline.training.comparing import TRIMAP_PX
from wsi_pipeline.training.plots import Measured

Row = dict[str, Any]
_BAND_PX = 8
_ON_GLASS = "canvas", "strips"


def table(rows: list[Row]) -> Iterator[str]:
    """One line per arm, its seeds together."""
    yield (
        "| data | 1/pixels | arm | steps | seeds | mIoU at full resolution "
        "| by patient | - uniform | at nodes | bound | within 8 px | blurred | GFLOP "
        "| s/MP |"
    )
    yield "|---|--:|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|"
    rows = rows + list(crops_to_tissue(rows))
    ordered = sorted(rows, key=arm_key)
    for _, members in groupby(ordered, key=arm_key):
        yield line(list(members), rows)


_ARMS = (
    "uniform", "uniform +20 %", "edge", "saliency", "staged", "learned", "zoomed",
    "uniform on the tissue", "learned on the tissue",
)  # fmt: skip


def summary(rows: list[Row]) -> Iterator[str]:
    """One line per data and budget, one column per arm: means over seeds."""
    yield f"| mIoU | {' | '.join(_ARMS)} | learned - uniform, by seed |"
    yield "|---|" + "--:|" * len(_ARMS) + "---|"
    rows = [*rows, *crops_to_tissue(rows)]
    rows = [row for row in rows if not row["changes"] or row["data"] in _ON_GLASS]
    ordered = sorted(rows, key=_setting)
    for (data, pixels, steps), members in groupby(ordered, key=_setting):
        arms: dict[str, dict[int, float]] = {}
        for row in members:
            arms.setdefault(_column(row), {})[row["seed"]] = row["miou"]
        if "uniform" not in arms:
            continue
        means = [
            f"{np.mean(list(arms[arm].values())):.3f}" if arm in arms else ""
            for arm in _ARMS
        ]
        pairs = [
            f"{100 * (value - arms['uniform'][seed]):+.1f}"
            for seed, value in sorted(arms.get("learned", {}).items())
            if seed in arms["uniform"]
        ]
        name = f"{data}, 1/{pixels}" + (
            "" if steps == Cell.steps else f", {steps} steps"
        )
        yield f"| {name} | {' | '.join(means)} | {', '.join(pairs)} |"


def class_table(rows: list[Row]) -> Iterator[str]:
    """One line per arm of data of more than two classes: IoU of each class."""
    rows = [row for row in rows if len(row["classes"]) > 2]
    ordered = sorted(rows, key=lambda row: (row["classes"], arm_key(row)))
    for classes, shared in groupby(ordered, key=lambda row: row["classes"]):
        yield f"| IoU | {' | '.join(classes)} |"
        yield "|---|" + "--:|" * len(classes)
        for key, members in groupby(shared, key=arm_key):
            data, budget, steps, strategy, changes, _ = key
            found = np.mean([_of_classes(row) for row in members], axis=0)
            name = f"{data}, 1/{budget}, {strategy} {changes}".strip()
            cells = " | ".join(f"{value:.3f}" for value in found)
            yield f"| {name}, {steps} steps | {cells} |"
        yield ""


def _of_classes(row: Row) -> NDArray[np.float64]:
    return iou(np.sum(row["full"], axis=0))


def _setting(row: Row) -> tuple[str, int, int]:
    return row["data"], row["budget"], row["steps"]


def _column(row: Row) -> str:
    wider = tuple(row["nodes"]) == WIDER.get(row["budget"])
    return row["strategy"] + (" +20 %" if wider else "")


def arm_key(row: Row) -> tuple[Any, ...]:
    changes = ",".join(f"{k}={v}" for k, v in sorted(row["changes"].items()))
    nodes = tuple(row["nodes"])
    return (row["data"], row["budget"], row["steps"], row["strategy"], changes, nodes)


def line(members: list[Row], rows: list[Row]) -> str:
    """An arm: means over seeds, the interval over patients, the paired difference."""
    first = members[0]
    data, budget, steps, strategy, changes, nodes = arm_key(first)
    nodes_text = f"{nodes[0]} x {nodes[1]}"
    pairs = [row["miou"] - base for row in members if (base := uniform(row, rows))]
    gain = f"{100 * np.mean(pairs):+.1f}" if pairs and strategy != "uniform" else ""
    blurred = [100 * (score(row["blurred"]) - row["miou"]) for row in members]
    near = np.sum([row["near"] for row in members], axis=0)
    right, all_ = near[TRIMAP_PX.index(_BAND_PX)]
    cells = (
        data,
        f"1/{budget} ({nodes_text})",
        f"{strategy}{' ' + changes if changes else ''}",
        str(steps),
        str(len(members)),
        " / ".join(f"{row['miou']:.3f}" for row in members),
        interval(members),
        gain,
        f"{np.mean([score(row['at_nodes']) for row in members]):.3f}",
        f"{np.mean([score(row['bound']) for row in members]):.3f}",
        f"{right / all_:.3f}",
        f"{np.mean(blurred):+.1f}",
        f"{first['gflops']:.2f}",
        f"{np.mean([row['seconds_per_mp'] for row in members]):.2f}",
    )
    return f"| {' | '.join(cells)} |"


def crops_to_tissue(rows: list[Row]) -> Iterator[Row]:
    """Canvases whose tissue is found first and is all that the nodes are spread over.

    The tissue is then a frame: what an arm finds on frames, with the glass around it
    right.
    """
    canvases = {(row["steps"], row["seed"]) for row in rows if row["data"] == "canvas"}
    h, w = FRAME_PX
    glass = 3 * h * w  # a canvas is twice as wide and high
    for row in rows:
        plain = row["data"] == "binary" and row["strategy"] in ("uniform", "learned")
        alone = not row["changes"] and tuple(row["nodes"]) == BUDGETS[256]
        if plain and alone and (row["steps"], row["seed"]) in canvases:
            counts = {}
            for key in ("full", "bound", "blurred"):
                counts[key] = np.array(row[key])
                counts[key][:, 0, 0] += glass
            miou = round(mean_iou(counts["full"].sum(axis=0)), 4)
            place = {"data": "canvas", "strategy": f"{row['strategy']} on the tissue"}
            yield row | counts | place | {"budget": 4 * row["budget"], "miou": miou}


def uniform(row: Row, rows: list[Row]) -> float | None:
    """The plain uniform arm of the same data, budget, steps and seed."""
    keys = ("data", "budget", "steps", "seed")
    for other in rows:
        same = all(other[key] == row[key] for key in keys)
        plain = other["strategy"] == "uniform" and not other["changes"]
        if same and plain and other["nodes"][0] * other["nodes"][1] <= _nodes(row):
            return float(other["miou"])
    return None


def _nodes(row: Row) -> int:
    return int(row["nodes"][0] * row["nodes"][1])


def score(counts: list[Any]) -> float:
    return mean_iou(np.sum(counts, axis=0))


def interval(members: list[Row]) -> str:
    """95 % interval when patients are drawn anew, all seeds together."""
    counts = np.concatenate([np.asarray(row["full"]) for row in members])
    patients = [owner for row in members for owner in row["patients"]]
    low, high = bootstrap_interval(by_group(counts, patients), mean_iou)
    return f"{low:.3f} to {high:.3f}"


def plain_frames(rows: list[Row]) -> list[Measured]:
    """Binary frames, what the plan asks of every budget: usual spec, usual steps."""
    h, w = FRAME_PX
    return [
        Measured(
            row["strategy"],
            h * w / _nodes(row),
            row["seed"],
            row["miou"],
            score(row["bound"]),
            row["gflops"],
        )
        for row in rows
        if row["data"] == "binary" and not row["changes"] and row["steps"] == Cell.steps
    ]
