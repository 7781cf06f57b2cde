"""The way from end to end, on a synthetic slide and on the real ones."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import PIL.Image
import pytest
import shapely
import zarr
from ome_zarr_models.v05 import Image, ImageLabel

from wsi_pipeline.agreement import find_disagreements
from wsi_pipeline.batch import run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.demo import write_truthful_slide
from wsi_pipeline.errors import ConfigError, RegionError, UnknownNameError
from wsi_pipeline.evaluation import evaluate_masks
from wsi_pipeline.keys import final_key
from wsi_pipeline.models.cards import ModelCard, find_model
from wsi_pipeline.pipeline import publish_manifest, run_stage
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.results import Manifest, SlideFolder
from wsi_pipeline.resuming import LogitJournal
from wsi_pipeline.run_files import rewrite_report
from wsi_pipeline.stages import SlideJob, SlideRun
from wsi_pipeline.stages import select as select_stage

EXACT = RunConfig().updated(
    "export", simplify_um=0.0, min_area_um2=0.0, min_hole_um2=0.0
)
ALL = EXACT.updated("segment", coverage="all")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A small synthetic slide and its truth."""
    folder = tmp_path_factory.mktemp("made")
    slide, truth, *_ = write_truthful_slide(
        folder / "slide.tif", seed=11, megapixels=3, workers=1
    )
    return slide, truth


@pytest.fixture(scope="session")
def results(made, tmp_path_factory) -> SlideFolder:
    """Results of the synthetic slide, all tissue segmented."""
    out = tmp_path_factory.mktemp("results")
    result = run_batch([made[0]], out, find_model("synthetic"), ALL)
    assert result.exit_code == 0
    return SlideFolder(out / result.outcomes[0].manifest.slide_id)


def features(folder: SlideFolder) -> list[dict]:
    data = orjson.loads((folder.path / "segmentation.geojson").read_bytes())
    assert data["type"] == "FeatureCollection"
    return data["features"]


def bytes_of(folder: SlideFolder) -> dict[str, str]:
    """Digest of every result but what tells of times and memory."""
    return {
        path.relative_to(folder.path).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.path.rglob("*"))
        if path.is_file()
        and path.parent.name != "stages"
        and path.name not in ("run.json", "ro-crate-metadata.json")
    }


def test_the_shipped_model_finds_the_classes_of_a_synthetic_slide(made, results):
    masks = Pyramid(results.pyramid).masks("synthetic")
    scores = evaluate_masks(masks, MaskPyramid(made[1]))
    assert scores.computed_share == 1.0
    # far above chance (1/6) and above what colour alone gives; the card has the figure
    assert scores.miou > 0.5


def test_everything_that_the_design_names_is_there(results):
    assert {p.name for p in results.path.iterdir()} == {
        "slide.ome.zarr", "tissue.png", "patches.parquet", "selection.parquet",
        "segmentation.geojson", "thumbnail.png", "overlay.png", "attention.png",
        "attention.geojson", "attention.ome.zarr", "top_patches.png",
        "stages", "manifest.json", "run.json", "config.toml", "ro-crate-metadata.json",
    }  # fmt: skip
    assert {p.name for p in results.path.parent.iterdir()} == {
        results.slide_id, "run.json", "slides.csv", "report.html", "plans.json",
        "open_in_qupath.groovy",
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["select", "segment"])
def test_the_manifest_tells_what_memory_both_nets_were_given_and_took(results, verb):
    manifest = Manifest.load(results)
    facts = manifest.facts[verb]
    assert facts["budget_bytes"] == manifest.config[verb]["memory"] == 2 << 30
    assert facts["peak_allocated_bytes"] == facts["measured_bytes"]
    assert facts["measured_bytes"] < facts["peak_reserved_bytes"] < 2 << 30
    assert facts["fit"]["slope_bytes"] > 0
    assert manifest.peak_bytes[verb] > facts["measured_bytes"]
    assert facts["batch"] & (facts["batch"] - 1) == 0


