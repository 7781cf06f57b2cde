"""What is shown of patches that a screening left out: never a score of zero."""

import csv
import logging
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from tests.models import calibration_of, selector_model, with_screen
from tests.pyramids import grid_of, noise_pyramid
from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ModelError
from wsi_pipeline.exporters.detections import export_detections
from wsi_pipeline.exporters.heatmap import export_heat_map, paint_heat_map
from wsi_pipeline.keys import stage_key
from wsi_pipeline.models.cards import ModelFolder, find_model, read_card
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.pictures import attention, top_patches
from wsi_pipeline.preflight import check_config
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.stages.select import _warnings
from wsi_pipeline.training.describing import publish_part

SIDE = 64


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """512 x 256 px: 8 x 4 patches of 64."""
    path = tmp_path_factory.mktemp("pyramid") / "slide.ome.zarr"
    return noise_pyramid(path, size_px=(512, 256))


@pytest.fixture
def selection(pyramid: Pyramid) -> Selection:
    """Of 32 patches 8 were kept and 6 of the other 24 audited, patches 8 to 13."""
    grid = grid_of(pyramid, SIDE, SIDE)
    n = len(grid)
    weight = np.zeros(n)
    weight[:8], weight[8:14] = 1, 4
    score = np.full(n, np.nan)
    score[:14] = np.linspace(14, 1, 14)
    score /= np.nansum(score * weight)
    logits = np.log(score)[:, None].astype(np.float32)
    rank = np.arange(n)
    return Selection(grid, logits, score, rank, rank < 3, {"mode": "exact"}, weight)


def test_percentiles_count_patches_for_those_that_they_stand_for(
    selection: Selection,
) -> None:
    assert selection.examined.tolist() == [True] * 14 + [False] * 18
    found = selection.percentile
    assert found[:8].tolist() == [1 - i / 32 for i in range(8)]
    assert found[8:14].tolist() == [(24 - 4 * i) / 32 for i in range(6)]
    assert np.isnan(found[14:]).all()
    assert selection.captured_mass == pytest.approx(selection.score[:3].sum())


def test_a_screened_selection_comes_back_as_saved(
    selection: Selection, tmp_path: Path
) -> None:
    selection.save(tmp_path / "a.parquet")
    back = Selection.load(tmp_path / "a.parquet")
    for name in ("logits", "score", "rank", "chosen", "weight", "percentile"):
        np.testing.assert_array_equal(getattr(back, name), getattr(selection, name))
    assert "weight" in pq.read_table(tmp_path / "a.parquet").column_names
    plain = replace(selection, weight=None)
    plain.save(tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "b.parquet").column_names == [
        *("patch", "x", "y", "tissue", "score", "rank", "chosen", "logit_0")
    ]
    assert Selection.load(tmp_path / "b.parquet").weight is None


def test_the_heat_map_tells_left_out_patches_from_low_ones_and_from_none(
    selection: Selection, pyramid: Pyramid, tmp_path: Path
) -> None:
    keep = np.arange(32) != 31  # no tissue in the last corner
    grid = selection.grid
    part = PatchGrid(grid.corners[keep], SIDE, SIDE, grid.mpp, grid.tissue[keep])
    fields = "logits", "score", "rank", "chosen", "weight"
    columns = [getattr(selection, name)[keep] for name in fields]
    cut = Selection(part, *columns[:4], {}, columns[4])
    (heat,) = paint_heat_map(cut, (512, 256))
    expected = np.where(cut.examined, cut.percentile, -1).astype(np.float32)
    assert heat.ravel().tolist() == [*expected.tolist(), 0]
    export_heat_map(cut, pyramid.source, tmp_path / "heat")
    attributes = zarr.open_group(tmp_path / "heat", mode="r").attrs.asdict()
    assert "-1 = not examined" in str(attributes)
    export_heat_map(replace(cut, weight=None), pyramid.source, tmp_path / "plain")
    plain = zarr.open_group(tmp_path / "plain", mode="r").attrs.asdict()
    assert "not examined" not in str(plain)


