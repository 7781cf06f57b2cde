"""`wsi check-geojson`: what QuPath refuses or alters is found, and mended by a copy.

Every row of what was measured with QuPath is here: a good square beside one defect.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import shape

from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.annotations.mending import mend_geojson

ID = "8c8a0d3e-4d83-4d4e-9f0e-3c2b8e1c9a11"
OTHER_ID = "11111111-2222-4333-8444-555555555555"
TUMOR = {"name": "Tumor", "color": [200, 0, 0]}
FULL = {
    "objectType": "annotation",
    "name": "one",
    "classification": TUMOR,
    "isLocked": True,
    "measurements": {"A": 1.5, "B": "NaN"},
    "metadata": {"by": "Ann"},
}


class Row(NamedTuple):
    """A defect; what QuPath 0.6 and 0.5 do; the feature's area once it is mended."""

    feature: Any
    effect: str
    before: str | None
    area: float | None  # None: it is left out


def square(x: float, y: float, side: float) -> list[list[float]]:
    far_x, far_y = x + side, y + side
    return [[x, y], [far_x, y], [far_x, far_y], [x, far_y], [x, y]]


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def multi(*parts: Any) -> dict[str, Any]:
    return {"type": "MultiPolygon", "coordinates": [[part] for part in parts]}


def feature(geometry: Any, **members: Any) -> dict[str, Any]:
    """A feature that has everything, of which a remedy takes nothing."""
    whole = {"type": "Feature", "id": OTHER_ID, "geometry": geometry}
    return whole | {"properties": deepcopy(FULL)} | members


def having(**properties: Any) -> dict[str, Any]:
    return feature(polygon(square(0, 0, 9)), properties=FULL | properties)


GOOD = feature(polygon(square(0, 0, 5)), id=ID)
BOW = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
BOW_2 = [[0, 0], [100, 60], [100, 0], [0, 100], [0, 0]]
OPEN = [*square(0, 0, 9)[:-1], [0, 0.001]]
NOTCH = [[0, 20], [20, 20], [20, 40], [0, 40], [0, 20]]
CHAIN = [
    [[0, 45], [20, 35], [45, 45], [20, 55], [0, 45]],
    [[45, 45], [70, 35], [90, 45], [70, 55], [45, 45]],
]
PINCH = [[0, 0], [10, 0], [10, 10], [20, 10], [20, 20], [10, 20], [10, 10], [0, 10]]
SPIKE = [[0, 0], [9, 0], [9, 5], [15, 5], [9, 5], [9, 9], [0, 9], [0, 0]]
NECK = [[0, 0], [10, 0], [10, 5], [20, 5], [20, 0], [30, 0], [30, 10], [20, 10]]
NECK += [[20, 5.001], [10, 5.001], [10, 10], [0, 10], [0, 0]]
SLIVER = [[0, 0], [90, 0], [90, 0.001], [0, 0.001], [0, 0]]
DEGREES = [
    [-3.1925, 55.9451],
    [-3.1922, 55.9451],
    [-3.1922, 55.9453],
    [-3.1925, 55.9451],
]
POINT = {"type": "Point", "coordinates": [1, 2]}
LINE = [[0, 0], [9, 9]]

