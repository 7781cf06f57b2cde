"""Masks to QuPath's GeoJSON: areas, frames, rules, and the same bytes twice."""

import gzip
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ExportError, UnknownNameError
from wsi_pipeline.exporters import ExportSummary, export_masks
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid

CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Stroma", (240, 228, 66)),
    MaskClass(2, "Gland <b>", (0, 114, 178)),
)
EXACT = ExportOptions(simplify_um=0, min_area_um2=0, min_hole_um2=0, frame="level0")
RUN = {"model": "glas 1.0", "version": "0.1.0"}


def make_masks(
    path: Path,
    mask: NDArray[np.uint8],
    *,
    base: int = 1,
    size_px: tuple[int, int] | None = None,
    bounds: Box | None = None,
    mpp: tuple[float, float] = (0.5, 0.5),
    classes: tuple[MaskClass, ...] = CLASSES,
) -> MaskPyramid:
    if size_px is None:
        size_px = mask.shape[1] * base, mask.shape[0] * base
    whole = bounds or Box(0, 0, *size_px)
    source = Source("slide.tif", size_px, Scale(*mpp), "test", whole)
    masks = MaskPyramid.create(path, source, base, classes)
    for block in masks.levels[0].box.blocks(masks.shard_px(0)):
        masks.put(0, block, mask[block.rows, block.columns])
    return masks


def export(
    folder: Path,
    mask: NDArray[np.uint8],
    options: ExportOptions = EXACT,
    name: str = "segmentation.geojson",
    **layout: Any,
) -> ExportSummary:
    folder.mkdir(parents=True, exist_ok=True)
    masks = make_masks(folder / "mask.zarr", mask, **layout)
    return export_masks(masks, folder / name, options, slide_id="s1", run=RUN)


def glands(seed: int, side: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=(3, side, side))
    return gaussian_filter(noise, (0, 4, 4)).argmax(0).astype(np.uint8)


def features(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = orjson.loads(path.read_bytes())["features"]
    return rows


@settings(max_examples=15, deadline=None)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 64)] * 2), elements=st.integers(0, 2))
)
def test_file_read_again_gives_the_classes_and_areas_of_the_mask(
    tmp_path_factory: pytest.TempPathFactory, mask: NDArray[np.uint8]
) -> None:
    found = export(tmp_path_factory.mktemp("export"), mask)
    assert check_geojson(found.path) == []
    again = read_annotations(found.path)
    assert len(again) == found.objects
    for row in found.classes:
        mine = [a for a in again if a.class_name == row.name]
        pixels = int((mask == row.value).sum())
        assert sum(a.geometry.area for a in mine) == pixels == row.pixels
        assert row.area_um2 == row.written_um2 == pixels * 0.25
        assert (row.dropped_um2, row.objects) == (0, len(mine))
        measured = [dict(a.measurements)["Area um^2"] for a in mine]
        assert sum(measured) == pytest.approx(pixels * 0.25)


def test_holes_are_read_again(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:18, 2:18] = 1
    mask[5:8, 5:8] = 0
    mask[10:15, 10:15] = 2
    again = read_annotations(export(tmp_path, mask).path)
    outer = shapely.box(2, 2, 18, 18) - shapely.box(5, 5, 8, 8)
    inner = shapely.box(10, 10, 15, 15)
    assert again[0].geometry.equals(outer - inner)
    assert again[1].geometry.equals(inner)
    assert [len(a.geometry.interiors) for a in again] == [2, 0]


def test_feature_keeps_the_rules_of_qupath(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[2:6, 3:8] = 2
    path = export(tmp_path, mask).path
    (feature,) = features(path)
    assert uuid.UUID(feature.pop("id")).version == 5
    assert feature == {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[3, 2], [8, 2], [8, 6], [3, 6], [3, 2]]],
        },
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "Gland <b>", "color": [0, 114, 178]},
            "isLocked": True,
            "measurements": {"Area um^2": 5.0, "Perimeter um": 9.0},
            "metadata": RUN,
        },
    }
    text = path.read_text()
    assert "null" not in text
    assert '"crs"' not in text
    assert "ANNOTATION_DESCRIPTION" not in text
    assert "research use only" in text


