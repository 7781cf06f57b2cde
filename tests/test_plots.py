"""The plot of mIoU against pixels and operations."""

import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from wsi_pipeline.metrics import bootstrap_interval, mean_iou
from wsi_pipeline.training.plots import Measured, draw_budgets, publish_figure

BENCHMARKS = Path(__file__).parent / "benchmarks"


def records() -> list[Measured]:
    """Two strategies, three budgets, two seeds; uniform has no middle one."""
    return [
        Measured(name, pixels, seed, base + 0.02 * seed, base + 0.1, 100 / pixels)
        for name, lift in (("uniform", 0.0), ("learned", 0.05))
        for pixels, base in ((64, 0.8 + lift), (144, 0.75 + lift), (256, 0.7 + lift))
        for seed in (0, 1)
        if (name, pixels) != ("uniform", 144)
    ]


def test_a_line_per_strategy_with_its_seeds_mean_and_bound() -> None:
    figure = draw_budgets(records())
    budget, cost = figure.axes
    lines = {line.get_label(): line for line in budget.lines[:3]}
    assert list(lines) == ["uniform", "_seeds", "_bound"]
    mean, seeds, bound = lines.values()
    np.testing.assert_allclose(mean.get_xydata(), [[64, 0.81], [256, 0.71]])
    points = sorted(seeds.get_xydata().tolist())
    np.testing.assert_allclose(points, [[64, 0.8], [64, 0.82], [256, 0.7], [256, 0.72]])
    assert seeds.get_linestyle() == "None"
    np.testing.assert_allclose(bound.get_xydata(), [[64, 0.9], [256, 0.8]])
    assert bound.get_linestyle() == "--"
    assert len({to_rgb(line.get_color()) for line in lines.values()}) == 1
    learned = budget.lines[3]
    assert learned.get_label() == "learned"
    np.testing.assert_allclose(learned.get_ydata(), [0.86, 0.81, 0.76])
    assert learned.get_color() != mean.get_color()
    assert learned.get_marker() != mean.get_marker()
    flops = cost.lines[0].get_xydata()
    np.testing.assert_allclose(flops, [[100 / 64, 0.81], [100 / 256, 0.71]])
    assert len(cost.lines) == 4


def test_axes_say_what_they_show() -> None:
    figure = draw_budgets(records())
    budget, cost = figure.axes
    assert budget.get_xscale() == "log"
    left, right = budget.get_xlim()
    assert left > 256 > 64 > right  # fewer pixels to the left
    assert [t.get_text() for t in budget.get_xticklabels()] == [
        "1/64",
        "1/144",
        "1/256",
    ]
    assert list(budget.get_xticks()) == [64, 144, 256]
    assert "pixel budget" in budget.get_xlabel()
    assert "mIoU" in budget.get_ylabel()
    assert "GFLOP" in cost.get_xlabel()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        "uniform",
        "learned",
        "each seed",
        "bound: true classes of the nodes",
    ]


def test_operations_have_ticks_over_narrow_and_wide_spans() -> None:
    for flops, scale in (((0.91, 1.17), "linear"), ((0.2, 1.2, 12.0), "log")):
        cost = draw_budgets(
            [Measured(f"s{value}", 64, 0, 0.8, 0.9, value) for value in flops]
        ).axes[1]
        low, high = cost.get_xlim()
        assert cost.get_xscale() == scale
        assert sum(low <= tick <= high for tick in cost.get_xticks()) >= 3


def test_every_strategy_looks_different() -> None:
    many = [Measured(f"s{k}", 64, 0, 0.5, 0.9, 1.0) for k in range(20)]
    lines = draw_budgets(many).axes[1].lines[::2]
    looks = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(looks) == 20


def test_what_would_be_counted_twice_or_not_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="learned 1/64, seed 1, is there twice"):
        draw_budgets([*records(), Measured("learned", 64, 1, 0.1, 0.2, 3)])
    with pytest.raises(ValueError, match="at least one"):
        draw_budgets([])


def test_files_are_pictures_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.svg", "a.png", "b.svg", "b.png"):
        publish_figure(tmp_path / name, draw_budgets(records()))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1500, 720)
        assert len(picture.convert("RGB").getcolors(2**20)) > 50
    assert b"</svg>" in (tmp_path / "a.svg").read_bytes()
    for kind in ("svg", "png"):
        first, second = (tmp_path / f"{name}.{kind}" for name in "ab")
        assert first.read_bytes() == second.read_bytes()


def cell(strategy: str, seed: int, **changed: object) -> dict[str, object]:
    """A measured cell of the benchmark: two patients of two frames each."""
    random = np.random.default_rng(seed)
    full = random.integers(1, 100, (4, 2, 3))
    return {
        "data": "binary", "strategy": strategy, "budget": 256, "nodes": [36, 48],
        "seed": seed, "steps": 1000, "changes": {}, "miou": 0.5 + 0.1 * seed,
        "full": full.tolist(), "bound": full.tolist(), "gflops": 2.0,
        "patients": ["b", "a", "b", "a"],
    } | changed  # fmt: skip


def test_the_benchmark_draws_its_plain_binary_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import segment_report
    import segment_table

    cells, plot = tmp_path / "cells.jsonl", tmp_path / "plot.svg"
    command = ["segment_table.py", "--cells", str(cells), "--plot", str(plot)]
    monkeypatch.setattr(sys, "argv", command)
    assert segment_table.main() == 1
    assert "cells.jsonl: missing or empty; nothing to draw" in capsys.readouterr().err
    assert not plot.exists()
    rows = [
        cell("learned", 0),
        cell("learned", 1),
        cell("learned", 0, steps=3000),
        cell("learned", 0, changes={"floor": 0.4}),
        cell("learned", 0, data="glas"),
    ]
    found = segment_report.plain_frames(rows)
    assert [(r.strategy, r.pixels, r.seed, r.miou) for r in found] == [
        ("learned", 256, 0, 0.5),
        ("learned", 256, 1, 0.6),
    ]
    cells.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert segment_table.main() == 0
    assert b"</svg>" in plot.read_bytes()


def test_the_benchmark_draws_patients_with_all_their_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import segment_report

    rows = [cell("learned", 0), cell("learned", 1)]
    both = np.sum([row["full"] for row in rows], axis=0)
    patients = np.stack([both[[1, 3]].sum(axis=0), both[[0, 2]].sum(axis=0)])
    low, high = bootstrap_interval(patients, mean_iou)
    assert segment_report.interval(rows) == f"{low:.3f} to {high:.3f}"