SHAPES = {
    "bow-tie": Row(polygon(BOW), "abort", "repaired", 5000),
    "unequal bow-tie": Row(polygon(BOW_2), "abort", "repaired", 4250),
    "open ring": Row(polygon(square(0, 0, 9)[:-1]), "abort", None, 81),
    "ring open by 0.001 px": Row(polygon(OPEN), "abort", None, 81),
    "overlapping parts": Row(
        multi(square(0, 0, 10), square(5, 5, 10)), "abort", "kept", 175
    ),
    "part inside a part": Row(
        multi(square(0, 0, 90), square(10, 10, 10)), "kept", None, 8100
    ),
    "hole inside a hole": Row(
        polygon(square(0, 0, 90), square(10, 10, 40), square(20, 20, 9)),
        "kept",
        None,
        8100 - 1600,
    ),
    "hole across the outline": Row(
        polygon(square(0, 0, 90), square(80, 80, 20)), "abort", "kept", 8000
    ),
    "parts sharing an edge": Row(
        multi(square(0, 0, 9), square(9, 0, 9)), "repaired", "kept", 162
    ),
    "same part twice": Row(
        multi(square(0, 0, 9), square(0, 0, 9)), "dropped", "kept", 81
    ),
    "overlapping holes": Row(
        polygon(square(0, 0, 90), square(10, 10, 20), square(20, 20, 20)),
        "abort",
        "kept",
        8100 - 700,
    ),
    "hole outside": Row(
        polygon(square(0, 0, 90), square(110, 110, 20)), "abort", "kept", 8100
    ),
    "hole along an edge": Row(
        polygon(square(0, 0, 90), NOTCH), "repaired", "kept", 8100 - 400
    ),
    "hole equal to the shell": Row(
        polygon(square(0, 0, 9), square(0, 0, 9)), "dropped", None, None
    ),
    "ring of two points": Row(polygon([[0, 0], [1, 1], [0, 0]]), "dropped", None, None),
    "ring of one point": Row(polygon([[0, 0]]), "abort", None, None),
    "hole of two positions": Row(
        polygon(square(0, 0, 9), [[1, 1], [1, 1]]), "abort", None, 81
    ),
    "hole without area": Row(
        polygon(square(0, 0, 9), [[1, 1], [2, 2], [1, 1]]), "dropped", "kept", 81
    ),
    "holes cutting the shell in two": Row(
        polygon(square(0, 0, 90), *CHAIN), "repaired", "kept", 8100 - 900
    ),
    "pinch in a ring": Row(polygon([*PINCH, [0, 0]]), "repaired", None, 200),
    "spike": Row(polygon(SPIKE), "repaired", None, 81),
    "sliver": Row(polygon(SLIVER), "dropped", "kept", None),
    "degrees": Row(polygon(DEGREES), "dropped", "kept", None),
    "neck": Row(polygon(NECK), "repaired", None, 200),
    "gap": Row(multi(square(0, 0, 9), square(9.001, 0, 9)), "repaired", "kept", 162),
    "tiny part": Row(
        multi(square(0, 0, 9), square(20, 0, 0.001)), "dropped", "kept", 81
    ),
    "tiny hole": Row(
        polygon(square(0, 0, 9), square(3, 3, 0.001)), "dropped", "kept", 81
    ),
    "mixed collection": Row(
        {"type": "GeometryCollection", "geometries": [polygon(square(0, 0, 9)), POINT]},
        "abort",
        "dropped",
        81,
    ),
    "collection": Row(
        {
            "type": "GeometryCollection",
            "geometries": [polygon(square(0, 0, 9)), multi(square(20, 0, 9))],
        },
        "abort",
        "repaired",
        162,
    ),
    "empty collection": Row(
        {"type": "GeometryCollection", "geometries": []}, "abort", "repaired", None
    ),
    "linear ring": Row(
        {"type": "LinearRing", "coordinates": square(0, 0, 9)}, "abort", None, 0
    ),
    "name in small letters": Row(
        polygon(square(0, 0, 9)) | {"type": "polygon"}, "abort", None, 81
    ),
    "circle": Row({"type": "Circle", "coordinates": [1, 2]}, "abort", None, None),
    "empty polygon": Row(polygon(), "dropped", None, None),
    "empty multipolygon": Row(multi(), "dropped", None, None),
    "empty part": Row(multi(square(0, 0, 9), []), "dropped", None, 81),
    "empty hole": Row(polygon(square(0, 0, 9), []), "dropped", None, 81),
    "empty outline": Row(polygon([]), "dropped", None, None),
    "hole in nothing": Row(polygon([], square(0, 0, 9)), "abort", None, None),
    "empty geometry": Row({}, "dropped", None, None),
    "null geometry": Row(None, "abort", None, None),
    "geometry of text": Row("POINT (1 1)", "abort", None, None),
    "no coordinates": Row({"type": "Polygon"}, "abort", None, None),
    "infinite coordinate": Row(
        polygon([[0, 0], [9, 0], [9, float("inf")], [0, 0]]), "kept", None, None
    ),
    "endless number": Row(
        polygon([[0, 0], [9, 0], [9, 10**400], [0, 0]]), "kept", None, None
    ),
    "NaN coordinate": Row(
        polygon([[0, 0], [9, 0], [9, float("nan")], [0, 0]]), "abort", "kept", None
    ),
    "numbers as text": Row(
        polygon([[str(v) for v in p] for p in square(0, 0, 9)]), "abort", None, 81
    ),
    "text for numbers": Row(
        polygon([["a", "b"], ["c", "d"], ["a", "b"]]), "abort", None, None
    ),
    "null for a number": Row(
        polygon([[None, 0], *square(0, 0, 9)]), "abort", None, None
    ),
    "true for a number": Row(polygon([[True, 0], *LINE]), "abort", None, None),
    "position of one number": Row(polygon([[1], *LINE]), "abort", None, None),
    "rings one list short": Row(polygon(*square(0, 0, 9)), "abort", None, None),
    "heights": Row(polygon([[*p, 7] for p in square(0, 0, 9)]), "changed", None, 81),
    "point without a place": Row(
        {"type": "Point", "coordinates": []}, "abort", None, None
    ),
    "no points": Row({"type": "MultiPoint", "coordinates": []}, "dropped", None, None),
    "line of one position": Row(
        {"type": "LineString", "coordinates": [[1, 1]]}, "abort", None, None
    ),
    "line without length": Row(
        {"type": "LineString", "coordinates": [[1, 1], [1, 1.001]]},
        "dropped",
        None,
        None,
    ),
    "lines, one of a position": Row(
        {"type": "MultiLineString", "coordinates": [LINE, [[1, 1]]]}, "abort", None, 0
    ),
    "no lines": Row(
        {"type": "MultiLineString", "coordinates": []}, "dropped", None, None
    ),
    "unknown plane": Row(
        polygon(square(0, 0, 9)) | {"plane": {"z": 1, "y": 2}}, "abort", None, 81
    ),
    "plane null": Row(polygon(square(0, 0, 9)) | {"plane": None}, "abort", None, 81),
    "ellipse null": Row(
        polygon(square(0, 0, 9)) | {"isEllipse": None}, "abort", None, 81
    ),
    "square called ellipse": Row(
        polygon(square(0, 0, 9)) | {"isEllipse": True}, "changed", None, 81
    ),
}


