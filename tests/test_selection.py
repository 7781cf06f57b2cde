"""Selection end to end on a small pyramid: same choice whatever the batch and order."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.growth import TINY_PX, TinyEncoder
from tests.models import selector_model
from tests.pyramids import grid_of as lay
from tests.pyramids import noise_pyramid
from wsi_pipeline import selection
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import (
    BudgetError,
    ConfigError,
    ModelError,
    PyramidError,
    RegionError,
)
from wsi_pipeline.feeding import PyramidSource
from wsi_pipeline.geometry import Scale
from wsi_pipeline.models import planning, scoring
from wsi_pipeline.models.cards import (
    ModelFolder,
)
from wsi_pipeline.models.choosing import choose_as_published, choose_patches
from wsi_pipeline.models.scoring import load_selector
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.resuming import LogitJournal
from wsi_pipeline.selection import select_from, select_patches

PX = 32
CPU = SelectOptions(device="cpu", precision="float32", queue="8MiB")
MODES = ("exact", "ips", "full")


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """640 x 480 px at 0.5 um/px with shards of 256 px."""
    return noise_pyramid(tmp_path_factory.mktemp("pyramid") / "slide.ome.zarr")


def grid_of(pyramid: Pyramid, stride: int = 40, count: int | None = None) -> PatchGrid:
    return lay(pyramid, PX, stride, count)


def saved(
    folder: Path, net: SelectorNet, patch_px: int = PX, top_m: int = 9
) -> ModelFolder:
    """A model folder of a selector alone."""
    return selector_model(folder, net, patch_px=patch_px, top_m=top_m, mpp=0.5)


def random_net(*, position: bool = False, encoder: str = "small") -> SelectorNet:
    """Two tasks, two heads, random weights with logits that are far apart."""
    torch.manual_seed(5)
    shape = SelectorShape(encoder, 16, 2, 8, 32, position=position)
    net = SelectorNet(shape, ("cancer", "gland"))
    with torch.no_grad():
        net.attention.k.weight *= 20
    return net


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return saved(tmp_path_factory.mktemp("model"), random_net())


def with_batch(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Have every plan end at one batch."""
    real = planning.plan_batch

    def fixed(*args, **kwargs):
        return replace(real(*args, **kwargs), batch=batch)

    monkeypatch.setattr(planning, "plan_batch", fixed)


def options_of(mode: str, **more: object) -> SelectOptions:
    return SelectOptions(**(CPU.model_dump() | {"mode": mode} | more))


def embeddings(pyramid: Pyramid, grid: PatchGrid, model: ModelFolder) -> torch.Tensor:
    """What the net says of all patches at once."""
    pixels = [pyramid.read(grid.box(i), grid.mpp) for i in range(len(grid))]
    with torch.no_grad():
        return load_selector(model).embed(torch.from_numpy(np.stack(pixels)))


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
    assert facts["mode"] == "exact"
    assert (facts["device"], facts["precision"]) == ("cpu", "float32")
    assert facts["compiled"] is False
    assert facts["captured_mass"] == pytest.approx(found.captured_mass)
    assert facts["budget_bytes"] == 2 << 30
    assert facts["fit"]["slope_bytes"] > 3 * PX * PX
    assert 0 < facts["measured_bytes"] <= facts["budget_bytes"]
    assert facts["counted_bytes"] > 8 << 20  # the queue
    assert facts["downgrades"] == []
    assert facts["resumed_patches"] == 0
    assert facts["patches_per_s"] > 0
    assert facts["reading"]["queue_bytes"] == 8 << 20
    # all of the image, and once more the chunks of the 9 patches that were chosen
    assert 3 * 640 * 480 < facts["reading"]["decoded_bytes"] <= 2 * 3 * 640 * 480
    assert set(facts["predictions"]) == {"cancer", "gland"}
    assert all(0 < chance < 1 for chance in facts["predictions"].values())


@pytest.mark.parametrize("mode", MODES)
def test_selection_survives_its_file_and_a_second_run_gives_the_same_bytes(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path, mode: str
) -> None:
    grid = grid_of(pyramid, count=80)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    predictions = []
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        found = select_patches(pyramid, grid, model, options_of(mode))
        found.save(file)
        predictions.append(found.facts["predictions"])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert predictions[0] == predictions[1]
    assert Selection.load(files[0]).chosen.sum() == 9


