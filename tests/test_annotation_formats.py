"""Annotations of other programs: what each format means, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely

from wsi_pipeline.annotations import (
    read_annotations,
)
from wsi_pipeline.annotations.shapes import mended
from wsi_pipeline.errors import RegionError

SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]


def write(folder: Path, text: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def boxed(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


# ------------------------------------------------------- ImageScope and HALO


def region(points: Any, kind: str = "0", negative: int = 0, text: str = "") -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
    return (
        f'<Region Id="1" Type="{kind}" NegativeROA="{negative}" Text="{text}">'
        f"<Attributes/><Vertices>{vertices}</Vertices></Region>"
    )


def layer(*regions: str, head: str = 'Name="Tumor" LineColor="65280"') -> str:
    return (
        f"<Annotation Id='1' {head}><Regions>{''.join(regions)}</Regions></Annotation>"
    )


def imagescope(folder: Path, *layers: str, name: str = "a.xml") -> Path:
    text = f'<Annotations MicronsPerPixel="0.25">{"".join(layers)}</Annotations>'
    return write(folder, text, name)


def test_layers_are_classes_in_their_colour(tmp_path: Path) -> None:
    second = layer(region(boxed(20, 0, 4)), head='Name="Stroma" LineColor="255"')
    found = read_annotations(imagescope(tmp_path, layer(region(SQUARE)), second))
    assert [(a.class_name, a.rgb) for a in found] == [
        ("Tumor", (0, 255, 0)),
        ("Stroma", (255, 0, 0)),
    ]
    assert [a.geometry.area for a in found] == [100, 16]


@pytest.mark.parametrize(
    ("head", "attributes", "text", "name"),
    [
        ('Name="A"', '<Attribute Name="B" Value=""/>', "C", "A"),
        ('Name=""', '<Attribute Name="B" Value="V"/>', "C", "B"),
        ('Name=""', '<Attribute Name="Description" Value="V"/>', "C", "V"),
        ('Name=""', '<Attribute Name="Description" Value=""/>', "C", "C"),
        ('Name=""', '<Attribute Name="Description" Value=""/>', "", None),
        ('LineColor="nine"', "", "", None),
    ],
)
def test_a_layer_without_a_name_goes_by_what_else_it_says(
    tmp_path: Path, head: str, attributes: str, text: str, name: str | None
) -> None:
    body = layer(region(SQUARE, text=text), head=head)
    named = body.replace("<Regions>", f"<Attributes>{attributes}</Attributes><Regions>")
    (found,) = read_annotations(imagescope(tmp_path, named))
    assert found.class_name == name
    assert found.name == (text or None)
    assert found.rgb is None


@pytest.mark.parametrize("word", ["1", "Rectangle"])
def test_two_corners_make_a_rectangle(tmp_path: Path, word: str) -> None:
    two = imagescope(tmp_path, layer(region([(9, 2), (4, 8)], word)))
    assert read_annotations(two)[0].geometry.equals(shapely.box(4, 2, 9, 8))


@pytest.mark.parametrize("word", ["2", "Ellipse"])
def test_corners_make_an_ellipse_in_their_box(tmp_path: Path, word: str) -> None:
    # ImageScope itself states 1517.4 for this one, since it draws fewer corners
    path = imagescope(tmp_path, layer(region([(6595, 24009), (6642, 24051)], word)))
    drawn = read_annotations(path)[0].geometry
    assert drawn.area == pytest.approx(np.pi / 4 * 47 * 42, rel=5e-4)
    assert drawn.bounds == pytest.approx((6595, 24009, 6642, 24051))


def test_arrows_rulers_and_pins_have_no_area(tmp_path: Path) -> None:
    drawn = layer(
        region([(0, 0), (5, 5)], "3"), region([(0, 0), (5, 5)], "Ruler"),
        region([(3, 4)], "Pin"), region([(3, 4)], "0"), region([], "0"),
    )  # fmt: skip
    found = read_annotations(imagescope(tmp_path, drawn))
    assert [a.geometry.geom_type for a in found] == [
        "LineString", "LineString", "Point", "Point", "Polygon",
    ]  # fmt: skip
    assert sum(a.geometry.area for a in found) == 0


def test_an_unknown_type_is_refused_by_name(tmp_path: Path) -> None:
    path = imagescope(tmp_path, layer(region(SQUARE, "7")))
    with pytest.raises(RegionError, match=r"a\.xml: region '1': type '7'; expected"):
        read_annotations(path)


def test_negative_regions_cut_holes_in_their_own_layer_only(tmp_path: Path) -> None:
    hole = region(boxed(5, 5, 10), negative=1)  # a quarter of it lies inside
    other = layer(region(SQUARE), head='Name="Other"')
    path = imagescope(tmp_path, layer(hole, region(SQUARE), region([(6, 6)])), other)
    cut, dot, whole = read_annotations(path)
    assert (cut.geometry.area, whole.geometry.area) == (75, 100)
    assert dot.geometry.geom_type == "Point"


def test_a_hole_inside_stays_a_hole(tmp_path: Path) -> None:
    body = layer(region(SQUARE), region(boxed(2, 2, 2), negative=1))
    (found,) = read_annotations(imagescope(tmp_path, body))
    assert len(found.geometry.interiors) == 1
    assert found.geometry.area == 96


def test_halo_writes_the_same_in_other_words(tmp_path: Path) -> None:
    body = layer(region(SQUARE, "Polygon"), region(boxed(2, 2, 2), "Polygon", 1))
    text = f"<Annotations>{body}</Annotations>".replace("<Vertex ", "<V ")
    path = write(tmp_path, text, "a.annotations")
    assert [a.geometry.area for a in read_annotations(path)] == [96]


# --------------------------------------------------------------------- ASAP


def asap_one(points: Any, group: str, kind: str = "Polygon") -> str:
    rows = [
        f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(points)
    ]
    rows.reverse()  # the order is stated, not meant
    return (
        f'<Annotation Name="one" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{''.join(rows)}</Coordinates></Annotation>"
    )


def asap(folder: Path, *rows: str, groups: str = "") -> Path:
    text = (
        f"<ASAP_Annotations><Annotations>{''.join(rows)}</Annotations>"
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )
    return write(folder, text, "a.xml")


def test_groups_are_classes_and_points_go_by_their_order(tmp_path: Path) -> None:
    groups = '<Group Name="Tumor" PartOfGroup="None" Color="#ff0010"/>'
    path = asap(
        tmp_path, asap_one(SQUARE, "Tumor"), asap_one(SQUARE, "None"), groups=groups
    )
    first, second = read_annotations(path)
    assert (first.class_name, first.rgb, first.name) == ("Tumor", (255, 0, 16), "one")
    assert (second.class_name, second.rgb) == (None, (244, 250, 88))
    assert shapely.get_coordinates(first.geometry)[:3].tolist() == [
        [0, 0], [10, 0], [10, 10],
    ]  # fmt: skip


def test_decimal_commas_are_read(tmp_path: Path) -> None:
    body = asap_one(SQUARE, "Tumor").replace('X="10"', 'X="10,5"')
    assert read_annotations(asap(tmp_path, body))[0].geometry.area == 105


@pytest.mark.parametrize(
    ("groups", "areas"),
    [
        (("Tumor", "Exclusion"), {"Tumor": 96}),
        (("_0", "_2"), {"_0": 96}),
        (("_1", "_2"), {"_1": 96}),
        (("Tumor", "Folds"), {"Tumor": 96}),  # part of Exclusion, below
        (("metastases", "normal"), {"metastases": 100, "normal": 4}),
        (("Tumor", "_2"), {"Tumor": 100, "_2": 4}),
        (("Tumor", "Loop"), {"Tumor": 100, "Loop": 4}),
    ],
)
def test_excluded_groups_are_cut_out(
    tmp_path: Path, groups: tuple[str, str], areas: dict[str, float]
) -> None:
    first, second = groups
    path = asap(
        tmp_path,
        asap_one(boxed(2, 2, 2), second),
        asap_one(SQUARE, first),
        groups='<Group Name="Folds" PartOfGroup="Exclusion"/>'
        '<Group Name="Exclusion" PartOfGroup="None"/>'
        '<Group Name="Loop" PartOfGroup="Loop"/>',
    )
    found = {a.class_name: a.geometry.area for a in read_annotations(path)}
    assert found == areas


@pytest.mark.parametrize(
    ("kind", "shape", "area"),
    [
        ("Polygon", "Polygon", 100),
        ("Rectangle", "Polygon", 100),
        ("Spline", "Polygon", 100),
        ("PointSet", "MultiPoint", 0),
        ("Measurement", "LineString", 0),
    ],
)
def test_types_of_asap_have_their_shapes(
    tmp_path: Path, kind: str, shape: str, area: float
) -> None:
    (found,) = read_annotations(asap(tmp_path, asap_one(SQUARE, "A", kind)))
    assert (found.geometry.geom_type, found.geometry.area) == (shape, area)
    with pytest.raises(RegionError, match=r"annotation 'one': type 'blob'"):
        read_annotations(asap(tmp_path, asap_one(SQUARE, "A", "Blob")))


# --------------------------------------------------- Darwin and CAMELYON JSON


def path_of(points: Any) -> list[dict[str, float]]:
    return [{"x": x, "y": y} for x, y in points]


def darwin(folder: Path, *rows: Any, **more: Any) -> Path:
    slot = {"width": 100, "height": 50}
    document = {"version": "2.0", "item": {"slots": [slot]}, "annotations": list(rows)}
    return write(folder, orjson.dumps(document | more), "a.json")


RINGS = [path_of(SQUARE), path_of(boxed(2, 2, 6)), path_of(boxed(4, 4, 2))]


@pytest.mark.parametrize(
    ("row", "area", "shape"),
    [
        ({"polygon": {"paths": RINGS}}, 100 - 36 + 4, "MultiPolygon"),
        ({"complex_polygon": {"path": RINGS}}, 100 - 36 + 4, "MultiPolygon"),
        ({"polygon": {"path": RINGS[0]}}, 100, "Polygon"),
        ({"bounding_box": {"x": 1, "y": 2, "w": 3, "h": 4}}, 12, "Polygon"),
        ({"line": {"path": RINGS[0]}}, 0, "LineString"),
        ({"keypoint": {"x": 1, "y": 2}}, 0, "Point"),
        (
            {"ellipse": {"center": {"x": 5, "y": 5}, "radius": {"x": 2, "y": 4}}},
            pytest.approx(8 * np.pi, rel=5e-4),
            "Polygon",
        ),
    ],
)
def test_shapes_of_darwin(tmp_path: Path, row: Any, area: float, shape: str) -> None:
    box = {"x": 0, "y": 0, "w": 99, "h": 99}  # beside each polygon
    (found,) = read_annotations(
        darwin(tmp_path, {"bounding_box": box} | row | {"name": "tumor (area)"})
        if "polygon" in str(row)
        else darwin(tmp_path, row | {"name": "tumor (area)"})
    )
    assert found.class_name == "tumor (area)"
    assert found.geometry.area == area
    assert found.geometry.geom_type == shape


def test_tags_of_darwin_have_no_place(tmp_path: Path) -> None:
    assert read_annotations(darwin(tmp_path, {"tag": {}, "name": "bad stain"})) == []


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"raster_layer": {"dense_rle": []}}, "annotation 0: expected a polygon.*got"),
        ({"polygon": {"path": [{"x": 1}]}}, "annotation 0: 'y'"),
        ({"keypoint": {"x": "a", "y": 1}}, "annotation 0: could not convert"),
        ({"polygon": {"path": path_of([(0, 0), (1e400, 1)])}}, "annotation 0"),
        (
            {
                "ellipse": {
                    "center": {"x": 5, "y": 5},
                    "radius": {"x": 2, "y": 4},
                    "angle": 0.3,
                }
            },
            "turned ellipse",
        ),
        (7, "annotation 0: expected a polygon"),
    ],
)
def test_what_darwin_cannot_mean_is_refused(
    tmp_path: Path, row: Any, told: str
) -> None:
    with pytest.raises(RegionError, match=told):
        read_annotations(darwin(tmp_path, row))


def test_darwin_items_of_several_images_are_refused(tmp_path: Path) -> None:
    path = darwin(tmp_path, item={"slots": [{}, {}]})
    with pytest.raises(RegionError, match="an item of 2 images"):
        read_annotations(path)


def test_camelyon_json_keeps_both_classes_apart(tmp_path: Path) -> None:
    document = {
        "positive": [{"name": "_0", "vertices": SQUARE}],
        "negative": [{"name": "_2", "vertices": boxed(2, 2, 2)}],
    }
    path = write(tmp_path, orjson.dumps(document), "a.json")
    found = read_annotations(path)
    assert [(a.class_name, a.name, a.geometry.area) for a in found] == [
        ("positive", "_0", 96),
        ("negative", "_2", 4),
    ]
    document["positive"][0]["vertices"] = [[1, 2, 3]]
    with pytest.raises(RegionError, match="positive 0: ValueError"):
        read_annotations(write(tmp_path, orjson.dumps(document), "a.json"))


def test_a_hole_outside_its_outline_is_no_area() -> None:
    square = shapely.box(0, 0, 10, 10)
    aside = [(20, 20), (30, 20), (30, 30), (20, 30)]
    across = [(8, 2), (14, 2), (14, 4), (8, 4)]
    drawn = shapely.Polygon(square.exterior, [aside, across])
    found = mended(drawn)
    assert found.area == 96
    assert shapely.within(found, square)