def test_coarser_levels_average_examined_patches_only() -> None:
    y, x = np.mgrid[:600, :600] * 8
    corners = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)
    n = len(corners)
    grid = PatchGrid(corners, 8, 8, 0.5, np.ones(n, np.float32))
    weight = np.zeros((600, 600))
    weight[:2, :2] = [[2, 2], [1, 0]]  # three of the first four, of no others
    weight = weight.ravel() * n / weight.sum()
    score = np.where(weight > 0, 1 / n, np.nan)
    rank = np.arange(n)
    selection = Selection(grid, score[:, None], score, rank, rank < 1, {}, weight)
    levels = paint_heat_map(selection, (4800, 4800))
    assert len(levels) > 1
    assert levels[0][0, 0] == levels[1][0, 0] == 1
    assert (levels[1].ravel()[1:] == -1).all()


def test_detections_of_left_out_patches_have_a_class_and_no_measurement(
    selection: Selection, pyramid: Pyramid, tmp_path: Path
) -> None:
    path = tmp_path / "a.geojson"
    export_detections(selection, pyramid.source, path, slide_id="s")
    found = list(read_annotations(path))
    assert len(found) == 32
    for patch, annotation in enumerate(found):
        measured = dict(annotation.measurements)
        if patch < 14:
            assert measured["Attention rank"] == patch + 1
            percent = 100 * selection.percentile[patch]
            assert measured["Attention percentile"] == pytest.approx(percent)
            kind = "Selected patch" if patch < 3 else None
        else:
            assert measured == {}
            kind = "Patch not examined"
        assert annotation.class_name == kind
    assert b"NaN" not in path.read_bytes()


def test_the_picture_hatches_what_was_left_out_and_colours_the_rest_as_estimated(
    selection: Selection, pyramid: Pyramid
) -> None:
    image = np.asarray(attention(pyramid, selection))[:256]
    everything = replace(selection, score=np.arange(32, 0, -1.0), weight=None)
    plain = np.asarray(attention(pyramid, everything))[:256]

    def patch(picture: Any, number: int) -> Any:
        x, y = selection.grid.corners[number]
        return picture[y + 4 : y + SIDE - 4, x + 4 : x + SIDE - 4]

    # kept patches keep their place among all
    for number in range(3, 8):
        np.testing.assert_array_equal(patch(image, number), patch(plain, number))
    # the worst of the 14 stands for four of 32: the place of the 29th of all, not 14th
    slide = pyramid.read_level(pyramid.levels[0].box, 0).transpose(1, 2, 0)
    tint = patch(image, 13).astype(int) - (0.5 * patch(slide, 13)).round()
    wanted = patch(plain, 28).astype(int) - (0.5 * patch(slide, 28)).round()
    assert abs(tint.mean((0, 1)) - wanted.mean((0, 1))).max() < 1
    # a tenth of what was left out is lines, the rest the slide as it is
    lines = (patch(image, 20) != patch(slide, 20)).any(axis=2)
    assert lines.mean() == pytest.approx(0.1, abs=0.02)
    assert (patch(image, 3) != patch(slide, 3)).any(axis=2).mean() > 0.9