def test_qupath_frame_starts_at_the_bounds_and_nothing_lies_outside(
    tmp_path: Path,
) -> None:
    mask = np.ones((30, 40), np.uint8)
    options = EXACT.model_copy(update={"frame": "qupath"})
    layout = {"base": 4, "size_px": (158, 119), "bounds": Box(10, 21, 101, 57)}
    found = export(tmp_path, mask, options, **layout)
    own = orjson.loads(found.path.read_bytes())["wsi_pipeline"]
    assert own["frame"] == found.frame == "qupath"
    assert tuple(own["offset_px"]) == found.offset_px == (10, 21)
    (drawn,) = read_annotations(found.path, offset_px=(0, 0))
    assert drawn.geometry.equals(shapely.box(0, 0, 101, 57))
    (back,) = read_annotations(found.path)  # the file's own offset
    assert back.geometry.equals(shapely.box(10, 21, 111, 78))


def test_level_0_frame_is_cut_at_the_slides_edge(tmp_path: Path) -> None:
    mask = np.ones((30, 40), np.uint8)
    found = export(tmp_path, mask, base=4, size_px=(158, 119))
    (drawn,) = read_annotations(found.path)
    assert drawn.geometry.equals(shapely.box(0, 0, 158, 119))


def test_same_mask_gives_the_same_bytes_and_unique_ids(tmp_path: Path) -> None:
    mask = glands(3, 200)
    options = ExportOptions(gzip=True)
    first, second = (export(tmp_path / n, mask, options) for n in "ab")
    assert first.path.name == "segmentation.geojson.gz"
    assert first.path.read_bytes() == second.path.read_bytes()
    rows = orjson.loads(gzip.decompress(first.path.read_bytes()))["features"]
    assert len({row["id"] for row in rows}) == len(rows) == first.objects
    assert check_geojson(first.path) == []
    assert len(read_annotations(first.path)) == first.objects


def test_ids_differ_between_slides_and_models(tmp_path: Path) -> None:
    masks = make_masks(tmp_path / "m.zarr", np.ones((4, 4), np.uint8))
    ids = set()
    for slide, model in (("a", "x"), ("b", "x"), ("a", "y")):
        path = tmp_path / f"{slide}{model}.geojson"
        export_masks(masks, path, EXACT, slide_id=slide, run={"model": model})
        ids.add(features(path)[0]["id"])
    assert len(ids) == 3


@pytest.mark.parametrize("simplify_um", [0.5, 1.0, 4.0])
def test_simplified_file_is_valid_and_tells_what_was_lost(
    tmp_path: Path, simplify_um: float
) -> None:
    mask = glands(5, 300)
    mask[100:103, 100:103] = 1  # 2.25 um2
    options = ExportOptions(
        simplify_um=simplify_um, min_area_um2=20, min_hole_um2=5, frame="level0"
    )
    found = export(tmp_path, mask, options)
    assert check_geojson(found.path) == []
    again = read_annotations(found.path)
    drawn = [a.geometry for a in again]
    assert shapely.is_valid(shapely.set_precision(drawn, 0.01)).all()
    assert shapely.box(0, 0, 300, 300).covers(shapely.union_all(drawn))
    overlap = shapely.area(drawn).sum() - shapely.union_all(drawn).area
    assert abs(overlap) < 0.01
    for row in found.classes:
        mine = [a.geometry.area for a in again if a.class_name == row.name]
        assert row.area_um2 == (mask == row.value).sum() * 0.25
        assert row.written_um2 == pytest.approx(sum(mine) * 0.25)
        assert row.written_um2 == pytest.approx(row.area_um2, rel=0.05)
    assert min(dict(a.measurements)["Area um^2"] for a in again) >= 20