def write(folder: Path, *rows: Any, name: str = "a.geojson") -> Path:
    path = folder / name
    document = {"type": "FeatureCollection", "features": [GOOD, *rows]}
    path.write_text(json.dumps(document))
    return path


def features(path: Path) -> list[Any]:
    rows: list[Any] = json.loads(path.read_text())["features"]
    return rows


def one_finding(path: Path) -> tuple[str, str | None]:
    (found,) = check_geojson(path)
    assert found.where == "feature 1"
    return found.effect, found.before


@pytest.mark.parametrize("defect", SHAPES)
def test_shape_that_qupath_refuses_or_alters_is_found_and_mended(
    tmp_path: Path, defect: str
) -> None:
    row = SHAPES[defect]
    path = write(tmp_path, feature(row.feature))
    before = path.read_bytes()
    assert one_finding(path) == (row.effect, row.before)
    done = mend_geojson(path)
    assert path.read_bytes() == before
    assert done.copy == tmp_path / "a.mended.geojson"
    assert check_geojson(done.copy) == []
    good, *mended = features(done.copy)
    assert good == GOOD
    assert bool(done.lost) == (row.area is None) == (mended == [])
    for one in mended:
        assert shape(one.pop("geometry")).area == pytest.approx(row.area, abs=1e-9)
        assert one == {"type": "Feature", "id": OTHER_ID, "properties": FULL}


