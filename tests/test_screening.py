"""A screen leaves patches out: those that are looked at are judged as ever."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.growth import TinyEncoder
from tests.models import calibration_of, selector_model, with_screen
from tests.pyramids import grid_of, noise_pyramid
from wsi_pipeline import screening
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.feeding import PyramidSource
from wsi_pipeline.geometry import Scale
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.models.choosing import choose_as_published, choose_patches
from wsi_pipeline.models.flops import count_flops
from wsi_pipeline.models.scoring import load_selector
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.resuming import LogitJournal
from wsi_pipeline.screening import screen_patches
from wsi_pipeline.selection import select_from, select_patches

PX, TOP_M, COUNT = 32, 9, 192
CPU = SelectOptions(device="cpu", precision="float32", queue="8MiB", audit=None)
FRACTION = 0.125


def options_of(recall: float | str = 0.9, **more: object) -> SelectOptions:
    return SelectOptions(**(CPU.model_dump() | {"screen": recall} | more))


def net_of(seed: int, encoder: str = "coarse", tasks: tuple[str, ...] = ("a",)):
    torch.manual_seed(seed)
    heads = len(tasks)
    return SelectorNet(SelectorShape(encoder, 16, heads, 8, 32), tasks)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """640 x 480 px at 0.5 um/px."""
    return noise_pyramid(tmp_path_factory.mktemp("pyramid") / "slide.ome.zarr")


@pytest.fixture(scope="module")
def grid(pyramid: Pyramid) -> PatchGrid:
    """192 patches that do not touch: no halo."""
    return grid_of(pyramid, PX, 40)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Two tasks and two heads, whose logits are far apart."""
    net = net_of(5, "small", ("cancer", "gland"))
    with torch.no_grad():
        net.attention.k.weight *= 20
    folder = tmp_path_factory.mktemp("plain")
    return selector_model(folder, net, patch_px=PX, top_m=TOP_M, mpp=0.5)