def test_image_and_labels_are_valid_ome_zarr_on_the_same_levels(results):
    image = Image.from_zarr(zarr.open_group(results.pyramid, mode="r"))
    labels = zarr.open_group(results.pyramid / "labels", mode="r")
    names = labels.attrs["ome"]["labels"]
    assert names == ["confidence", "coverage", "synthetic", "tissue"]
    for name in names:
        label = ImageLabel.from_zarr(labels[name])
        assert len(label.attributes.ome.multiscales[0].datasets) == len(
            image.attributes.ome.multiscales[0].datasets
        )


def test_class_areas_in_the_geojson_equal_the_mask_to_the_pixel(results):
    masks = Pyramid(results.pyramid).masks("synthetic")
    pixels = masks.count_pixels()
    factor = masks.levels[0].downsample ** 2
    found: dict[str, float] = {}
    for feature in features(results):
        name = feature["properties"]["classification"]["name"]
        area = shapely.geometry.shape(feature["geometry"]).area
        found[name] = found.get(name, 0.0) + area
    # the slide's last row or column may be half a base pixel: clipped in the GeoJSON
    w, h = masks.source.size_px
    for c in masks.classes[1:]:
        whole = _level0_pixels(masks, c.value)
        assert found.get(c.name, 0.0) == whole
        assert abs(whole - pixels.get(c.value, 0) * factor) <= 2 * (w + h)


def _level0_pixels(masks: MaskPyramid, value: int) -> int:
    """Level-0 pixels of a class, each base pixel cut at the slide's edge."""
    base = int(masks.levels[0].downsample)
    w, h = masks.source.size_px
    where = masks.read_level(masks.levels[0].box, 0) == value
    xs = np.minimum((np.arange(where.shape[1]) + 1) * base, w)
    ys = np.minimum((np.arange(where.shape[0]) + 1) * base, h)
    widths = np.diff(xs, prepend=0)
    heights = np.diff(ys, prepend=0)
    return int(heights @ where.astype(np.int64) @ widths)


def test_geometries_are_valid_on_qupaths_grid_and_on_the_slide(results):
    w, h = Pyramid(results.pyramid).source.size_px
    slide = shapely.box(0, 0, w, h)
    ids = set()
    for feature in features(results):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shapely.set_precision(shape, 0.01).is_valid
        assert slide.covers(shape)
        ids.add(feature["id"])
    assert len(ids) == len(features(results)) > 0


def test_the_manifest_lists_every_file_with_its_sha256(results):
    manifest = Manifest.load(results)
    assert manifest is not None
    assert manifest.status == "done"
    there = {
        p.relative_to(results.path).as_posix()
        for p in results.path.rglob("*")
        if p.is_file() and p.parent.name != "stages"
    } - {"manifest.json", "run.json", "ro-crate-metadata.json"}
    assert set(manifest.files) == there
    for name in ("tissue.png", "segmentation.geojson", "slide.ome.zarr/zarr.json"):
        digest = hashlib.sha256((results.path / name).read_bytes()).hexdigest()
        assert manifest.files[name]["sha256"] == digest


def test_verbs_one_by_one_give_what_run_gives(made, results, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        "[segment]\ncoverage = 'all'\n[export]\nsimplify_um = 0\n"
        "min_area_um2 = 0\nmin_hole_um2 = 0\n"
    )
    more = ["--model", "synthetic", "--config", str(config)]
    wsi = [sys.executable, "-m", "wsi_pipeline"]
    subprocess.run([*wsi, "tile", made[0], "-o", tmp_path / "out", *more], check=True)
    folder = SlideFolder(next((tmp_path / "out").iterdir()))
    for verb in ("tissue", "select", "segment", "stitch", "export"):
        subprocess.run([*wsi, verb, folder.path, *more], check=True)
    assert bytes_of(folder) == bytes_of(results)
    assert Manifest.load(folder).key == Manifest.load(results).key


