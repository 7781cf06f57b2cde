"""Files of annotations: packed, hostile, in other frames; real ones of all kinds."""

import gzip
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely

from tests.slides import info_of
from tests.test_annotation_formats import (
    SQUARE,
    asap,
    asap_one,
    boxed,
    darwin,
    imagescope,
    layer,
    path_of,
    region,
    write,
)
from wsi_pipeline.annotations import (
    Annotation,
    elements,
    ending_of,
    endings,
    files,
    read_annotations,
    read_drawing,
)
from wsi_pipeline.annotations.frames import check_frame
from wsi_pipeline.annotations.writing import write_annotations
from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.geometry import Box
from wsi_pipeline.ngff import Source
from wsi_pipeline.slide import SlideInfo

# -------------------------------------------------------------- hostile files

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghi"))
    + ']><Annotations><Annotation Name="&i;"/></Annotations>'
)
FETCH = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
    '<Annotations><Annotation Name="&x;"/></Annotations>'
)
REMOTE = '<!DOCTYPE a SYSTEM "http://localhost:9/a.dtd"><Annotations/>'


@pytest.mark.parametrize("text", [BOMB, FETCH, REMOTE], ids=["bomb", "file", "remote"])
def test_document_types_are_refused_before_any_entity_is_met(
    tmp_path: Path, text: str
) -> None:
    path = write(tmp_path, text, "a.xml")
    with pytest.raises(RegionError, match=r"a\.xml: line 1: declares a document type"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<a>" * 40, "line 1: elements nest deeper than 32"),
        ("<Annotations>", "no XML"),
        ("", "no XML"),
        ("{}", "no XML"),
        ("<Annotations/><b/>", "no XML"),
        ('<Annotations a="&amp;x;"/>' + "&x;", "no XML"),
        ("<Annotations>&x;</Annotations>", "no XML .*undefined entity"),
        ('<?xml version="1.0" encoding="strange"?><Annotations/>', "no XML"),
        ("<html/>", "XML of another kind"),
    ],
)
def test_xml_that_is_none_or_of_another_kind_is_refused(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(RegionError, match=told):
        read_annotations(write(tmp_path, text, "a.xml"))


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "", "x"])
def test_points_without_a_place_are_refused_with_their_line(
    tmp_path: Path, value: str
) -> None:
    path = imagescope(tmp_path, "\n" + layer(region([(value, 2)])))
    with pytest.raises(RegionError, match="line 2: a point without a place"):
        read_annotations(path)


def test_too_many_elements_and_too_many_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = imagescope(tmp_path, layer(*[region(SQUARE)] * 20))
    assert len(read_annotations(path)) == 20
    monkeypatch.setattr(elements, "MAX_ELEMENTS", 30)
    with pytest.raises(RegionError, match="more than 30 elements"):
        read_annotations(path)
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    with pytest.raises(RegionError, match="larger than 1 GiB"):
        read_annotations(path)
    packed = write(tmp_path, gzip.compress(b" " * 2000), "a.json.gz")
    assert packed.stat().st_size < 1000
    with pytest.raises(RegionError, match="larger than 1 GiB"):
        read_annotations(packed)


def test_points_and_unknown_elements_are_not_kept(tmp_path: Path) -> None:
    extra = "<Comments><Comment Body='x'/></Comments>"
    root = elements.load_xml(imagescope(tmp_path, layer(region(SQUARE) + extra)))
    (regions,) = root.find("Annotation", "Regions")
    assert [child.tag for child in regions.children] == ["Region"]
    (vertices,) = regions.find("Region", "Vertices")
    assert vertices.children == []
    assert len(vertices.numbers) == 12


# ------------------------------------------------------- containers and names


def test_packed_files_are_read(tmp_path: Path) -> None:
    plain = imagescope(tmp_path, layer(region(SQUARE))).read_bytes()
    packed = write(tmp_path, gzip.compress(plain), "b.xml.gz")
    assert read_annotations(packed)[0].geometry.area == 100
    with zipfile.ZipFile(tmp_path / "c.geojson.zip", "w") as file:
        file.writestr("__MACOSX/._c.geojson", "x")
        file.writestr("c.geojson", b'{"type":"Point","coordinates":[1,2]}')
    assert len(read_annotations(tmp_path / "c.geojson.zip")) == 1
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr("c.geojson", "[]")
        file.writestr("d.geojson", "[]")
    with pytest.raises(RegionError, match="a zip of 2 files"):
        read_annotations(tmp_path / "c.zip")
    broken = write(tmp_path, b"PK\x03\x04 and no more", "d.zip")
    with pytest.raises(RegionError, match="cannot read it"):
        read_annotations(broken)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.geojson", ".geojson"),
        ("a.GeoJSON.gz", ".GeoJSON.gz"),
        ("a.b.json", ".json"),
        ("a.annotations", ".annotations"),
        ("a.geojson.zip", ".geojson.zip"),
        ("a.png", None),
        ("a", None),
    ],
)
def test_the_ending_is_all_that_says_the_format(name: str, ending: str | None) -> None:
    assert ending_of(name) == ending
    assert len(set(endings())) == len(endings())


