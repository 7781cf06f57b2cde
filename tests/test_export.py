"""Export as a stream: areas add up, the same bytes, nothing left after an error."""

import errno
import functools
import os
import signal
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import shapely
import shapely.geometry

from tests.test_geojson import CLASSES, EXACT, features, make_masks
from tests.tracing import Mask, blobs
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ExportError, PyramidError
from wsi_pipeline.exporters import export_masks, exporter, geojson, spool
from wsi_pipeline.exporters.labels import LabelSource
from wsi_pipeline.exporters.outlines import Outlines
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.sheet import Frame, Sheet
from wsi_pipeline.exporters.spool import Spool
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import LABEL_SHARD_PX
from wsi_pipeline.ngff import Source, Version
from wsi_pipeline.pyramid import MaskPyramid


def in_blocks(monkeypatch: pytest.MonkeyPatch, block_px: int) -> None:
    """Trace in smaller blocks than usual."""
    traced = functools.partial(trace_objects, block_px=block_px)
    monkeypatch.setattr(exporter, "trace_objects", traced)


def bytes_of(
    folder: Path, masks: MaskPyramid, options: ExportOptions, **more: int
) -> bytes:
    path = folder / "x.geojson"
    export_masks(masks, path, options, slide_id="s", **more)
    return path.read_bytes()


@pytest.mark.parametrize("simplify_um", [0.0, 2.0])
def test_areas_of_each_class_add_up(
    tmp_path: Path, simplify_um: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, 64)
    mask = blobs(7, 200, sigma=2)
    layout = {"size_px": (800, 800), "base": 4, "bounds": Box(30, 50, 601, 703)}
    masks = make_masks(tmp_path / "m.zarr", mask, **layout)
    options = ExportOptions(
        simplify_um=simplify_um, min_area_um2=120, min_hole_um2=60, frame="qupath"
    )
    found = export_masks(masks, tmp_path / "x.geojson", options, slide_id="s")
    assert check_geojson(found.path) == []
    rows = features(found.path)
    for kind in found.classes:
        assert kind.pixels == (mask == kind.value).sum()
        assert min(kind.dropped_um2, kind.filled_um2, kind.outside_um2) > 0
        assert (kind.simplified_um2 == 0) == (simplify_um == 0)
        assert kind.written_um2 == pytest.approx(
            kind.area_um2
            - kind.dropped_um2
            + kind.filled_um2
            + kind.simplified_um2
            - kind.outside_um2
        )
        shapes = [
            shapely.geometry.shape(row["geometry"])
            for row in rows
            if row["properties"]["classification"]["name"] == kind.name
        ]
        assert len(shapes) == kind.objects
        # the file holds 0.01 px at most
        assert shapely.area(shapes).sum() * 0.25 == pytest.approx(
            kind.written_um2, rel=1e-6
        )


def test_number_of_workers_and_size_of_blocks_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = make_masks(tmp_path / "m.zarr", blobs(8, 150, sigma=1.5))
    exact = bytes_of(tmp_path, masks, EXACT)
    for block in (40, 64):
        in_blocks(monkeypatch, block)
        for workers in (1, 3):
            assert bytes_of(tmp_path, masks, EXACT, workers=workers) == exact
    simple = EXACT.model_copy(update={"simplify_um": 1.0})
    first, second = (bytes_of(tmp_path, masks, simple, workers=w) for w in (1, 3))
    assert first == second != exact


