"""GeoJSON in a zip, objects as detections, and a feature per class."""

import uuid
import zipfile
from pathlib import Path

import numpy as np
import orjson
import pytest
import shapely
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.test_geojson import EXACT, RUN, export, features, glands, make_masks
from tests.test_measuring import patches
from wsi_pipeline import cli, stage_verbs
from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.config import ExportOptions, RunConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.exporters import export_masks

ZIPPED = EXACT.model_copy(update={"zip": True})
COUNTED = EXACT.model_copy(update={"objects": "detection"})


@pytest.mark.parametrize("name", ["segmentation.geojson", "segmentation.geojson.zip"])
def test_zip_holds_one_file_that_qupath_reads(tmp_path: Path, name: str) -> None:
    mask = glands(3, 100)
    plain = export(tmp_path / "plain", mask)
    found = export(tmp_path / "zip", mask, ZIPPED, name)
    assert found.path.name == "segmentation.geojson.zip"
    with zipfile.ZipFile(found.path) as packed:
        assert packed.namelist() == ["s1.geojson"]
        assert packed.read("s1.geojson") == plain.path.read_bytes()
    assert found.path.stat().st_size < 0.5 * plain.path.stat().st_size
    assert check_geojson(found.path) == []
    assert len(read_annotations(found.path)) == found.objects > 0
    again = export(tmp_path / "again", mask, ZIPPED)
    assert again.path.read_bytes() == found.path.read_bytes()
    assert not list(found.path.parent.glob("*.geojson"))


def test_one_way_of_packing_is_enough() -> None:
    with pytest.raises(ConfigError, match="choose one"):
        ExportOptions(gzip=True, zip=True)


def test_detections_are_for_counting(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[2:6, 3:8] = 2
    (drawn,) = features(export(tmp_path / "drawn", mask).path)
    found = export(tmp_path / "counted", mask, COUNTED)
    (counted,) = features(found.path)
    assert check_geojson(found.path) == []
    assert counted["geometry"] == drawn["geometry"]
    assert counted["id"] != drawn["id"]
    assert counted["properties"].pop("objectType") == "detection"
    assert drawn["properties"].pop("objectType") == "annotation"
    assert drawn["properties"].pop("isLocked") is True
    assert counted["properties"] == drawn["properties"]


def test_no_key_of_the_metadata_is_shown_as_html(tmp_path: Path) -> None:
    # QuPath shows the text of ANNOTATION_DESCRIPTION in a web view
    for row in features(export(tmp_path, np.ones((8, 8), np.uint8)).path):
        assert set(row["properties"]["metadata"]) == {"model", "version"}
        assert "description" not in orjson.dumps(row).decode().lower()


@settings(max_examples=15, deadline=None)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 40)] * 2), elements=st.integers(0, 2)),
    st.sampled_from([0.0, 1.0]),
)
def test_a_class_is_one_feature_with_all_of_its_objects(
    tmp_path_factory: pytest.TempPathFactory, mask: NDArray[np.uint8], simplify: float
) -> None:
    folder = tmp_path_factory.mktemp("grouped")
    options = EXACT.model_copy(update={"simplify_um": simplify})
    each = read_annotations(export(folder / "each", mask, options).path)
    options = options.model_copy(update={"group": "class"})
    found = export(folder / "class", mask, options)
    assert check_geojson(found.path) == []
    grouped = read_annotations(found.path)
    assert [one.class_name for one in grouped] == sorted(
        {one.class_name for one in each}, key=["Stroma", "Gland <b>"].index
    )
    for one in grouped:
        mine = [other for other in each if other.class_name == one.class_name]
        parts = shapely.get_parts(one.geometry)
        whole = [p for other in mine for p in shapely.get_parts(other.geometry)]
        assert [p.wkb for p in parts] == [p.wkb for p in whole]
        numbers = dict(one.measurements)
        assert numbers["Objects"] == len(mine)
        for name in ("Area um^2", "Perimeter um"):
            total = sum(dict(other.measurements)[name] for other in mine)
            assert numbers[name] == pytest.approx(total, abs=1e-3 * len(mine))


def test_class_has_the_probabilities_and_the_score_of_its_pixels(
    tmp_path: Path,
) -> None:
    mask, certain = np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8)
    mask[2:6, 2:6], certain[2:6, 2:6] = 1, 254  # 16 px of 1
    mask[10:18, 10:16], certain[10:18, 10:16] = 1, 127  # 48 px of 0.5
    masks = make_masks(tmp_path / "m.zarr", mask)
    sure = make_masks(tmp_path / "c.zarr", certain, classes=())
    options = EXACT.model_copy(update={"group": "class", "objects": "detection"})
    path = tmp_path / "x.geojson"
    selection = patches(np.array([(0, 0), (10, 10)]), 10, [0.25, 0.12345678])
    export_masks(
        masks,
        path,
        options,
        slide_id="s",
        run=RUN,
        confidence=sure,
        selection=selection,
    )
    (row,) = features(path)
    assert uuid.UUID(row.pop("id")).version == 5
    assert row["geometry"]["type"] == "MultiPolygon"
    assert row["properties"] == {
        "objectType": "detection",
        "classification": {"name": "Stroma", "color": [240, 228, 66]},
        "measurements": {
            "Objects": 2,
            "Area um^2": 16.0,
            "Perimeter um": 22.0,
            "Mean probability": (16 + 24) / 64,
            "Max probability": 1.0,
            "Selection score": 0.25,
        },
        "metadata": RUN,
    }


def test_grouped_file_is_the_same_bytes_and_ids_follow_shape_and_kind(
    tmp_path: Path,
) -> None:
    grouped = EXACT.model_copy(update={"group": "class"})
    counted = grouped.model_copy(update={"objects": "detection"})
    masks = glands(3, 120), glands(4, 120)
    first, again = (export(tmp_path / n, masks[0], grouped).path for n in "ab")
    assert first.read_bytes() == again.read_bytes()
    other = export(tmp_path / "c", masks[1], grouped).path
    third = export(tmp_path / "d", masks[0], counted).path
    ids = {row["id"] for path in (first, other, third) for row in features(path)}
    assert len(ids) == 3 * len(features(first)) == 6
    assert all(row["properties"]["isLocked"] for row in features(first))


@pytest.mark.parametrize("verb", ["export", "select"])
def test_flags_reach_the_options(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    seen = []

    def stop(folder: Path, config: RunConfig) -> None:
        seen.append(config.export)
        raise typer.Exit

    monkeypatch.setattr(stage_verbs, "_slide_run", stop)
    kind = ["--objects=detection", "--group=class", "--no-unexamined"]
    kind = kind if verb == "export" else []
    CliRunner().invoke(cli.app, [verb, "folder", "--zip", *kind])
    (one,) = seen
    assert (one.zip, one.gzip) == (True, False)
    expected = ("detection", "class") if kind else ("annotation", "object")
    assert (one.objects, one.group) == expected
    assert one.unexamined == (not kind)
