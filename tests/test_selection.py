"""Selection end to end on a small pyramid: same choice whatever the batch and order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_pipeline import selection
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import BudgetError, ModelError, PyramidError, RegionError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.models import scoring
from wsi_pipeline.models.cards import (
    ClassCard,
    ModelCard,
    ModelFolder,
    SegmenterCard,
    SelectorCard,
)
from wsi_pipeline.models.scoring import load_selector
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import save_state
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.selection import select_patches

PX = 32
CPU = SelectOptions(device="cpu")


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """640 x 480 px at 0.5 um/px with shards of 256 px: noise that differs by place."""
    size = 640, 480
    source = Source("noise.tif", size, Scale(0.5, 0.5), "test", Box(0, 0, *size))
    path = tmp_path_factory.mktemp("pyramid") / "slide.ome.zarr"
    made = Pyramid.create(path, source, 1, Layout(chunk_px=128, block_px=256))
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 15, 20), dtype=np.uint8)
    pixels = coarse.repeat(32, 1).repeat(32, 2)
    pixels = (pixels // 2 + rng.integers(0, 128, pixels.shape)).astype(np.uint8)
    for index, level in enumerate(made.levels):
        view = pixels[:, :: 2**index, :: 2**index]
        for box in level.box.blocks(made.shard_px(index)):
            made.put(index, box, np.ascontiguousarray(view[:, box.rows, box.columns]))
    return made


def grid_of(pyramid: Pyramid, stride: int = 40, count: int | None = None) -> PatchGrid:
    w, h = pyramid.levels[0].size_px
    y, x = np.mgrid[0 : h - PX + 1 : stride, 0 : w - PX + 1 : stride]
    corners = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)[:count]
    return PatchGrid(corners, PX, PX, 0.5, np.ones(len(corners), np.float32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Two tasks, two heads, random weights with logits that are far apart."""
    torch.manual_seed(5)
    shape = SelectorShape("small", 16, 2, 8, 32)
    net = SelectorNet(shape, ("cancer", "gland"))
    with torch.no_grad():
        net.attention.k.weight *= 20
    folder = tmp_path_factory.mktemp("model")
    card = SelectorCard(
        sha256=save_state(net, folder / "selector.safetensors"),
        mpp=0.5,
        patch_px=PX,
        top_m=9,
        tasks=net.tasks,
        architecture=shape.to_json(),
        training={},
        metrics={},
    )
    segmenter = SegmenterCard(
        sha256="0",
        mpp=0.5,
        region_px=64,
        nodes=16,
        architecture={},
        training={},
        metrics={},
    )
    whole = ModelCard(
        name="test",
        version="1",
        summary="for tests",
        intended_use="tests",
        limits="all",
        licence="Apache-2.0",
        data="noise",
        classes=(ClassCard(value=0, name="Background", rgb=(255, 255, 255)),),
        selector=card,
        segmenter=segmenter,
    )
    return ModelFolder(folder, whole)


