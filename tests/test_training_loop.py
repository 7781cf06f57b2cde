"""The training loop: rates, going on after an interruption, validation, two ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline.errors import ConfigError, ExportError
from wsi_pipeline.training import loop
from wsi_pipeline.training.journal import Journal
from wsi_pipeline.training.loop import LoopOptions, fit, rank, rank_seed

Losses = Callable[[nn.Module, int], Tensor]


class Line(nn.Module):
    """y = a x + b, two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate."""
        return self.slope * x + self.shift


def line_loss(module: nn.Module, step: int) -> Tensor:
    x = torch.linspace(-1, 1, 8) + 0.1 * (step % 2)
    out: Tensor = ((module(x) - (2 * x - 1)) ** 2).mean()
    return out


class Warped(nn.Module):
    """Convolutions with batch norm behind a learned grid: what the segmenter rests on.

    Channels last, one tied weight, one frozen parameter, one that never has a gradient.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 8, 8, 2))
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Dropout(dropout), nn.Conv2d(8, 4, 3, padding=1),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.ones(1))
        self.tied = self.scale
        self.still = nn.Parameter(torch.ones(2), requires_grad=False)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, 16, 16) to (n, 4, 8, 8)."""
        even = functional.affine_grid(torch.eye(2, 3)[None], [1, 3, 8, 8], True)
        grid = (even + self.shift).expand(len(image), -1, -1, -1)
        seen = functional.grid_sample(image, grid, align_corners=True)
        out: Tensor = self.body(seen) * self.scale
        return out


def warped(seed: int = 0, dropout: float = 0.0) -> Warped:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Warped(dropout).to(memory_format=torch.channels_last)


def warped_loss(module: nn.Module, step: int) -> Tensor:
    random = np.random.default_rng([3, step])
    image = torch.from_numpy(random.random((4, 3, 16, 16), np.float32))
    wanted = torch.from_numpy(random.integers(4, size=(4, 8, 8)))
    return functional.cross_entropy(module(image).float(), wanted)


def interrupted(loss_of: Losses, at: int) -> Losses:
    def stops(module: nn.Module, step: int) -> Tensor:
        if step == at:
            raise KeyboardInterrupt
        return loss_of(module, step)

    return stops


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


OPTIONS = LoopOptions(
    12, lr=1e-2, warm_up_steps=3, average=0.8, lr_scales={"shift": 0.3}
)


def cut_short(file: Path, at: int, every: int, options: LoopOptions = OPTIONS) -> None:
    """Leave the checkpoint of a fit that stops in a step."""
    with pytest.raises(KeyboardInterrupt):
        fit(
            warped(), interrupted(warped_loss, at), options, checkpoint=file,
            every=every,
        )  # fmt: skip


# fitting


def test_fit_finds_the_line_and_reports_every_step() -> None:
    line, seen = Line(), []
    options = LoopOptions(200, lr=0.1, weight_decay=0, warm_up_steps=5, average=0.9)
    losses = fit(
        line,
        line_loss,
        options,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert float(line.slope.detach()) == pytest.approx(2, abs=0.02)
    assert float(line.shift.detach()) == pytest.approx(-1, abs=0.02)
    assert not line.training
    assert len(losses) == 200
    assert losses[-1] < 1e-3 < losses[0]
    assert seen[0] == (1, 200)
    assert seen[-1] == (200, 200)


def test_fit_scales_the_rate_by_name() -> None:
    line = Line()
    fit(line, line_loss, LoopOptions(5, lr=0.1, lr_scales={"slope": 0.0}))
    assert float(line.slope.detach()) == 0
    assert float(line.shift.detach()) != 0


def test_fit_ends_with_the_average() -> None:
    final, mean = Line(), Line()
    common = {"lr": 0.1, "weight_decay": 0.0, "warm_up_steps": 1}
    fit(final, line_loss, LoopOptions(6, average=0.0, **common))  # type: ignore[arg-type]  # a plain dict
    fit(mean, line_loss, LoopOptions(6, average=0.9, **common))  # type: ignore[arg-type]
    assert 0 < float(mean.slope.detach()) < float(final.slope.detach())


def test_no_steps_leave_the_module_alone(tmp_path: Path) -> None:
    line = Line()
    assert fit(line, line_loss, LoopOptions(0), checkpoint=tmp_path / "c") == []
    assert float(line.slope.detach()) == 0
    assert not line.training


def test_the_rate_warms_up_and_falls_as_a_cosine(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.csv")
    options = LoopOptions(8, lr=0.4, warm_up_steps=4)
    fit(Line(), line_loss, options, journal=journal)
    rates = [row["lr"] for row in rows_of(journal.path)]
    cosine = [0.2 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, *cosine])


def test_a_loss_in_parts_is_their_sum(tmp_path: Path) -> None:
    whole, parted = Line(), Line()
    journal = Journal(tmp_path / "log.csv")

    def parts(module: nn.Module, step: int) -> Mapping[str, Tensor]:
        loss = line_loss(module, step)
        return {"fit": 0.75 * loss, "rest": 0.25 * loss}

    options = LoopOptions(4, lr=0.1)
    a = fit(whole, line_loss, options)
    b = fit(parted, parts, options, journal=journal)
    assert b == pytest.approx(a, rel=1e-5)  # the sum is rounded otherwise
    for row, loss in zip(rows_of(journal.path), b, strict=True):
        assert row["loss"] == loss
        assert row["fit"] == pytest.approx(3 * row["rest"], rel=1e-6)


@pytest.mark.parametrize("parts", [{}, {"lr": torch.ones(())}])
def test_parts_without_or_with_taken_names_are_refused(parts: Any) -> None:
    with pytest.raises(ConfigError, match="parts of the loss are named"):
        fit(Line(), lambda module, step: parts, LoopOptions(1))


def test_parts_that_change_are_refused() -> None:
    def parts(module: nn.Module, step: int) -> Mapping[str, Tensor]:
        return {f"part{step}": line_loss(module, step)}

    with pytest.raises(ConfigError, match="were loss, part0; in step 1 they are loss"):
        fit(Line(), parts, LoopOptions(2))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": -1}, "steps must be 0 or more"),
        ({"devices": 0}, "devices must be 1 or more"),
        ({"device": "cuda:1", "devices": 2}, "'cuda:1' is one device, and 2"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoopOptions(**({"steps": 1} | wrong))


@pytest.mark.parametrize("name", ["every", "validate_every"])
def test_steps_between_events_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be 1 step or more, got 0"):
        fit(Line(), line_loss, LoopOptions(1), **{name: 0})  # type: ignore[arg-type]


# going on


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("stops", [(0,), (1,), (5,), (11,), (4, 9), (7, 7, 8)])
def test_an_interrupted_fit_gives_the_same_bits(
    tmp_path: Path, precision: Any, stops: tuple[int, ...]
) -> None:
    options, file = replace(OPTIONS, precision=precision), tmp_path / "at" / "c.st"
    straight = warped()
    losses = fit(straight, warped_loss, options)
    for at in stops:
        cut_short(file, at, 2, options)
        assert file.exists() == (at >= 2)
    # other weights at the start: those of the file count
    resumed, steps = warped(seed=9 if stops[-1] >= 2 else 0), []

    def counted(module: nn.Module, step: int) -> Tensor:
        steps.append(step)
        return warped_loss(module, step)

    again = fit(resumed, counted, options, checkpoint=file, every=2)
    assert steps == list(range(stops[-1] // 2 * 2, 12))
    assert again == losses
    assert same(resumed, straight)
    assert not list((tmp_path).rglob("*.st"))


@given(at=st.integers(0, 11), every=st.integers(1, 13))
@settings(max_examples=15)
def test_any_interruption_gives_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, at: int, every: int
) -> None:
    file = tmp_path_factory.mktemp("c") / "c.st"
    straight, resumed = warped(), warped()
    losses = fit(straight, warped_loss, OPTIONS)
    cut_short(file, at, every)
    assert fit(resumed, warped_loss, OPTIONS, checkpoint=file) == losses
    assert same(resumed, straight)


def test_dropout_repeats_itself_too(tmp_path: Path) -> None:
    file, nets, losses = tmp_path / "c.st", [], []
    for stop in (None, 7):
        torch.manual_seed(5)
        net = warped(dropout=0.5)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                fit(
                    net, interrupted(warped_loss, stop), OPTIONS, checkpoint=file,
                    every=3,
                )  # fmt: skip
            torch.manual_seed(99)
        nets.append(net)
        losses.append(fit(net, warped_loss, OPTIONS, checkpoint=file))
    assert losses[0] == losses[1]
    assert same(*nets)


def test_the_optimizer_goes_on_with_strides_as_torch_made_them(tmp_path: Path) -> None:
    made: list[Any] = []
    begin = loop._begin

    def watched(module: nn.Module, options: LoopOptions) -> Any:
        made.append(begin(module, options))
        return made[-1]

    file = tmp_path / "c.st"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_begin", watched)
        cut_short(file, 4, 2)
        fit(warped(), warped_loss, OPTIONS, checkpoint=file)
    strides = []
    for training in made:
        weight = training.module.body[0].weight
        moments = training.optimizer.state[weight]
        assert moments["exp_avg"].stride() == weight.stride()
        strides.append(weight.stride())
    assert strides[0] == strides[1]
    assert strides[0][1] == 1  # channels last, so that the test means something


def test_a_checkpoint_holds_no_pickle_and_appears_whole(tmp_path: Path) -> None:
    file = tmp_path / "c.st"
    cut_short(file, 4, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["c.st"]
    with safe_open(file, "pt") as opened:
        there = orjson.loads(opened.metadata()["training"])
        names = set(opened.keys())
    assert there["done"] == 3
    assert there["facts"]["lr_scales"] == {"shift": 0.3}
    assert there["trained"] == [
        "shift", "scale", "idle", "body.0.weight", "body.0.bias", "body.1.weight",
        "body.1.bias", "body.4.weight", "body.4.bias",
    ]  # fmt: skip
    assert "averaged.module.body.1.running_var" in names
    assert "optimizer.shift.exp_avg_sq" in names
    assert "optimizer.still.step" not in names
    assert "optimizer.idle.step" not in names
    assert load_file(file)["history.loss"].shape == (3,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.02}, r"lr is 0\.01 there and 0\.02 here"),
        ({"steps": 13}, "steps is 12 there and 13 here"),
        ({"precision": "bf16-mixed"}, "precision is '32-true' there"),
        ({"lr_scales": {"body": 0.3}}, "lr_scales is {'shift': 0.3} there"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file = tmp_path / "c.st"
    cut_short(file, 4, 2)
    before, net = file.read_bytes(), warped()
    with pytest.raises(ConfigError, match=words) as caught:
        fit(net, warped_loss, replace(OPTIONS, **change), checkpoint=file)
    assert str(file) in str(caught.value)
    assert "delete the file to start anew" in str(caught.value)
    assert file.read_bytes() == before
    assert same(net, warped())


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.st"
    cut_short(file, 4, 2)
    with pytest.raises(ConfigError, match="drawn_from is '' there and 'seed 2' here"):
        fit(warped(), warped_loss, OPTIONS, checkpoint=file, drawn_from="seed 2")


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.st"
    cut_short(file, 4, 2)

    def refusal(net: nn.Module) -> str:
        with pytest.raises(ConfigError) as caught:
            fit(net, warped_loss, OPTIONS, checkpoint=file)
        return str(caught.value)

    more, less, wide, frozen = warped(), warped(), warped(), warped()
    more.register_buffer("extra", torch.zeros(2))
    del less.still
    wide.shift = nn.Parameter(torch.zeros(1, 9, 8, 2))
    frozen.scale.requires_grad_(False)
    assert "it misses module.extra" in refusal(more)
    assert "it holds averaged.module.still, which is unknown" in refusal(less)
    shapes = "module.shift is (1, 8, 8, 2) torch.float32 there and (1, 9, 8, 2)"
    assert shapes in refusal(wide)
    assert "parameters with a gradient is ['shift'" in refusal(frozen)
    assert "torch.float32 there and (1, 8, 8, 2) torch.float64" in refusal(
        warped().double()
    )


Stored = dict[str, Tensor]


def no_history(stored: Stored) -> Stored:
    return {k: v for k, v in stored.items() if not k.startswith("history")}


def short_history(stored: Stored) -> Stored:
    return stored | {"history.loss": stored["history.loss"][1:]}


def uneven_history(stored: Stored) -> Stored:
    return stored | {"history.part": torch.zeros(5, dtype=torch.float64)}


def no_moment(stored: Stored) -> Stored:
    return {k: v for k, v in stored.items() if k != "optimizer.shift.exp_avg"}


def strange_moment(stored: Stored) -> Stored:
    return stored | {"optimizer.shift.max_exp_avg_sq": torch.zeros(1)}


def short_random(stored: Stored) -> Stored:
    return stored | {"random": stored["random"][:, 1:]}


def two_ranks(stored: Stored) -> Stored:
    return stored | {"random": stored["random"].repeat(2, 1)}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_history, "misses history.loss"),
        (short_history, r"history.loss is \(3,\)"),
        (uneven_history, "history.part has 5 steps, not 4"),
        (no_moment, "misses optimizer.shift.exp_avg"),
        (strange_moment, "holds optimizer.shift.max_exp_avg_sq"),
        (short_random, "random is"),
        (two_ranks, "random is"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, damage: Callable[[Stored], Stored], words: str
) -> None:
    file, net = tmp_path / "c.st", warped()
    cut_short(file, 4, 2)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(damage(load_file(file)), file, metadata)
    with pytest.raises(ConfigError, match=words):
        fit(net, warped_loss, OPTIONS, checkpoint=file)
    assert same(net, warped())


def header(**wrong: object) -> dict[str, str]:
    right = {"format": 1, "facts": {}, "trained": [], "done": 2, "seconds": 0.5}
    return {"training": json.dumps(right | wrong)}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "no checkpoint of ours"),
        ({"training": "{}"}, r"no checkpoint of ours \(format"),
        ({"training": '{"format": 2}'}, r"no checkpoint of ours \(format"),
        ({"training": "[1"}, "no checkpoint of ours"),
        (header(done="2"), r"no checkpoint of ours \(done"),
        (header(done=0), r"no checkpoint of ours \(done"),
        (header(more=1), r"no checkpoint of ours \(more"),
    ],
)
def test_files_of_other_kinds_are_refused(
    tmp_path: Path, metadata: dict[str, str] | None, words: str
) -> None:
    file = tmp_path / "c.st"
    save_file({"a": torch.zeros(1)}, file, metadata)
    with pytest.raises(ConfigError, match=words):
        fit(Line(), line_loss, LoopOptions(2), checkpoint=file)
    assert file.exists()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 9, None])
def test_what_is_no_safetensors_file_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "c.st"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="no readable safetensors file"):
        fit(Line(), line_loss, LoopOptions(2), checkpoint=file)


def test_a_cut_off_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.st"
    cut_short(file, 4, 2)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="no readable safetensors file"):
        fit(warped(), warped_loss, OPTIONS, checkpoint=file)


def test_a_checkpoint_that_cannot_be_written_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file"):
        fit(
            Line(), line_loss, LoopOptions(3), checkpoint=tmp_path / "file" / "c",
            every=1,
        )  # fmt: skip


# validation


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_validation_leaves_no_trace(precision: Any) -> None:
    options = replace(OPTIONS, precision=precision)
    plain, watched, calls = warped(dropout=0.3), warped(dropout=0.3), []

    def meddle(module: nn.Module, done: int) -> None:
        calls.append(done)
        assert module is watched
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        torch.manual_seed(done)
        torch.rand(3)
        module(torch.rand(2, 3, 16, 16))
        for tensor in module.state_dict().values():
            tensor.zero_()
        module.body[1].train()

    torch.manual_seed(1)
    plain.body[2].eval()
    losses = fit(plain, warped_loss, options)
    torch.manual_seed(1)
    watched.body[2].eval()
    again = fit(watched, warped_loss, options, validate=meddle, validate_every=4)
    assert calls == [4, 8, 12]
    assert again == losses
    assert same(plain, watched)


def test_validation_sees_the_average() -> None:
    line, seen = Line(), []
    options = LoopOptions(6, lr=0.1, warm_up_steps=1, average=0.9)

    def look(module: nn.Module, done: int) -> None:
        seen.append(float(module.slope.detach()))  # type: ignore[operator]

    fit(line, line_loss, options, validate=look, validate_every=3)
    assert len(seen) == 2
    assert 0 < seen[0] < seen[1] == float(line.slope.detach())


def test_a_failing_validation_gives_the_weights_back() -> None:
    a, b = warped(), warped()

    def fail(module: nn.Module, done: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fit(a, warped_loss, OPTIONS, validate=fail, validate_every=5)
    with pytest.raises(KeyboardInterrupt):
        fit(b, interrupted(warped_loss, 5), OPTIONS)
    assert same(a, b)
    assert a.training


def test_an_interrupted_fit_validates_every_step_it_should(tmp_path: Path) -> None:
    calls: list[int] = []

    def look(module: nn.Module, done: int) -> None:
        calls.append(done)
        if calls == [2, 4]:
            raise KeyboardInterrupt

    file, line = tmp_path / "c.st", Line()
    with pytest.raises(KeyboardInterrupt):
        fit(
            line, line_loss, LoopOptions(6), checkpoint=file, every=2,
            validate=look, validate_every=2,
        )  # fmt: skip
    fit(
        Line(), line_loss, LoopOptions(6), checkpoint=file, every=2,
        validate=look, validate_every=2,
    )  # fmt: skip
    assert calls == [2, 4, 4, 6]


# journal


def rows_of(path: Path) -> list[dict[str, float]]:
    lines = path.read_text().splitlines()
    names = lines[0].split(",")
    return [
        dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]
    ]


def test_the_journal_gets_means_between_rows_and_the_last_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "log.csv", every=4)
    losses = fit(Line(), line_loss, LoopOptions(10), journal=journal)
    rows = rows_of(journal.path)
    assert list(rows[0]) == ["step", "loss", "lr", "seconds", "peak_bytes"]
    assert [row["step"] for row in rows] == [4, 8, 10]
    means = [np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])]
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-12)
    assert all(row["peak_bytes"] > 1e6 for row in rows)
    times = [row["seconds"] for row in rows]
    assert times == sorted(times)


def test_the_journal_is_readable_while_it_grows(tmp_path: Path) -> None:
    path, seen = tmp_path / "log.csv", []
    fit(
        Line(),
        line_loss,
        LoopOptions(5),
        journal=Journal(path, every=2),
        progress=lambda done, total: seen.append(
            len(rows_of(path)) if path.exists() else 0
        ),
    )
    assert seen == [0, 1, 1, 2, 3]


def test_the_journal_of_an_interrupted_fit_is_that_of_a_straight_one(
    tmp_path: Path,
) -> None:
    straight, cut = tmp_path / "a.csv", tmp_path / "b.csv"
    fit(warped(), warped_loss, OPTIONS, journal=Journal(straight, every=3))
    for at in (8, 11, 99):
        try:
            fit(
                warped(), interrupted(warped_loss, at), OPTIONS,
                journal=Journal(cut, every=3), checkpoint=tmp_path / "c", every=4,
            )  # fmt: skip
        except KeyboardInterrupt:
            assert rows_of(cut)[-1]["step"] == {8: 6, 11: 9}[at]
    wanted, found = rows_of(straight), rows_of(cut)
    for row in (*wanted, *found):
        del row["seconds"], row["peak_bytes"]
    assert found == wanted


def test_seconds_go_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(now)))
    monkeypatch.setattr("wsi_pipeline.training.loop.time", clock)
    journal, file = Journal(tmp_path / "log.csv"), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        fit(
            Line(), interrupted(line_loss, 3), LoopOptions(5), journal=journal,
            checkpoint=file, every=2,
        )  # fmt: skip
    fit(Line(), line_loss, LoopOptions(5), journal=journal, checkpoint=file)
    assert [row["seconds"] for row in rows_of(journal.path)] == [1, 2, 3, 4, 5]


def test_a_new_fit_begins_a_new_journal(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    Journal(path).add(1, {"other": 1.0})
    for every, steps in ((1, [1, 2, 3]), (2, [2, 3])):
        fit(Line(), line_loss, LoopOptions(3), journal=Journal(path, every=every))
        assert [row["step"] for row in rows_of(path)] == steps


def test_rows_from_a_repeated_step_on_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for step in (2, 4, 6):
        Journal(path).add(step, {"miou": step / 10})
    Journal(path).add(4, {"miou": 0.9})
    assert path.read_text() == "step,miou\n2,0.2\n4,0.9\n"


@pytest.mark.parametrize("torn", ["", "st", "step,mi", "step,miou\n2,0.2\n4,0."])
def test_a_torn_row_is_cut(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(torn)
    Journal(path).add(4, {"miou": 0.5})
    rows = "2,0.2\n" if "2,0.2" in torn else ""
    assert path.read_text() == f"step,miou\n{rows}4,0.5\n"


@pytest.mark.parametrize("content", [b"slide,label\na,1\n", b"\xff\xfe", b"steps\n"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"log\.csv: no journal"):
        Journal(path).rewind(0)
    with pytest.raises(ConfigError, match=r"log\.csv: no journal"):
        Journal(path).add(1, {})
    assert path.read_bytes() == content


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    Journal(path).add(1, {"a": 1.0})
    with pytest.raises(ConfigError, match="columns are step, a; got step, b"):
        Journal(path).add(2, {"b": 1.0})


def test_a_journal_that_is_removed_begins_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.csv")
    journal.add(1, {"a": 1.0})
    journal.path.unlink()
    journal.add(2, {"a": 2.0})
    assert rows_of(journal.path) == [{"step": 2, "a": 2}]
    journal.path.unlink()
    journal.path.mkdir()
    with pytest.raises(ExportError, match=r"log\.csv: cannot write"):
        journal.add(3, {"a": 2.0})


def test_a_journal_of_no_steps_or_no_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a row per 0 steps"):
        Journal(tmp_path / "log.csv", every=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file"):
        Journal(tmp_path / "file" / "log.csv").add(1, {})


@given(value=st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=30)
def test_numbers_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    path = tmp_path_factory.mktemp("j") / "log.csv"
    Journal(path).add(7, {"loss": value})
    assert rows_of(path) == [{"step": 7, "loss": value}]


def test_tensorboard_has_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        Journal(tmp_path / "log.csv", tensorboard=tmp_path / "tb")


def test_tensorboard_gets_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append(("open", Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append(("close",))

    stand_in = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    journal = Journal(tmp_path / "log.csv", tensorboard=tmp_path / "tb")
    journal.add(1, {"loss": 0.5})
    journal.add(2, {"loss": 0.25})
    journal.add(2, {"loss": 0.125})
    journal.close()
    assert told == [
        ("open", "tb", 1), ("loss", 0.5, 1), ("loss", 0.25, 2), ("close",),
        ("open", "tb", 2), ("loss", 0.125, 2), ("close",),
    ]  # fmt: skip


# several processes

SCRIPT = '''
"""Fits two modules one after the other on two ranks, and keeps what each has."""
import json, sys, torch, numpy as np
from pathlib import Path
from torch import nn
from wsi_pipeline.models.weights import save_state
from wsi_pipeline.training.journal import Journal
from wsi_pipeline.training.loop import LoopOptions, fit, rank, rank_seed

out, stop = Path(sys.argv[1]), int(sys.argv[2])
drawn, told, seen = [], [], []


def loss_of(module, step):
    if step == stop:
        raise KeyboardInterrupt
    random = np.random.default_rng(rank_seed([3, step]))
    x = torch.from_numpy(random.random((4, 3, 8, 8), np.float32))
    drawn.append(float(x.mean()))
    return (module(x) - x.mean(dim=(1, 2, 3), keepdim=True)).square().mean()


def net():
    torch.manual_seed(rank())  # other weights on each: those of the first count
    # no bias before a norm: its gradient is rounding, and Adam makes steps of it
    first = nn.Conv2d(3, 4, 3, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


options = LoopOptions(6, lr=0.01, warm_up_steps=2, average=0.5, devices=2)
if stop < 0:
    fit(net(), loss_of, LoopOptions(1, devices=2))
drawn.clear()
module = net()
losses = fit(
    module, loss_of, options,
    progress=lambda done, total: told.append(done),
    checkpoint=out / "c.st", every=2, drawn_from="seed 3",
    journal=Journal(out / "log.csv"),
    validate=lambda module, done: seen.append(done), validate_every=3,
)
facts = {"losses": losses, "drawn": drawn, "told": told, "seen": seen}
(out / f"{rank()}.json").write_text(json.dumps(facts))
save_state(module, out / f"{rank()}.safetensors")
'''


def run_two(out: Path, stop: int = -1) -> subprocess.CompletedProcess[str]:
    """Run the script, which starts itself once more; loopback only."""
    out.mkdir(exist_ok=True)
    script = out.parent / "train.py"
    script.write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        [sys.executable, str(script), str(out), str(stop)],
        env=kept | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def reference() -> tuple[nn.Module, list[float]]:
    """One process whose loss is the mean of what the two draw."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Conv2d(3, 4, 3, bias=False)
        net = nn.Sequential(first, nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))

    def loss_of(module: nn.Module, step: int) -> Tensor:
        losses = []
        for seed in ([3, step], [3, step, 1]):
            random = np.random.default_rng(seed)
            x = torch.from_numpy(random.random((4, 3, 8, 8), np.float32))
            wanted = x.mean(dim=(1, 2, 3), keepdim=True)
            losses.append((module(x) - wanted).square().mean())
        return torch.stack(losses).mean()

    options = LoopOptions(6, lr=0.01, warm_up_steps=2, average=0.5)
    return net, fit(net, loss_of, options)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a straight run on two ranks."""
    out = tmp_path_factory.mktemp("two") / "out"
    done = run_two(out)
    assert done.returncode == 0, done.stderr
    return out


def facts(out: Path) -> list[dict[str, list[float]]]:
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_end_alike_and_as_one_with_both_batches(two: Path) -> None:
    first, second = facts(two)
    assert first["losses"] == second["losses"]
    assert len(set(first["drawn"]) & set(second["drawn"])) == 0
    weights = [load_file(two / f"{rank}.safetensors") for rank in range(2)]
    # buffers as well: those of the first
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    net, losses = reference()
    assert first["losses"] == pytest.approx(losses, rel=1e-5)
    for name, parameter in net.named_parameters():
        # Adam divides by the root of a mean square: rounding is magnified to 1e-4
        torch.testing.assert_close(
            weights[0][name], parameter.detach(), rtol=1e-3, atol=1e-5
        )


def test_only_the_first_rank_tells_and_writes(two: Path) -> None:
    first, second = facts(two)
    assert (first["told"], second["told"]) == ([1, 2, 3, 4, 5, 6], [])
    assert (first["seen"], second["seen"]) == ([3, 6], [])
    rows = rows_of(two / "log.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == first["losses"]
    assert not (two / "c.st").exists()


@pytest.mark.slow
def test_two_ranks_go_on_after_an_interruption(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_two(out, stop=5).returncode != 0
    assert load_file(out / "c.st")["random"].shape[0] == 2
    done = run_two(out, stop=99)
    assert done.returncode == 0, done.stderr
    assert facts(out)[0]["losses"] == facts(two)[0]["losses"]
    assert len(facts(out)[1]["drawn"]) == 2
    for number in range(2):
        name = f"{number}.safetensors"
        assert (out / name).read_bytes() == (two / name).read_bytes()


def test_alone_the_seed_stays_as_it_is() -> None:
    assert rank() == 0
    assert rank_seed([5, 0, 7]) == [5, 0, 7]


def test_other_ranks_draw_from_other_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "wsi_pipeline.training.loop.distributed"
    there = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_rank=lambda: 3
    )
    monkeypatch.setattr(name, there)
    assert rank_seed([5, 7]) == [5, 7, 3]
