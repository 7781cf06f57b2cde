"""Drawn areas as pixels: which pixel is whose, in which order, of which class."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pyramids import noise_pyramid
from wsi_pipeline.annotations import Annotation, painting
from wsi_pipeline.annotations.classing import ClassMap, check_overlap, class_areas
from wsi_pipeline.annotations.masks import read_mask
from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import TissueOptions
from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.geometry import Box, Level
from wsi_pipeline.labelling import label_areas
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.tissue import find_tissue

CLASSES = tuple(
    MaskClass(v, name, (v, v, v))
    for v, name in enumerate(("Ground", "Tumor", "Stroma"))
)


def areas_of(*drawn: tuple[shapely.Geometry, int]) -> Areas:
    geometries = np.array([geometry for geometry, _ in drawn], dtype=object)
    return Areas(geometries, np.array([value for _, value in drawn], np.uint8))


def star(
    points: int, seed: int, centre: float = 50, size: float = 40
) -> shapely.Polygon:
    """A star with a hole; corners are no multiples of a pixel."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = size * rng.uniform(0.4, 1, points)
    shell = centre + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    hole = centre + (shell - centre) * 0.3
    return shapely.Polygon(shell, [hole])


# ------------------------------------------------------------------- painting


@pytest.mark.parametrize("scale", [0.5, 1, 2, 4])
def test_a_pixel_is_painted_when_its_centre_lies_inside(scale: float) -> None:
    shape = star(17, 3)
    box, side = Box(5, 3, 96, 64), 1 / scale
    found = areas_of((shape, 7)).paint(box, (int(96 * scale), int(64 * scale)))
    x = box.x + (np.arange(96 * scale) + 0.5) * side
    y = box.y + (np.arange(64 * scale) + 0.5) * side
    wanted = shapely.contains_xy(shape, *np.meshgrid(x, y))
    np.testing.assert_array_equal(found, np.where(wanted, 7, 0))


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(3, 60),
    st.sampled_from([7, 16, 33]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_blocks_give_the_pixels_of_the_whole(
    seed: int, points: int, side: int, step: int, cut: bool
) -> None:
    rng = np.random.default_rng(seed)
    drawn = [
        (star(points, seed + n, rng.uniform(20, 80), rng.uniform(5, 60)), n + 1)
        for n in range(4)
    ]
    areas = areas_of(*drawn)
    whole = Box(0, 0, 96 // step, 96 // step)
    expected = areas.paint(whole.scaled_up(step), (whole.w, whole.h), 9)
    most = painting._MANY_POINTS
    try:
        painting._MANY_POINTS = 0 if cut else 10_000
        for block in whole.blocks(side):
            found = areas.paint(block.scaled_up(step), (block.w, block.h), 9)
            np.testing.assert_array_equal(found, expected[block.rows, block.columns])
    finally:
        painting._MANY_POINTS = most


def test_the_last_area_wins_also_where_it_covers_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(painting, "_MANY_POINTS", 0)
    small, large = shapely.box(2, 2, 4, 4), shapely.box(-50, -50, 50, 50)
    box = Box(0, 0, 8, 8)
    assert (areas_of((small, 1), (large, 2)).paint(box, (8, 8)) == 2).all()
    found = areas_of((large, 2), (small, 1)).paint(box, (8, 8))
    assert (found[2:4, 2:4] == 1).all()
    assert (found == 2).sum() == 60
    far = areas_of((shapely.box(20, 0, 30, 9), 1)).paint(box, (8, 8), 255)
    assert (far == 255).all()


# -------------------------------------------------------------------- classes


def square(x: float, side: float, name: str | None, **more: object) -> Annotation:
    return Annotation(shapely.box(x, 0, x + side, side), name, **more)


def values(annotations: list[Annotation], *maps: str, **how: object) -> list[int]:
    rows = tuple(tuple(row.split(">")) for row in maps)
    return class_areas(annotations, CLASSES, ClassMap(rows), **how).values.tolist()


def test_names_become_values_by_the_class_or_the_map() -> None:
    drawn = [square(0, 5, "Stroma"), square(0, 5, "Ca"), square(0, 5, "Necrosis")]
    assert values(drawn, "Ca>Tumor", "Necrosis>") == [2, 1]
    assert values(drawn, "Ca>Ground", "Necrosis>Ignore*") == [2, 0, 255]
    # the map wins over the classes' own names
    assert values(drawn[:1], "Stroma>Tumor") == [1]


def test_unknown_classes_are_refused_and_counted() -> None:
    drawn = [square(0, 5, "Ca"), square(0, 5, "Ca"), square(0, 5, None)]
    with pytest.raises(RegionError, match=r"'Ca' \(2\), 'no class' \(1\).*'Tumor'"):
        values(drawn)
    with pytest.raises(RegionError, match="'Ca'"):
        values(drawn[:1], "CA>Tumor")


def test_areas_without_a_name_go_by_their_colour() -> None:
    green = square(0, 5, None, rgb=(0, 255, 16))
    assert values([green], "#00FF10>Tumor", ">Stroma") == [1]
    assert values([green], ">Stroma") == [2]
    assert values([square(0, 5, "Tumor", rgb=(0, 255, 16))], "#00ff10>Stroma") == [1]
    with pytest.raises(RegionError, match="no class"):
        values([green])


def test_what_is_no_finding_is_left_out() -> None:
    drawn = [
        square(0, 5, None, object_type="detection"),
        square(0, 5, "Region*"),
        square(0, 5, "Tissue not examined"),
        Annotation(shapely.Point(1, 1), "Nobody"),
        square(0, 5, "Ignore*"),
    ]
    assert values(drawn) == [255]
    assert values(drawn, "Region*>Tumor") == [1, 255]
    assert values([square(0, 5, None)], unnamed="leave out") == []


@pytest.mark.parametrize(
    ("rule", "order"),
    [("last", [1, 2, 1]), ("smallest", [1, 1, 2]), ("listed", [1, 1, 2])],
)
def test_overlaps_are_decided_by_a_rule(rule: str, order: list[int]) -> None:
    drawn = [square(0, 9, "Tumor"), square(0, 4, "Stroma"), square(0, 6, "Tumor")]
    assert values(drawn, overlap=check_overlap(rule)) == order


def test_the_class_map_decides_what_is_listed_last() -> None:
    drawn = [square(0, 9, "b"), square(0, 5, "a"), square(0, 5, "Tumor")]
    assert values(drawn, "a>Stroma", "b>Ground", overlap="listed") == [2, 0, 1]
    with pytest.raises(ConfigError, match="overlap 'largest': expected one of last"):
        check_overlap("largest")


def test_collections_are_painted_without_their_lines() -> None:
    mixed = shapely.GeometryCollection(
        [shapely.box(0, 0, 4, 4), shapely.LineString([(0, 9), (9, 9)])]
    )
    areas = class_areas([Annotation(mixed, "Tumor")], CLASSES)
    assert areas.paint(Box(0, 0, 16, 16), (16, 16)).sum() == 16


def test_class_maps_are_tables(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("\ufeffdrawn,class,note\n Ca ,Tumor,x\n,Stroma,\nB\n", "utf-8")
    assert ClassMap.load(path).rows == (("Ca", "Tumor"), ("", "Stroma"), ("B", ""))
    path.write_text("drawn,class\nCa,Tumor\nCa,Stroma\n")
    with pytest.raises(ConfigError, match=r"map\.csv: class map: 'Ca' is there twice"):
        ClassMap.load(path)
    path.write_text("name,class\n")
    with pytest.raises(ConfigError, match=r"map\.csv: columns are \['name'"):
        ClassMap.load(path)
    with pytest.raises(ConfigError, match=r"gone\.csv: cannot be read"):
        ClassMap.load(tmp_path / "gone.csv")


# -------------------------------------------------------------- label pyramid


def test_a_label_has_the_areas_on_every_level(tmp_path: Path) -> None:
    pyramid = noise_pyramid(tmp_path / "slide.ome.zarr", size_px=(1280, 960))
    shape = star(40, 1, 500, 400)
    areas = areas_of((shape, 1), (shapely.box(100, 100, 164, 164), 2))
    made = label_areas(pyramid, areas, CLASSES, pyramid.labels_path / "annotations")
    again = MaskPyramid(made.path)
    assert again.classes == CLASSES
    assert [level.size_px for level in again.levels] == [
        level.size_px for level in pyramid.levels
    ]
    for index, level in enumerate(again.levels):
        whole = level.box.scaled_up(level.downsample)
        expected = areas.paint(whole, level.size_px)
        np.testing.assert_array_equal(again.read_level(level.box, index), expected)
        assert set(np.unique(expected)) == {0, 1, 2}


# --------------------------------------------------------------- tissue masks


def scope(folder: Path, *names: str) -> Path:
    """An ImageScope file with a layer of one square per name, side by side."""
    layers = "".join(
        f'<Annotation Name="{name}"><Regions><Region Type="1"><Vertices>'
        f'<Vertex X="{n * 10}" Y="0"/><Vertex X="{n * 10 + 20}" Y="20"/>'
        "</Vertices></Region></Regions></Annotation>"
        for n, name in enumerate(names)
    )
    path = folder / "own.xml"
    path.write_text(f"<Annotations>{layers}</Annotations>")
    return path


def test_a_tissue_mask_may_be_of_any_program(tmp_path: Path) -> None:
    pyramid = noise_pyramid(tmp_path / "slide.ome.zarr")
    path = scope(tmp_path, "Any", "Ignore*")
    mask = read_mask(path, pyramid.source, pyramid.levels[0])
    assert mask[:20, :10].all()
    assert mask.sum() == 200
    found = find_tissue(pyramid, TissueOptions(mask=path, mask_mpp=0.5))
    np.testing.assert_array_equal(found.mask, mask)
    half = read_mask(path, pyramid.source, Level((320, 240), 2))
    np.testing.assert_array_equal(half, mask[::2, ::2])


def test_a_tissue_mask_has_the_frame_that_is_said(tmp_path: Path) -> None:
    pyramid = noise_pyramid(tmp_path / "slide.ome.zarr")
    source = replace(pyramid.source, bounds=Box(300, 200, 300, 200))
    path = scope(tmp_path, "Any")
    level = pyramid.levels[0]
    assert read_mask(path, source, level)[:20, :20].all()
    moved = read_mask(path, source, level, "qupath")
    assert moved[200:220, 300:320].all()
    assert moved.sum() == 400
    assert read_mask(path, source, level, "halo")[0:20, 256:276].all()
    with pytest.raises(ConfigError, match="mask_frame"):
        TissueOptions(mask=path, mask_frame="full")