def test_small_objects_are_dropped_by_area_and_counted(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[2:4, 2:4] = 1  # 1 um2
    mask[10:14, 10:15] = 1  # 5 um2
    mask[20:30, 20:30] = 2  # 25 um2
    options = EXACT.model_copy(update={"min_area_um2": 5.0})
    stroma, gland = export(tmp_path, mask, options).classes
    assert (stroma.objects, stroma.dropped_objects, stroma.dropped_um2) == (1, 1, 1.0)
    assert (stroma.area_um2, stroma.written_um2) == (6.0, 5.0)
    assert (gland.objects, gland.dropped_objects, gland.written_um2) == (1, 0, 25.0)


def test_area_and_perimeter_follow_pixels_that_are_not_square(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[2:6, 3:8] = 1
    found = export(tmp_path, mask, mpp=(0.5, 0.25), base=2)
    (item,) = read_annotations(found.path)
    assert dict(item.measurements) == {
        "Area um^2": 20 * 1.0 * 0.5,
        "Perimeter um": 2 * (5 * 1.0 + 4 * 0.5),
    }


def test_probabilities_come_from_the_confidence_label(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[2:6, 2:6] = 1
    certain = np.full((10, 10), 255, np.uint8)
    certain[2:6, 2:6] = 127
    certain[3, 2:4] = 254 // 4, 254 * 3 // 4  # 0.248 and 0.748
    masks = make_masks(tmp_path / "m.zarr", mask)
    sure = make_masks(tmp_path / "c.zarr", certain, classes=())
    path = tmp_path / "x.geojson"
    export_masks(masks, path, EXACT, slide_id="s", confidence=sure)
    (item,) = read_annotations(path)
    numbers = dict(item.measurements)
    assert numbers["Mean probability"] == round((14 * 127 + 63 + 190) / 16 / 254, 4)
    assert numbers["Max probability"] == round(190 / 254, 4)
    assert "Selection score" not in numbers
    assert check_geojson(path) == []


def test_confidence_of_another_size_is_refused(tmp_path: Path) -> None:
    masks = make_masks(tmp_path / "m.zarr", np.ones((8, 8), np.uint8))
    sure = make_masks(tmp_path / "c.zarr", np.ones((8, 9), np.uint8), classes=())
    with pytest.raises(ExportError, match="stitch them together"):
        path = tmp_path / "x.geojson"
        export_masks(masks, path, EXACT, slide_id="s", confidence=sure)


def test_value_that_is_no_class_is_refused_and_nothing_appears(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"values \[7\]"):
        export(tmp_path, np.full((8, 8), 7, np.uint8))
    assert not (tmp_path / "segmentation.geojson").exists()


def test_unknown_format_lists_those_there_are(tmp_path: Path) -> None:
    mask = np.ones((8, 8), np.uint8)
    for number, name in enumerate(("a.shp", "a.parquet.gz", "a", "a.tif")):
        with pytest.raises(UnknownNameError, match=r"\.geojson, \.parquet, \.ome\.tif"):
            export(tmp_path / str(number), mask, name=name)


def test_empty_mask_gives_a_file_without_features(tmp_path: Path) -> None:
    found = export(tmp_path, np.full((8, 8), 255, np.uint8))
    assert features(found.path) == []
    assert read_annotations(found.path) == check_geojson(found.path) == []
    assert [(c.objects, c.area_um2) for c in found.classes] == [(0, 0.0), (0, 0.0)]


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    masks = make_masks(tmp_path / "m.zarr", np.ones((8, 8), np.uint8))
    with pytest.raises(ExportError, match="cannot write"):
        export_masks(masks, tmp_path / "file" / "x.geojson", EXACT, slide_id="s")


def test_numbers_in_the_file_are_finite_and_short(tmp_path: Path) -> None:
    found = export(tmp_path, glands(7, 150), ExportOptions())
    for feature in features(found.path):
        for value in feature["properties"]["measurements"].values():
            assert math.isfinite(value)
        del feature["id"]  # whose digits may say "e-"
        assert b"e-" not in orjson.dumps(feature)