def test_features_are_sorted_by_class_and_first_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, 16)
    masks = make_masks(tmp_path / "m.zarr", blobs(9, 80, sigma=1.5))
    rows = orjson.loads(bytes_of(tmp_path, masks, EXACT))["features"]
    names = [uuid.UUID(row["id"]) for row in rows]
    assert {(name.version, name.variant) for name in names} == {(5, uuid.RFC_4122)}
    assert [str(name) for name in names] == [row["id"] for row in rows]
    order = [
        (row["properties"]["classification"]["name"], *reversed(corner))
        for row in rows
        for corner in row["geometry"]["coordinates"][0][:1]
    ]
    kinds = [kind.name for kind in CLASSES]
    assert order == sorted(order, key=lambda o: (kinds.index(o[0]), *o[1:]))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_masks_of_all_versions_and_sizes_are_read(
    tmp_path: Path, version: Version
) -> None:
    mask = np.zeros((1500, 1100), np.uint8)
    mask[1000:1100, 1000:1100] = 2  # across four chunks
    source = Source("s", (1100, 1500), Scale(1, 1), "test", Box(0, 0, 1100, 1500))
    masks = MaskPyramid.create(tmp_path / "m", source, 1, CLASSES, version=version)
    for box in masks.levels[0].box.blocks(LABEL_SHARD_PX):
        masks.put(0, box, mask[box.rows, box.columns])
    assert (
        LabelSource(masks).read(Box(990, 995, 20, 9)) == mask[995:1004, 990:1010]
    ).all()
    (feature,) = orjson.loads(bytes_of(tmp_path, masks, EXACT))["features"]
    drawn = shapely.geometry.shape(feature["geometry"])
    assert drawn.equals(shapely.box(1000, 1000, 1100, 1100))


def chunked(folder: Path, mask: Mask) -> MaskPyramid:
    """A mask of four chunks, one shard."""
    return make_masks(folder / "m.zarr", mask)


def test_blank_parts_are_told_by_their_chunks(tmp_path: Path) -> None:
    mask = np.zeros((2048, 3072), np.uint8)
    mask[:, 1024:2048] = 255
    mask[1100, 1500] = 1
    mask[:1024, 2048:] = 1
    mask[1024:1536, 2048:] = 2  # half a chunk
    source = LabelSource(chunked(tmp_path, mask))
    columns, rows = np.meshgrid(range(0, 3072, 1024), range(0, 2048, 1024))
    boxes = [
        Box(x, y, 1024, 1024) for x, y in zip(columns.flat, rows.flat, strict=True)
    ]
    assert [source.is_blank(box) for box in boxes] == [1, 1, 0, 1, 0, 0]
    assert source.is_blank(Box(0, 0, 2048, 1024))
    assert not source.is_blank(Box(0, 0, 2049, 1024))
    assert not source.is_blank(Box(0, 0, 2048, 1025))


def test_chunk_that_is_not_blank_is_not_decoded_to_tell(tmp_path: Path) -> None:
    lot = np.random.default_rng(0).integers(0, 3, (1024, 1024)).astype(np.uint8)
    masks = chunked(tmp_path, lot)
    shard = masks.path / "0" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[1000:1100] = bytes(100)
    shard.write_bytes(data)
    source = LabelSource(masks)
    assert not source.is_blank(masks.levels[0].box)
    with pytest.raises(PyramidError, match="damaged"):
        source.read(masks.levels[0].box)


def test_blank_mask_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = chunked(tmp_path, np.full((1500, 2000), 255, np.uint8))
    monkeypatch.delattr(LabelSource, "read")
    assert orjson.loads(bytes_of(tmp_path, masks, EXACT))["features"] == []


def damage(masks: MaskPyramid) -> Path:
    """Cut the only shard of the mask's base short."""
    shard = masks.path / "0" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-40])
    return shard


@pytest.mark.parametrize("value", [0, 1])
def test_damaged_mask_is_named_and_nothing_appears(tmp_path: Path, value: int) -> None:
    masks = chunked(tmp_path, np.full((1500, 2000), value, np.uint8))
    shard = damage(masks)
    with pytest.raises(PyramidError, match=str(shard)):
        bytes_of(tmp_path, masks, EXACT)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_ctrl_c_ends_the_export_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, 16)
    masks = make_masks(tmp_path / "m.zarr", blobs(10, 128))
    read, count = LabelSource.read, iter(range(99))

    def interrupted(source: LabelSource, box: Box) -> Mask:
        if next(count) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return read(source, box)

    monkeypatch.setattr(LabelSource, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bytes_of(tmp_path, masks, EXACT, workers=2)
    assert next(count) < 64
    left = [path for path in tmp_path.rglob("*") if "m.zarr" not in path.parts]
    assert [path for path in left if path.is_file()] == []


def test_full_disk_ends_the_export_and_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, 16)
    masks = make_masks(tmp_path / "m.zarr", blobs(10, 128))
    threads = threading.active_count()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spool, "add", full)
    with pytest.raises(ExportError, match="No space left"):
        bytes_of(tmp_path, masks, EXACT, workers=2)
    assert threading.active_count() == threads


