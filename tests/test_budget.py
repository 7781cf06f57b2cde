"""The memory budget: the fit, the refusal, halving, and the CPU trace."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.errors import BudgetError, ConfigError
from wsi_pipeline.models import budget
from wsi_pipeline.models.budget import (
    MARGIN,
    ElasticBatch,
    budget_for,
    enforced,
    held_bytes,
    is_out_of_memory,
    measure_peak,
    plan_batch,
    report_memory,
    resolve_device,
)
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.tracing import resident_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


class Affine:
    """A net whose memory is known; keeps the batches that it was asked for."""

    def __init__(self, intercept: int, slope: int) -> None:
        self.intercept, self.slope = intercept, slope
        self.asked: list[int] = []

    def __call__(self, batch: int) -> int:
        self.asked.append(batch)
        return self.intercept + self.slope * batch


def plan(measure, budget: int, **changes):
    options = {"option": "--memory", "what": "selector"} | changes
    return plan_batch(measure, budget, **options)


@given(
    intercept=st.integers(0, 500 * MIB),
    slope=st.integers(1, 20 * MIB),
    budget=st.integers(MIB, 2000 * MIB),
    largest=st.sampled_from([1, 2, 3, 32, 64, 512]),
)
def test_plan_is_the_largest_power_of_two_that_fits_and_never_exceeds(
    intercept: int, slope: int, budget: int, largest: int
) -> None:
    measure = Affine(intercept, slope)
    room = budget * MARGIN
    if intercept + slope > room:
        with pytest.raises(BudgetError):
            plan(measure, budget, largest=largest)
        assert measure.asked == [1]
        return
    chosen = plan(measure, budget, largest=largest)
    assert all(intercept + slope * asked <= room for asked in measure.asked)
    assert chosen.batch <= largest
    assert chosen.measured_bytes == intercept + slope * chosen.batch
    assert chosen.counted_bytes == chosen.measured_bytes
    assert chosen.intercept == pytest.approx(intercept, abs=1)
    assert chosen.slope == pytest.approx(slope, rel=1e-9)
    bigger = 2 * chosen.batch
    assert bigger > largest or intercept + slope * bigger > room - 1


def test_refusal_names_the_smallest_workable_budget_and_that_one_works() -> None:
    measure = Affine(300 * MIB, 7 * MIB)
    with pytest.raises(BudgetError) as caught:
        plan(measure, 100 * MIB, option="--gpu-memory")
    # 307 MiB / 0.95 = 323.2
    assert str(caught.value) == (
        "--gpu-memory 100MiB: the selector needs at least 324 MiB, for one item at a "
        "time; give --gpu-memory 324MiB or more"
    )
    assert plan(measure, 324 * MIB).batch == 1
    with pytest.raises(BudgetError):
        plan(measure, 323 * MIB)


def test_a_law_that_is_not_affine_is_measured_at_the_chosen_batch() -> None:
    def jumps(batch: int) -> int:
        return 10 * MIB * batch if batch < 32 else 100 * MIB * batch

    chosen = plan(jumps, 1000 * MIB)
    assert chosen.batch == 16
    assert chosen.measured_bytes == 160 * MIB


@given(
    slope=st.integers(1, 20 * MIB),
    budget=st.integers(MIB, 8000 * MIB),
    held=st.integers(0, 300 * MIB),
)
def test_what_counts_is_what_a_peak_may_take_not_the_peak(
    slope: int, budget: int, held: int
) -> None:
    measure = Affine(held, slope)

    def count(peak: int) -> int:
        return resident_bytes(peak, held)

    try:
        chosen = plan(measure, budget, count=count, largest=512)
    except BudgetError as error:
        smallest = int(str(error).split("give --memory ")[1].split("MiB")[0])
        assert smallest * MIB > budget
        assert plan(measure, smallest * MIB, count=count).batch >= 1
        return
    assert all(count(held + slope * i) <= budget * MARGIN for i in measure.asked)
    assert chosen.counted_bytes == count(chosen.measured_bytes)


def test_resident_memory_is_the_library_the_trace_and_a_heap_that_ends() -> None:
    library = resident_bytes(0, 0)
    assert library == 48 * MIB
    # what is held lies still, what a batch takes leaves pieces three times as large
    assert resident_bytes(110 * MIB, 100 * MIB) == library + (110 + 3 * 10) * MIB
    assert resident_bytes(900 * MIB, 100 * MIB) == library + (900 + 768) * MIB
    # a net that takes little when it runs took more when it was loaded
    assert resident_bytes(110 * MIB, 100 * MIB, 250 * MIB) == library + 250 * MIB


def net_of(width: int = 32) -> SelectorNet:
    torch.manual_seed(0)
    return SelectorNet(SelectorShape(width=width), ("cancer",)).eval()


@torch.inference_mode()
def warm_up(net: SelectorNet, side: int, batch: int) -> None:
    net.logits(net.embed(torch.zeros((batch, 3, side, side), dtype=torch.uint8)))


def test_cpu_peak_is_affine_in_the_batch_repeatable_and_holds_the_weights() -> None:
    net = net_of()
    held = held_bytes(net)
    # with a single patch other kernels take buffers that do not grow with the batch
    sizes = [2, 4, 8, 16, 32]

    def peak(batch: int) -> int:
        return measure_peak(CPU, lambda: warm_up(net, 128, batch), held)

    peaks = [peak(size) for size in sizes]
    assert peaks == [peak(size) for size in sizes]
    assert np.corrcoef(sizes, peaks)[0, 1] ** 2 > 0.99
    low, high = peaks[sizes.index(8)], peaks[sizes.index(16)]
    slope = (high - low) / 8
    for size, found in zip(sizes, peaks, strict=True):
        # what the fit of a plan predicts is not less than what is there
        assert 0.98 * found <= low + slope * (size - 8)
        assert found <= low + slope * (size - 8) + 1
    # at least the batch as bytes and as float32, twice while it is normalised
    assert slope > (1 + 4 + 4) * 3 * 128 * 128
    assert peaks[0] > held


def test_cpu_trace_counts_what_is_alive_at_once() -> None:
    def action() -> None:
        for _ in range(3):
            torch.empty(MIB, dtype=torch.uint8)
        both = [torch.empty(2 * MIB, dtype=torch.uint8) for _ in range(2)]
        del both

    assert measure_peak(CPU, action, held_bytes=5) == 4 * MIB + 5


def test_cpu_trace_ends_when_the_action_fails() -> None:
    def action() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measure_peak(CPU, action)
    assert measure_peak(CPU, lambda: torch.empty(64, dtype=torch.uint8)) == 64


def test_a_plan_for_a_real_net_fits_its_budget() -> None:
    net = net_of()

    def measure(batch: int) -> int:
        return measure_peak(CPU, lambda: warm_up(net, 128, batch), held_bytes(net))

    chosen = plan(measure, 16 * MIB)
    assert 1 < chosen.batch < 64
    assert chosen.measured_bytes <= 16 * MIB * MARGIN
    assert measure(2 * chosen.batch) > 16 * MIB * MARGIN
    assert chosen.predicted_bytes == pytest.approx(chosen.measured_bytes, rel=0.02)


# running out of memory


class Failing:
    """Fails with a given error as long as a batch is larger than `fits`."""

    def __init__(self, fits: int, error: BaseException) -> None:
        self.fits, self.error = fits, error
        self.calls: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> list[int]:
        self.calls.append((start, stop))
        if stop - start > self.fits:
            raise self.error
        return list(range(start, stop))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes"),
    ],
)
def test_out_of_memory_halves_and_redoes_only_the_failed_batch(
    error: BaseException,
) -> None:
    work, elastic = Failing(3, error), ElasticBatch(8, "--gpu-memory")
    parts = elastic.run(work, 11)
    assert [i for part in parts for i in part] == list(range(11))
    assert elastic.size == 2
    assert elastic.downgrades == [(8, 4), (4, 2)]
    assert work.calls[:4] == [(0, 8), (0, 4), (0, 2), (2, 4)]


def test_done_batches_are_not_repeated_when_a_later_one_fails() -> None:
    calls = []

    def work(start: int, stop: int) -> int:
        calls.append((start, stop))
        if (start, stop) == (8, 12):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stop - start

    assert sum(ElasticBatch(4, "--memory").run(work, 14)) == 14
    assert calls == [(0, 4), (4, 8), (8, 12), (8, 10), (10, 12), (12, 14)]


def test_out_of_memory_with_one_item_is_a_budget_error() -> None:
    work = Failing(0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(BudgetError, match="larger --gpu-memory"):
        ElasticBatch(4, "--gpu-memory").run(work, 4)


def test_other_errors_pass_through() -> None:
    work = Failing(0, RuntimeError("shapes do not match"))
    elastic = ElasticBatch(4, "--memory")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        elastic.run(work, 4)
    assert elastic.size == 4


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_the_allocator_of_this_torch_says_what_we_look_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


# devices


def test_devices_are_checked_by_name() -> None:
    assert resolve_device("cpu") == CPU
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device(None).type == expected
    with pytest.raises(ConfigError, match="expected cpu, cuda or cuda:N"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match="use --device cpu"):
        resolve_device("cuda:99")


def test_the_cpu_takes_memory_and_not_gpu_memory() -> None:
    assert budget_for(CPU, 5, 7) == (5, "--memory")


def test_a_share_on_the_cpu_is_one_of_the_memory_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "total_memory_bytes", lambda: 8000 * MIB)
    assert budget_for(CPU, 0.25, None) == (2000 * MIB, "--memory")
    assert budget_for(CPU, 1.0, None) == (8000 * MIB, "--memory")


def test_report_on_the_cpu_holds_the_plan_and_the_process() -> None:
    with enforced(CPU, 1):
        report = report_memory(CPU, 1234, 5678)
    assert (report.allocated, report.reserved) == (1234, 5678)
    assert report.process > 50 * MIB
    assert math.isfinite(report.process)
