"""What has no result, outlined in the GeoJSON, and read again as what it is."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
from rasterio.features import rasterize

from tests.small_runs import SMALL, small_run, small_slide
from tests.test_geojson import EXACT, RUN, features, make_masks
from tests.tracing import Mask
from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.annotations.classing import class_areas
from wsi_pipeline.classes import (
    ACCOUNTED_FOR,
    COARSELY,
    COVERAGE_CLASSES,
    IN_DETAIL,
    SKIPPED,
    UNREADABLE,
    MaskClass,
)
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ExportError
from wsi_pipeline.evaluation.opening import DrawnOptions, open_prediction, open_truth
from wsi_pipeline.exporters import ExportSummary, export_masks, unexamined
from wsi_pipeline.exporters.labels import LabelSource
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.sheet import Frame
from wsi_pipeline.exporters.unexamined import find_unexamined
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Selection

UM_PER_PX = 10.0  # 25 px are the smallest area that is shown
NAMES = {SKIPPED: "Tissue not examined", UNREADABLE: "Unreadable"}


def cover() -> Mask:
    """Coverage of every kind, with a speck and a gap too small to show."""
    coverage = np.zeros((60, 80), np.uint8)
    coverage[5:50, 5:30] = SKIPPED
    coverage[10:20, 10:20] = IN_DETAIL
    coverage[30:40, 10:20] = COARSELY
    coverage[45:49, 22:26] = 0  # 16 px without tissue in what was skipped
    coverage[5:10, 40:48] = UNREADABLE
    coverage[20:40, 40:60] = SKIPPED
    coverage[50:54, 70:76] = SKIPPED  # 24 px
    coverage[:, 79] = 255
    return coverage


def run_export(
    folder: Path,
    options: ExportOptions = EXACT,
    coverage: Mask | None = None,
    classes: tuple[MaskClass, ...] = COVERAGE_CLASSES,
    name: str = "x.geojson",
    **layout: Any,
) -> ExportSummary:
    """A mask with one gland in detail and one that is coarse."""
    coverage = cover() if coverage is None else coverage
    mask = np.where(coverage >= SKIPPED, 255, 0).astype(np.uint8)
    mask[12:18, 12:18], mask[32:38, 12:18] = 2, 1
    layout = {"mpp": (UM_PER_PX, UM_PER_PX)} | layout
    folder.mkdir(exist_ok=True)
    masks = make_masks(folder / "m.zarr", mask, **layout)
    label = make_masks(folder / "c.zarr", coverage, classes=classes, **layout)
    path = folder / name
    return export_masks(masks, path, options, slide_id="s", run=RUN, coverage=label)


def unfilled(path: Path) -> list[dict[str, Any]]:
    """Features of the class that QuPath never fills."""
    return [
        row
        for row in features(path)
        if row["properties"]["classification"]["name"] == "Region*"
    ]


@pytest.mark.parametrize("group", ["object", "class"])
@pytest.mark.parametrize("objects", ["annotation", "detection"])
def test_all_that_has_no_result_is_outlined_and_named(
    tmp_path: Path, group: str, objects: str
) -> None:
    options = EXACT.model_copy(update={"group": group, "objects": objects})
    found = run_export(tmp_path, options)
    assert check_geojson(found.path) == []
    rows = unfilled(found.path)
    assert rows == features(found.path)[2:]  # after the objects
    assert found.objects == 2
    told = [row["properties"]["name"] for row in rows]
    assert told == [NAMES[SKIPPED], NAMES[SKIPPED], NAMES[UNREADABLE]]
    drawn = [
        (shapely.geometry.shape(row["geometry"]), value)
        for row, value in zip(rows, (SKIPPED, SKIPPED, UNREADABLE), strict=True)
    ]
    expected = cover()
    expected[45:49, 22:26] = SKIPPED
    expected[50:54, 70:76] = 0
    expected[np.isin(expected, (IN_DETAIL, COARSELY, 255))] = 0
    assert (rasterize(drawn, out_shape=expected.shape, dtype="uint8") == expected).all()
    (outline,) = [row for row in rows if row["properties"]["name"] == "Unreadable"]
    assert outline["properties"] == {
        "objectType": "annotation",
        "name": "Unreadable",
        "color": list(COVERAGE_CLASSES[UNREADABLE].rgb),
        "classification": {"name": "Region*", "color": [0, 0, 180]},
        "isLocked": True,
        "metadata": RUN,
        "measurements": {"Area um^2": 4000.0, "Perimeter um": 260.0},
    }
    assert len({row["id"] for row in features(found.path)}) == 5


def test_file_states_what_is_shown_and_what_was_too_small(tmp_path: Path) -> None:
    path = run_export(tmp_path).path
    head = orjson.loads(path.read_bytes())["wsi_pipeline"]
    shown = 45 * 25 - 100 - 100 + 400  # the gap is filled
    assert head["not_examined"] == {
        "smallest_um2": 2500.0,
        "Tissue not examined": {
            "annotations": 2,
            "area_um2": shown * 100.0,
            "left_out_um2": 2400.0,
        },
        "Unreadable": {"annotations": 1, "area_um2": 4000.0, "left_out_um2": 0.0},
    }


def test_it_can_be_left_out(tmp_path: Path) -> None:
    found = run_export(tmp_path, EXACT.model_copy(update={"unexamined": False}))
    assert unfilled(found.path) == []
    assert len(features(found.path)) == 2
    assert b"not_examined" not in found.path.read_bytes()


def test_class_that_the_label_alone_knows_is_outlined(tmp_path: Path) -> None:
    torn = MaskClass(9, "Torn", (1, 2, 3))
    coverage = cover()
    coverage[40:50, 40:50] = 9
    rows = unfilled(
        run_export(tmp_path, EXACT, coverage, (*COVERAGE_CLASSES, torn)).path
    )
    (row,) = [row for row in rows if row["properties"]["name"] == "Torn"]
    assert row["properties"]["color"] == [1, 2, 3]
    assert shapely.geometry.shape(row["geometry"]).bounds == (40, 40, 50, 50)


def test_value_that_the_label_does_not_know_is_refused(tmp_path: Path) -> None:
    coverage = cover()
    coverage[40:50, 40:50] = 9
    with pytest.raises(ExportError, match=r"c.zarr: values \[9\]"):
        run_export(tmp_path, EXACT, coverage)
    assert not (tmp_path / "x.geojson").exists()


def test_all_examined_gives_no_outline(tmp_path: Path) -> None:
    coverage = np.full((60, 80), IN_DETAIL, np.uint8)
    found = run_export(tmp_path, EXACT, coverage)
    assert unfilled(found.path) == []
    head = orjson.loads(found.path.read_bytes())["wsi_pipeline"]
    assert head["not_examined"]["Unreadable"]["annotations"] == 0


def test_what_was_examined_is_told_by_its_chunks_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coverage = np.full((1100, 1024), IN_DETAIL, np.uint8)
    coverage[1024:] = SKIPPED
    label = make_masks(tmp_path / "c.zarr", coverage, classes=COVERAGE_CLASSES)
    source = LabelSource(label, hidden=ACCOUNTED_FOR)
    assert source.is_blank(Box(0, 0, 1024, 1024))
    assert not source.is_blank(Box(0, 1024, 1024, 76))
    reads = []
    read = LabelSource.read
    monkeypatch.setattr(
        LabelSource, "read", lambda self, box: reads.append(box) or read(self, box)
    )
    frame = Frame.of("level0", label.source)
    traced = partial(trace_objects, block_px=1024)
    monkeypatch.setattr(unexamined, "trace_objects", traced)
    (found,) = [o for o in find_unexamined(label, frame, 0, 1).objects if len(o)]
    assert found.pixels.tolist() == [76 * 1024]
    assert [box.y for box in reads] == [1023]  # the row before it, too


def test_outlines_are_in_the_files_frame_and_simplified(tmp_path: Path) -> None:
    coverage = np.zeros((60, 80), np.uint8)
    for row in range(40):
        coverage[row, row : row + 15] = SKIPPED  # stairs
    options = ExportOptions(simplify_um=20)
    layout = {"base": 4, "bounds": Box(8, 4, 300, 200), "mpp": (2.5, 2.5)}
    found = run_export(tmp_path, options, coverage, **layout)
    (row,) = unfilled(found.path)
    outline = shapely.geometry.shape(row["geometry"])
    assert len(outline.exterior.coords) < 20
    assert outline.bounds[:2] == (0, 0)  # cut at the frame
    assert check_geojson(found.path) == []
    exact = run_export(tmp_path / "exact", EXACT, coverage, **layout)
    (row,) = unfilled(exact.path)
    assert len(row["geometry"]["coordinates"][0]) > 150


@pytest.mark.parametrize("packed", ["gzip", "zip"])
def test_annotations_read_again_are_no_areas_of_the_mask(
    tmp_path: Path, packed: str
) -> None:
    found = run_export(tmp_path, EXACT.model_copy(update={packed: True}))
    again = read_annotations(found.path)
    assert [one.name for one in again][2:] == [NAMES[k] for k in (3, 3, 4)]
    classes = (MaskClass(1, "Stroma", (0, 0, 1)), MaskClass(2, "Gland <b>", (0, 1, 0)))
    areas = class_areas(again, classes)
    assert areas.values.tolist() == [1, 2]


def test_prediction_read_again_is_blind_where_nobody_looked(tmp_path: Path) -> None:
    path = run_export(tmp_path).path
    view = open_prediction(path, DrawnOptions())
    assert [kind.name for kind in view.classes] == ["Background", "Stroma", "Gland <b>"]
    expected = np.zeros((60, 80), np.uint8)
    expected[np.isin(cover(), (SKIPPED, UNREADABLE))] = 255
    expected[45:49, 22:26], expected[50:54, 70:76] = 255, 0
    expected[12:18, 12:18], expected[32:38, 12:18] = 2, 1
    assert (view.read(Box(0, 0, 80, 60), 1) == expected).all()
    truth = open_truth(path, view, DrawnOptions())
    expected[expected == 255] = 0  # nothing was drawn there
    assert (truth.read(Box(0, 0, 80, 60), 1) == expected).all()


def test_regions_that_a_person_drew_blind_no_prediction(tmp_path: Path) -> None:
    path = run_export(tmp_path).path
    document = orjson.loads(path.read_bytes())
    for row in document["features"][2:]:
        del row["properties"]["name"]
    path.write_bytes(orjson.dumps(document))
    view = open_prediction(path, DrawnOptions())
    assert not (view.read(Box(0, 0, 80, 60), 1) == 255).any()


def test_whole_run_tells_what_it_measured_and_what_it_left_out(tmp_path: Path) -> None:
    options = SMALL.updated("select", top_m=1).updated("export", simplify_um=0)
    folder = small_run(small_slide(tmp_path), tmp_path / "out", options)
    path = folder.path / "segmentation.geojson"
    assert check_geojson(path) == []
    rest = unfilled(path)
    found = [row["properties"] for row in features(path) if row not in rest]
    scores = [float(f"{score:.4g}") for score in Selection.load(folder.selection).score]
    for row in found:
        numbers = row["measurements"]
        assert 0 < numbers["Mean probability"] <= numbers["Max probability"] <= 1
        assert numbers["Selection score"] in scores
    assert max(row["measurements"]["Selection score"] for row in found) == max(scores)
    label = Pyramid(folder.pyramid).masks("coverage")
    skipped = label.count_pixels()[SKIPPED] * label.scale.area_um2
    shown = sum(row["properties"]["measurements"]["Area um^2"] for row in rest)
    assert shown == pytest.approx(skipped, rel=0.05)  # but for specks
    assert {row["properties"]["name"] for row in rest} == {NAMES[SKIPPED]}