RGB = {"name": "Tumor", "color": [200, 0, 0]}
LIST = [{"name": "A", "value": 1.5}]
PROPERTIES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "name null": ({"name": None}, "abort", {}),
    "class a number": ({"classification": 3}, "abort", {"classification": "3"}),
    "class a list": ({"classification": ["A"]}, "abort", {}),
    "class empty": ({"classification": ""}, "abort", {}),
    "class of colons": (
        {"classification": "A::B"},
        "abort",
        {"classification": "A: B"},
    ),
    "class with a break": (
        {"classification": "A\nB"},
        "abort",
        {"classification": "A B"},
    ),
    "class in blanks": ({"classification": " A "}, "changed", {"classification": "A"}),
    "class with an empty name": (
        {"classification": {"name": "", "color": [1, 2, 3]}},
        "abort",
        {},
    ),
    "class with a list as name": ({"classification": {"name": []}}, "abort", {}),
    "colour alone": ({"classification": {"color": [1, 2, 3], "a": 1}}, "abort", {}),
    "names with a colon": (
        {"classification": {"names": ["A:B", "C"], "color": [1, 2, 3]}},
        "abort",
        {"classification": {"name": "A: B: C", "color": [1, 2, 3]}},
    ),
    "no colour, known": (
        {"classification": {"name": "Tumor"}},
        "abort",
        {"classification": RGB},
    ),
    "no colour, unknown": (
        {"classification": {"name": "A"}},
        "abort",
        {"classification": "A"},
    ),
    "hex colour": (
        {"classification": {"name": "A", "color": "#ff0000"}},
        "abort",
        {"classification": {"name": "A", "color": [255, 0, 0]}},
    ),
    "packed colour": (
        {"classification": {"name": "A", "color": -65536}},
        "abort",
        {"classification": {"name": "A", "color": [255, 0, 0]}},
    ),
    "colour of two": (
        {"classification": {"name": "A", "color": [1, 2]}},
        "abort",
        {"classification": "A"},
    ),
    "old colour as text": (
        {"classification": {"name": "A", "colorRGB": "red"}},
        "abort",
        {"classification": {"name": "A", "color": [255, 0, 0]}},
    ),
    "colour of fractions": (
        {"classification": {"name": "A", "color": [0.5, 0.2, 1]}},
        "changed",
        {"classification": {"name": "A", "color": [128, 51, 255]}},
    ),
    "white of fractions": (
        {"classification": {"name": "A", "color": [1.0, 1.0, 1.0]}},
        "changed",
        {"classification": {"name": "A", "color": [255, 255, 255]}},
    ),
    "colour beyond 255": (
        {"classification": {"name": "A", "color": [256, -1, 3]}},
        "changed",
        {"classification": {"name": "A", "color": [255, 0, 3]}},
    ),
    "second colour": (
        {"classification": {"name": "Tumor", "color": [0, 0, 9]}},
        "changed",
        {"classification": RGB},
    ),
    "old second colour": (
        {"classification": {"name": "Tumor", "colorRGB": 9}},
        "changed",
        {"classification": RGB},
    ),
    "measurement null": (
        {"measurements": {"A": None}},
        "dropped",
        {"measurements": {}},
    ),
    "measurement text": (
        {"measurements": {"A": "many"}},
        "abort",
        {"measurements": {}},
    ),
    "measurement spelt": (
        {"measurements": {"A": "2", "B": " 1e999"}},
        "abort",
        {"measurements": {"A": 2, "B": "Infinity"}},
    ),
    "measurement true": (
        {"measurements": {"A": True}},
        "abort",
        {"measurements": {"A": 1}},
    ),
    "measurement null in a list": (
        {"measurements": [*LIST, {"name": "B", "value": None}]},
        "abort",
        {"measurements": LIST},
    ),
    "measurements of text": ({"measurements": "none"}, "dropped", {}),
    "object colour text": ({"color": "red"}, "abort", {"color": [255, 0, 0]}),
    "object colour nonsense": ({"color": "reddish"}, "abort", {}),
    "object colour of four": (
        {"color": [1, 2, 3, 4]},
        "dropped",
        {"color": [1, 2, 3]},
    ),
    "object colour of fractions": (
        {"color": [0.5, 0.2, 1]},
        "changed",
        {"color": [128, 51, 255]},
    ),
    "unknown type": (
        {"objectType": "region"},
        "changed",
        {
            "objectType": "annotation",
            "metadata": {"by": "Ann", "original objectType": "region"},
        },
    ),
    "type null": ({"objectType": None}, "abort", {"objectType": "annotation"}),
    "TMA core": (
        {"objectType": "tmaCore"},
        "dropped",
        {
            "objectType": "annotation",
            "metadata": {"by": "Ann", "original objectType": "tmaCore"},
        },
    ),
    "locked by a number": ({"isLocked": 1}, "changed", {"isLocked": True}),
    "metadata of a list": (
        {"metadata": {"by": ["Ann", 2]}},
        "dropped",
        {"metadata": {"by": '["Ann", 2]'}},
    ),
    "metadata of text": ({"metadata": "by Ann"}, "dropped", {}),
}


