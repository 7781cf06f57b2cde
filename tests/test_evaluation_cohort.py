"""Masks of many slides against the truth: pairs, intervals, tables, pictures, verbs."""

import csv
import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
import shapely
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from tests.dataset_minis import mini_slides
from tests.pyramids import noise_pyramid
from tests.test_evaluation import CLASSES, masks_of
from wsi_pipeline.annotations import Annotation, read_annotations
from wsi_pipeline.annotations.classing import ClassMap
from wsi_pipeline.annotations.writing import write_annotations
from wsi_pipeline.cli import app
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.evaluation import DrawnOptions, evaluate_pairs, find_pairs
from wsi_pipeline.evaluation.opening import find_label, find_source
from wsi_pipeline.evaluation.report import markdown, publish_scores
from wsi_pipeline.geometry import Box
from wsi_pipeline.metrics import bootstrap_intervals, dice
from wsi_pipeline.pyramid import MaskPyramid, open_pyramid


def slide_folder(root: Path, name: str, shift: int = 0) -> Path:
    """Results of a slide of 640 x 480 px: a square of class 1, one of class 2."""
    folder = root / name
    pyramid = noise_pyramid(folder / "slide.ome.zarr")
    values = np.zeros((480, 640), np.uint8)
    values[100:200, 100 + shift : 200 + shift] = 1
    values[300:400, 300:400] = 2
    labels = pyramid.labels_path
    for label, pixels in (("coverage", np.ones_like(values)), ("model", values)):
        masks = MaskPyramid.create(labels / label, pyramid.source, 1, CLASSES)
        masks.put(0, masks.levels[0].box, pixels)
        masks.write_coarser()
    return folder


def square(x: int, y: int, side: int, name: str) -> Annotation:
    return Annotation(shapely.box(x, y, x + side, y + side), name, (9, 9, 9))


def corrected(path: Path, *more: Annotation) -> Path:
    path.parent.mkdir(exist_ok=True)
    drawn = [square(100, 100, 100, "class 1"), square(300, 300, 100, "class 2")]
    write_annotations(path, [*drawn, *more])
    return path


def cohort(root: Path) -> tuple[Path, Path]:
    """Three slides of two patients; the second slide misses half of class 1."""
    results, truths = root / "results", root / "truth"
    for n, name in enumerate(("a", "b", "c")):
        slide_folder(results, name, 50 if name == "b" else 0)
        corrected(truths / f"{name}.geojson", *[square(10, 10, 40, "class 2")] * n)
    (results / "run.json").write_text("{}")
    return results, truths


# ---------------------------------------------------------------------- pairs


def test_results_and_annotations_are_paired_by_name(tmp_path: Path) -> None:
    results, truths = cohort(tmp_path)
    corrected(truths / "d.geojson")
    (truths / "notes.txt").write_text("d is odd")
    pairs, left_out = find_pairs(results, truths)
    assert [(p.name, p.truth.name, p.patient) for p in pairs] == [
        ("a", "a.geojson", "a"), ("b", "b.geojson", "b"), ("c", "c.geojson", "c"),
    ]  # fmt: skip
    assert [(o.name, o.reason) for o in left_out] == [("d", "no prediction")]


def test_a_truth_may_bear_the_name_of_the_slides_file(tmp_path: Path) -> None:
    folder = slide_folder(tmp_path / "results", "noise-1234abcd")
    truth = corrected(tmp_path / "truth" / "noise.geojson")
    pairs, _ = find_pairs(tmp_path / "results", truth.parent)
    assert [(p.name, p.predicted) for p in pairs] == [("noise-1234abcd", folder)]
    slide_folder(tmp_path / "results", "noise-5678abcd")
    pairs, left_out = find_pairs(tmp_path / "results", truth.parent)
    assert pairs == []
    assert "several slides of that name: noise-1234abcd, noise-5678" in (
        left_out[0].reason
    )