# --------------------------------------------------------------------- frames

OFFSET = (600, 300)
SLIDE = info_of((4000, 3000))
BOUNDED = replace(SLIDE, bounds=Box(*OFFSET, 2000, 1000))


def named(name: str) -> SlideInfo:
    return replace(BOUNDED, path=Path(name))


def corner(path: Path, **how: Any) -> tuple[float, float]:
    (one,) = read_annotations(path, **how)
    return one.geometry.bounds[:2]


def test_each_program_counts_from_its_own_corner(tmp_path: Path) -> None:
    drawn = {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]}
    qupath = write(tmp_path, orjson.dumps(drawn), "a.geojson")
    scope = imagescope(tmp_path, layer(region(SQUARE)))
    halo = imagescope(tmp_path, layer(region(SQUARE, "Polygon")), name="a.annotations")
    assert corner(qupath, slide=BOUNDED) == OFFSET
    assert corner(scope, slide=BOUNDED) == (0, 0)
    assert corner(asap(tmp_path, asap_one(SQUARE, "A")), slide=BOUNDED) == (0, 0)
    with pytest.raises(RegionError, match=r"a\.annotations: .*\(600, 300\).*HALO.*scn"):
        read_annotations(halo, slide=named("a.SCN"))
    assert corner(halo, slide=named("a.MRXS")) == (512, 256)
    assert corner(halo, slide=named("a.tiff")) == corner(halo, slide=BOUNDED) == (0, 0)
    source = Source("a.mrxs", (4000, 3000), SLIDE.scale, "test", BOUNDED.bounds)
    assert corner(halo, slide=source) == (512, 256)
    assert corner(halo, slide=BOUNDED, frame="halo") == (512, 256)
    assert corner(halo, slide=BOUNDED, frame="qupath") == OFFSET
    assert corner(halo, slide=SLIDE) == (0, 0)
    assert corner(qupath, slide=BOUNDED, frame="level0") == (0, 0)
    assert corner(qupath, slide=BOUNDED, offset_px=(7, 8)) == (7, 8)
    assert corner(qupath) == (0, 0)


def test_what_a_file_states_wins_over_its_format(tmp_path: Path) -> None:
    def stated(offset: Any, size: Any) -> Path:
        own = {"offset_px": offset, "frame_size_px": size, "mpp": [0.5, 0.5]}
        document = {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [[*SQUARE, (0, 0)]]},
                }
            ],
            "wsi_pipeline": own,
        }
        return write(tmp_path, orjson.dumps(document), "a.geojson")

    full, cropped = stated([0, 0], [4000, 3000]), [2000, 1000]
    assert corner(full, slide=BOUNDED) == (0, 0)
    assert read_drawing(full).mpp == (0.5, 0.5)
    assert corner(stated([600, 300], cropped), slide=BOUNDED) == OFFSET
    assert corner(stated([600, 300], cropped)) == OFFSET
    with pytest.raises(RegionError, match=r"a\.geojson: .*\(2000, 999\).*another"):
        read_annotations(stated([600, 300], [2000, 999]), slide=BOUNDED)


def test_darwin_goes_by_the_size_of_its_image(tmp_path: Path) -> None:
    def sized(w: int, h: int) -> Path:
        row = {"polygon": {"path": path_of(SQUARE)}}
        return darwin(tmp_path, row, item={"slots": [{"width": w, "height": h}]})

    assert corner(sized(4000, 3000), slide=BOUNDED) == (0, 0)
    assert corner(sized(2000, 1000), slide=BOUNDED) == OFFSET
    with pytest.raises(RegionError, match="another slide"):
        read_annotations(sized(1000, 500), slide=BOUNDED)


def test_frames_have_names() -> None:
    assert check_frame("halo") == "halo"
    with pytest.raises(ConfigError, match="frame 'full': expected one of auto"):
        check_frame("full")


# ----------------------------------------------------------------- round trip


