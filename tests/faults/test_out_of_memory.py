"""Memory that runs out costs a smaller batch, at worst one slide, never the batch."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from tests.models import small_model
from tests.pyramids import noise_pyramid
from tests.small_runs import SMALL, small_slide
from tests.test_segmentation import ALL, TISSUE, choose, make_pyramid
from tests.test_selection import CPU, grid_of, random_net, saved
from wsi_pipeline import selection
from wsi_pipeline.batch import run_batch
from wsi_pipeline.models import budget, planning, scorer
from wsi_pipeline.models.budget import ElasticBatch
from wsi_pipeline.models.cards import ModelFolder, find_model
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.selector import SelectorNet
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import Selection
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.segmentation import segment_regions
from wsi_pipeline.selection import select_patches

pytestmark = pytest.mark.promise("R9")

QUICK = (1, 2, 13)
EVERY = [
    pytest.param(n, marks=() if n in QUICK else pytest.mark.faults)
    for n in range(1, 21)
]
OUT = torch.OutOfMemoryError("CUDA out of memory")


class Calls:
    """Runs a net's method; the n-th call since `start` finds no memory."""

    def __init__(self, n: int, batch: int) -> None:
        self.n, self.batch, self.count = n, batch, -(10**6)

    def install(self, monkeypatch: pytest.MonkeyPatch, net: type, name: str) -> None:
        method, plan = getattr(net, name), planning.plan_batch

        def counting(*args: object, **more: object) -> object:
            self.count += 1
            if self.count == self.n:
                raise OUT
            return method(*args, **more)

        def planning_first(*args: object, **more: object) -> object:
            made = plan(*args, **more)
            self.count = 0
            return replace(made, batch=self.batch)

        monkeypatch.setattr(net, name, counting)
        monkeypatch.setattr(planning, "plan_batch", planning_first)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    return noise_pyramid(tmp_path_factory.mktemp("pyramid") / "slide.ome.zarr")


@pytest.fixture(scope="module")
def selector(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return saved(tmp_path_factory.mktemp("selector"), random_net())


@pytest.fixture(scope="module")
def chosen(pyramid: Pyramid, selector: ModelFolder) -> Selection:
    """Where memory does not run out."""
    return select_patches(pyramid, grid_of(pyramid), selector, CPU)


@pytest.mark.parametrize("n", EVERY)
def test_selection_uses_each_patch_once_though_memory_runs_out(
    pyramid: Pyramid,
    selector: ModelFolder,
    chosen: Selection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    n: int,
) -> None:
    used: list[int] = []
    score_all = scorer.PatchScorer.score_all

    def told(self: scorer.PatchScorer, *args: object) -> object:
        for scored in score_all(self, *args):
            used.extend(scored.ids.tolist())
            yield scored

    monkeypatch.setattr(scorer.PatchScorer, "score_all", told)
    Calls(n, 8).install(monkeypatch, SelectorNet, "embed")
    with caplog.at_level(logging.WARNING):
        found = select_patches(pyramid, grid_of(pyramid), selector, CPU)
    assert sorted(used) == list(range(len(found.grid)))
    assert found.facts["downgrades"] == [[8, 4]]
    assert "from 8 at a time to 4" in caplog.text
    assert (found.chosen == chosen.chosen).all()
    np.testing.assert_allclose(found.logits, chosen.logits, atol=1e-4)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pyramid, ModelFolder]:
    folder = tmp_path_factory.mktemp("segmented")
    return make_pyramid(folder / "s.zarr"), small_model(folder)


def segment(
    made: tuple[Pyramid, ModelFolder], path: Path
) -> tuple[RegionStore, dict[str, object]]:
    patches = choose([(x, y) for x in range(0, 900, 90) for y in range(0, 600, 90)])
    return segment_regions(made[0], patches, TISSUE, made[1], path, ALL)


@pytest.fixture(scope="module")
def whole(
    segmented: tuple[Pyramid, ModelFolder], tmp_path_factory: pytest.TempPathFactory
) -> RegionStore:
    return segment(segmented, tmp_path_factory.mktemp("whole") / "p.zarr")[0]


