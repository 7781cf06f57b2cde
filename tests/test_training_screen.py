"""A screen is trained from selections alone, and published with what it loses."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.growth import TinyEncoder
from tests.models import selector_model
from tests.pyramids import grid_of, noise_pyramid
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models.cards import ModelFolder, find_model
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.results import SlideFolder, StageRecord, size_of
from wsi_pipeline.selection import select_patches
from wsi_pipeline.training.screen import calibrate, train_screen
from wsi_pipeline.training.screen_options import ScreenTraining
from wsi_pipeline.training.taught import Taught, deal, find_taught

PX, TOP_M = 32, 12
CPU = SelectOptions(device="cpu", precision="float32", queue="8MiB")
QUICK = ScreenTraining(factor=4, steps=120, lr=1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Its selector looks for red: the noise of the slides has three channels."""
    torch.manual_seed(0)
    net = SelectorNet(SelectorShape("tiny", 8, 1, 8, 8), ("red",))
    assert isinstance(net.encoder, TinyEncoder)
    with torch.no_grad():
        net.encoder.project.weight[:] = torch.tensor([1.0, 0, 0])
        for part in (net.attention.queries, net.attention.q.weight):
            part.abs_()
        net.attention.k.weight.abs_()
        net.attention.k.weight /= 20
    folder = tmp_path_factory.mktemp("model") / "red"
    folder.mkdir()
    return selector_model(folder, net, patch_px=PX, top_m=TOP_M, mpp=0.5)


def make_results(folder: SlideFolder, model: ModelFolder, number: int) -> None:
    """What tile, tissue and select leave, and nothing else: no label, no mask."""
    folder.prepare()
    pyramid = noise_pyramid(folder.pyramid, size_px=(512, 384 + 32 * number))
    grid = grid_of(pyramid, PX, PX)
    grid.save(folder.patches)
    publish_selection(folder, select_patches(pyramid, grid, model, CPU))


def publish_selection(folder: SlideFolder, selection: Selection) -> None:
    selection.save(folder.selection)
    outputs = {"selection.parquet": size_of(folder.selection)}
    folder.publish_record(
        StageRecord("select", "key", {}, outputs, dict(selection.facts))
    )