def test_logits_are_those_of_the_net_on_the_pixels_of_each_patch(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid, stride=48)
    found = select_patches(pyramid, grid, model, CPU)
    x = embeddings(pyramid, grid, model)
    expected = load_selector(model).logits(x).detach().numpy()
    np.testing.assert_allclose(found.logits, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("batch", [1, 7, 64, 192])
def test_the_choice_in_float64_is_the_same_for_every_batch(
    pyramid: Pyramid,
    model: ModelFolder,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = scoring.load_selector
    monkeypatch.setattr(scoring, "load_selector", lambda *part: real(*part).double())
    grid = grid_of(pyramid)
    reference = select_patches(pyramid, grid, model, CPU)
    with_batch(monkeypatch, batch)
    found = select_patches(pyramid, grid, model, CPU)
    assert found.facts["batch"] == batch
    assert found.facts["precision"] == "float64"
    assert (found.chosen == reference.chosen).all()
    assert (found.rank == reference.rank).all()
    np.testing.assert_allclose(found.score, reference.score, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 192])
def test_in_float32_only_patches_next_to_the_last_one_chosen_may_change(
    pyramid: Pyramid,
    model: ModelFolder,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(pyramid)
    reference = select_patches(pyramid, grid, model, CPU)
    with_batch(monkeypatch, batch)
    found = select_patches(pyramid, grid, model, CPU)
    scale = abs(reference.logits).max()
    np.testing.assert_allclose(found.logits, reference.logits, atol=1e-5 * scale)
    last = reference.score[reference.chosen].min()
    changed = reference.score[found.chosen != reference.chosen]
    assert (abs(changed - last) <= 1e-5).all()


def test_bytes_do_not_depend_on_order_and_readers(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(pyramid)
    reference = select_patches(pyramid, grid, model, CPU)

    def found(readers: int, seed: int | None) -> Selection:
        source = PyramidSource(pyramid, grid, 1 << 20, readers)
        if seed is not None:
            source.order = np.random.default_rng(seed).permutation(len(grid))
        return select_from(source, grid, Scale(0.5, 0.5), model, CPU)

    for readers, seed in ((1, None), (2, None), (2, 1), (3, 2)):
        other = found(readers, seed)
        assert (other.logits == reference.logits).all()
        assert (other.chosen == reference.chosen).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [0, 1])
def test_no_patch_and_one_patch(
    pyramid: Pyramid, model: ModelFolder, count: int, mode: str
) -> None:
    found = select_patches(
        pyramid, grid_of(pyramid, count=count), model, options_of(mode)
    )
    assert found.logits.shape == (count, 4)
    assert found.chosen.sum() == count
    assert set(found.facts["predictions"]) == ({"cancer", "gland"} if count else set())
    assert found.facts["captured_mass"] == pytest.approx(count)


@pytest.mark.parametrize("count", [8, 9])
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
    found = select_patches(
        pyramid, grid_of(pyramid), model, options_of("exact", top_m=4)
    )
    assert found.chosen.sum() == found.facts["top_m"] == 4
    assert set(found.rank[found.chosen]) == {0, 1, 2, 3}


# the modes


@pytest.mark.parametrize(("chunk", "seed"), [(None, None), (3, 7)])
def test_mode_ips_is_the_published_rule_on_a_shuffle_of_the_patches(
    pyramid: Pyramid, model: ModelFolder, chunk: int | None, seed: int | None
) -> None:
    grid = grid_of(pyramid)
    exact = select_patches(pyramid, grid, model, CPU)
    found = select_patches(
        pyramid, grid, model, options_of("ips", chunk=chunk, seed=seed)
    )
    order = np.random.default_rng(seed or 0).permutation(len(grid))
    wanted = choose_as_published(exact.logits, 9, chunk or 9, order)
    assert (found.logits == exact.logits).all()
    assert (found.chosen == wanted.chosen).all()
    assert (found.rank == wanted.rank).all()
    assert (found.facts["chunk"], found.facts["seed"]) == (chunk or 9, seed or 0)
    assert "chunk" not in exact.facts


def test_modes_judge_the_slide_by_the_chosen_or_by_all_patches(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid)
    x, net = embeddings(pyramid, grid, model), load_selector(model)
    for mode in MODES:
        found = select_patches(pyramid, grid, model, options_of(mode))
        taken = x if mode == "full" else x[torch.from_numpy(found.chosen)]
        with torch.no_grad():
            wanted = net.predict(taken[None])[0].sigmoid().tolist()
        got = list(found.facts["predictions"].values())
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    exact = select_patches(pyramid, grid, model, CPU)
    full = select_patches(pyramid, grid, model, options_of("full"))
    assert (exact.chosen == full.chosen).all()
    assert exact.facts["predictions"] != full.facts["predictions"]


def test_mode_full_reads_nothing_twice(pyramid: Pyramid, model: ModelFolder) -> None:
    grid = grid_of(pyramid, stride=32)
    found = select_patches(pyramid, grid, model, options_of("full"))
    assert found.facts["reading"]["decoded_bytes"] == 3 * 640 * 480


@pytest.mark.parametrize("given", [{"chunk": 5}, {"seed": 0}])
@pytest.mark.parametrize("mode", ["exact", "full"])
def test_chunk_and_seed_are_refused_where_they_mean_nothing(
    mode: str, given: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="chunk and seed belong to mode ips"):
        SelectOptions(mode=mode, **given)


@pytest.mark.parametrize("mode", ["exact", "full"])
def test_a_selector_that_sees_places_gets_those_of_the_corners(
    pyramid: Pyramid, tmp_path: Path, mode: str
) -> None:
    model = saved(tmp_path, random_net(position=True))
    grid = grid_of(pyramid)
    found = select_patches(pyramid, grid, model, options_of(mode))
    x, net = embeddings(pyramid, grid, model), load_selector(model)
    places = torch.from_numpy(grid.corners * 0.5)
    with torch.no_grad():
        wanted = net.logits(x, places).numpy()
        some = torch.from_numpy(found.chosen | (mode == "full"))
        chances = net.predict(x[some][None], places_um=places[some][None])[0].sigmoid()
    np.testing.assert_allclose(found.logits, wanted, atol=2e-5 * abs(wanted).max())
    got = list(found.facts["predictions"].values())
    np.testing.assert_allclose(got, chances.tolist(), atol=1e-5)


# planted patches


class MarkedSource:
    """Made-up patches, dark but for those that are marked."""

    def __init__(self, count: int, marked: list[int]) -> None:
        self.order = np.random.default_rng(0).permutation(count)
        self.marked = np.zeros(count, np.bool_)
        self.marked[self.order[marked]] = True  # by their place in reading order

    def batches(
        self, ids: NDArray[np.int64], size: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            pixels = np.zeros((len(part), 3, TINY_PX, TINY_PX), np.uint8)
            pixels[:] = (part % 50)[:, None, None, None]
            pixels[self.marked[part]] = 200
            yield part, pixels

    def facts(self) -> dict[str, Any]:  # Any: JSON values
        return {"made up": len(self.order)}


@pytest.mark.parametrize("mode", MODES)
def test_planted_patches_are_found_at_any_place(tmp_path: Path, mode: str) -> None:
    net = random_net(encoder="tiny")
    assert isinstance(net.encoder, TinyEncoder)
    with torch.no_grad():
        for part in (net.encoder.project.weight, net.attention.k.weight):
            part.abs_()
        net.attention.queries.abs_()
        net.attention.q.weight.abs_()  # all channels grow with brightness
        net.attention.k.weight /= 200
    model = saved(tmp_path, net, TINY_PX, top_m=9)
    count = 100_007
    marked = [0, 1, 63, 64, 6400, 50_000, count - 8, count - 7, count - 1]
    source = MarkedSource(count, marked)
    corners = np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1)
    grid = PatchGrid(corners, TINY_PX, TINY_PX, 0.5, np.ones(count, np.float32))
    found = select_from(source, grid, Scale(0.5, 0.5), model, options_of(mode))
    assert found.facts["batch"] == 64
    assert found.facts["reading"] == {"made up": count}
    assert set(found.chosen.nonzero()[0]) == set(source.marked.nonzero()[0])


# memory


def test_too_small_a_budget_is_refused_before_a_pixel_is_read(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args, **kwargs):
        raise AssertionError("a pixel was read")

    monkeypatch.setattr(Pyramid, "read", read)
    with pytest.raises(
        BudgetError, match=r"--memory 1MiB: the selector needs at least"
    ):
        select_patches(
            pyramid, grid_of(pyramid), model, options_of("exact", memory="1MiB")
        )


def smallest(pyramid: Pyramid, model: ModelFolder) -> SelectOptions:
    """With the budget that a refusal names."""
    with pytest.raises(BudgetError) as caught:
        select_patches(
            pyramid, grid_of(pyramid), model, options_of("exact", memory="1MiB")
        )
    memory = str(caught.value).split("give --memory ")[1].split(" ")[0]
    return options_of("exact", memory=memory)


def test_the_named_smallest_budget_works_and_gives_the_same_choice(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid, count=60)
    found = select_patches(pyramid, grid, model, smallest(pyramid, model))
    reference = select_patches(pyramid, grid, model, CPU)
    assert found.facts["batch"] < reference.facts["batch"]
    assert found.facts["counted_bytes"] <= found.facts["budget_bytes"]
    assert (found.chosen == reference.chosen).all()
    np.testing.assert_allclose(found.logits, reference.logits, atol=1e-4)


def test_the_queue_of_pixels_is_taken_off_the_budget(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid, count=60)
    counted = [
        select_patches(pyramid, grid, model, options_of("exact", queue=queue)).facts[
            "counted_bytes"
        ]
        for queue in ("4MiB", "104MiB")
    ]
    assert counted[1] - counted[0] == 100 << 20


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Once the batch is planned, larger ones run out of memory."""
    real = planning.plan_batch

    def plan_then_fail(measure, *args, **kwargs):
        made = real(measure, *args, **kwargs)
        embed = SelectorNet.embed

        def failing(self, patches):
            if len(patches) > largest:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return embed(self, patches)

        monkeypatch.setattr(SelectorNet, "embed", failing)
        return made

    monkeypatch.setattr(planning, "plan_batch", plan_then_fail)


@pytest.mark.parametrize("mode", MODES)
def test_out_of_memory_gives_the_same_choice_with_a_smaller_batch(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    grid = grid_of(pyramid)
    reference = select_patches(pyramid, grid, model, options_of(mode))
    out_of_memory_above(monkeypatch, 16)
    found = select_patches(pyramid, grid, model, options_of(mode))
    assert found.facts["downgrades"] == [[64, 32], [32, 16]]
    assert found.facts["batch"] == 64
    assert (found.chosen == reference.chosen).all()
    np.testing.assert_allclose(found.logits, reference.logits, atol=1e-4)
    for task, chance in found.facts["predictions"].items():
        assert chance == pytest.approx(reference.facts["predictions"][task], abs=1e-5)


# killed and resumed


class KilledError(BaseException):
    """Ends a run in the middle."""


def kill_at(patches: int):
    def tick(done: int, total: int) -> None:
        if done >= patches:
            raise KilledError

    return tick


def journal_of(folder: Path, origin: str = "slide") -> LogitJournal:
    return LogitJournal(folder / "selection.journal", origin, every_s=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    pyramid: Pyramid,
    model: ModelFolder,
    tmp_path: Path,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_batch(monkeypatch, 8)
    grid, options = grid_of(pyramid), options_of(mode)
    reference = select_patches(pyramid, grid, model, options)
    journal = journal_of(tmp_path)
    for patches in (40, 120):  # killed twice
        with pytest.raises(KilledError):
            select_patches(
                pyramid,
                grid,
                model,
                options,
                progress=kill_at(patches),
                journal=journal,
            )
    found = select_patches(pyramid, grid, model, options, journal=journal)
    assert found.facts["resumed_patches"] == 120
    assert found.facts["predictions"] == reference.facts["predictions"]
    files = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for file, made in zip(files, (reference, found), strict=True):
        made.save(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    again = select_patches(pyramid, grid, model, options, journal=journal)
    assert again.facts["resumed_patches"] == 192
    assert (again.chosen == reference.chosen).all()
    journal.discard()
    assert not journal.path.exists()


def test_the_batch_of_before_the_kill_is_used_again(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    grid, journal = grid_of(pyramid), journal_of(tmp_path)
    little = smallest(pyramid, model)
    with pytest.raises(KilledError):
        select_patches(
            pyramid, grid, model, little, progress=kill_at(60), journal=journal
        )
    more = select_patches(pyramid, grid, model, CPU)
    found = select_patches(pyramid, grid, model, CPU, journal=journal)
    assert found.facts["resumed_patches"] > 0
    assert found.facts["batch"] < more.facts["batch"]


def test_a_batch_that_does_not_fit_any_more_begins_anew(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    grid, journal = grid_of(pyramid), journal_of(tmp_path)
    with pytest.raises(KilledError):
        select_patches(pyramid, grid, model, CPU, progress=kill_at(60), journal=journal)
    little = smallest(pyramid, model)
    found = select_patches(pyramid, grid, model, little, journal=journal)
    assert found.facts["resumed_patches"] == 0
    assert found.facts["batch"] < 64


def test_a_downgrade_is_kept_over_a_kill(
    pyramid: Pyramid,
    model: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, journal = grid_of(pyramid), journal_of(tmp_path)
    with monkeypatch.context() as patch:
        out_of_memory_above(patch, 16)
        with pytest.raises(KilledError):
            select_patches(
                pyramid, grid, model, CPU, progress=kill_at(64), journal=journal
            )
    found = select_patches(pyramid, grid, model, CPU, journal=journal)
    assert found.facts["resumed_patches"] == 64
    assert found.facts["downgrades"] == [[64, 32], [32, 16]]


@pytest.mark.parametrize("change", ["origin", "grid", "weights", "precision", "mode"])
def test_what_was_found_on_something_else_is_not_used(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path, change: str
) -> None:
    grid, journal = grid_of(pyramid), journal_of(tmp_path)
    with pytest.raises(KilledError):
        select_patches(pyramid, grid, model, CPU, progress=kill_at(64), journal=journal)
    options = CPU
    if change == "origin":
        journal = journal_of(tmp_path, "another slide")
    elif change == "grid":
        grid = replace(grid, corners=grid.corners + 1)
    elif change == "weights":
        folder = tmp_path / "other"
        folder.mkdir()
        net = random_net()
        with torch.no_grad():
            net.attention.k.weight *= 2
        model = saved(folder, net)
    else:
        given = {"precision": "bfloat16"} if change == "precision" else {"mode": "full"}
        options = SelectOptions(**(CPU.model_dump() | given))
    found = select_patches(pyramid, grid, model, options, journal=journal)
    assert found.facts["resumed_patches"] == 0


# precision


def test_bfloat16_chooses_nearly_the_same_patches(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid)
    exact = select_patches(pyramid, grid, model, CPU)
    rough = select_patches(
        pyramid, grid, model, options_of("exact", precision="bfloat16")
    )
    assert rough.facts["precision"] == "bfloat16"
    assert rough.logits.dtype == np.float32
    spread = exact.logits.std(axis=0)
    error = abs(rough.logits - exact.logits) / spread
    assert 0 < error.max() < 0.1
    # what the rough choice loses of the attention
    kept = choose_patches(exact.logits, 9).score[rough.chosen].sum()
    assert kept >= 0.99 * exact.captured_mass


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_choice(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid)
    plain = select_patches(pyramid, grid, model, CPU)
    compiled = select_patches(pyramid, grid, model, options_of("exact", compile=True))
    assert compiled.facts["compiled"] is True
    scale = abs(plain.logits).max()
    np.testing.assert_allclose(compiled.logits, plain.logits, atol=1e-5 * scale)
    assert (compiled.chosen == plain.chosen).all()


# refusals


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


def test_an_error_while_reading_ends_the_selection(
    pyramid: Pyramid, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args, **kwargs):
        raise PyramidError("slide.ome.zarr/0: damaged")

    monkeypatch.setattr(Pyramid, "read_padded", broken)
    with pytest.raises(PyramidError, match="damaged"):
        select_patches(pyramid, grid_of(pyramid), model, CPU)
