"""What a selection leaves for viewers: the heat map and QuPath's detections."""

import gzip
import tracemalloc
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
import zarr
from numpy.typing import NDArray
from ome_zarr_models import v04, v05

from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.exporters.detections import export_detections
from wsi_pipeline.exporters.heatmap import export_heat_map, paint_heat_map
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.ngff import Source, Version
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection, Tissue
from wsi_pipeline.tissue import lay_patches

MODELS = {"0.5": v05, "0.4": v04}
VERSIONS: tuple[Version, ...] = ("0.5", "0.4")
RUN = {"model": "m", "model_version": "1"}
LEVEL0 = ExportOptions(frame="level0")


def source_of(w: int, h: int, bounds: Box | None = None) -> Source:
    """A slide of unlike um/px along x and y."""
    return Source("a.svs", (w, h), Scale(0.25, 0.5), "t", bounds or Box(0, 0, w, h))


def selection_of(
    corners: Any, side: int, score: Any = None, top_m: int = 1
) -> Selection:
    """Patches at some corners; left out, scores are random and unlike."""
    places = np.array(corners, np.int64).reshape(-1, 2)
    n = len(places)
    grid = PatchGrid(places, side, side, 0.5, np.ones(n, np.float32))
    if score is None:
        score = np.random.default_rng(0).permutation(n) + 1.0
    scores = np.array(score, np.float64) / max(1.0, float(np.sum(score)))
    rank = np.empty(n, np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(n)
    return Selection(grid, np.zeros((n, 1), np.float32), scores, rank, rank < top_m)


def lattice(columns: int, rows: int, step: int) -> NDArray[np.int64]:
    y, x = np.mgrid[:rows, :columns] * step
    return np.stack([x.ravel(), y.ravel()], axis=1)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stored(path: Path) -> tuple[list[NDArray[np.float32]], list[dict[str, Any]]]:
    """Levels as a reader of OME-Zarr finds them, and their transformations."""
    group = zarr.open_group(path, mode="r")
    said = group.attrs.asdict()
    (scales,) = said.get("ome", said)["multiscales"]
    steps = [d["coordinateTransformations"] for d in scales["datasets"]]
    places = [
        {"scale": s["scale"][1:], "translation": t["translation"][1:]} for s, t in steps
    ]
    return [np.asarray(group[d["path"]])[0] for d in scales["datasets"]], places


def test_every_patch_of_a_real_grid_has_a_pixel_that_is_its_percentile() -> None:
    tissue = Tissue(np.ones((90, 70), np.bool_), 8.0, Scale(0.5, 0.5))
    grid = lay_patches(tissue, (550, 710), 64, 1.0)
    assert grid.size_px == 128
    assert grid.corners[-1].tolist() == [550 - 128, 710 - 128]  # moved inside
    selection = selection_of(grid.corners, 128)
    (heat,) = paint_heat_map(selection, (550, 710))
    assert heat.shape == (6, 5)
    # sorted by y, then x: the order of the pixels
    np.testing.assert_array_equal(heat.ravel(), np.float32(selection.percentile))
    assert heat.max() == 1.0
    assert np.unique(heat).size == len(grid) == 30


def test_where_there_is_no_patch_it_is_zero() -> None:
    selection = selection_of([[256, 128], [0, 256]], 128, [3.0, 1.0])
    (heat,) = paint_heat_map(selection, (500, 384))
    assert heat.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0]]


def test_equal_scores_get_equal_values() -> None:
    selection = selection_of(lattice(4, 1, 8), 8, [2.0, 1.0, 2.0, 1.0])
    assert selection.percentile.tolist() == [1.0, 0.5, 1.0, 0.5]
    assert paint_heat_map(selection, (32, 8))[0].tolist() == [[1, 0.5, 1, 0.5]]
    flat = selection_of(lattice(4, 1, 8), 8, [1.0] * 4)
    assert paint_heat_map(flat, (32, 8))[0].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("step", [128, 64, 48])
def test_a_pixel_lies_on_the_centre_of_its_patch(tmp_path: Path, step: int) -> None:
    corners = lattice(5, 3, step)
    selection = selection_of(corners, 128)
    source = source_of(4 * step + 200, 2 * step + 300)
    export_heat_map(selection, source, tmp_path / "a")
    (heat,), (place,) = stored(tmp_path / "a")
    for (x, y), value in zip(corners.tolist(), selection.percentile, strict=True):
        row, column = np.argwhere(heat == np.float32(value))[0].tolist()
        y_um, x_um = (
            index * scale + first
            for index, scale, first in zip(
                (row, column), place["scale"], place["translation"], strict=True
            )
        )
        # pixel centres: the middle of 128 px is 63.5 px from the first one's centre
        assert (x_um, y_um) == ((x + 63.5) * 0.25, (y + 63.5) * 0.5)


