"""People's annotations: what is read, what is refused, what the check finds."""

import contextlib
import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.annotations import READERS, Annotation, read_annotations
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.annotations.geojson import GEOMETRIES
from wsi_pipeline.errors import RegionError, UnknownNameError

GOOD = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}
NO_GEOJSON = {"103S.json", "Normal_001.json", "Tumor_001.json"}


def square(x: float, y: float, side: float) -> list[list[float]]:
    far_x, far_y = x + side, y + side
    return [[x, y], [far_x, y], [far_x, far_y], [x, far_y], [x, y]]


def feature(geometry: Any = GOOD, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def write(folder: Path, document: Any, name: str = "a.geojson") -> Path:
    path = folder / name
    data = document if isinstance(document, bytes) else orjson.dumps(document)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "document",
    [
        {"type": "FeatureCollection", "features": [feature()]},
        [feature()],
        feature(),
        GOOD,
        [GOOD],
    ],
)
def test_every_container_that_qupath_writes_is_read(
    tmp_path: Path, document: Any
) -> None:
    expected = Annotation(shapely.box(0, 0, 9, 9))
    for name in ("a.geojson", "a.json", "A.GeoJSON"):
        (got,) = read_annotations(write(tmp_path, document, name))
        assert got.geometry.equals(expected.geometry)
        assert (got.class_name, got.rgb, got.object_type) == (None, None, "annotation")
    packed = gzip.compress(orjson.dumps(document))
    assert len(read_annotations(write(tmp_path, packed, "a.geojson.gz"))) == 1
    marked = b"\xef\xbb\xbf" + orjson.dumps(document)
    assert len(read_annotations(write(tmp_path, marked))) == 1


@pytest.mark.parametrize(
    ("value", "name", "rgb"),
    [
        ("Tumor", "Tumor", None),
        (None, None, None),
        ({"name": "Tumor", "color": [200, 0, 7]}, "Tumor", (200, 0, 7)),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor", (200, 0, 0)),
        ({"names": ["Tumor", "CD8"], "color": [1, 2, 3]}, "Tumor: CD8", (1, 2, 3)),
        ({"name": "Tumor", "color": [1, 2, 3, 255]}, "Tumor", (1, 2, 3)),
        ({"name": "Tumor", "color": "#ff0000"}, "Tumor", None),
    ],
)
def test_class_is_read_in_every_spelling(
    tmp_path: Path, value: Any, name: str | None, rgb: tuple[int, int, int] | None
) -> None:
    (got,) = read_annotations(write(tmp_path, feature(classification=value)))
    assert (got.class_name, got.rgb) == (name, rgb)


def test_children_measurements_and_types_are_read(tmp_path: Path) -> None:
    child = feature(objectType="detection", measurements=[{"name": "A", "value": 2}])
    parent = feature(
        name="slide",
        measurements={"A": 1.5, "B": "NaN", "C": None},
        childObjects=[child],
    )
    old = feature() | {"id": "PathCellObject"}
    first, second, third = read_annotations(write(tmp_path, [parent, old]))
    assert first.name == "slide"
    assert [name for name, _ in first.measurements] == ["A", "B"]
    assert second.object_type == "detection"
    assert second.measurements == (("A", 2.0),)
    assert third.object_type == "cell"


def test_offset_moves_to_level_0(tmp_path: Path) -> None:
    path = write(tmp_path, [feature()])
    (got,) = read_annotations(path, offset_px=(100, 20))
    assert got.geometry.bounds == (100, 20, 109, 29)


def test_areas_that_are_not_valid_are_mended(tmp_path: Path) -> None:
    bow = polygon([[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]])
    line = polygon([[0, 0], [5, 5], [0, 0], [0, 0]])
    overlapping = {
        "type": "MultiPolygon",
        "coordinates": [[square(0, 0, 10)], [square(5, 5, 10)]],
    }
    got = [
        a.geometry for a in read_annotations(write(tmp_path, [bow, line, overlapping]))
    ]
    assert all(shape.is_valid for shape in got)
    assert [shape.area for shape in got] == [5000, 0, 175]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"\x1f\x8b broken", "cannot read"),
        (b'{"positive": []}', "no GeoJSON"),
        (b'{"type": "featurecollection", "features": []}', "no GeoJSON"),
        (b"3", "no GeoJSON"),
        (b'[{"type": "Topology"}]', "no GeoJSON"),
        (b'{"type": "FeatureCollection"}', "no GeoJSON"),
        (b'[{"type": "Feature", "geometry": null}]', "feature 0: expected a geometry"),
        (b'[{"type":"Point","coordinates":[NaN,1]}]', "feature 0: expected finite"),
        (b'[{"type":"Polygon","coordinates":[[["a","b"]]]}]', "feature 0"),
        (b'[{"type":"Polygon","coordinates":7}]', "feature 0"),
        (b'[{"type":"Polygon"}]', "feature 0"),
    ],
)
def test_file_without_usable_annotations_is_refused_with_the_reason(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(RegionError, match=message) as caught:
        read_annotations(write(tmp_path, data))
    assert "a.geojson" in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("aN"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "color", "type"]), inner)
    ),
    max_leaves=12,
)
POSITIONS = st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), max_size=7)
RINGS = st.lists(POSITIONS.map(lambda ring: ring + ring[:1]), max_size=3)
PARTS = RINGS | st.lists(RINGS, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*GEOMETRIES, "GeometryCollection", "LinearRing", "Circle"]),
    VALUES | PARTS,
    VALUES,
    VALUES,
    VALUES,
)
def test_odd_features_are_read_or_refused_and_always_checked(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    coordinates: Any,
    named: Any,
    measurements: Any,
    properties: Any,
) -> None:
    row = feature(
        {"type": kind, "coordinates": coordinates, "geometries": coordinates},
        classification=named,
        measurements=measurements,
    )
    other = feature() | {"properties": properties, "id": named}
    path = write(tmp_path_factory.mktemp("odd"), [row, other])
    check_geojson(path)
    for one in ([row], [other]):
        with contextlib.suppress(RegionError):
            read_annotations(write(path.parent, one))


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="geojson"):
        read_annotations(tmp_path / "a.txt")
    with pytest.raises(RegionError, match="cannot read"):
        read_annotations(tmp_path / "missing.geojson")


def test_every_row_of_the_table_loads() -> None:
    assert all(callable(READERS.load(name).read) for name in READERS.names())


def test_real_files_of_all_ages_are_read_or_refused(data_dir: Path) -> None:
    folder = data_dir / "annotations"
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".geojson"))
    counts = {}
    for path in files:
        if path.name in NO_GEOJSON:
            continue
        counts[path.name] = len(read_annotations(path))
        # QuPath 0.5 to 0.7 import all of them
        assert [f for f in check_geojson(path) if f.effect == "abort"] == []
    assert counts == {
        "2023_02_02__CD163_CD31_CDH1.geojson": 56,
        "Single_cells.geojson": 131,
        "TD_01_verysmall_mIF.geojson": 9,
        "histoqc_geojson_example_v2.json": 2,
        "histoqc_holed.geojson": 1,
        "large_image_sample_notqupath.geojson": 10,
        "odd_missing_classification.geojson": 2,
        "qupath05.geojson": 3,
    }
    (holed,) = read_annotations(folder / "histoqc_holed.geojson")
    assert len(holed.geometry.interiors) > 0
    tumor, border = read_annotations(folder / "histoqc_geojson_example_v2.json")
    assert (tumor.class_name, tumor.rgb) == ("Tumor", (200, 0, 0))
    assert border.class_name == "Invborder"