def test_polygon_of_very_many_rings_is_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.ones((40, 40), np.uint8)
    mask[2:38:3, 2:38:3] = 0
    masks = make_masks(tmp_path / "m.zarr", mask)
    whole = bytes_of(tmp_path, masks, EXACT)
    monkeypatch.setattr(geojson, "_RINGS", 10)
    assert bytes_of(tmp_path, masks, EXACT) == whole
    (feature,) = orjson.loads(whole)["features"]
    assert len(feature["geometry"]["coordinates"]) == 1 + 144


def test_object_that_the_frame_cuts_in_two_is_written_as_two_parts(
    tmp_path: Path,
) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:18, 2:6] = mask[2:18, 12:16] = mask[14:18, 2:16] = 1
    masks = make_masks(tmp_path / "m.zarr", mask, bounds=Box(0, 0, 20, 10))
    options = EXACT.model_copy(update={"frame": "qupath"})
    (feature,) = orjson.loads(bytes_of(tmp_path, masks, options))["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    drawn = shapely.geometry.shape(feature["geometry"])
    assert drawn.equals(shapely.box(2, 2, 6, 10) | shapely.box(12, 2, 16, 10))
    assert b".0" not in orjson.dumps(feature["geometry"])


def test_coordinates_of_a_cut_slope_have_two_decimals(tmp_path: Path) -> None:
    masks = make_masks(tmp_path / "m.zarr", blobs(11, 90), bounds=Box(7, 9, 61, 53))
    options = EXACT.model_copy(update={"frame": "qupath", "simplify_um": 3.0})
    text = bytes_of(tmp_path, masks, options)
    rows = orjson.loads(text)["features"]
    points = [p for row in rows for p in shapely.get_coordinates(
        shapely.geometry.shape(row["geometry"])
    ).tolist()]  # fmt: skip
    assert any(x % 1 or y % 1 for x, y in points)
    assert all(round(v, 2) == v for point in points for v in point)


def test_coordinates_are_rounded_and_whole_ones_have_no_point(tmp_path: Path) -> None:
    masks = make_masks(tmp_path / "m.zarr", np.ones((4, 4), np.uint8))
    source = LabelSource(masks)
    ((traced,),) = [list(trace_objects(source, masks.levels[0].box))]
    sums = np.array([(-0.0, 0.1 + 0.2), (4, 1), (3, 3)])
    points = np.concatenate([sums, [(8.0, 8.0), (9.0, 8.0), (9.0, 9.0)]])
    two = Outlines.of_rings(points, np.array([0, 3, 6]))
    objects = replace(traced.objects.take(np.array([0, 0])), outlines=two)
    whole = masks.levels[0].box
    sheet = Sheet("s", Frame("level0", whole), Scale(1, 1), 1.0, CLASSES, ())
    geojson.write_geojson(tmp_path / "x.geojson", [objects], sheet)
    text = (tmp_path / "x.geojson").read_text()
    assert "[[[0.0,0.3],[4.0,1.0],[3.0,3.0],[0.0,0.3]]]" in text
    assert "[[[8,8],[9,8],[9,9],[8,8]]]" in text


def test_spool_gives_parts_back_in_order_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_PIECE_BYTES", 3)
    with Spool(tmp_path) as kept:
        kept.add(2, 1, [b"fifth"])
        kept.add(1, 7, [b"se", b"", b"cond"])
        kept.add(1, -3, [b"first"])
        kept.add(1, 7, [])
        kept.add(1, 9, [b"fourth"])
        parts = [b"".join(part) for part in kept.parts()]
    assert parts == [b"first", b"second", b"", b"fourth", b"fifth"]
    assert list(tmp_path.iterdir()) == []