def test_off_a_lattice_the_better_patch_shows_and_pixels_stay_large() -> None:
    selection = selection_of([[0, 0], [1, 0], [64, 0]], 64, [1.0, 3.0, 2.0])
    (heat,) = paint_heat_map(selection, (256, 64))
    assert heat.shape == (1, 25)  # steps of 8 px, not of 1
    assert heat[0, [0, 1, 8]].tolist() == pytest.approx([1 / 3, 1, 2 / 3])
    for scores in ([1.0, 3.0], [3.0, 1.0]):
        twice = selection_of([[0, 0], [0, 0]], 64, scores)
        assert paint_heat_map(twice, (64, 64))[0].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("corners", "size", "expected"),
    [
        ([], (300, 200), [[0, 0, 0], [0, 0, 0]]),
        ([], (50, 50), [[0]]),
        ([[0, 0]], (50, 50), [[1]]),  # a slide narrower than the patch
        ([[200, 100]], (300, 200), [[0, 0, 0], [0, 0, 1]]),
        ([[200, 100]], (260, 150), [[0, 0, 0], [0, 0, 1]]),  # sticks out
        ([[300, 0]], (260, 100), [[0, 0, 1]]),  # beyond: no pixel is lost
    ],
)
def test_few_patches_small_slides_and_borders(
    tmp_path: Path, corners: list[list[int]], size: tuple[int, int], expected: Any
) -> None:
    selection = selection_of(corners, 100)
    export_heat_map(selection, source_of(*size), tmp_path / "a")
    (heat,), _ = stored(tmp_path / "a")
    assert heat.tolist() == expected
    v05.Image.from_zarr(zarr.open_group(tmp_path / "a", mode="r"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_large_map_is_a_valid_pyramid_of_means_over_patches(
    tmp_path: Path, version: Version
) -> None:
    w, h = 1101, 3
    corners = lattice(w, h, 8)
    selection = selection_of(corners[corners[:, 0] % 24 != 8], 8)
    export_heat_map(selection, source_of(8 * w, 8 * h), tmp_path / "a", version)
    group = zarr.open_group(tmp_path / "a", mode="r")
    image = MODELS[version].Image.from_zarr(group)
    assert sorted(image.members) == ["0", "1", "2"]
    omero = image.attributes.ome.omero if version == "0.5" else image.attributes.omero
    (channel,) = (
        omero["channels"] if version == "0.5" else omero.model_dump()["channels"]
    )
    assert (channel["label"], channel["window"]["end"]) == ("Attention", 1)
    assert group["0"].shape == (1, h, w)
    assert group["0"].dtype == np.float32
    assert group["0"].chunks == (1, 512, 512)
    levels, places = stored(tmp_path / "a")
    for finer, coarser in pairwise(levels):
        for (row, column), value in np.ndenumerate(coarser):
            cell = finer[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            there = cell[cell > 0]
            assert value == pytest.approx(there.mean() if there.size else 0, rel=1e-6)
    for index, place in enumerate(places):
        step = 8 * 2**index
        assert place["scale"] == [step * 0.5, step * 0.25]
        assert place["translation"] == [(step - 1) * 0.25, (step - 1) * 0.125]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_selection_gives_the_same_image(
    tmp_path: Path, version: Version
) -> None:
    selection = selection_of(lattice(600, 2, 8), 8)
    for name in ("a", "b", "a"):  # the last one replaces the first
        export_heat_map(selection, source_of(4800, 16), tmp_path / name, version)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_heat_map_is_not_taken_for_a_pyramid(tmp_path: Path) -> None:
    export_heat_map(selection_of([[0, 0]], 8), source_of(8, 8), tmp_path / "a")
    with pytest.raises(PyramidError, match="not a pyramid of this package"):
        Pyramid(tmp_path / "a")


def export(
    folder: Path,
    selection: Selection,
    source: Source,
    options: ExportOptions = LEVEL0,
    **more: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    told = {"slide_id": "s1", "run": RUN} | more
    path = folder / "attention.geojson"
    found = export_detections(selection, source, path, options, **told)
    assert found is not None
    return found


def collection(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    value: dict[str, Any] = orjson.loads(data)
    return value


def test_a_patch_becomes_a_detection_with_its_numbers(tmp_path: Path) -> None:
    selection = selection_of([[0, 0], [64, 32], [128, 0]], 64, [123456.0, 7e5, 3.0])
    data = collection(export(tmp_path, selection, source_of(300, 100)))
    ids = [feature.pop("id") for feature in data["features"]]
    assert [uuid.UUID(one).version for one in ids] == [5, 5, 5]
    square = [[64, 32], [128, 32], [128, 96], [64, 96], [64, 32]]
    first, second, third = data["features"]
    assert second == {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": "Selected patch", "color": [0, 174, 239]},
            "measurements": {
                "Attention score": 0.8501,  # 7e5 / 823459
                "Attention rank": 1,
                "Attention percentile": 100.0,
            },
        },
    }
    assert "classification" not in first["properties"]
    assert third["properties"]["measurements"] == {
        "Attention score": 3.643e-6,
        "Attention rank": 3,
        "Attention percentile": 33.333,
    }
    own = data["wsi_pipeline"]
    assert set(own["measurements"]) == set(first["properties"]["measurements"])
    assert (own["model"], own["frame"]) == ("m", "level0")
    assert "research use only" in own["notice"]


def test_detections_are_read_where_the_patches_are_in_both_frames(
    tmp_path: Path,
) -> None:
    corners = [[0, 0], [64, 64], [192, 64], [320, 64]]
    selection = selection_of(corners, 64, [1.0, 4.0, 3.0, 2.0])
    source = source_of(400, 200, Box(70, 20, 200, 90))
    ids = {}
    for frame in ("qupath", "level0"):
        options = ExportOptions(frame=frame)
        path = export(tmp_path / frame, selection, source, options)
        assert check_geojson(path) == []
        ids[frame] = [row["id"] for row in collection(path)["features"]]
        found = read_annotations(path)  # by the offset that the file states
        boxes = [shapely.box(x, y, x + 64, y + 64) for x, y in corners]
        if frame == "qupath":  # cut at the scan's bounds, without those beyond
            boxes = [box & shapely.box(70, 20, 270, 110) for box in boxes[1:3]]
        assert [a.object_type for a in found] == ["detection"] * len(boxes)
        for annotation, box in zip(found, boxes, strict=True):
            assert annotation.geometry.equals(box)
    drawn = read_annotations(
        tmp_path / "qupath" / "attention.geojson", offset_px=(0, 0)
    )
    assert drawn[1].geometry.bounds == (122, 44, 186, 90)
    assert [dict(a.measurements)["Attention rank"] for a in drawn] == [1, 2]
    assert [a.class_name for a in drawn] == ["Selected patch", None]
    assert ids["qupath"] == ids["level0"][1:3]


def test_only_the_chosen_ones_or_none_on_request(tmp_path: Path) -> None:
    selection = selection_of(lattice(6, 4, 8), 8, top_m=5)
    source = source_of(48, 32)
    options = LEVEL0.model_copy(update={"detections": "chosen"})
    found = read_annotations(export(tmp_path, selection, source, options))
    ranks = [dict(a.measurements)["Attention rank"] for a in found]
    assert sorted(ranks) == [1, 2, 3, 4, 5]
    assert {a.class_name for a in found} == {"Selected patch"}
    none = LEVEL0.model_copy(update={"detections": "none"})
    path = tmp_path / "none.geojson"
    assert export_detections(selection, source, path, none, slide_id="s") is None
    assert not path.exists()


def test_ties_share_a_percentile_and_keep_their_ranks(tmp_path: Path) -> None:
    selection = selection_of(lattice(4, 1, 8), 8, [1.0] * 4, top_m=2)
    found = read_annotations(export(tmp_path, selection, source_of(32, 8)))
    measured = [dict(a.measurements) for a in found]
    assert [row["Attention percentile"] for row in measured] == [100.0] * 4
    assert [row["Attention rank"] for row in measured] == [1, 2, 3, 4]
    assert [row["Attention score"] for row in measured] == [0.25] * 4


def test_a_slide_without_patches_has_an_empty_collection(tmp_path: Path) -> None:
    path = export(tmp_path, selection_of([], 64), source_of(300, 100))
    assert check_geojson(path) == []
    assert collection(path)["features"] == []
    assert read_annotations(path) == []


def test_the_same_selection_gives_the_same_file_and_unique_ids(tmp_path: Path) -> None:
    selection = selection_of(lattice(30, 20, 16), 16)
    options = ExportOptions(gzip=True)
    source = source_of(480, 320)
    first, second = (
        export(tmp_path / name, selection, source, options) for name in "ab"
    )
    assert first.name == "attention.geojson.gz"
    assert first.read_bytes() == second.read_bytes()
    assert check_geojson(first) == []
    ids = {row["id"] for row in collection(first)["features"]}
    assert len(ids) == 600
    for change in ({"slide_id": "s2"}, {"run": {"model": "other"}}):
        other = export(tmp_path / "c", selection, source, options, **change)
        assert ids.isdisjoint(row["id"] for row in collection(other)["features"])


def test_many_patches_are_written_as_a_stream_of_short_features(
    tmp_path: Path,
) -> None:
    selection = selection_of(lattice(200, 150, 512), 512, top_m=64)
    source = source_of(200 * 512, 150 * 512)
    tracemalloc.start()
    path = export(tmp_path, selection, source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = path.stat().st_size
    assert 300 < size / 30_000 < 325  # the docstring's figure
    # half the file: neither its text nor its features are ever held at once
    assert peak < size / 2