def same(first: Annotation, second: Annotation) -> bool:
    one, two = first.geometry, second.geometry
    # QuPath's own files lie on its grid of 0.01 px
    off = shapely.area(shapely.symmetric_difference(one, two)) if one.area else 0
    rings = [len(shapely.get_rings(shapely.get_parts(g))) for g in (one, two)]
    return (
        (first.class_name, first.name, first.measurements)
        == (second.class_name, second.name, second.measurements)
        and (first.rgb == second.rgb or not first.class_name)
        and one.geom_type == two.geom_type
        and rings[0] == rings[1]
        and off <= 1e-9 * max(one.area, 1)
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    ring = shapely.Polygon(SQUARE, [boxed(2, 2, 2)])
    drawn = [
        Annotation(ring, "Tumor", (1, 2, 3), name="a"),
        Annotation(ring, "Plain", measurements=(("m", 2.5), ("n", float("inf")))),
        Annotation(shapely.MultiPoint([(1, 2), (3, 4)]), object_type="detection"),
        Annotation(shapely.Polygon(), "Nowhere"),
        Annotation(shapely.box(0, 0, 0.001, 5), "Sliver"),
    ]
    for name in ("a.geojson", "a.geojson.gz"):
        assert write_annotations(tmp_path / name, drawn, (600, 300)) == 3
        again = read_annotations(tmp_path / name)
        assert all(map(same, drawn[:3], again))
        assert [a.object_type for a in again] == ["annotation"] * 2 + ["detection"]
        raw = read_drawing(tmp_path / name)
        assert raw.annotations[0].geometry.bounds == (-600, -300, -590, -290)
    first = (tmp_path / "a.geojson.gz").read_bytes()
    write_annotations(tmp_path / "a.geojson.gz", drawn, (600, 300))
    assert (tmp_path / "a.geojson.gz").read_bytes() == first


def test_twins_get_ids_of_their_own(tmp_path: Path) -> None:
    one = Annotation(shapely.box(0, 0, 5, 5), "A", (1, 2, 3))
    write_annotations(tmp_path / "a.geojson", [one, one])
    features = orjson.loads((tmp_path / "a.geojson").read_bytes())["features"]
    assert len({feature["id"] for feature in features}) == 2


REAL = {
    "103S.json": (17, 29_910_038),
    "2023_02_02__CD163_CD31_CDH1.geojson": (56, 2_068_290),
    "HaloMultilayerTest.annotations": (23, 1_055_057_790),
    "Normal_001.json": (4, 450_363_392),
    "Single_cells.geojson": (131, 493_159),
    "TCGA-CH-5767-01Z-00-DX1.xml": (294, 186_415),
    "TD_01_verysmall_mIF.geojson": (9, 148_765),
    "Tumor_001.json": (2, 11_377_414),
    "histoqc_TCGA-EJ-5518-01Z-00-DX1_v2.xml": (4, 682_297_098),
    "histoqc_geojson_example_v2.json": (2, 3_811_617_542),
    "histoqc_holed.geojson": (1, 7_827_735),
    "large_image_sample_notqupath.geojson": (10, 2_168),
    "odd_missing_classification.geojson": (2, 200),
    "qupath05.geojson": (3, 168_998),
}
"""Annotations and their area in px; all are read, none is refused."""


def test_every_real_file_is_read_and_survives_a_round_trip(
    data_dir: Path, tmp_path: Path
) -> None:
    folder = data_dir / "annotations"
    assert {path.name for path in folder.iterdir()} == set(REAL)
    for name, (count, area) in REAL.items():
        drawn = read_annotations(folder / name)
        assert (len(drawn), round(sum(a.geometry.area for a in drawn))) == (count, area)
        written = [a for a in drawn if not a.geometry.is_empty]
        assert write_annotations(tmp_path / "a.geojson", written) == len(written), name
        again = read_annotations(tmp_path / "a.geojson")
        if name.endswith("json"):
            assert all(map(same, written, again)), name
        else:  # coordinates with six decimals move to the grid
            areas = [sum(a.geometry.area for a in found) for found in (written, again)]
            assert areas[0] == pytest.approx(areas[1], rel=1e-4)


def test_areas_agree_with_what_imagescope_itself_measured(data_dir: Path) -> None:
    folder = data_dir / "annotations"
    for name in (
        "TCGA-CH-5767-01Z-00-DX1.xml",
        "histoqc_TCGA-EJ-5518-01Z-00-DX1_v2.xml",
    ):
        root = elements.load_xml(folder / name)
        stated = [
            float(one.get("Area"))
            for one in root.find("Annotation", "Regions", "Region")
        ]
        found = [a.geometry.area for a in read_annotations(folder / name)]
        # where an outline crosses itself, areas that lie double count once
        assert sum(found) == pytest.approx(sum(stated), rel=2e-3)
        assert np.median(np.abs(np.array(found) / stated - 1)) < 1e-3


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"Polygon","coordinates":DEEP}',
        '{"type":"Point","coordinates":[HUGE,1]}',
        '{"type":"Polygon","coordinates":[[[1e308,1],[-1e308,1],[3,4],[1e308,1]]]}',
        '{"type":"Feature","geometry":{"type":"Point","coordinates":[1,2]},'
        '"properties":{"measurements":{"a":HUGE}}}',
        '{"type":"Point","coordinates":[1,2],"wsi_pipeline":{"offset_px":[HUGE,1]}}',
        '{"annotations":[{"keypoint":{"x":HUGE,"y":1}}],"item":{}}',
        '{"annotations":[{"bounding_box":{"x":1e308,"y":1,"w":1e308,"h":1}}],"item":1}',
        '{"positive":[{"vertices":[[HUGE,1],[2,3],[4,5]]}],"negative":[]}',
        '{"positive":[1],"negative":[]}',
    ],
)
def test_json_that_means_harm_is_refused(tmp_path: Path, text: str) -> None:
    text = text.replace("HUGE", "9" * 400)  # beyond any float
    text = text.replace("DEEP", "[" * 900 + "1" + "]" * 900)
    path = write(tmp_path, text, "a.json")
    with pytest.raises(RegionError, match=r"a\.json"):
        read_annotations(path)
