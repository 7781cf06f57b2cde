"""The opener of nets: device, budget, plan, enforcement, and the file of peaks."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import torch
from torch import nn

from tests.models import small_model
from wsi_pipeline.config import NetOptions, SegmentOptions
from wsi_pipeline.errors import BudgetError
from wsi_pipeline.models.budget import MARGIN, BatchPlan, budget_for, report_memory
from wsi_pipeline.models.peaks import keep_peaks, load_peaks
from wsi_pipeline.models.planning import Workload, planned
from wsi_pipeline.models.segmenting import RegionSegmenter, open_segmenter
from wsi_pipeline.results import SlideFolder

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
MIB = 1 << 20
ROOMY = NetOptions(memory="1GiB", gpu_memory="1GiB")


class Net:
    """A net whose batches take known memory on the host; counts its warm-ups."""

    def __init__(self, slope: int = MIB) -> None:
        self.slope = slope
        self.ran: list[int] = []

    def __call__(self, batch: int) -> None:
        self.ran.append(batch)
        torch.empty(self.slope * batch, dtype=torch.uint8)

    def workload(self, **changes: object) -> Workload:
        made = Workload("net", nn.Linear(4, 4), ("sha", "64 px"), self, 64)
        return replace(made, **changes)


def plan_of(
    made: Net,
    options: NetOptions = ROOMY,
    device: torch.device = CPU,
    *,
    cache: Path | None = None,
    host_bytes: int = 0,
    **changes: object,
) -> BatchPlan:
    work = made.workload(**changes)
    with planned(work, device, options, cache=cache, host_bytes=host_bytes) as plan:
        return plan


# the file of peaks


@pytest.mark.parametrize("memory", ["100MiB", "200MiB", "1GiB"])
def test_a_plan_from_the_file_is_the_plan_without_and_runs_nothing(
    tmp_path: Path, memory: str
) -> None:
    file, options = tmp_path / "plans.json", NetOptions(memory=memory)
    without, first, second = Net(), Net(), Net()
    expected = plan_of(without, options)
    assert plan_of(first, options, cache=file) == expected
    assert first.ran == without.ran
    assert plan_of(second, options, cache=file) == expected
    assert second.ran == []


def test_peaks_that_are_known_serve_every_budget(tmp_path: Path) -> None:
    file, other = tmp_path / "plans.json", Net()
    plan_of(Net(), cache=file)
    tight = NetOptions(memory="110MiB")
    assert plan_of(other, tight, cache=file) == plan_of(Net(), tight)
    # what the larger budget had no use for
    assert 0 < len(other.ran) < len(set(other.ran) | {1, 8, 16})


@pytest.mark.parametrize(
    "changes",
    [{"what": "other"}, {"identity": ("sha2", "64 px")}, {"identity": ("sha",)}],
)
def test_another_net_is_measured_anew(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    file, net = tmp_path / "plans.json", Net(2 * MIB)
    plan_of(Net(), cache=file)
    assert plan_of(net, cache=file, **changes) == plan_of(Net(2 * MIB))
    assert net.ran


def test_another_number_of_threads_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, net = tmp_path / "plans.json", Net()
    plan_of(Net(), cache=file)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    plan_of(net, cache=file)
    assert net.ran


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"plans": "of somebody else"}',
        b'{"kind": "peaks of nets, bytes by batch", "peaks": {"net": {"8": -1}}}',
    ],
)
def test_a_damaged_or_foreign_file_is_told_of_and_replaced(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "plans.json"
    file.write_bytes(content)
    net = Net()
    assert plan_of(net, cache=file) == plan_of(Net())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{file}: no readable peaks" in caplog.text
    caplog.clear()
    again = Net()
    plan_of(again, cache=file)
    assert again.ran == []
    assert not caplog.records


def test_a_folder_that_cannot_be_written_costs_the_file_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    net = Net()
    assert plan_of(net, cache=tmp_path / "file" / "plans.json") == plan_of(Net())
    assert "peaks of nets were not kept" in caplog.text


def test_what_the_file_holds_can_be_read_by_people(tmp_path: Path) -> None:
    file = tmp_path / "plans.json"
    plan_of(Net(), cache=file)
    data = orjson.loads(file.read_bytes())
    assert data["kind"] == "peaks of nets, bytes by batch"
    (key,) = data["peaks"]
    assert key.startswith("net sha 64 px; cpu ")
    assert f"torch {torch.__version__}" in key
    assert set(data["peaks"][key]) == {"0", "1", "8", "16", "64"}


def test_peaks_of_several_nets_are_kept_beside_each_other(tmp_path: Path) -> None:
    file = tmp_path / "plans.json"
    keep_peaks(file, "a", {1: 10})
    keep_peaks(file, "b", {2: 20})
    keep_peaks(file, "a", {4: 40})
    assert load_peaks(file, "a") == {1: 10, 4: 40}
    assert load_peaks(file, "b") == {2: 20}
    assert load_peaks(file, "c") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["plans.json"]


def test_writers_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "plans.json"

    def write(name: str) -> None:
        for batch in range(1, 16):
            keep_peaks(file, name, {batch: batch})
            assert load_peaks(file, name).items() <= {(i, i) for i in range(1, 16)}

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["a", "b"]))
    assert load_peaks(file, "a") or load_peaks(file, "b")


def test_the_file_lies_beside_run_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "slide").mkdir(parents=True)
    expected = tmp_path / "out" / "plans.json"
    assert SlideFolder(tmp_path / "out" / "slide").plans == expected
    monkeypatch.chdir(tmp_path / "out" / "slide")
    assert SlideFolder(Path()).plans == expected


def test_a_slide_that_goes_on_gets_its_batch_again_without_a_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = small_model(tmp_path / "model"), tmp_path / "plans.json"
    options = SegmentOptions(device="cpu", memory="80MiB")
    with open_segmenter(model, options, 128.0, cache=file) as segmenter:
        first = segmenter.plan
    ran = []
    real = RegionSegmenter.warm_up

    def counted(self: RegionSegmenter, side_px: int) -> None:
        ran.append(side_px)
        real(self, side_px)

    monkeypatch.setattr(RegionSegmenter, "warm_up", counted)
    with open_segmenter(model, options, 128.0, cache=file) as segmenter:
        assert segmenter.plan == first
    assert ran == []
    with open_segmenter(model, options, 128.0) as segmenter:
        assert segmenter.plan == first
    assert ran
    other = options.model_copy(update={"strategy": "uniform"})
    ran.clear()
    with open_segmenter(model, other, 128.0, cache=file):
        assert ran


# the host


def test_what_waits_on_the_host_is_taken_off_the_budget_of_the_cpu() -> None:
    free, queued = plan_of(Net()), plan_of(Net(), host_bytes=800 * MIB)
    assert queued.batch < free.batch
    assert queued.counted_bytes <= 1024 * MIB * MARGIN
    assert queued.counted_bytes - 800 * MIB > queued.measured_bytes
    with pytest.raises(BudgetError, match="give --memory"):
        plan_of(Net(), host_bytes=1000 * MIB)


def test_pixels_of_a_batch_on_the_host_count_with_it() -> None:
    alone, both = plan_of(Net()), plan_of(Net(), item_host_bytes=3 * MIB)
    assert both.slope == alone.slope + 3 * MIB


def test_what_loading_took_counts_where_running_takes_less() -> None:
    # 34 MiB of weights, twice that while they are read, and 48 for libraries
    large, options = nn.Linear(3000, 3000), NetOptions(memory="100MiB")
    with pytest.raises(BudgetError, match="needs at least 123 MiB"):
        plan_of(Net(), options, net=large)


def test_memory_that_runs_out_in_a_warm_up_is_told_as_such() -> None:
    def failing(batch: int) -> None:
        if batch > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BudgetError, match="net was tried with 16 at a time"):
        plan_of(Net(), run=failing)

    def broken(batch: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        plan_of(Net(), run=broken)


# a card that is made of numbers, since tests must not need one


class Card:
    """Stands in for torch.cuda: 8 GiB, of which other processes hold some."""

    total = 8192 * MIB
    context = 400 * MIB

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = self.peak = 0
        self.fraction = 0.75
        self.fractions: list[float] = []
        self.slope = 10 * MIB
        self.ran: list[int] = []
        replaced: dict[str, Callable[..., object]] = {
            "mem_get_info": lambda _: (
                self.total - self.context - self.reserved,
                self.total,
            ),
            "memory_reserved": lambda _: self.reserved,
            "max_memory_reserved": lambda _: self.peak,
            "max_memory_allocated": lambda _: self.peak - MIB,
            "reset_peak_memory_stats": lambda _: setattr(self, "peak", self.reserved),
            "empty_cache": lambda: setattr(self, "reserved", 100 * MIB),
            "synchronize": lambda _: None,
            "get_device_name": lambda _: "Card 8000",
            "get_per_process_memory_fraction": lambda _: self.fraction,
            "set_per_process_memory_fraction": self.limit,
        }
        for name, function in replaced.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def limit(self, fraction: float, _: torch.device) -> None:
        self.fractions.append(fraction)
        self.fraction = fraction

    def run(self, batch: int) -> None:
        self.ran.append(batch)
        self.reserved = 100 * MIB + self.slope * batch
        self.peak = max(self.peak, self.reserved)

    def plan(self, cache: Path | None = None, **changes: object) -> BatchPlan:
        return plan_of(Net(), ROOMY, CARD, cache=cache, run=self.run, **changes)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def test_on_a_card_the_context_counts_and_the_host_does_not(card: Card) -> None:
    plan = card.plan(host_bytes=1000 * MIB, item_host_bytes=100 * MIB)
    # 400 of context and 100 of weights, 10 each: 820 of 973
    assert (plan.batch, plan.option) == (32, "--gpu-memory")
    assert plan.measured_bytes == plan.counted_bytes == 820 * MIB
    assert plan.intercept == 500 * MIB
    assert plan.slope == 10 * MIB


def test_on_a_card_the_allocator_is_limited_while_in_use_only(card: Card) -> None:
    work = Net().workload(run=card.run)
    with pytest.raises(ValueError, match="stop"), planned(work, CARD, ROOMY):
        assert card.fractions == [(1024 - 400) / 8192]
        card.run(50)
        report = report_memory(CARD)
        raise ValueError("stop")
    assert card.fraction == 0.75
    assert (report.allocated, report.reserved) == (599 * MIB, 1000 * MIB)


def test_on_a_card_one_warm_up_confirms_a_plan_from_the_file(
    card: Card, tmp_path: Path
) -> None:
    file = tmp_path / "plans.json"
    first = card.plan(file)
    assert card.ran == [1, 8, 16, 32]
    card.ran.clear()
    assert card.plan(file) == first
    assert card.ran == [32]


def test_on_a_card_a_plan_that_is_not_confirmed_is_made_anew(
    card: Card, tmp_path: Path
) -> None:
    file = tmp_path / "plans.json"
    card.plan(file)
    card.slope = 20 * MIB  # a library that takes more than when it was measured
    card.ran.clear()
    plan = card.plan(file)
    assert card.ran == [32, 16]
    assert plan.batch == 16
    assert plan.measured_bytes == 820 * MIB
    card.ran.clear()
    assert card.plan(file).batch == 16
    assert card.ran == [16]


def test_a_share_of_a_card_is_one_of_all_it_has(card: Card) -> None:
    assert budget_for(CARD, 5, 0.25) == (2048 * MIB, "--gpu-memory")
    assert budget_for(CARD, 5, 7 * MIB) == (7 * MIB, "--gpu-memory")


def test_left_out_the_budget_is_nine_tenths_of_what_is_free(card: Card) -> None:
    card.reserved = 5000 * MIB  # kept by torch for later, so free as well
    free = 8192 - 400 - 100
    assert budget_for(CARD, 5, None) == (int(free * MIB * 0.9), "--gpu-memory")