def test_a_stage_without_those_before_it_says_which_verb_to_run(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "wsi_pipeline", "select", tmp_path, "-m", "synthetic"],
        capture_output=True,
        text=True,
    )
    assert "run `wsi tile`" in result.stderr
    assert result.returncode == 1


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    made, results, tmp_path
):
    command = [
        sys.executable, "-m", "wsi_pipeline", "run", made[0], "-o", tmp_path,
        "--model", "synthetic", "--coverage", "all",
    ]  # fmt: skip
    config = tmp_path.parent / "exact.toml"
    config.write_text("[export]\nsimplify_um=0\nmin_area_um2=0\nmin_hole_um2=0\n")
    command += ["--config", config]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while "segment" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.stderr.read()
    assert process.returncode == 130
    folder = SlideFolder(tmp_path / results.slide_id)
    assert not folder.manifest.exists()
    tiled = (folder.pyramid / "zarr.json").stat().st_mtime_ns
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert bytes_of(folder) == bytes_of(results)
    assert (folder.pyramid / "zarr.json").stat().st_mtime_ns == tiled
    assert not list(tmp_path.rglob(".staging"))


def test_a_finished_slide_is_kept_and_a_changed_option_redoes_what_it_must(
    made, results, tmp_path
):
    model = find_model("synthetic")
    again = run_batch([made[0]], results.path.parent, model, ALL)
    assert [o.reused for o in again.outcomes] == [True]
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path.parent, out], check=True)
    folder = SlideFolder(out / results.slide_id)
    before = (folder.selection).stat().st_mtime_ns
    time.sleep(0.01)
    changed = run_batch([made[0]], out, model, ALL.updated("export", gzip=True))
    assert [o.reused for o in changed.outcomes] == [False]
    assert (folder.path / "segmentation.geojson.gz").is_file()
    assert folder.selection.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["tissue.png", "slide.ome.zarr/0/c/0/0/0"])
def test_a_lost_file_makes_the_slide_run_again(made, results, tmp_path, name):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path.parent, out], check=True)
    folder = SlideFolder(out / results.slide_id)
    (folder.path / name).unlink()
    result = run_batch([made[0]], out, find_model("synthetic"), ALL)
    assert [o.reused for o in result.outcomes] == [False]
    assert bytes_of(folder) == bytes_of(results)


def test_a_batch_isolates_its_slides_and_tells_the_truth(made, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "good.tif").write_bytes(made[0].read_bytes())
    (slides / "cut.tif").write_bytes(made[0].read_bytes()[:2000])
    (slides / "notes.txt").write_text("not a slide")
    (slides / "<b>x.svs").write_text("hello")
    model, out = find_model("synthetic"), tmp_path / "out"
    result = run_batch([slides], out, model, EXACT)
    statuses = {o.path.name: o.manifest.status for o in result.outcomes}
    assert statuses == {
        "good.tif": "done", "cut.tif": "failed", "notes.txt": "skipped",
        "<b>x.svs": "failed",
    }  # fmt: skip
    assert result.exit_code == 3
    assert "<b>x" not in (out / "report.html").read_text()
    run = orjson.loads((out / "run.json").read_bytes())
    assert len(run["slides"]) == 4
    again = run_batch([slides], out, model, EXACT)
    assert [o.reused for o in again.outcomes if o.manifest.status != "skipped"] == [
        True, True, True,
    ]  # fmt: skip
    retried = run_batch([slides], out, model, EXACT, retry=True)
    assert sum(o.reused for o in retried.outcomes) == 1


def test_a_file_name_in_another_encoding_fails_alone(made, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / os.fsdecode(b"b\xff.tif")).write_bytes(b"II*\0 not a slide")
    (slides / "good.tif").write_bytes(made[0].read_bytes())
    out = tmp_path / "out"
    result = run_batch([slides], out, find_model("synthetic"), EXACT)
    assert [o.manifest.status for o in result.outcomes] == ["failed", "done"]
    assert "b\\xff.tif" in (out / "report.html").read_text()
    assert "b\\xff.tif" in (out / "slides.csv").read_text()


def test_a_budget_that_was_too_small_is_tried_again_when_it_grows(made, tmp_path):
    model = find_model("synthetic")
    small = EXACT.updated("select", memory="1MiB")
    first = run_batch([made[0]], tmp_path, model, small)
    assert "give --memory" in first.outcomes[0].manifest.reason
    assert run_batch([made[0]], tmp_path, model, EXACT).exit_code == 0


