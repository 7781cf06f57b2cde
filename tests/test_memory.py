"""Memory that nets really take: inside the budget, flat in the number of patches."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.growth import TINY_PX, TinyEncoder, grown, lazy_patches, tiny_selector
from wsi_pipeline.config import NetOptions, SelectOptions
from wsi_pipeline.errors import BudgetError
from wsi_pipeline.models.budget import MARGIN
from wsi_pipeline.models.choosing import choose_patches
from wsi_pipeline.models.scorer import PatchScorer
from wsi_pipeline.models.scoring import open_scorer
from wsi_pipeline.models.tracing import trace_peak
from wsi_pipeline.process import reset_peaks

CPU = SelectOptions(device="cpu", precision="float32")
MIB = 1 << 20
needs_peaks = pytest.mark.skipif(
    not reset_peaks(), reason="this system does not let a process reset its peaks"
)


# growth of fresh processes


@needs_peaks
@pytest.mark.parametrize(
    ("net", "memory", "passes"),
    [
        ("segmenter", "128MiB", 3),
        ("small", "1GiB", 3),
        pytest.param("segmenter", "1GiB", 3, marks=pytest.mark.slow),
        pytest.param("small", "96MiB", 3, marks=pytest.mark.slow),
        pytest.param("small", "2GiB", 2, marks=pytest.mark.slow),
        pytest.param("small", "4GiB", 1, marks=pytest.mark.slow),
    ],
)
def test_a_process_grows_by_no_more_than_its_budget(
    net: str, memory: str, passes: int
) -> None:
    found = grown(net=net, side=64, memory=memory, largest=1 << 14, passes=passes)
    budget = NetOptions(memory=memory).memory
    assert found["grown"] <= found["counted"] <= budget * MARGIN
    # not by planning next to nothing: at worst a power of two and the heap's share
    assert found["batch"] > 1
    assert found["counted"] > budget * MARGIN / 8


# the number of patches


def stream(scorer: PatchScorer, logits: NDArray[np.float32]) -> None:
    """Score as many lazy patches as there is room for."""
    done = 0
    for patches in lazy_patches(len(logits)):
        logits[done : done + len(patches)] = scorer.score(patches)
        done += len(patches)


def host_peak(action: Callable[[], object]) -> int:
    """Peak of what Python and NumPy allocate, bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("peak_of", [trace_peak, host_peak], ids=["torch", "host"])
def test_peak_is_flat_in_the_number_of_patches(
    tmp_path: Path, peak_of: Callable[[Callable[[], object]], int]
) -> None:
    peaks = []
    with open_scorer(tiny_selector(tmp_path), CPU, 30_000) as scorer:
        stream(scorer, np.empty((1000, 1), np.float32))  # what is made once
        for count in (1000, 30_000):
            logits = np.empty((count, 1), np.float32)  # allowed to grow
            peaks.append(peak_of(lambda to=logits: stream(scorer, to)))
            assert np.isfinite(logits).all()
    assert peaks[0] > 64 * 3 * TINY_PX**2
    assert peaks[1] < 1.02 * peaks[0]


@needs_peaks
@pytest.mark.slow
def test_resident_memory_is_flat_up_to_a_million_patches(tmp_path: Path) -> None:
    tiny_selector(tmp_path)
    counts = [10**3, 10**4, 10**5, 10**6]
    peaks = grown(stream=str(tmp_path), counts=counts)["peaks"]
    logits = 4 * counts[-1]
    assert len(peaks) == 4
    assert peaks[-1] - peaks[0] < 0.02 * peaks[0] + logits


def test_many_patches_at_once_take_no_more_than_one_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (2000, 3, TINY_PX, TINY_PX), dtype=np.uint8)
    with open_scorer(tiny_selector(tmp_path), CPU, 2000) as scorer:
        assert scorer.plan.batch == 64
        few = trace_peak(lambda: scorer.score(patches[:64]))
        many = trace_peak(lambda: scorer.score(patches))
        # as when the M chosen ones are encoded again
        embedded = trace_peak(lambda: scorer.embed(patches))
    small = 2000 * 8 * 4  # logits and embeddings themselves
    assert many <= few + small
    assert embedded <= few + small


# running out of memory


def test_memory_that_runs_out_in_mid_stream_changes_the_batch_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_selector(tmp_path)
    patches = np.concatenate(list(lazy_patches(1000)))
    patches += np.arange(1000, dtype=np.uint8)[:, None, None, None]
    with open_scorer(model, CPU, 1000) as scorer:
        reference = scorer.score(patches)
    real, calls = TinyEncoder.forward, []

    def failing(self: TinyEncoder, patches: torch.Tensor) -> torch.Tensor:
        calls.append(len(patches))
        if len(calls) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, patches)

    with open_scorer(model, CPU, 1000) as scorer:
        monkeypatch.setattr(TinyEncoder, "forward", failing)
        found = scorer.score(patches)
        assert scorer.elastic.downgrades == [(64, 32)]
    # five whole batches, the sixth again in halves, the other ten in halves
    assert calls == [64] * 6 + [32] * 22
    np.testing.assert_allclose(found, reference, atol=1e-5)
    choices = [choose_patches(logits, 50) for logits in (found, reference)]
    assert (choices[0].chosen == choices[1].chosen).all()


@pytest.mark.parametrize("memory", ["1MiB", "0.0001%"])
def test_too_small_a_budget_is_refused_with_one_that_works(
    tmp_path: Path, memory: str
) -> None:
    model = tiny_selector(tmp_path)

    def options(memory: str) -> SelectOptions:
        return SelectOptions(device="cpu", memory=memory)

    with pytest.raises(BudgetError) as caught, open_scorer(model, options(memory), 9):
        pass
    smallest = str(caught.value).split("give --memory ")[1].split(" ")[0]
    with open_scorer(model, options(smallest), 9) as scorer:
        assert scorer.plan.batch >= 1
    less = f"{int(smallest.removesuffix('MiB')) - 1}MiB"
    with pytest.raises(BudgetError), open_scorer(model, options(less), 9):
        pass
