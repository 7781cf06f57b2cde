"""Evaluation of a model on labelled images, and the pictures made in training."""

import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.dataset_minis import mini_glas
from tests.models import small_model, small_spec
from tests.test_comparing import images, knowing
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.metrics import bootstrap_interval, by_group, mean_iou
from wsi_pipeline.models.cards import ModelFolder, write_card
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.training.comparing import compare_frames
from wsi_pipeline.training.evaluating import (
    ArmReport,
    SeedScores,
    evaluate_segmenter,
    markdown,
)
from wsi_pipeline.training.frames import cropped
from wsi_pipeline.training.gallery import Gallery, show_region
from wsi_pipeline.workbench import tools

CLASSES = tuple(MaskClass(k, f"class {k}", (80 * k, 90, 200)) for k in range(3))


def trained(
    folder: Path, seed: int, *, nodes: int = 16, steps: int = 10, classes: int = 3
) -> ModelFolder:
    """A small model whose card states a training; weights do not depend on nodes."""
    model = small_model(folder, seed=seed)
    part = model.card.segmenter
    facts = {"learned": {"seconds": seed}, "uniform": {"seconds": 2 * seed}}
    part = part.model_copy(
        update={
            "nodes": nodes,
            "architecture": part.architecture | {"nodes": nodes},
            "training": {
                "dataset": "glas",
                "seed": seed,
                "steps": steps,
                "device": f"cuda:{seed}",
                "strategies": facts,
            },
        }
    )
    kinds = model.card.classes[:classes]
    card = model.card.model_copy(update={"segmenter": part, "classes": kinds})
    write_card(folder, card)
    return ModelFolder(folder, card)


def test_crops_cover_every_pixel_once() -> None:
    data = images(2, (100, 130))
    parts = cropped(data, 64)
    assert len(parts) == 2 * 2 * 3
    assert parts.groups == ("0",) * 6 + ("1",) * 6
    whole = np.full((128, 192), 7, np.uint8)
    for label, (y, x) in zip(
        parts.labels, [(y, x) for y in (0, 64) for x in (0, 64, 128)], strict=False
    ):
        whole[y : y + 64, x : x + 64] = label
    np.testing.assert_array_equal(whole[:100, :130], data.labels[0])
    assert (whole[100:] == 255).all()
    assert (whole[:, 130:] == 255).all()
    assert parts.images[2].shape == (3, 64, 64)
    assert (parts.images[2][:, :, 2:] == 255).all()


def test_counts_are_summed_by_patient() -> None:
    counts = np.arange(24).reshape(4, 2, 3)
    found = by_group(counts, ("b", "a", "b", "b"))
    np.testing.assert_array_equal(found[0], counts[1])
    np.testing.assert_array_equal(found[1], counts[[0, 2, 3]].sum(axis=0))


def test_a_model_is_evaluated_in_every_arm(tmp_path: Path) -> None:
    model = small_model(tmp_path / "small")
    data = images(2, (128, 200))
    reports = evaluate_segmenter([model], data, CLASSES)
    assert [report.strategy for report in reports] == ["learned", "uniform"]
    for report in reports:
        found = report.to_json()
        assert found["patients"] == 2
        assert found["regions"] == 4
        assert np.sum(found["counts"]) == 2 * 128 * 200
        assert 0 <= found["miou"] <= found["miou_bound"] <= 1
        low, high = found["miou_interval_by_patient"]
        assert low <= found["miou"] <= high
        assert found["peak_bytes"] > 2**20
    assert reports[0].gflops > reports[1].gflops
    with pytest.raises(UnknownNameError, match="it has: learned, uniform"):
        evaluate_segmenter([model], data, CLASSES, ["edge"])
    with pytest.raises(ConfigError, match=r"has 3 classes .* the dataset 2"):
        evaluate_segmenter([model], data, CLASSES[:2])


def test_the_report_states_what_was_counted() -> None:
    data = images(2)
    scores = compare_frames(knowing("uniform"), data)
    names = tuple(c.name for c in CLASSES)
    seed = SeedScores("there/model", 7, scores, 3 * 2**20)
    report = ArmReport("uniform", "uniform", 192, (24, 32), names, data.groups, (seed,))
    lines = list(markdown([report]))
    miou = f"{mean_iou(scores.full.sum(axis=0)):.3f}"
    assert lines[2].startswith(f"| uniform | 24 x 32 | 48 | 7 | {miou} | {miou} |")
    assert lines[2].endswith(" 3 |")
    assert lines[-3].startswith("| class 0 | 0.")