def test_what_no_slide_could_run_with_is_refused_before_the_first(made, tmp_path):
    model, out = find_model("synthetic"), tmp_path / "out"
    wrong = [
        EXACT.updated("select", device="abacus"),
        EXACT.updated("tissue", mask=tmp_path / "no.png"),
    ]
    for config in wrong:
        with pytest.raises(ConfigError, match=r"abacus|no\.png"):
            run_batch([made[0]], out, model, config)
    with pytest.raises(UnknownNameError, match="geojson"):
        run_batch([made[0]], out, model, EXACT.updated("export", formats="foo"))
    assert not out.exists()


def test_results_of_another_making_are_not_mixed(made, results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path, out], check=True)
    (out / "manifest.json").unlink()
    mask = tmp_path / "mask.png"
    w, h = Pyramid(results.pyramid).source.size_px
    PIL.Image.new("1", (w // 8, h // 8), 1).save(mask)
    run = SlideRun(SlideFolder(out), ALL, find_model("synthetic"))
    changed = replace(run, config=ALL.updated("tissue", mask=mask))
    run_stage("tissue", changed)
    with pytest.raises(RegionError, match="run `wsi select`"):
        run_stage("export", run)


def test_stages_of_two_models_are_not_mixed(results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path, out], check=True)
    run = SlideRun(SlideFolder(out), ALL, find_model("glas"))
    with pytest.raises(RegionError, match="not made from"):
        run_stage("export", run)


def test_a_stage_made_anew_takes_back_what_came_of_the_old_one(results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path, out], check=True)
    run = SlideRun(SlideFolder(out), ALL, find_model("synthetic"))
    changed = replace(run, config=ALL.updated("select", top_m=3))
    run_stage("select", changed)
    assert not (out / "manifest.json").exists()
    assert sorted(p.stem for p in (out / "stages").iterdir()) == [
        "select", "tile", "tissue",
    ]  # fmt: skip