def words_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is drawn as text from here on."""
    from PIL import ImageDraw

    drawn: list[str] = []
    real = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, text: str, *rest: Any, **more: Any) -> None:
        drawn.append(text)
        real(self, xy, text, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return drawn


def test_pictures_say_how_many_patches_were_left_out(
    selection: Selection, pyramid: Pyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = words_on(monkeypatch)
    attention(pyramid, selection)
    top_patches.top_patches(pyramid, selection)
    assert any("18 not examined after a coarse look" in line for line in drawn)
    assert any("patches in all: 32 (14 examined)" in line for line in drawn)
    drawn.clear()
    whole = replace(selection, score=np.full(32, 1 / 32), weight=None)
    attention(pyramid, whole)
    top_patches.top_patches(pyramid, whole)
    assert not any("examined" in line for line in drawn)


# warnings

SCREEN: dict[str, Any] = {
    "recall": 0.9,
    "fraction": 0.25,
    "calibrated_slides": 40,
    "calibrated_top_m": 3,
    "kept": 8,
    "rejected": 24,
    "audited": 6,
    "missed": {"estimate": 0.0, "low": 0, "high": 2, "found": 0},
    "recall_estimate": 1.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"fraction": 1.0}, "does not vouch for a recall of 0.9"),
        ({"calibrated_top_m": 4}, "calibrated for the top 4 patches, not for 3"),
        (
            {
                "recall_estimate": 0.8,
                "missed": {"estimate": 0.6, "low": 0, "high": 2, "found": 1},
            },
            "1 of 6 patches drawn from those that the screen rejected",
        ),
    ],
)
def test_what_puts_a_screening_in_doubt_is_warned_of(
    selection: Selection, change: dict[str, Any], words: str | None
) -> None:
    score = np.where(selection.rank < 3, 0.3, 0)
    facts = {"top_m": 3, "screen": SCREEN | change}
    found = _warnings(replace(selection, score=score, facts=facts))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]
    assert _warnings(replace(selection, score=score, facts={"top_m": 3})) == []


# models, keys and reports


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFolder, ModelFolder]:
    """A model without and with a screen."""
    torch.manual_seed(0)
    net = SelectorNet(SelectorShape("coarse", 16, 1, 8, 8), ("any",))
    folders = [tmp_path_factory.mktemp(name) for name in ("plain", "screened")]
    plain = selector_model(folders[0], net, patch_px=32, top_m=3, mpp=0.5)
    calibration = calibration_of({0.25: 0.0}, top_m=3)
    return plain, with_screen(plain, folders[1], net, calibration=calibration)


def test_a_screen_counts_for_the_results_only_where_it_is_used(
    models: tuple[ModelFolder, ModelFolder],
) -> None:
    plain, screened = models

    def key(model: ModelFolder, **given: object) -> str:
        return stage_key("select", "u", RunConfig().updated("select", **given), model)

    assert key(plain) == key(screened)
    assert key(screened, screen=0.9) != key(screened)
    assert key(screened, screen=0.9) != key(screened, screen=0.8)
    assert key(screened, screen=0.9) != key(screened, screen=0.9, audit=5)
    screen = screened.card.need_screen().model_copy(update={"sha256": "0"})
    card = screened.card.model_copy(update={"screen": screen})
    other = replace(screened, card=card)
    assert key(screened, screen=0.9) != key(other, screen=0.9)


def test_a_run_without_the_screen_that_it_needs_is_refused_at_once() -> None:
    config = RunConfig().updated("select", screen=0.9)
    with pytest.raises(ModelError, match="`wsi train screen` adds one"):
        check_config(config, find_model("synthetic").card)


def test_a_screen_stays_with_its_selector_and_goes_with_it(
    models: tuple[ModelFolder, ModelFolder], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    subprocess.run(["cp", "-r", models[1].path, folder], check=True)
    selector = models[1].card.selector
    selector = selector.model_copy(
        update={"training": {"labels": "slides", "data": ""}}
    )
    publish_part(folder, "any", selector)
    assert read_card(folder).screen == models[1].card.screen
    publish_part(folder, "any", selector.model_copy(update={"sha256": "0" * 64}))
    assert read_card(folder).screen is None


def test_a_screened_run_is_published_whole_and_the_report_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the shipped model and a screen of no skill: everything but the choice."""
    from wsi_pipeline.batch import run_batch
    from wsi_pipeline.demo import write_truthful_slide

    slide = write_truthful_slide(tmp_path / "a.tif", seed=11, megapixels=4, workers=1)[
        0
    ]
    shipped = find_model("synthetic")
    (tmp_path / "model").mkdir()
    torch.manual_seed(0)
    net = SelectorNet(SelectorShape("coarse", 16, 1, 8, 8), ("any",))
    (tmp_path / "model" / "segmenter.safetensors").write_bytes(
        (shipped.path / "segmenter.safetensors").read_bytes()
    )
    model = with_screen(
        shipped,
        tmp_path / "model",
        net,
        factor=4,
        calibration=calibration_of({0.2: 0.0}, top_m=4),
    )
    config = RunConfig().updated("select", screen=0.9, audit=9, top_m=4)
    with caplog.at_level(logging.WARNING):
        (outcome,) = run_batch([slide], tmp_path / "out", model, config).outcomes
    manifest = outcome.manifest
    assert manifest.status == "done", manifest.reason
    screen = manifest.facts["select"]["screen"]
    assert screen["audited"] == 9
    assert screen["rejected"] > 9
    assert manifest.config["select"]["screen"] == 0.9
    selection = Selection.load(
        tmp_path / "out" / manifest.slide_id / "selection.parquet"
    )
    assert selection.examined.sum() == screen["kept"] + 9 < len(selection.grid)
    page = (tmp_path / "out" / "report.html").read_text()
    looked = f"{screen['kept'] + 9} in full after a coarse look at all"
    assert looked in " ".join(page.split())
    with (tmp_path / "out" / "slides.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    for warning in manifest.facts["select"]["warnings"]:
        assert warning in row["warnings"]
    assert orjson.loads((tmp_path / "out" / "run.json").read_bytes())