@pytest.mark.parametrize("defect", PROPERTIES)
def test_property_that_qupath_refuses_or_alters_is_found_and_mended(
    tmp_path: Path, defect: str
) -> None:
    wrong, effect, right = PROPERTIES[defect]
    path = write(tmp_path, having(**wrong))
    found = check_geojson(path)
    assert {f.effect for f in found} == {effect}
    assert {(f.where, f.before) for f in found} == {("feature 1", None)}
    done = mend_geojson(path)
    assert done.copy
    assert check_geojson(done.copy) == []
    good, mended = features(done.copy)
    assert good == GOOD
    assert done.lost == ()
    rest = {key: value for key, value in FULL.items() if key not in wrong}
    assert mended["properties"] == rest | right
    assert mended["geometry"] == polygon(square(0, 0, 9))
    assert mended["id"] == OTHER_ID


@pytest.mark.parametrize(
    "wrong", ["tumor-1", 7, "1-2-3-4-5", f"urn:uuid:{ID}", ID[:-1]]
)
def test_id_that_is_no_uuid_is_replaced_and_remembered(
    tmp_path: Path, wrong: str | int
) -> None:
    path = write(tmp_path, feature(POINT, id=wrong), feature(POINT, id=wrong))
    found = [(f.effect, f.where) for f in check_geojson(path)]
    assert found == [("changed", "feature 1"), ("changed", "feature 2")]
    copy = mend_geojson(path).copy
    assert copy
    assert check_geojson(copy) == []
    _, *mended = features(copy)
    kept = FULL | {"metadata": {"by": "Ann", "original id": str(wrong)}}
    assert [one["properties"] for one in mended] == [kept, kept]
    assert len({ID, *(one["id"] for one in mended)}) == 3
    text = copy.read_bytes()
    copy.unlink()
    mend_geojson(path)
    assert copy.read_bytes() == text


@pytest.mark.parametrize("wrong", [None, [1], {}])
def test_id_that_is_no_text_is_left_out(tmp_path: Path, wrong: Any) -> None:
    path = write(tmp_path, feature(POINT, id=wrong))
    assert one_finding(path) == ("abort", None)
    copy = mend_geojson(path).copy
    assert copy
    assert check_geojson(copy) == []
    assert "id" not in features(copy)[1]


def test_second_object_with_an_id_gets_another(tmp_path: Path) -> None:
    path = write(tmp_path, feature(POINT, id=ID.upper()))
    assert one_finding(path) == ("kept", None)
    copy = mend_geojson(path).copy
    assert copy
    assert check_geojson(copy) == []
    good, mended = features(copy)
    assert good == GOOD
    assert mended["id"] != ID
    assert mended["properties"] == FULL