@pytest.mark.parametrize("n", EVERY)
def test_segmentation_fills_each_region_once_though_memory_runs_out(
    segmented: tuple[Pyramid, ModelFolder],
    whole: RegionStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    n: int,
) -> None:
    Calls(n, 2).install(monkeypatch, SegmentNet, "forward")
    with caplog.at_level(logging.WARNING):
        found, facts = segment(segmented, tmp_path / "p.zarr")
    assert facts["downgrades"] == [[2, 1]]
    assert "from 2 at a time to 1" in caplog.text
    assert found.boxes()[0] == whole.boxes()[0]
    assert len(set(found.boxes()[0])) == len(found) >= 40
    same = [
        (mine.probabilities.argmax(0) == theirs.probabilities.argmax(0)).mean()
        for mine, theirs in zip(found, whole, strict=True)
    ]
    assert np.mean(same) >= 0.9999


def test_without_halving_the_same_fault_ends_the_stage(
    pyramid: Pyramid, selector: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(self: ElasticBatch) -> None:
        raise OUT

    monkeypatch.setattr(ElasticBatch, "_halve", give_up)
    monkeypatch.setattr(planning, "is_out_of_memory", lambda _: False)
    Calls(2, 8).install(monkeypatch, SelectorNet, "embed")
    with pytest.raises(torch.OutOfMemoryError):
        select_patches(pyramid, grid_of(pyramid), selector, CPU)


@pytest.mark.parametrize(
    ("place", "name"), [(SelectorNet, "logits"), (selection, "_choose")]
)
@pytest.mark.parametrize("error", [OUT, MemoryError()])
def test_memory_that_runs_out_beside_the_batches_is_explained(
    pyramid: Pyramid,
    selector: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    plan = planning.plan_batch

    def plan_first(*args: object, **more: object) -> object:
        made = plan(*args, **more)
        monkeypatch.setattr(place, name, fail)
        return made

    monkeypatch.setattr(planning, "plan_batch", plan_first)
    with pytest.raises(budget.BudgetError, match=r"beside the batches.* --memory"):
        select_patches(pyramid, grid_of(pyramid), selector, CPU)


@pytest.fixture
def two_slides(tmp_path: Path) -> list[Path]:
    slides = []
    for seed in (11, 12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        slides.append(small_slide(folder, seed))
    return slides


def test_a_slide_fails_for_want_of_memory_and_the_batch_goes_on(
    two_slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, plan, embed = [0], planning.plan_batch, SelectorNet.embed

    def plan_first(*args: object, **more: object) -> object:
        made = plan(*args, **more)
        plans[0] += 1
        return made

    def scarce(self: SelectorNet, x: torch.Tensor) -> torch.Tensor:
        if plans[0] == 1:  # the selector of the first slide, behind its warm-ups
            raise OUT
        return embed(self, x)

    monkeypatch.setattr(planning, "plan_batch", plan_first)
    monkeypatch.setattr(SelectorNet, "embed", scarce)
    result = run_batch(two_slides, tmp_path / "out", find_model("synthetic"), SMALL)
    first, second = (outcome.manifest for outcome in result.outcomes)
    assert (first.status, second.status) == ("failed", "done")
    assert "one item at a time; give a larger --memory" in first.reason
    assert not first.facts["lasting"]  # the next run tries again
    assert result.exit_code == 3
    told = SlideFolder(tmp_path / "out" / second.slide_id).path / "run.json"
    assert orjson.loads(told.read_bytes())["facts"]["select"]["downgrades"] == []


@pytest.mark.parametrize("largest", [16, 8, 4, 2, 1])
def test_every_batch_down_to_one_is_tried(largest: int) -> None:
    elastic, done = ElasticBatch(32, "--memory"), []

    def work(start: int, stop: int) -> None:
        if stop - start > largest:
            raise OUT
        done.extend(range(start, stop))

    elastic.run(work, 100)
    assert done == list(range(100))
    assert elastic.size == largest