def test_a_table_says_what_belongs_together_and_to_whom(tmp_path: Path) -> None:
    results, truths = cohort(tmp_path)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(
        "sample,slide,label,patient\n"
        f"a,a.svs,{truths.name}/a.geojson,p1\nb,b.svs,{truths.name}/b.geojson,\n"
        "c,c.svs,,p1\n"
    )
    pairs, left_out = find_pairs(results, sheet)
    assert [(p.name, p.patient) for p in pairs] == [("a", "p1"), ("b", "b")]
    assert left_out == []
    for text, told in (
        ("sample,slide\n", "expected sample and truth"),
        ("sample,truth\na,gone.geojson\n", "line 2: no such truth"),
        ("sample,truth\na,truth/a.geojson\na,truth/b.geojson\n", "has two truths"),
        ("sample,truth\n", "no annotations or labels there"),
    ):
        sheet.write_text(text)
        with pytest.raises(ConfigError, match=told):
            find_pairs(results, sheet)


def test_single_files_and_labels_are_pairs_too(tmp_path: Path) -> None:
    folder = slide_folder(tmp_path, "a")
    truth = corrected(tmp_path / "t" / "other.geojson")
    label = folder / "slide.ome.zarr" / "labels" / "model"
    for predicted, name in ((folder, "a"), (label, "model"), (truth, "other")):
        (pair,), _ = find_pairs(predicted, truth)
        assert (pair.name, pair.truth) == (name, truth)
    masks_of(tmp_path / "t" / "a.truth.ome.zarr", np.zeros((4, 4)))
    pairs, _ = find_pairs(folder, tmp_path / "t")
    assert [pair.truth.name for pair in pairs] == ["a.truth.ome.zarr"]


def test_pairs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    results, truths = cohort(tmp_path)
    with pytest.raises(ConfigError, match="3 slides, and one truth"):
        find_pairs(results, truths / "a.geojson")
    with pytest.raises(ConfigError, match="no results of slides"):
        find_pairs(tmp_path / "gone", truths)
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_pairs(results, tmp_path / "gone")


# --------------------------------------------------------------------- scores


def test_a_cohort_is_scored_by_class_and_by_patient(tmp_path: Path) -> None:
    results, truths = cohort(tmp_path)
    pairs, left_out = find_pairs(results, truths)
    patients = {"a": "p1", "b": "p1", "c": "p2"}
    pairs = [type(p)(p.name, p.predicted, p.truth, patients[p.name]) for p in pairs]
    seen = []
    scores = evaluate_pairs(
        pairs, left_out, show=lambda pair, found: seen.append(pair.name)
    )
    assert seen == ["a", "b", "c"]
    assert scores.patients == 2
    rows = {row.areas.kind.name: row for row in scores.rows()}
    one, two = rows["class 1"], rows["class 2"]
    # half of the second slide's 10 000 px are missed, as many are too much
    assert one.dice == pytest.approx(25_000 / 30_000)
    assert (one.slides, one.median_dice) == (3, 1.0)
    assert (one.added, one.removed) == (1, 1)
    assert one.areas.added_um2 == one.areas.removed_um2 == 5_000 * 0.25
    assert two.areas.truth_um2 == (30_000 + 2 * 1_600) * 0.25
    assert (two.added, two.removed) == (2, 0)
    counts = np.stack([s.scores.counts for s in scores.slides]).astype(float) * 0.25
    by_patient = np.rint(np.stack([counts[0] + counts[1], counts[2]])).astype(np.int64)
    low, high = bootstrap_intervals(by_patient, dice)
    assert one.dice_interval == pytest.approx((low[1], high[1]))
    assert low[1] < one.dice < high[1] == 1
    middle, interval = scores.pooled()
    assert interval is not None
    assert interval[0] <= middle <= interval[1]


