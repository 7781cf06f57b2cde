"""What the attention leaves in a slide's folder, from end to end."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import PIL.Image
import pytest
import shapely
import zarr

from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.batch import run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.demo import write_truthful_slide
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.regions import Selection
from wsi_pipeline.results import Manifest, SlideFolder
from wsi_pipeline.stages import SlideRun, select

MODELS = {"0.5": ome_zarr_models.v05, "0.4": ome_zarr_models.v04}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A small synthetic slide."""
    path = tmp_path_factory.mktemp("made") / "slide.tif"
    return write_truthful_slide(path, seed=11, megapixels=1, workers=1)[0]


@pytest.fixture(scope="module")
def results(slide, tmp_path_factory) -> SlideFolder:
    """Its results."""
    out = tmp_path_factory.mktemp("results")
    (outcome,) = run_batch([slide], out, find_model("synthetic"), RunConfig()).outcomes
    assert outcome.manifest.status == "done", outcome.manifest.reason
    return SlideFolder(out / outcome.manifest.slide_id)


def test_every_patch_is_in_the_heat_map_and_among_the_detections(results):
    selection = Selection.load(results.selection)
    found = read_annotations(results.path / "attention.geojson")
    for patch, annotation in enumerate(found):
        box = selection.grid.box(patch)
        whole = shapely.box(box.x, box.y, box.right, box.bottom)
        assert annotation.geometry.equals(whole)
        measured = dict(annotation.measurements)
        assert measured["Attention rank"] == selection.rank[patch] + 1
        chosen = "Selected patch" if selection.chosen[patch] else None
        assert annotation.class_name == chosen
    assert len(found) == len(selection.grid) > 0
    assert check_geojson(results.path / "attention.geojson") == []
    group = zarr.open_group(results.heat_map, mode="r")
    image = MODELS["0.5"].Image.from_zarr(group)
    assert list(image.members) == ["0"]
    heat = np.asarray(group["0"])
    assert sorted(heat[heat > 0]) == sorted(np.float32(selection.percentile))


def test_select_writes_the_detections_as_told_and_takes_back_another_export(
    results, tmp_path
):
    out = tmp_path / results.slide_id
    subprocess.run(["cp", "-r", results.path, out], check=True)
    wsi = [sys.executable, "-m", "wsi_pipeline", "select", out, "-m", "synthetic"]
    detections = out / "attention.geojson"
    before = (out / "selection.parquet").stat().st_mtime_ns
    same = subprocess.run(wsi, check=True, capture_output=True, text=True)
    assert same.stdout.splitlines()[-1] == str(detections)
    assert detections.read_bytes() == (results.path / detections.name).read_bytes()
    assert (out / "manifest.json").exists()
    more = ["--detections", "chosen", "--gzip", "--frame", "level0"]
    subprocess.run([*wsi, *more], check=True, capture_output=True)
    assert [p.name for p in out.glob("attention.geo*")] == ["attention.geojson.gz"]
    chosen = Selection.load(out / "selection.parquet").chosen
    assert len(read_annotations(out / "attention.geojson.gz")) == chosen.sum()
    assert not (out / "manifest.json").exists()
    assert not (out / "stages" / "export.json").exists()
    subprocess.run([*wsi, "--detections", "none"], check=True, capture_output=True)
    assert list(out.glob("attention.geo*")) == []
    assert (out / "selection.parquet").stat().st_mtime_ns == before


def test_too_few_chosen_patches_are_warned_of(results, tmp_path, monkeypatch, caplog):
    selection = Selection.load(results.selection)
    n = len(selection.grid)
    flat = np.full(n, 1 / n)
    for m, warned in ((n // 2 - 1, True), (n // 2 + 1, False), (n, False)):
        chosen = np.arange(n) < m
        weak = replace(selection, score=flat, rank=np.arange(n), chosen=chosen)
        monkeypatch.setattr(select, "select_patches", lambda *_, s=weak, **__: s)
        out = tmp_path / f"{m}"
        subprocess.run(["cp", "-r", results.path, out], check=True)
        run = SlideRun(SlideFolder(out), RunConfig(), find_model("synthetic"))
        caplog.clear()
        facts = select.publish(run)[1]
        assert facts["chosen"] == m
        assert bool(facts["warnings"]) == bool(caplog.messages) == warned
        if warned:
            assert "choose more with --top-m" in facts["warnings"][0]
            assert caplog.messages == [f"{m}: {facts['warnings'][0]}"]


@pytest.mark.parametrize("ome_zarr", ["0.5", "0.4"])
def test_a_slide_without_tissue_has_all_outputs_too(tmp_path, ome_zarr):
    PIL.Image.new("RGB", (700, 500), (242, 242, 242)).save(tmp_path / "blank.tif")
    config = RunConfig(mpp=0.5).updated("tile", ome_zarr=ome_zarr)
    result = run_batch(
        [tmp_path / "blank.tif"], tmp_path, find_model("synthetic"), config
    )
    (outcome,) = result.outcomes
    assert outcome.manifest.reason == "no tissue found on the slide"
    folder = SlideFolder(tmp_path / outcome.manifest.slide_id)
    assert check_geojson(folder.path / "attention.geojson") == []
    assert read_annotations(folder.path / "attention.geojson") == []
    heat = zarr.open_group(folder.heat_map, mode="r")
    assert np.asarray(heat["0"]).shape == (1, 2, 3)
    assert not np.asarray(heat["0"]).any()
    MODELS[ome_zarr].Image.from_zarr(heat)
    for picture in (folder.attention, folder.top_patches):
        with PIL.Image.open(picture) as image:
            assert image.width >= 480
    assert "0 of 0" in (tmp_path / "report.html").read_text()


def test_another_form_of_the_export_asks_for_no_new_scores(slide, results, tmp_path):
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", results.path.parent, out], check=True)
    folder = SlideFolder(out / results.slide_id)
    before = folder.selection.stat().st_mtime_ns
    changed = RunConfig().updated("export", detections="chosen")
    (outcome,) = run_batch([slide], out, find_model("synthetic"), changed).outcomes
    assert not outcome.reused
    chosen = Selection.load(folder.selection).chosen.sum()
    assert len(read_annotations(folder.path / "attention.geojson")) == chosen
    assert folder.selection.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name", ["attention.geojson", "attention.ome.zarr/0/zarr.json", "top_patches.png"]
)
def test_records_and_manifest_know_the_files(results, name):
    manifest = Manifest.load(results)
    assert name in manifest.files
    outputs = {
        file for verb in ("select", "export") for file in results.record(verb).outputs
    }
    assert name.split("/")[0] in outputs