@pytest.fixture(scope="module")
def results(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven slides, one of them without patches."""
    root = tmp_path_factory.mktemp("results")
    for number in range(6):
        make_results(SlideFolder(root / f"s{number}"), model, number)
    blank = SlideFolder(root / "blank")
    blank.prepare()
    pyramid = noise_pyramid(blank.pyramid)
    none = grid_of(pyramid, PX, PX, 0)
    publish_selection(blank, select_patches(pyramid, none, model, CPU))
    (root / "run.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def trained(
    model: ModelFolder, results: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelFolder:
    slides = find_taught([results], model)
    out = tmp_path_factory.mktemp("trained") / "red"
    train_screen(model, slides[:2], slides[2:5], out, QUICK)
    return find_model(out)


def test_a_trained_screen_keeps_the_top_of_a_slide_that_it_never_saw(
    model: ModelFolder, results: Path, trained: ModelFolder
) -> None:
    fresh = find_taught([results / "s5"], model)[0]
    options = SelectOptions(**(CPU.model_dump() | {"screen": 0.7, "audit": 20}))
    found = select_patches(fresh.pyramid, fresh.selection.grid, trained, options)
    screen, top = found.facts["screen"], fresh.selection.chosen
    assert screen["calibrated_slides"] == 3
    assert screen["rejected"] > 0.5 * len(fresh)
    assert (found.chosen & top).sum() >= 0.7 * TOP_M
    missed = int((top & ~found.examined).sum())
    assert screen["missed"]["low"] <= missed <= screen["missed"]["high"]


def test_the_card_holds_what_was_measured(
    model: ModelFolder, results: Path, trained: ModelFolder
) -> None:
    screen = trained.card.need_screen()
    assert (screen.patch_px, screen.mpp, screen.top_m) == (8, 2.0, TOP_M)
    assert screen.selector_sha256 == model.card.selector.sha256
    assert screen.training["slides"] == 2
    assert screen.training["last_losses"] < 0.3 * screen.training["first_losses"]
    found = screen.calibration
    assert [table.top_m for table in found.tables] == [3, 6, 12, 24, 48]
    for table in found.tables:
        missed, kept = np.array(table.missed), np.array(table.kept)
        assert (np.diff(missed) <= 0).all()
        assert (np.diff(kept) >= 0).all()
        assert (missed[-1], kept[-1]) == (0, 1)
        # neighbours at most double what is kept, and M patches always are
        least = [np.maximum(f, table.top_m / 192) for f in found.fractions]
        assert (kept <= 2.5 * np.array(least) + 8 * 9 / 192).all()
    kept_for = screen.metrics["kept_for_recall"]
    assert kept_for["0.8"] == 1  # three slides vouch for 0.75 at most
    assert screen.metrics["flops_of_selector"] > 0
    slides = find_taught([results], model)[2:5]
    assert calibrate(trained, screen, slides) == found
    assert calibrate(trained, screen, slides[:1]) != found


def test_the_model_is_published_whole_and_its_own_folder_is_left_alone(
    model: ModelFolder, trained: ModelFolder
) -> None:
    names = {path.name for path in trained.path.iterdir()}
    assert names == {"card.json", "selector.safetensors", "screen.safetensors"}
    for part in (trained.card.selector, trained.card.need_screen()):
        assert trained.weights(part).is_file()
    assert trained.card.selector == model.card.selector
    assert find_model(model.path).card.screen is None
    assert trained.weights(trained.card.need_screen()).stat().st_size < 300_000


def test_the_same_seed_gives_the_same_screen_and_the_own_folder_may_get_it(
    model: ModelFolder, results: Path, trained: ModelFolder, tmp_path: Path
) -> None:
    own = tmp_path / "red"
    own.mkdir()
    for file in model.path.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    slides = find_taught([results], model)
    card = train_screen(find_model(own), slides[:2], slides[2:5], own, QUICK)
    assert card == trained.card.need_screen() == find_model(own).card.screen
    other = replace(QUICK, seed=1, steps=2)
    again = train_screen(find_model(own), slides[:2], slides[2:5], own, other)
    assert again.sha256 != card.sha256


def test_salience_is_the_log_of_the_attention_standardised(
    model: ModelFolder, results: Path
) -> None:
    slide = find_taught([results / "s0"], model)[0]
    found, score = slide.salience, slide.selection.score
    assert (found.mean(), found.std()) == (pytest.approx(0, abs=1e-9), 1)
    wanted = np.log(score)
    wanted = (wanted - wanted.mean()) / wanted.std()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    # so small an attention that its share is 0 still has a logarithm
    logits = slide.selection.logits.copy()
    logits[0] -= 5000
    far = replace(slide, selection=replace(slide.selection, logits=logits))
    assert np.isfinite(far.salience).all()
    even = replace(slide, selection=replace(slide.selection, logits=0 * logits))
    assert abs(even.salience).max() < 1e-3  # nothing is blown up


def test_slides_are_dealt_by_lot_a_third_to_learn_from(
    model: ModelFolder, results: Path
) -> None:
    slides = find_taught([results], model)
    assert [slide.name for slide in slides] == [f"s{n}" for n in range(6)]
    seen = set()
    for seed in range(5):
        first, second = deal(slides, seed)
        assert (len(first), len(second)) == (2, 4)
        names = [slide.name for slide in (*first, *second)]
        assert sorted(names) == [slide.name for slide in slides]
        assert names == [s.name for part in deal(slides, seed) for s in part]
        seen.add(tuple(names))
    assert len(seen) > 1
    assert [len(part) for part in deal(slides[:2], 0)] == [1, 1]
    with pytest.raises(ConfigError, match=r"19 or more for a recall of 0\.95"):
        deal(slides[:1], 0)


# what cannot be learned from


def copied(results: Path, folder: Path) -> SlideFolder:
    subprocess.run(["cp", "-r", results / "s0", folder], check=True)
    return SlideFolder(folder)


def test_selections_of_another_selector_are_refused(
    model: ModelFolder, results: Path
) -> None:
    selector = model.card.selector.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ConfigError, match="not made by this model's selector"):
        Taught.open(SlideFolder(results / "s0"), selector)


def test_screened_selections_are_refused(
    model: ModelFolder, results: Path, trained: ModelFolder, tmp_path: Path
) -> None:
    folder = copied(results, tmp_path / "s0")
    slide = Taught.open(folder, model.card.selector)
    options = SelectOptions(**(CPU.model_dump() | {"screen": 0.7, "audit": 5}))
    grid: PatchGrid = slide.selection.grid
    publish_selection(folder, select_patches(slide.pyramid, grid, trained, options))
    with pytest.raises(ConfigError, match="run `wsi select --screen off`"):
        find_taught([tmp_path], model)


def test_slides_without_a_finished_selection_are_named(
    model: ModelFolder, results: Path, tmp_path: Path
) -> None:
    folder = copied(results, tmp_path / "s0")
    (folder.path / "stages" / "select.json").unlink()
    with pytest.raises(ConfigError, match=r"s0: no results of 'select'"):
        find_taught([tmp_path], model)
    folder.selection.unlink()
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"holds no selection\.parquet"):
            find_taught([place], model)


@pytest.mark.parametrize("factor", [3, 8])
def test_a_factor_that_does_not_fit_is_refused(
    model: ModelFolder, results: Path, tmp_path: Path, factor: int
) -> None:
    slides = find_taught([results], model)
    options = ScreenTraining(factor=factor)
    with pytest.raises(ConfigError, match=f"--factor {factor}: patches of 32 px"):
        train_screen(model, slides[:1], slides[1:], tmp_path, options)


def test_a_selector_that_reads_features_needs_no_screen(
    model: ModelFolder, results: Path, tmp_path: Path
) -> None:
    slides = find_taught([results], model)
    shape = model.card.selector.architecture | {"encoder": "features:16"}
    selector = model.card.selector.model_copy(update={"architecture": shape})
    card = model.card.model_copy(update={"selector": selector})
    with pytest.raises(ConfigError, match="a screen would save no work"):
        train_screen(replace(model, card=card), slides[:1], slides[1:], tmp_path)


def test_no_slide_is_too_few(model: ModelFolder, results: Path, tmp_path: Path) -> None:
    slides = find_taught([results], model)
    for parts in ((slides, []), ([], slides)):
        with pytest.raises(ConfigError, match="no slide with patches"):
            train_screen(model, *parts, tmp_path)


@pytest.mark.parametrize(
    "given", [{"factor": 1}, {"steps": 0}, {"lr": 0.0}, {"lr": float("inf")}]
)
def test_options_out_of_range_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        ScreenTraining(**given)


def test_the_verb_trains_and_says_where_the_model_is(
    results: Path, tmp_path: Path
) -> None:
    """The encoder of the other tests is none that the command knows."""
    torch.manual_seed(0)
    net = SelectorNet(SelectorShape("coarse", 16, 1, 8, 8), ("any",))
    (tmp_path / "model").mkdir()
    model = selector_model(tmp_path / "model", net, patch_px=PX, top_m=TOP_M, mpp=0.5)
    for number in range(2):
        make_results(SlideFolder(tmp_path / "results" / f"s{number}"), model, number)
    command = [
        *(sys.executable, "-m", "wsi_pipeline", "train", "screen"),
        *(tmp_path / "results", "-m", model.path, "-o", tmp_path / "out"),
        *("--steps", "2"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "card.json")
    assert find_model(tmp_path / "out").card.need_screen().training["steps"] == 2
    apart = subprocess.run(
        [*command, "--calibration", tmp_path / "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert apart.returncode == 2
    assert "nowhere: holds no selection.parquet" in apart.stderr