@pytest.fixture(scope="module")
def model(plain: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """With a screen of random weights, which is said to be good."""
    calibration = calibration_of({FRACTION: 0.0, 0.5: 0.0})
    folder = tmp_path_factory.mktemp("screened")
    return with_screen(plain, folder, net_of(6), calibration=calibration)


@pytest.fixture(scope="module")
def whole(pyramid: Pyramid, grid: PatchGrid, plain: ModelFolder) -> Selection:
    return select_patches(pyramid, grid, plain, CPU)


def saved(selection: Selection, path: Path) -> bytes:
    selection.save(path)
    return path.read_bytes()


# what is left out, and what is not


def test_examined_patches_are_scored_as_without_a_screen_the_others_not_at_all(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder, whole: Selection
) -> None:
    found = select_patches(pyramid, grid, model, options_of(audit=16))
    seen = found.examined
    assert seen.sum() == 24 + 16  # an eighth of 192, and the audit
    np.testing.assert_allclose(found.logits[seen], whole.logits[seen], atol=1e-4)
    assert np.isnan(found.logits[~seen]).all()
    assert np.isnan(found.score[~seen]).all()
    assert np.isnan(found.percentile[~seen]).all()
    assert sorted(found.rank) == list(range(COUNT))
    assert found.rank[~seen].tolist() == list(range(40, COUNT))
    assert found.chosen.sum() == TOP_M
    assert not found.chosen[~seen].any()
    assert found.weight is not None
    assert sorted(set(found.weight)) == [0, 1, (192 - 24) / 16]
    assert found.weight.sum() == pytest.approx(COUNT)
    assert (found.score * found.weight)[seen].sum() == pytest.approx(1)
    wanted = choose_patches(found.logits[seen], TOP_M, found.weight[seen])
    assert (found.chosen[seen] == wanted.chosen).all()
    assert set(found.facts["predictions"]) == {"cancer", "gland"}


def test_the_facts_say_what_was_done(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder, whole: Selection
) -> None:
    seen: list[tuple[int, int]] = []
    found = select_patches(
        pyramid, grid, model, options_of(audit=16),
        progress=lambda *told: seen.append(told),
    )  # fmt: skip
    facts = found.facts["screen"]
    assert facts["recall"] == 0.9
    assert facts["fraction"] == FRACTION
    assert (facts["kept"], facts["rejected"], facts["audited"]) == (24, 168, 16)
    assert facts["calibrated_slides"] == 99
    assert facts["calibrated_top_m"] == TOP_M
    assert facts["factor"] == 2
    assert facts["coarse_s"] > 0
    full, coarse = (
        count_flops(net.encoder, torch.zeros(1, 3, side, side))
        for net, side in (
            (load_selector(model), PX),
            (load_selector(model, model.card.screen), PX // 2),
        )
    )
    work = (COUNT * coarse + 40 * full) / (COUNT * full)
    assert facts["encoder_work"] == pytest.approx(work, abs=1e-4)
    missed = int((whole.chosen & ~found.examined).sum())
    assert facts["missed"]["low"] <= missed <= facts["missed"]["high"]
    assert facts["recall_estimate"] == pytest.approx(
        1 - facts["missed"]["estimate"] / TOP_M, abs=1e-4
    )
    assert found.facts["captured_mass"] == pytest.approx(found.captured_mass)
    # once over all patches coarsely, then over those that are looked at
    assert seen[: seen.index((COUNT, COUNT)) + 1][0][1] == COUNT
    assert seen[-1] == (40, 40)


def test_the_attention_is_estimated_as_if_all_had_been_examined(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder, whole: Selection
) -> None:
    """By patches that stand for others: without them it would be far too large."""
    errors, bare = [], []
    for seed in range(6):
        found = select_patches(pyramid, grid, model, options_of(audit=80, seed=seed))
        exact = whole.score[found.chosen].sum()
        errors.append(found.captured_mass - exact)
        seen = found.examined
        alone = choose_patches(found.logits[seen], TOP_M).score
        bare.append(alone[found.chosen[seen]].sum() - exact)
    assert abs(np.mean(errors)) < 0.05 * whole.captured_mass
    assert np.mean(bare) > 4 * abs(np.mean(errors))
    assert np.nanmax(abs(found.percentile - whole.percentile)) < 0.15


def test_patches_that_the_screen_knows_are_all_found(
    pyramid: Pyramid, tmp_path: Path
) -> None:
    """Both nets look for brightness; the screen sees it twice coarser."""
    nets = [net_of(1, "tiny"), net_of(1, "tiny")]
    with torch.no_grad():
        for net in nets:
            assert isinstance(net.encoder, TinyEncoder)
            net.encoder.project.weight.abs_()
            net.attention.queries.abs_()
            net.attention.q.weight.abs_()
            net.attention.k.weight.abs_()
            net.attention.k.weight /= 200
    grid = grid_of(pyramid, PX, 16)  # patches overlap
    first = selector_model(tmp_path, nets[0], patch_px=PX, top_m=20, mpp=0.5)
    (tmp_path / "screened").mkdir()
    model = with_screen(
        first, tmp_path / "screened", nets[1], calibration=calibration_of({0.05: 0.0})
    )
    exact = select_patches(pyramid, grid, first, CPU)
    found = select_patches(pyramid, grid, model, options_of(audit=30))
    assert len(grid) == 1131
    assert found.facts["screen"]["kept"] < 0.2 * len(grid)
    assert (found.chosen & exact.chosen).sum() >= 19
    assert found.facts["screen"]["missed"]["estimate"] == 0


# exactness


def test_without_a_screen_nothing_is_different(whole: Selection) -> None:
    assert "screen" not in whole.facts
    assert whole.weight is None
    assert whole.examined.all()


@pytest.mark.parametrize("mode", ["exact", "ips"])
@pytest.mark.parametrize("how", ["no fraction will do", "all are audited"])
def test_a_screen_that_rejects_nothing_gives_the_same_bytes_as_none(
    pyramid: Pyramid,
    grid: PatchGrid,
    plain: ModelFolder,
    model: ModelFolder,
    tmp_path: Path,
    how: str,
    mode: str,
) -> None:
    reference = select_patches(pyramid, grid, plain, options_of("off", mode=mode))
    recall, audit = (0.995, None) if how == "no fraction will do" else (0.9, COUNT)
    found = select_patches(
        pyramid, grid, model, options_of(recall, audit=audit, mode=mode)
    )
    screen = found.facts["screen"]
    assert saved(found, tmp_path / "a") == saved(reference, tmp_path / "b")
    assert found.facts["predictions"] == reference.facts["predictions"]
    assert screen["missed"] | {"found": 0} == {
        "estimate": 0, "low": 0, "high": 0, "found": 0
    }  # fmt: skip
    assert screen["recall_estimate"] == 1
    if how == "no fraction will do":
        assert (screen["fraction"], screen["rejected"]) == (1, 0)
        assert screen["encoder_work"] == 1  # not even a coarse look
    else:
        assert screen["audited"] == screen["rejected"] == COUNT - 24


def test_the_audit_is_drawn_by_the_seed_and_a_second_run_gives_the_same_bytes(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder, tmp_path: Path
) -> None:
    found = [
        select_patches(pyramid, grid, model, options_of(audit=16, seed=seed))
        for seed in (0, 0, 1, None)
    ]
    files = [saved(s, tmp_path / str(n)) for n, s in enumerate(found)]
    assert files[0] == files[1] == files[3] != files[2]
    again = Selection.load(tmp_path / "0")
    np.testing.assert_array_equal(again.weight, found[0].weight)
    np.testing.assert_array_equal(again.score, found[0].score)
    np.testing.assert_array_equal(again.percentile, found[0].percentile)


def test_256_patches_are_audited_where_nothing_is_said(
    pyramid: Pyramid, model: ModelFolder
) -> None:
    grid = grid_of(pyramid, PX, 24)
    found = select_patches(pyramid, grid, model, options_of())
    assert found.facts["screen"]["audited"] == 256 < found.facts["screen"]["rejected"]


def test_mode_ips_runs_on_what_was_examined(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder
) -> None:
    found = select_patches(
        pyramid, grid, model, options_of(audit=16, mode="ips", seed=3, chunk=2)
    )
    seen = found.examined
    order = np.random.default_rng(3).permutation(40)
    wanted = choose_as_published(found.logits[seen], TOP_M, 2, order)
    assert (found.chosen[seen] == wanted.chosen).all()
    assert found.facts["screen"]["kept"] == 24


@pytest.mark.parametrize("count", [0, 1, TOP_M])
def test_no_more_patches_than_m_are_all_kept(
    pyramid: Pyramid, model: ModelFolder, count: int
) -> None:
    few = grid_of(pyramid, PX, 40, count)
    found = select_patches(pyramid, few, model, options_of())
    assert found.chosen.sum() == count
    assert found.weight is None
    assert found.facts["screen"]["rejected"] == 0


class KilledError(BaseException):
    """Ends a run in the middle."""


def test_a_kill_in_the_pass_over_the_kept_goes_on_there(
    pyramid: Pyramid, grid: PatchGrid, model: ModelFolder, tmp_path: Path
) -> None:
    options = options_of(audit=120)
    reference = select_patches(pyramid, grid, model, options)
    journal = LogitJournal(tmp_path / "journal", "slide", every_s=0)

    def kill(done: int, total: int) -> None:
        if total == 144 and done >= 64:
            raise KilledError

    with pytest.raises(KilledError):
        select_patches(pyramid, grid, model, options, progress=kill, journal=journal)
    other = select_patches(
        pyramid, grid, model, options_of(audit=120, seed=1),
        journal=LogitJournal(journal.path, "slide", every_s=1e9),
    )  # fmt: skip
    assert other.facts["resumed_patches"] == 0  # other patches are examined
    with pytest.raises(KilledError):
        select_patches(pyramid, grid, model, options, progress=kill, journal=journal)
    found = select_patches(pyramid, grid, model, options, journal=journal)
    assert found.facts["resumed_patches"] == 64
    assert saved(found, tmp_path / "a") == saved(reference, tmp_path / "b")


# refusals


def test_a_screen_that_says_nothing_is_no_screen(
    pyramid: Pyramid,
    grid: PatchGrid,
    plain: ModelFolder,
    tmp_path: Path,
) -> None:
    net = net_of(6)
    with torch.no_grad():
        net.attention.k.weight.fill_(3e38)
        net.attention.q.weight.fill_(3e38)
    calibration = calibration_of({FRACTION: 0.0})
    model = with_screen(plain, tmp_path, net, calibration=calibration)
    with pytest.raises(ModelError, match="the screen gave no finite logit"):
        select_patches(pyramid, grid, model, options_of())


def test_a_model_without_a_screen_says_how_to_get_one(
    pyramid: Pyramid, grid: PatchGrid, plain: ModelFolder
) -> None:
    with pytest.raises(ModelError, match="`wsi train screen` adds one"):
        select_patches(pyramid, grid, plain, options_of())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"selector_sha256": "0" * 64}, "trained from another selector"),
        ({"mpp": 2.0}, "sees patches of 32 um, its selector of 16 um"),
    ],
)
def test_a_screen_of_another_selector_is_refused(
    pyramid: Pyramid,
    grid: PatchGrid,
    model: ModelFolder,
    change: dict[str, Any],
    words: str,
) -> None:
    assert model.card.screen is not None
    screen = model.card.screen.model_copy(update=change)
    other = replace(model, card=model.card.model_copy(update={"screen": screen}))
    with pytest.raises(ModelError, match=words):
        select_patches(pyramid, grid, other, options_of())


class FeatureSource:
    """Something that was extracted before."""

    order = np.arange(3)

    def batches(self, ids: Any, size: int) -> Iterator[Any]:
        raise AssertionError("something was read")

    def facts(self) -> dict[str, Any]:
        return {}


def test_features_are_not_screened(grid: PatchGrid, model: ModelFolder) -> None:
    few = PatchGrid(grid.corners[:3], PX, PX, 0.5, grid.tissue[:3])
    with pytest.raises(ConfigError, match="features were extracted before"):
        select_from(FeatureSource(), few, Scale(1, 1), model, options_of())


def test_a_coarse_look_is_never_compiled(
    pyramid: Pyramid,
    grid: PatchGrid,
    model: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []
    real = screening.open_scorer

    def opened(model: ModelFolder, options: SelectOptions, *rest: Any, **more: Any):
        told.append(options.compile)
        return real(model, options, *rest, **more)

    monkeypatch.setattr(screening, "open_scorer", opened)
    coarse = screening.coarse_grid(grid, model.card.need_screen())
    source = PyramidSource(pyramid, coarse, 1 << 20)
    screen_patches(source, grid, model, options_of(compile=True))
    assert told == [False]