def test_one_patient_has_no_interval(tmp_path: Path) -> None:
    folder = slide_folder(tmp_path, "a")
    pairs, _ = find_pairs(folder, corrected(tmp_path / "t" / "a.geojson"))
    scores = evaluate_pairs(pairs)
    assert [row.dice_interval for row in scores.rows()] == [None] * 3
    assert scores.pooled() == (1.0, None)


def test_a_slide_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    results, truths = cohort(tmp_path)
    corrected(truths / "b.geojson", square(0, 0, 9, "Nobody"))
    (truths / "c.geojson").write_text("{")
    scores = evaluate_pairs(*find_pairs(results, truths))
    assert [slide.pair.name for slide in scores.slides] == ["a"]
    reasons = {out.name: out.reason for out in scores.left_out}
    assert "'Nobody'" in reasons["b"]
    assert "no JSON" in reasons["c"]


def test_nothing_compared_is_told_without_a_table() -> None:
    scores = evaluate_pairs([])
    assert list(markdown(scores)) == []
    assert scores.to_json()["classes"] == []


# --------------------------------------------------------- tables and pictures


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_tables_say_the_same(tmp_path: Path) -> None:
    results, truths = cohort(tmp_path)
    corrected(truths / "d.geojson")
    scores = evaluate_pairs(*find_pairs(results, truths))
    out = tmp_path / "out"
    publish_scores(out, scores)
    report = orjson.loads((out / "report.json").read_bytes())
    table = {row["class"]: row for row in rows_of(out / "classes.csv")}
    for row in report["classes"]:
        mine = table[row["class"]]
        assert float(mine["dice"]) == row["dice"]
        assert [float(mine["dice_low"]), float(mine["dice_high"])] == (
            row["dice_interval"]
        )
        assert float(mine["added_um2"]) == row["areas_um2"]["added"]
        assert int(mine["added_regions"]) == row["added"]
    slides = rows_of(out / "slides.csv")
    assert [row["slide"] for row in slides] == [*"aaabbbccc", "d"]
    assert slides[-1]["left_out"] == "no prediction"
    assert sum(float(r["added_um2"]) for r in slides[:-1]) == pytest.approx(
        sum(float(r["added_um2"]) for r in table.values())
    )
    regions = rows_of(out / "regions.csv")
    moved = next(r for r in regions if (r["slide"], r["change"]) == ("b", "added"))
    assert moved == {
        "slide": "b", "change": "added", "class": "class 1", "area_um2": "1250.0",
        "x_px": "100", "y_px": "100", "w_px": "50", "h_px": "100",
    }  # fmt: skip
    text = (out / "report.md").read_text()
    assert "slides: 3, patients: 3, mIoU " in text
    assert "| b | " in text
    assert "left out: d: no prediction" in text