def test_seeds_share_a_row_and_budgets_do_not(tmp_path: Path) -> None:
    models = [
        trained(tmp_path / "first", 0),
        trained(tmp_path / "coarse", 0, nodes=8),
        trained(tmp_path / "second", 3),
    ]
    data = images(2, (128, 128))
    reports = evaluate_segmenter(models, data, CLASSES, ["learned"])
    assert [(r.name, r.nodes, r.pixels_per_node) for r in reports] == [
        ("learned", (16, 16), 64),
        ("learned", (8, 8), 256),
    ]
    both = reports[0].to_json()
    assert [(s["seed"], s["model"]) for s in both["seeds"]] == [
        (0, str(tmp_path / "first")),
        (3, str(tmp_path / "second")),
    ]
    alone = [
        evaluate_segmenter([models[k]], data, CLASSES, ["learned"])[0] for k in (0, 2)
    ]
    each = [report.miou for report in alone]
    assert each[0] != each[1]
    assert [s["miou"] for s in both["seeds"]] == each
    assert both["miou"] == pytest.approx(sum(each) / 2)
    # a patient is drawn with all its seeds
    patients = sum(by_group(r.seeds[0].scores.full, r.groups) for r in alone)
    assert reports[0].interval == bootstrap_interval(patients, mean_iou)
    np.testing.assert_array_equal(both["counts"], patients.sum(axis=0))
    row = list(markdown(reports))[2]
    assert f"| 0 / 3 | {each[0]:.3f} / {each[1]:.3f} | {both['miou']:.3f} |" in row


def test_other_trainings_are_named_by_what_differs(tmp_path: Path) -> None:
    models = [trained(tmp_path / "short", 0), trained(tmp_path / "long", 1, steps=99)]
    reports = evaluate_segmenter(models, images(1, (128, 128)), CLASSES, ["uniform"])
    assert [r.name for r in reports] == ["uniform, steps 10", "uniform, steps 99"]
    assert [len(r.seeds) for r in reports] == [1, 1]


def test_models_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first, few = trained(tmp_path / "a", 0), trained(tmp_path / "few", 1, classes=2)
    data = images(1, (128, 128))
    with pytest.raises(ConfigError, match=r"few: the model has 2 .* the dataset 3"):
        evaluate_segmenter([first, few], data, CLASSES)
    again = ModelFolder(shutil.copytree(first.path, tmp_path / "copy"), first.card)
    with pytest.raises(ConfigError, match=r"a and .*copy: .* seed 0 of both"):
        evaluate_segmenter([first, again], data, CLASSES)


def test_the_verb_takes_several_models_and_writes_a_report(tmp_path: Path) -> None:
    mini = mini_glas(tmp_path / "data")
    folders = [str(trained(tmp_path / f"seed{k}", k).path) for k in range(2)]
    out = tmp_path / "report"
    options = ["--data", str(mini.root), "--split", "train", "--out", str(out)]
    done = CliRunner().invoke(
        tools,
        ["evaluate", "segment", *folders, "glas", *options],
        env={"COLUMNS": "90"},
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {
        "budget.png",
        "budget.svg",
        "report.json",
        "report.md",
    }
    found = orjson.loads((out / "report.json").read_bytes())
    assert [row["strategy"] for row in found] == ["learned", "uniform"]
    for row in found:
        assert [seed["model"] for seed in row["seeds"]] == folders
        assert row["patients"] == 2
        assert row["regions"] == 3
    assert done.stdout == (out / "report.md").read_text()


def test_pictures_show_chosen_regions_and_what_was_found(tmp_path: Path) -> None:
    data = images(4)
    net = knowing("learned")
    shown = show_region(net, data, 1)
    assert shown.density is not None
    assert shown.density.shape == (24, 32)
    assert (shown.predicted == data.labels[1]).mean() > 0.9
    np.testing.assert_array_equal(shown.image, data.images[1])
    gallery = Gallery(tmp_path, data, CLASSES)
    gallery.hang("learned", net, 500)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"learned-000500-{k}.png" for k in range(3)]
    with Image.open(tmp_path / files[0]) as picture:
        assert min(picture.size) > 200


def test_one_region_is_drawn_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SegmentNet(small_spec(), "uniform").eval()
    Gallery(tmp_path, images(1), CLASSES).hang("uniform", net, 0)
    assert len(list(tmp_path.iterdir())) == 1
