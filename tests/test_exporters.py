"""Masks as label images, tables of objects and areas: what other programs read."""

import csv
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import orjson
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from numpy.typing import NDArray

from tests.test_geojson import CLASSES, EXACT, RUN, features, glands, make_masks
from tests.test_measuring import patches
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ConfigError, ExportError
from wsi_pipeline.exporters import EXPORTERS, export_masks, geoparquet, ometiff
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import LABEL_CHUNK_PX
from wsi_pipeline.pyramid import MaskPyramid

MPP = (0.25, 0.5)


def big(seed: int = 1) -> NDArray[np.uint8]:
    """Objects, a hole in what was computed, and tiles of one value."""
    mask = np.kron(glands(seed, 128), np.ones((10, 17), np.uint8))
    mask[:1100, :1200] = 255
    return mask[:-3, :-5]


def filled(path: Path, mask: NDArray[np.uint8], **layout: Any) -> MaskPyramid:
    masks = make_masks(path, mask, **layout)
    masks.write_coarser()
    return masks


# ------------------------------------------------------------ the label image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[MaskPyramid, Path]:
    folder = tmp_path_factory.mktemp("image")
    bounds = Box(100, 200, 3000, 1000)
    masks = filled(folder / "m.zarr", big(), base=2, mpp=MPP, bounds=bounds)
    path = folder / "a.ome.tif"
    export_masks(masks, path, slide_id="s", workers=2)
    return masks, path


def test_label_image_holds_every_level_as_ome_tiff_has_them(
    image: tuple[MaskPyramid, Path],
) -> None:
    masks, path = image
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        (series,) = file.series
        assert series.axes == "YX"
        assert len(series.levels) == len(masks.levels) == 4
        assert len(file.pages) == len(masks.levels)
        for index, level in enumerate(masks.levels):
            stored, page = series.levels[index], file.pages[index].aspage()
            assert (stored.asarray() == masks.read_level(level.box, index)).all()
            assert (page.tilewidth, page.tilelength) == (1024, 1024)
            assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            cm = [n / d for n, d in (page.tags[t].value for t in (282, 283))]
            um = [10_000 / v for v in cm]
            assert um == pytest.approx([m * level.downsample for m in MPP], rel=1e-6)
            assert page.tags["ResolutionUnit"].value == 3
    assert path.stat().st_size < 60_000


def test_label_image_opens_in_openslide_with_its_levels_colours_and_mpp(
    image: tuple[MaskPyramid, Path],
) -> None:
    masks, path = image
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == tuple(level.size_px for level in masks.levels)
        mpp = [float(slide.properties[f"openslide.mpp-{a}"]) for a in "xy"]
        assert mpp == pytest.approx([0.5, 1.0], rel=1e-6)
        for index, level in enumerate(masks.levels):
            seen = slide.read_region((0, 0), index, level.size_px).convert("RGB")
            values = masks.read_level(level.box, index)
            colours = {kind.value: kind.rgb for kind in CLASSES} | {255: (128,) * 3}
            for value in np.unique(values).tolist():
                assert (np.asarray(seen)[values == value] == colours[value]).all()


def test_ome_xml_of_the_label_image_states_mpp_size_and_classes(
    image: tuple[MaskPyramid, Path],
) -> None:
    with tifffile.TiffFile(image[1]) as file:
        told = tifffile.xml2dict(file.ome_metadata)["OME"]
    pixels = told["Image"]["Pixels"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.5, 1.0)
    assert pixels["PhysicalSizeXUnit"] == pixels["PhysicalSizeYUnit"] == "µm"
    assert (pixels["SizeX"], pixels["SizeY"], pixels["SizeC"]) == (2171, 1277, 1)
    assert pixels["TiffData"] == {"IFD": 0, "PlaneCount": 1}
    rows = told["StructuredAnnotations"]["MapAnnotation"]["Value"]["M"]
    assert [(row["K"], row["value"]) for row in rows] == [
        (0, "Background"),
        (1, "Stroma"),
        (2, "Gland <b>"),
        (255, "Not computed"),
    ]