@pytest.mark.parametrize("wrong", [None, [], "none"])
def test_properties_that_are_none_are_left_out(tmp_path: Path, wrong: Any) -> None:
    path = write(tmp_path, feature(POINT, properties=wrong))
    assert one_finding(path) == ("abort", None)
    copy = mend_geojson(path).copy
    assert copy
    assert check_geojson(copy) == []
    assert features(copy)[1] == {"type": "Feature", "id": OTHER_ID, "geometry": POINT}


@pytest.mark.parametrize("kind", ["detection", "region"])
def test_kind_of_object_in_the_wrong_place_is_moved(tmp_path: Path, kind: str) -> None:
    properties = {"name": "a"}
    path = write(tmp_path, feature(POINT, objectType=kind, properties=properties))
    assert one_finding(path) == ("changed", None)
    copy = mend_geojson(path).copy
    assert copy
    mended = features(copy)[1]
    assert "objectType" not in mended
    moved = {"objectType": kind} if kind == "detection" else {}
    assert mended["properties"] == properties | moved


@pytest.mark.parametrize(
    ("kind", "nucleus", "effect", "area"),
    [
        ("annotation", polygon(square(1, 1, 2)), "dropped", None),
        ("annotation", None, "abort", None),
        ("cell", None, "abort", None),
        ("cell", polygon(BOW), "abort", 5000),
        ("cell", polygon(SLIVER), "dropped", None),
    ],
)
def test_nucleus_is_checked_and_never_costs_the_cell(
    tmp_path: Path, kind: str, nucleus: Any, effect: str, area: float | None
) -> None:
    cell = having(objectType=kind) | {"nucleusGeometry": nucleus}
    path = write(tmp_path, cell)
    assert one_finding(path)[0] == effect
    done = mend_geojson(path)
    assert done.copy
    assert done.lost == ()
    assert check_geojson(done.copy) == []
    mended = features(done.copy)[1]
    assert ("nucleusGeometry" in mended) == (area is not None)
    if area:
        assert shape(mended["nucleusGeometry"]).area == area
    assert mended["geometry"] == cell["geometry"]


def test_children_are_checked_and_outlive_their_parent(tmp_path: Path) -> None:
    child, grandchild = (having(name=name) | {"id": n * 36} for n, name in ("1a", "2b"))
    ids = [f"{n}" * 8 + f"-{n * 4}" * 3 + f"-{n * 12}" for n in "12"]
    child, grandchild = child | {"id": ids[0]}, grandchild | {"id": ids[1]}
    grandchild["geometry"] = polygon(BOW)
    child["properties"]["childObjects"] = [None, grandchild]
    parent = feature(None, properties={"children": [child]})
    path = write(tmp_path, parent)
    found = [(f.effect, f.where) for f in check_geojson(path)]
    assert found == [
        ("abort", "feature 1"),
        ("abort", "feature 1, child 0, child 0"),
        ("abort", "feature 1, child 0, child 1"),
    ]
    done = mend_geojson(path)
    assert done.copy
    assert check_geojson(done.copy) == []
    assert len(done.lost) == 2
    good, first = features(done.copy)
    (second,) = first["properties"]["childObjects"]
    assert [good["id"], first["id"], second["id"]] == [ID, *ids]
    assert second["properties"]["name"] == "b"
    assert shape(second["geometry"]).area == 5000


def test_first_colour_of_a_class_wins_whatever_comes_before_it(tmp_path: Path) -> None:
    classes = [{"name": "A"}, {"name": "A", "color": [1, 2, 3]}]
    classes += [{"names": ["A"], "color": [4, 5, 6]}]
    ids = [f"{ID[:-1]}{n}" for n in range(3)]
    rows = [
        having(classification=kind) | {"id": one}
        for kind, one in zip(classes, ids, strict=True)
    ]
    path = write(tmp_path, *rows)
    copy = mend_geojson(path).copy
    assert copy
    colours = [
        row["properties"]["classification"]["color"] for row in features(copy)[1:]
    ]
    assert colours == [[1, 2, 3]] * 3