def wsi(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_verb_writes_tables_and_pictures(tmp_path: Path) -> None:
    results, truths = cohort(tmp_path)
    out = tmp_path / "out"
    (tmp_path / "map.csv").write_text("drawn,class\nclass 2,class 1\n")
    done = wsi("evaluate", "masks", results, truths, "-o", out, "--json",
               "--class-map", tmp_path / "map.csv")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = {row["class"]: row for row in orjson.loads(done.stdout)["classes"]}
    assert found["class 2"]["dice"] == 0
    assert sorted(p.name for p in (out / "changes").iterdir()) == [
        "a.png", "b.png", "c.png",
    ]  # fmt: skip
    with Image.open(out / "changes" / "b.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # the square of class 1: its left half was added, to the right as much removed
    added, agreed, removed = (pixels[120:180, x : x + 30] for x in (110, 160, 210))
    assert (added[..., 0] - added[..., 2]).mean() > 100  # orange
    assert (agreed[..., 1] - agreed[..., 0]).mean() > 80  # green
    assert (removed[..., 2] - removed[..., 0]).mean() > 80  # blue
    pyramid = open_pyramid(results / "b" / "slide.ome.zarr")
    slide = pyramid.read_level(Box(20, 420, 40, 50), 0)
    np.testing.assert_array_equal(pixels[420:470, 20:60], slide.transpose(1, 2, 0))
    lost = wsi("evaluate", "masks", results, tmp_path / "map.csv")
    assert isinstance(lost.exception, ConfigError)
    assert "expected sample and truth" in str(lost.exception)


def test_slides_that_are_left_out_change_the_exit_code(tmp_path: Path) -> None:
    folder = slide_folder(tmp_path, "a")
    truth = corrected(tmp_path / "t" / "a.geojson", square(0, 0, 9, "Nobody"))
    none = wsi("evaluate", "masks", folder, truth)
    assert none.exit_code == 1
    assert none.stdout.startswith("left out: a: ")
    wrong = wsi("evaluate", "masks", folder, truth, "--frame", "full")
    assert "frame 'full'" in str(wrong.exception)


def test_annotations_are_shown_converted_and_made_a_label(tmp_path: Path) -> None:
    folder = slide_folder(tmp_path, "a")
    truth = corrected(tmp_path / "t" / "a.geojson", square(0, 0, 9, "Extra"))
    (tmp_path / "bad.xml").write_text("<html/>")
    shown = wsi("annotations", "show", truth, tmp_path / "bad.xml")
    assert shown.exit_code == 3
    good, bad = orjson.loads(shown.stdout)
    assert good["classes"]["Extra"] == {"objects": 1, "area_px": 81}
    assert "XML of another kind" in bad["refused"]
    copy = tmp_path / "copy.geojson.gz"
    made = wsi("annotations", "convert", truth, "-o", copy, "--slide", folder)
    assert made.exit_code == 0, made.output
    assert len(read_annotations(copy)) == 3
    (tmp_path / "map.csv").write_text("drawn,class\nExtra,Necrosis\n")
    label = wsi("annotations", "label", folder, truth, "--class-map",
                tmp_path / "map.csv")  # fmt: skip
    assert label.exit_code == 0, label.output
    masks = MaskPyramid(Path(label.stdout.strip()))
    assert masks.count_pixels() == {0: 287_119, 1: 10_000, 2: 10_000, 3: 81}
    assert [kind.name for kind in masks.classes][3] == "Necrosis"
    listed = orjson.loads((masks.path.parent / "zarr.json").read_bytes())
    assert "annotations" in listed["attributes"]["ome"]["labels"]
    again = wsi("evaluate", "masks", folder, masks.path)
    assert again.exit_code == 0, again.output


def test_the_models_label_must_be_the_only_one(tmp_path: Path) -> None:
    folder = slide_folder(tmp_path, "a")
    assert find_label(folder) == "model"
    labels = folder / "slide.ome.zarr" / "labels"
    shutil.copytree(labels / "model", labels / "other")
    with pytest.raises(ConfigError, match=r"one model, got \['model', 'other'\]"):
        find_label(folder)
    shutil.rmtree(labels)
    with pytest.raises(ConfigError, match="got none"):
        find_label(folder)


def test_a_slide_file_says_its_own_frame(tmp_path: Path) -> None:
    mini = mini_slides(tmp_path)
    source = find_source(mini.image)
    assert (source.size_px, source.scale.mean) == ((512, 256), pytest.approx(0.5))
    assert source.bounds == Box(0, 0, 512, 256)


def test_more_classes_than_values_are_refused(tmp_path: Path) -> None:
    folder = slide_folder(tmp_path, "a")
    many = [square(n, 0, 1, f"kind {n}") for n in range(300)]
    path = corrected(tmp_path / "t" / "a.geojson", *many)
    rows = tuple((f"kind {n}", f"kind {n}") for n in range(300))
    scores = evaluate_pairs(*find_pairs(folder, path), DrawnOptions(ClassMap(rows)))
    assert [out.reason for out in scores.left_out] == ["more than 254 classes"]