def test_label_image_is_streamed_and_the_same_for_any_workers(
    image: tuple[MaskPyramid, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, path = image
    read, boxes = MaskPyramid.read_level, []

    def watched(self: MaskPyramid, box: Box, level: int) -> NDArray[np.uint8]:
        boxes.append(box)
        return read(self, box, level)

    monkeypatch.setattr(MaskPyramid, "read_level", watched)
    export_masks(masks, tmp_path / "b.ome.tif", slide_id="s", workers=1)
    assert (tmp_path / "b.ome.tif").read_bytes() == path.read_bytes()
    assert max(box.area_px for box in boxes) == LABEL_CHUNK_PX**2
    assert len(boxes) == 3 * 2 + 2 + 1 + 1  # each tile of each level once


def test_large_label_image_has_64_bit_offsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = filled(tmp_path / "m.zarr", big())
    monkeypatch.setattr(ometiff, "_CLASSIC_BYTES", 2**20)
    export_masks(masks, tmp_path / "a.ome.tif", slide_id="s")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_bigtiff
        assert [len(file.pages), len(file.series[0].levels)] == [4, 4]
    with openslide.OpenSlide(tmp_path / "a.ome.tif") as slide:
        assert slide.level_count == 4


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (1024, 1024)])
def test_label_image_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    masks = filled(tmp_path / "m.zarr", np.full(size, 2, np.uint8))
    found = export_masks(masks, tmp_path / "a.ome.tif", slide_id="s")
    assert (tifffile.imread(found.path) == np.full(size, 2)).all()
    assert [kind.pixels for kind in found.classes] == [0, size[0] * size[1]]
    assert (found.frame, found.offset_px, found.objects) == ("level0", (0, 0), 0)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.csv", "a.parquet"])
def test_value_that_is_no_class_is_refused_by_every_format(
    tmp_path: Path, name: str
) -> None:
    masks = filled(tmp_path / "m.zarr", np.full((9, 9), 7, np.uint8))
    threads = threading.active_count()
    with pytest.raises(ExportError, match=r"values \[7\]"):
        export_masks(masks, tmp_path / name, slide_id="s")
    assert not (tmp_path / name).exists()
    assert threading.active_count() == threads


# ------------------------------------------------------- the table of objects

LAYOUT: dict[str, Any] = {"base": 2, "size_px": (300, 300), "mpp": MPP}


@pytest.mark.parametrize("frame", ["qupath", "level0"])
def test_table_of_objects_says_what_the_geojson_says(
    tmp_path: Path, frame: str
) -> None:
    bounds = Box(33, 21, 200, 180)
    masks = make_masks(tmp_path / "m.zarr", glands(3, 150), bounds=bounds, **LAYOUT)
    sure = make_masks(tmp_path / "c.zarr", glands(4, 150) * 100, classes=(), **LAYOUT)
    options = EXACT.model_copy(update={"frame": frame})
    told: dict[str, Any] = {"slide_id": "s", "run": RUN, "confidence": sure}
    corners = np.array([[20, 50], [80, 180]])
    told["selection"] = patches(corners, 40, [0.25, 0.75])
    export_masks(masks, tmp_path / "a.geojson", options, **told)
    found = export_masks(masks, tmp_path / "a.parquet", options, **told)
    table = pq.read_table(tmp_path / "a.parquet")
    header = orjson.loads(pq.read_metadata(found.path).metadata[b"wsi_pipeline"])
    own = orjson.loads((tmp_path / "a.geojson").read_bytes())["wsi_pipeline"]
    assert header.items() <= own.items()
    assert header["frame"] == found.frame == frame
    assert tuple(header["offset_px"]) == ((33, 21) if frame == "qupath" else (0, 0))
    rows = {row["id"]: row for row in table.to_pylist()}
    drawn = features(tmp_path / "a.geojson")
    assert len(rows) == len(drawn) == found.objects > 20
    assert {row["selection_score"] for row in rows.values()} == {None, 0.25, 0.75}
    for feature in drawn:
        row, stated = rows[feature["id"]], feature["properties"]["measurements"]
        outline = shapely.from_wkb(row["geometry"])
        geometry = orjson.dumps(feature["geometry"]).decode()
        assert outline.equals(shapely.from_geojson(geometry))
        assert row["class"] == feature["properties"]["classification"]["name"]
        assert row["class"] == CLASSES[row["value"]].name
        assert row["area_um2"] == pytest.approx(stated["Area um^2"], abs=1e-3)
        assert row["perimeter_um"] == pytest.approx(stated["Perimeter um"], abs=1e-3)
        mean, highest = row["mean_probability"], row["max_probability"]
        assert mean == pytest.approx(stated["Mean probability"], abs=1e-4)
        assert highest == pytest.approx(stated["Max probability"], abs=1e-4)
        assert row["selection_score"] == stated.get("Selection score")
        assert tuple(row["bbox"].values()) == outline.bounds


def geo_of(path: Path) -> Any:
    return orjson.loads(pq.read_metadata(path).metadata[b"geo"])


