"""Draws what segmenters reach against their pixels and their operations."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from wsi_pipeline.publishing import publish_bytes

# Okabe and Ito's colours, told apart by the colour-blind; markers tell lines apart too
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
_MARKERS = "o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h"
# dots on the markers of their means; a dash shows where one budget gives no line
_DOTS: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 4,
    "markeredgecolor": "white", "markeredgewidth": 0.6,
}  # fmt: skip
_DASHES: dict[str, Any] = {"linestyle": "--", "marker": "_", "markersize": 11}
_BOUND = "bound: true classes of the nodes"
_LEGEND_LETTERS = 120
"""What about fits in a line of the legend."""
_WIDE = 3
"""From this ratio on the axis of operations is logarithmic."""
_ROOM = 1.15
"""Factor that is left free beside the outermost budgets."""


@dataclass(frozen=True)
class Measured:
    """One training of a segmenter, measured.

    Parameters
    ----------
    strategy : str
        What shares a line.
    pixels : float
        Pixels of a region per node.
    seed : int or None
        What tells the points of one place on a line apart.
    miou : float
        At full resolution, 0 to 1.
    bound : float
        mIoU of the true classes of its nodes, read back as a prediction is.
    gflops : float
        Of a region; a multiply-add counts 2.
    """

    strategy: str
    pixels: float
    seed: int | None
    miou: float
    bound: float
    gflops: float


def draw_budgets(records: Sequence[Measured]) -> Figure:
    """Draw mIoU against the pixel budget, and against operations.

    Parameters
    ----------
    records : sequence of Measured
        At least one, in any order.

    Returns
    -------
    Figure
        On the left fewer pixels come first and the bounds are dashed. Seeds are small
        dots, their means a line per strategy.

    Raises
    ------
    ValueError
        If there is no record, or a seed of a strategy is there twice for one budget.
    """
    if not records:
        raise ValueError("draw_budgets needs at least one record")
    keys = [(record.strategy, record.pixels, record.seed) for record in records]
    for key in keys:
        if keys.count(key) > 1:
            strategy, pixels, seed = key
            raise ValueError(f"{strategy} 1/{pixels:g}, seed {seed}, is there twice")
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    budget, cost = figure.subplots(1, 2, sharey=True)
    strategies = dict.fromkeys(record.strategy for record in records)
    for name, colour, marker in zip(
        strategies, cycle(_COLOURS), cycle(_MARKERS), strict=False
    ):
        own = [record for record in records if record.strategy == name]
        _draw_strategy(budget, cost, own, colour, marker)
    _lay_axes(budget, cost, sorted({record.pixels for record in records}))
    seeds = Line2D([], [], color="#666666", label="each seed", **_DOTS)
    bound = Line2D([], [], color="#666666", label=_BOUND, **_DASHES)
    lines = [line for line in budget.lines if line.get_label() in strategies]
    columns = max(1, min(4, _LEGEND_LETTERS // max(map(len, strategies))))
    figure.legend(
        handles=[*lines, seeds, bound],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
    return figure


def publish_figure(path: Path, figure: Figure) -> None:
    """Write a figure, .svg or .png; the same bytes for the same figure.

    Raises
    ------
    ExportError
        If it cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    buffer = io.BytesIO()
    # an SVG has random ids and the date otherwise
    with rc_context({"svg.hashsalt": "wsi"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    publish_bytes(path, buffer.getvalue())


def _draw_strategy(
    budget: Axes, cost: Axes, records: Sequence[Measured], colour: str, marker: str
) -> None:
    """Means, points of seeds, and bound of one strategy."""
    places = sorted({record.pixels for record in records})
    groups = [[r for r in records if r.pixels == place] for place in places]

    def means(field: str) -> list[float]:
        return [float(np.mean([getattr(r, field) for r in group])) for group in groups]

    for axes, field in ((budget, "pixels"), (cost, "gflops")):
        axes.plot(
            means(field),
            means("miou"),
            color=colour,
            marker=marker,
            markersize=8,
            label=records[0].strategy,
        )
        points = [getattr(r, field) for r in records]
        seeds = [r.miou for r in records]
        axes.plot(points, seeds, color=colour, label="_seeds", **_DOTS)
    budget.plot(places, means("bound"), color=colour, label="_bound", **_DASHES)


def _lay_axes(budget: Axes, cost: Axes, places: Sequence[float]) -> None:
    """Scales, ticks and titles."""
    low, high = cost.dataLim.intervalx
    # a logarithmic axis of a narrow span would have one tick
    if 0 < _WIDE * low < high:
        cost.set_xscale("log")
        cost.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    budget.set_xscale("log")
    for axes in (budget, cost):
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, color="#dddddd")
        axes.set_axisbelow(True)
    budget.set_xticks(places, labels=[f"1/{round(place)}" for place in places])
    budget.set_xlim(places[-1] * _ROOM, places[0] / _ROOM)
    budget.set_xlabel("pixel budget: nodes per pixel of the region")
    budget.set_ylabel("mIoU at full resolution")
    cost.xaxis.set_major_formatter("{x:g}")
    cost.set_xlabel("GFLOP per region")