def test_a_killed_selection_goes_on_where_it_was_and_keeps_no_journal(
    results, tmp_path, monkeypatch
):
    def killed(stage: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path, out], check=True)
    (out / "stages" / "select.json").unlink()
    at_once = partial(LogitJournal, every_s=0)
    monkeypatch.setattr(select_stage, "LogitJournal", at_once)
    run = SlideRun(SlideFolder(out), ALL, find_model("synthetic"), progress=killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage("select", run)
    assert run.folder.journal.exists()
    record = run_stage("select", replace(run, progress=None))
    assert record.facts["resumed_patches"] > 0
    assert not run.folder.journal.exists()
    same = (out / "selection.parquet").read_bytes() == results.selection.read_bytes()
    assert same


@pytest.mark.parametrize(
    ("given", "anew"),
    [
        ({"mode": "full"}, True),
        ({"precision": "float32"}, True),
        ({"compile": True}, False),
        ({"queue": "64MiB"}, False),
        ({"memory": "3GiB"}, False),
    ],
)
def test_options_that_change_more_than_rounding_are_part_of_the_key(made, given, anew):
    job, model = SlideJob("a", made[0]), find_model("synthetic")
    before = final_key(job, model, ALL)
    assert (final_key(job, model, ALL.updated("select", **given)) != before) == anew


@pytest.mark.parametrize(
    "change",
    [
        {"selector": {"top_m": 5}},
        {"segmenter": {"region_px": 256}},
        {"classes": ({"value": 0, "name": "Other", "rgb": (0, 0, 0)},)},
    ],
)
def test_another_card_is_another_key(made, change):
    model = find_model("synthetic")
    data = model.card.model_dump()
    for name, part in change.items():
        data[name] = data[name] | part if isinstance(part, dict) else part
    other = replace(model, card=ModelCard(**data))
    job = SlideJob("a", made[0])
    assert final_key(job, model, ALL) != final_key(job, other, ALL)


def test_nothing_is_reported_outside_the_users_own_mask(made, tmp_path):
    with PIL.Image.open(made[0]) as image:
        w, h = image.size
    half = PIL.Image.new("1", (w // 8, h // 8))
    half.paste(1, (0, 0, w // 16, h // 8))
    half.save(tmp_path / "mask.png")
    config = ALL.updated("tissue", mask=tmp_path / "mask.png")
    result = run_batch([made[0]], tmp_path / "out", find_model("synthetic"), config)
    manifest = result.outcomes[0].manifest
    folder = SlideFolder(tmp_path / "out" / manifest.slide_id)
    masks = Pyramid(folder.pyramid).masks("synthetic")
    mask = masks.read_level(masks.levels[0].box, 0)
    edge = w // 2 // int(masks.levels[0].downsample)
    assert mask[:, : edge - 32].any()
    assert not mask[:, edge + 32 :].any()
    areas = manifest.facts["stitch"]["area_mm2"]
    assert (
        sum(areas.values()) - areas["Background"]
        <= manifest.facts["tissue"]["tissue_mm2"] * 1.001
    )


def test_an_export_in_another_form_replaces_the_first(made, results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path.parent, out], check=True)
    run_batch([made[0]], out, find_model("synthetic"), ALL.updated("export", gzip=True))
    names = {p.name for p in (out / results.slide_id).glob("*.geojson*")}
    assert names == {"segmentation.geojson.gz", "attention.geojson.gz"}


def test_formats_asked_for_are_written_listed_and_agree(made, results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path.parent, out], check=True)
    folder, model = SlideFolder(out / results.slide_id), find_model("synthetic")
    every = {
        "segmentation.geojson", "segmentation.parquet", "segmentation.ome.tif",
        "areas.csv",
    }  # fmt: skip
    asked = ALL.updated(
        "export", formats="csv,geojson,ometiff,geoparquet", simplify_um=1
    )
    run_batch([made[0]], out, model, asked)
    page, manifest = (out / "report.html").read_text(), Manifest.load(folder)
    assert every <= {p.name for p in folder.path.iterdir()}
    assert every <= set(manifest.files)
    assert all(f'href="{folder.slide_id}/{name}"' in page for name in every)
    assert find_disagreements(folder) == []
    run_batch([made[0]], out, model, ALL.updated("export", formats="csv"))
    assert every & {p.name for p in folder.path.iterdir()} == {"areas.csv"}
    assert "segmentation." not in (out / "report.html").read_text()


def test_the_verb_export_takes_formats_and_refuses_those_there_are_not(
    results, tmp_path
):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path.parent, out], check=True)
    folder = SlideFolder(out / results.slide_id)
    verb = [sys.executable, "-m", "wsi_pipeline", "export", folder.path]
    asked = ["--model", "synthetic", "--format", "csv,ometiff", "--format", "geojson"]
    done = subprocess.run([*verb, *asked], check=True, capture_output=True, text=True)
    names = [Path(line).name for line in done.stdout.split()]
    assert names == [
        "areas.csv", "segmentation.ome.tif", "segmentation.geojson",
        "attention.geojson",
    ]  # fmt: skip
    refused = subprocess.run([*verb, *asked, "--format", "shp"], stderr=subprocess.PIPE)
    assert refused.returncode == 2
    assert b"'shp'; there are: geojson, geoparquet" in refused.stderr


def test_a_failed_slide_shows_no_picture_of_an_earlier_run(made, results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path.parent, out], check=True)
    small = ALL.updated("select", memory="1MiB", top_m=3)
    result = run_batch([made[0]], out, find_model("synthetic"), small)
    assert result.exit_code == 1
    assert "<img" not in (out / "report.html").read_text()


def test_the_manifest_tells_the_options_of_every_stage(made, results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path, out], check=True)
    run = SlideRun(SlideFolder(out), EXACT, find_model("synthetic"))
    manifest = publish_manifest(run)
    assert manifest.config["segment"]["coverage"] == "all"


def test_the_report_can_be_written_anew(made, results, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "a.png").write_text("")
    model = find_model("synthetic")
    run_batch([made[0], tmp_path / "a.png"], out, model, EXACT)
    first = (out / "slides.csv").read_text()
    rewrite_report(out)
    assert sorted((out / "slides.csv").read_text()) == sorted(first)
    with pytest.raises(ConfigError, match="no results"):
        rewrite_report(tmp_path / "nowhere")


def test_a_slide_far_too_coarse_for_its_model_is_refused(made, tmp_path):
    config = EXACT.updated(None, mpp=9.0)
    result = run_batch([made[0]], tmp_path / "o", find_model("synthetic"), config)
    assert "not enough detail" in result.outcomes[0].manifest.reason