def test_table_of_objects_keeps_the_rules_of_geoparquet(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[2:20, 3:30] = 1
    mask[5:9, 6:9] = 0
    masks = make_masks(tmp_path / "m.zarr", mask)
    found = export_masks(masks, tmp_path / "a.parquet", EXACT, slide_id="s")
    sides = ("xmin", "ymin", "xmax", "ymax")
    assert geo_of(found.path) == {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "crs": None,
                "edges": "planar",
                "orientation": "counterclockwise",
                "covering": {"bbox": {side: ["bbox", side] for side in sides}},
                "bbox": [3.0, 2.0, 30.0, 20.0],
            }
        },
    }
    (outline,) = shapely.from_wkb(pq.read_table(found.path)["geometry"].to_pylist())
    assert shapely.is_ccw(outline.exterior)
    assert [shapely.is_ccw(ring) for ring in outline.interiors] == [False]


def test_objects_in_several_parts_are_said_to_be_in_the_table(tmp_path: Path) -> None:
    mask = np.ones((30, 30), np.uint8)
    mask[4:, 2:28] = 0  # two legs, cut apart by the frame
    masks = make_masks(tmp_path / "m.zarr", mask, bounds=Box(0, 6, 30, 24))
    options = EXACT.model_copy(update={"frame": "qupath"})
    found = export_masks(masks, tmp_path / "a.parquet", options, slide_id="s")
    geometry = geo_of(found.path)["columns"]["geometry"]
    assert geometry["geometry_types"] == ["MultiPolygon"]
    assert geometry["bbox"] == [0.0, 0.0, 30.0, 24.0]


def test_table_of_no_objects_can_be_read(tmp_path: Path) -> None:
    masks = make_masks(tmp_path / "m.zarr", np.zeros((9, 9), np.uint8))
    found = export_masks(masks, tmp_path / "a.parquet", slide_id="s")
    table = pq.read_table(found.path)
    assert (found.objects, len(table)) == (0, 0)
    assert table.column_names == geoparquet._SCHEMA.names
    assert "bbox" not in geo_of(found.path)["columns"]["geometry"]


def test_table_is_written_by_row_groups_and_the_same_for_any_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = make_masks(tmp_path / "m.zarr", glands(3, 150))
    first = export_masks(masks, tmp_path / "a.parquet", EXACT, slide_id="s", workers=1)
    again = export_masks(masks, tmp_path / "b.parquet", EXACT, slide_id="s", workers=3)
    assert first.path.read_bytes() == again.path.read_bytes()
    monkeypatch.setattr(geoparquet, "_ROW_GROUP_BYTES", 1)
    small = export_masks(masks, tmp_path / "c.parquet", EXACT, slide_id="s")
    assert pq.read_metadata(small.path).num_row_groups > 1
    assert pq.read_table(small.path).equals(pq.read_table(first.path))


# --------------------------------------------------------- the table of areas


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_areas_are_counted_in_pixels_mm2_and_shares_of_the_tissue(
    tmp_path: Path,
) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:10, :30], mask[50:, :] = 1, 255
    kinds = (*CLASSES, MaskClass(3, "=cmd()", (1, 2, 3)))
    masks = make_masks(tmp_path / "m.zarr", mask, base=4, mpp=MPP, classes=kinds)
    told: dict[str, Any] = {"slide_id": "s", "tissue_mm2": 0.0012}
    found = export_masks(masks, tmp_path / "a.csv", **told)
    assert rows_of(found.path) == [
        ["value", "class", "pixels", "area_mm2", "share_of_tissue"],
        ["1", "Stroma", "300", "0.0006", "0.5"],
        ["2", "Gland <b>", "0", "0", "0"],
        ["3", "'=cmd()", "0", "0", "0"],
    ]
    assert [kind.area_um2 for kind in found.classes] == [600.0, 0.0, 0.0]
    for tissue in (None, 0.0):
        told["tissue_mm2"] = tissue
        unknown = export_masks(masks, tmp_path / "b.csv", **told)
        assert {row[4] for row in rows_of(unknown.path)[1:]} == {""}


# ------------------------------------------------------------------ the table


def test_names_of_formats_are_given_by_commas_or_one_by_one() -> None:
    for given in ("csv, geojson,csv", ["csv,geojson"], ("csv", "geojson")):
        assert ExportOptions(formats=given).formats == ("csv", "geojson")
    for empty in ("", ",", [], 3):
        with pytest.raises(ConfigError, match="formats"):
            ExportOptions(formats=empty)


def test_every_format_has_a_file_and_an_ending_of_its_own() -> None:
    rows = [EXPORTERS.load(name) for name in EXPORTERS.names()]
    assert [row.ending for row in rows] == [".geojson", ".parquet", ".ome.tif", ".csv"]
    assert len({row.title for row in rows}) == len(rows)