@pytest.mark.parametrize(
    "good",
    [
        # a hole and two parts that touch in a point, a spike that is 0.001 px wide
        feature(polygon(square(0, 0, 90), [[0, 45], [20, 40], [20, 50], [0, 45]])),
        feature(multi(square(0, 0, 10), square(10, 10, 10))),
        feature(
            polygon([[0, 0], [9, 0], [9, 5], [15, 5.001], [9, 5.002], [9, 9], [0, 0]])
        ),
        feature(polygon([[*p, 0] for p in square(0, 0, 9)])),
        feature(POINT),
        feature({"type": "LineString", "coordinates": LINE}),
        feature(polygon(square(0, 0, 9)) | {"plane": {"c": -1, "z": 2, "t": 0}}),
        having(classification="Tumor"),
        having(classification=None),
        having(classification={}),
        having(classification={"name": "A", "color": []}),
        having(classification={"name": "A", "color": None}),
        having(classification={"name": "A", "color": [1, 2, 3, 255]}),
        having(classification={"name": "A", "color": [1.0, 2.0, 3.0]}),
        having(classification={"name": "A", "color": [-65536]}),
        having(classification={"name": "A", "colorRGB": -377282}),
        having(classification={"names": ["Tumor", "CD8"], "color": [1, 2, 3]}),
        having(classification="Tumor: CD8"),
        having(measurements=[{"name": "A", "value": 1}]),
        having(measurements={"A": "-Infinity", "B": float("nan")}),
        having(color=-65536),
        having(color=[1, 2, 3]),
        having(isLocked=False),
        having(objectType="PathDetectionObject"),
        having(childObjects=[GOOD | {"id": ID[:-1] + "2"}]),
        having(objectType="cell") | {"nucleusGeometry": polygon(square(1, 1, 2))},
        feature(POINT, id="PathAnnotationObject"),
        {"type": "Feature", "geometry": POINT},
        {"geometry": POINT},
    ],
)
def test_good_features_pass_and_are_not_copied(
    tmp_path: Path, good: dict[str, Any]
) -> None:
    path = write(tmp_path, good)
    assert check_geojson(path) == []
    assert mend_geojson(path).copy is None
    assert list(tmp_path.iterdir()) == [path]


def test_round_ellipse_passes(tmp_path: Path) -> None:
    angle = np.linspace(0, 2 * np.pi, 49)
    ring = np.round(np.stack([90 * np.cos(angle), 30 * np.sin(angle)], 1), 2).tolist()
    ring[-1] = ring[0]
    path = write(tmp_path, feature(polygon(ring) | {"isEllipse": True}))
    assert check_geojson(path) == []


COORDINATES = st.integers(0, 6) | st.sampled_from([0.004, 2.001, 3.5, 5.995])
RINGS = st.lists(st.lists(COORDINATES, min_size=2, max_size=2), max_size=7)
PARTS = st.lists(st.lists(RINGS, max_size=3), max_size=3)


@settings(max_examples=40, deadline=None)
@given(PARTS, st.booleans())
def test_any_polygons_are_mended_to_what_qupath_takes_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, parts: Any, closed: bool
) -> None:
    for part in parts:
        for ring in part if closed else []:
            ring += ring[:1]
    one = {"type": "MultiPolygon", "coordinates": parts}
    path = write(tmp_path_factory.mktemp("any"), feature(one))
    found = check_geojson(path)
    done = mend_geojson(path)
    assert bool(done.copy) == bool(found)
    if done.copy:
        assert check_geojson(done.copy) == []
        for row in features(done.copy):
            drawn = shape(row["geometry"])
            assert drawn.is_valid
            read = shapely.set_precision(drawn, 0.01)
            assert len(shapely.get_parts(read)) == len(shapely.get_parts(drawn))
            assert abs(read.area - drawn.area) <= 0.01 * drawn.length + 0.01