def test_a_batch_of_nothing_useful_exits_1(tmp_path):
    (tmp_path / "a.txt").write_text("")
    result = run_batch([tmp_path], tmp_path / "o", find_model("synthetic"), EXACT)
    assert result.exit_code == 1


def test_an_unexpected_error_fails_its_slide_only(made, tmp_path, monkeypatch):
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("wsi_pipeline.batch.run_locked", explode)
    result = run_batch([made[0]], tmp_path / "o", find_model("synthetic"), EXACT)
    assert result.outcomes[0].manifest.status == "failed"
    assert "boom" in result.outcomes[0].manifest.reason
    folder = tmp_path / "o" / result.outcomes[0].manifest.slide_id
    assert "ZeroDivisionError" in (folder / "error.txt").read_text()


def test_a_samplesheet_gives_names_and_scales(made, tmp_path):
    sheet = tmp_path / "slides.csv"
    sheet.write_text(f"sample,slide,mpp\ncase-1,{made[0]},2.0\n")
    result = run_batch([sheet], tmp_path / "out", find_model("synthetic"), EXACT)
    manifest = result.outcomes[0].manifest
    assert manifest.slide_id == "case-1"
    assert manifest.facts["tile"]["mpp_source"] == "samplesheet"
    assert manifest.status == "degraded"
    assert "2 um/px" in manifest.reason
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide\na.svs\n", "sample,slide"),
        ("sample,slide,stain\na,b,c\n", "stain"),
        ("sample,slide\n../evil,a.svs\n", "line 2"),
        ("sample,slide,mpp\na,a.svs,fine\n", "'fine'"),
        ("sample,slide,mpp\na,a.svs,-1\n", "'-1'"),
        ("sample,slide\na,x.svs\nA,y.svs\n", "same name"),
        ("sample,slide\na,x.svs\nA,x.svs\n", "same name"),
        ("sample,slide,tissue\na,a.svs,no.png\n", "no such tissue mask"),
        ("sample,slide\nn\xe4me,a.svs\n", "UTF-8"),
    ],
)
def test_a_wrong_samplesheet_is_refused_before_anything_is_written(
    tmp_path, text, words
):
    sheet = tmp_path / "slides.csv"
    sheet.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=words):
        run_batch([sheet], tmp_path / "out", find_model("synthetic"), EXACT)
    assert not (tmp_path / "out").exists()


def test_a_real_slide_goes_through_with_the_glas_model(data_dir, tmp_path):
    slide = data_dir / "slides" / "aperio" / "cmu-1-small-region.svs"
    result = run_batch([slide], tmp_path, find_model("glas"), RunConfig())
    assert result.exit_code == 0
    folder = SlideFolder(tmp_path / result.outcomes[0].manifest.slide_id)
    Image.from_zarr(zarr.open_group(folder.pyramid, mode="r"))
    ImageLabel.from_zarr(zarr.open_group(folder.label("glas"), mode="r"))
    manifest = Manifest.load(folder)
    assert manifest.facts["tissue"]["tissue_mm2"] > 0.3
    assert manifest.facts["tile"]["mpp"] == [0.499, 0.499]
    assert folder.overlay.is_file()
    for feature in features(folder):
        assert shapely.geometry.shape(feature["geometry"]).is_valid


def test_a_folder_of_odd_slides_ends_with_one_status_each(data_dir, tmp_path):
    slides = data_dir / "slides"
    model = find_model("glas")
    result = run_batch([slides], tmp_path, model, RunConfig())
    files = sorted(p for p in slides.rglob("*") if p.is_file())
    assert sorted(o.path for o in result.outcomes) == files
    assert result.exit_code == 3
    assert result.count("done", "degraded", "failed", "skipped") == len(files)
    for outcome in result.outcomes:
        manifest = outcome.manifest
        if manifest.status in ("failed", "skipped"):
            assert len(manifest.reason) > 10
            assert "unexpected" not in manifest.reason
            assert "Traceback" not in manifest.reason
    again = run_batch([slides], tmp_path, model, RunConfig())
    worked = [o for o in again.outcomes if o.manifest.status != "skipped"]
    assert all(o.reused for o in worked)
    assert len(worked) > 15