def with_batch(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Have every plan end at one batch."""
    real = scoring.plan_batch

    def fixed(*args, **kwargs):
        return replace(real(*args, **kwargs), batch=batch)

    monkeypatch.setattr(scoring, "plan_batch", fixed)


def test_scores_cover_all_patches_and_the_facts_say_how(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid)
    seen = []
    found = select_patches(
        pyramid, grid, model, CPU, progress=lambda d, t: seen.append((d, t))
    )
    assert found.logits.shape == (192, 4)
    assert found.score.sum() == pytest.approx(1, abs=1e-12)
    assert found.chosen.sum() == 9
    assert seen[-1] == (192, 192)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    facts = found.facts
    assert facts["batch"] == 64
    assert facts["top_m"] == 9
    assert (facts["mode"], facts["device"], facts["dtype"]) == (
        "exact",
        "cpu",
        "float32",
    )
    assert facts["captured_mass"] == pytest.approx(found.captured_mass)
    assert facts["budget_bytes"] == 2 << 30
    assert facts["fit"]["slope_bytes"] > 3 * PX * PX
    assert 0 < facts["measured_bytes"] <= facts["budget_bytes"]
    assert facts["downgrades"] == []
    assert set(facts["predictions"]) == {"cancer", "gland"}
    assert all(0 < chance < 1 for chance in facts["predictions"].values())


def test_selection_survives_its_file_and_a_second_run_gives_the_same_bytes(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    grid = grid_of(pyramid, count=80)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        select_patches(pyramid, grid, model, CPU).save(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = Selection.load(files[0])
    assert loaded.chosen.sum() == 9


def test_logits_are_those_of_the_net_on_the_pixels_of_each_patch(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid, stride=48)
    found = select_patches(pyramid, grid, model, CPU)
    net = load_selector(model)
    for patch in (0, 57, len(grid) - 1):
        pixels = pyramid.read_padded(grid.box(patch), 0)
        with torch.inference_mode():
            x = net.embed(torch.from_numpy(pixels)[None])
            expected = net.logits(x)[0].numpy()
        np.testing.assert_allclose(found.logits[patch], expected, atol=2e-4)


@pytest.mark.parametrize("batch", [1, 7, 64, 192])
def test_the_choice_in_float64_is_the_same_for_every_batch(
    pyramid: Pyramid,
    model: ModelFolder,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = scoring.load_selector
    monkeypatch.setattr(scoring, "load_selector", lambda folder: real(folder).double())
    grid = grid_of(pyramid)
    reference = select_patches(pyramid, grid, model, CPU)
    with_batch(monkeypatch, batch)
    found = select_patches(pyramid, grid, model, CPU)
    assert found.facts["batch"] == batch
    assert found.facts["dtype"] == "float64"
    assert (found.chosen == reference.chosen).all()
    assert (found.rank == reference.rank).all()
    np.testing.assert_allclose(found.score, reference.score, rtol=1e-5)


def test_patches_are_read_shard_by_shard_and_land_under_their_id(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(pyramid)
    order = selection._reading_order(pyramid, grid)
    shards = [tuple(row) for row in (grid.corners[order] // 256).tolist()]
    assert len([s for i, s in enumerate(shards) if i == 0 or shards[i - 1] != s]) == 6
    assert len(set(shards)) == 6
    assert sorted(order) == list(range(192))
    reference = select_patches(pyramid, grid, model, CPU)
    rng = np.random.default_rng(1)
    shuffled = lambda _pyramid, g: rng.permutation(len(g))  # noqa: E731
    monkeypatch.setattr(selection, "_reading_order", shuffled)
    found = select_patches(pyramid, grid, model, CPU)
    np.testing.assert_allclose(found.logits, reference.logits, atol=1e-4)
    assert (found.chosen == reference.chosen).all()


@pytest.mark.parametrize("mpp", [0.5, 0.62, 1.3])
def test_patches_cut_from_blocks_are_those_read_one_by_one(
    pyramid: Pyramid, mpp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_BLOCK_PX", 100)
    size = round(PX * mpp / 0.5)
    rng = np.random.default_rng(0)
    corners = rng.integers(-size, 640, (40, 2))
    grid = PatchGrid(corners, size, PX, mpp, np.ones(40, np.float32))
    found = selection._read_patches(pyramid, grid, np.arange(40))
    for patch in range(40):
        expected = pyramid.read(grid.box(patch), mpp, (PX, PX))
        assert (found[patch] == expected).all()


def test_no_tissue_gives_an_empty_selection(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    found = select_patches(pyramid, grid_of(pyramid, count=0), model, CPU)
    assert len(found.score) == 0
    assert found.logits.shape == (0, 4)
    assert found.facts["predictions"] == {}
    assert found.facts["captured_mass"] == 0


@pytest.mark.parametrize("count", [1, 8, 9])
def test_no_more_patches_than_m_are_all_chosen(
    pyramid: Pyramid, model: ModelFolder, count: int
) -> None:
    found = select_patches(pyramid, grid_of(pyramid, count=count), model, CPU)
    assert found.chosen.all()
    assert found.captured_mass == pytest.approx(1)
    assert found.facts["batch"] <= 1 << (count - 1).bit_length()


def test_m_of_the_options_comes_before_that_of_the_card(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    options = SelectOptions(device="cpu", top_m=4)
    found = select_patches(pyramid, grid_of(pyramid), model, options)
    assert found.chosen.sum() == found.facts["top_m"] == 4
    assert set(found.rank[found.chosen]) == {0, 1, 2, 3}


def test_a_planted_patch_is_found_in_the_last_incomplete_batch(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(pyramid)
    strange = np.zeros((3, PX, PX), np.uint8)
    strange[0] = 255
    real = Pyramid.read

    def read(self, box, mpp, size_px=None):
        planted = (box.x, box.y) in {tuple(grid.corners[0]), tuple(grid.corners[191])}
        return strange if planted else real(self, box, mpp, size_px)

    monkeypatch.setattr(Pyramid, "read", read)
    with_batch(monkeypatch, 7)
    found = select_patches(pyramid, grid, model, CPU)
    np.testing.assert_allclose(found.logits[0], found.logits[191], atol=1e-4)
    assert found.chosen[0] == found.chosen[191]


def test_too_small_a_budget_is_refused_before_a_pixel_is_read(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args, **kwargs):
        raise AssertionError("a pixel was read")

    monkeypatch.setattr(Pyramid, "read", read)
    options = SelectOptions(device="cpu", memory="1MiB")
    with pytest.raises(
        BudgetError, match=r"--memory 1MiB: the selector needs at least"
    ):
        select_patches(pyramid, grid_of(pyramid), model, options)


def test_the_named_smallest_budget_works_and_gives_the_same_choice(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid, count=60)
    with pytest.raises(BudgetError) as caught:
        select_patches(pyramid, grid, model, SelectOptions(device="cpu", memory="1MiB"))
    smallest = str(caught.value).split("give --memory ")[1].split(" ")[0]
    found = select_patches(
        pyramid, grid, model, SelectOptions(device="cpu", memory=smallest)
    )
    reference = select_patches(pyramid, grid, model, CPU)
    assert found.facts["batch"] < reference.facts["batch"]
    assert found.facts["measured_bytes"] <= found.facts["budget_bytes"]
    assert (found.chosen == reference.chosen).all()
    np.testing.assert_allclose(found.logits, reference.logits, atol=1e-4)


def test_out_of_memory_gives_the_same_choice_with_a_smaller_batch(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(pyramid)
    reference = select_patches(pyramid, grid, model, CPU)
    real = scoring.plan_batch

    def plan_then_fail(measure, *args, **kwargs):
        made = real(measure, *args, **kwargs)
        embed = SelectorNet.embed

        def failing(self, patches):
            if len(patches) > 16:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return embed(self, patches)

        monkeypatch.setattr(SelectorNet, "embed", failing)
        return made

    monkeypatch.setattr(scoring, "plan_batch", plan_then_fail)
    found = select_patches(pyramid, grid, model, CPU)
    assert found.facts["downgrades"] == [[64, 32], [32, 16]]
    assert (found.chosen == reference.chosen).all()
    np.testing.assert_allclose(found.logits, reference.logits, atol=1e-4)


@pytest.mark.parametrize("change", [{"patch_px": 64}, {"mpp": 0.6}])
def test_patches_of_another_model_are_refused(
    pyramid: Pyramid, model: ModelFolder, change: dict[str, float]
) -> None:
    grid = replace(grid_of(pyramid), **change)
    with pytest.raises(RegionError, match=r"the model wants 32 px at 0.5 um/px"):
        select_patches(pyramid, grid, model, CPU)


def test_changed_weights_are_refused(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    data = bytearray((model.path / "selector.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "selector.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="sha256"):
        select_patches(
            pyramid, grid_of(pyramid), ModelFolder(tmp_path, model.card), CPU
        )


def test_selection_itself_names_no_torch() -> None:
    source = Path(selection.__file__).read_text(encoding="utf-8")
    assert "torch" not in source


def test_no_more_than_a_few_batches_are_read_ahead_of_the_net(
    pyramid: Pyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(pyramid)
    started = []
    real = selection._read_patches

    def counted(pyramid, grid, ids):
        started.append(len(ids))
        return real(pyramid, grid, ids)

    monkeypatch.setattr(selection, "_read_patches", counted)
    batches = selection._read_batches(pyramid, grid, np.arange(192), 4)
    for done in range(5):
        ids, patches = next(batches)
        assert ids.tolist() == list(range(4 * done, 4 * done + 4))
        assert patches.shape == (4, 3, PX, PX)
        assert len(started) <= done + selection._AHEAD
    batches.close()


def test_an_error_while_reading_ends_the_selection(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args, **kwargs):
        raise PyramidError("slide.ome.zarr/0: damaged")

    monkeypatch.setattr(Pyramid, "read_padded", broken)
    with pytest.raises(PyramidError, match="damaged"):
        select_patches(pyramid, grid_of(pyramid), model, CPU)
