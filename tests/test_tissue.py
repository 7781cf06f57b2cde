"""The tissue finder and the patch grid on small painted pictures."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline import tissue as tissue_module
from wsi_pipeline.config import TissueOptions
from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Tissue
from wsi_pipeline.tissue import find_tissue, lay_patches, tissue_mask

MPP = 8.0
PINK, VIOLET = (214, 130, 180), (120, 80, 150)
GLASS = (243, 243, 246)
Picture = NDArray[np.uint8]


def noisy(rgb: tuple[int, int, int], shape: tuple[int, int]) -> Picture:
    """A flat colour with the noise of a scanner (sd 2)."""
    noise = np.random.default_rng(0).normal(0, 2, (*shape, 3))
    return np.clip(np.array(rgb) + noise, 0, 255).astype(np.uint8)


def paint(
    picture: Picture, rgb: tuple[int, int, int], y: int, x: int, h: int, w: int
) -> None:
    picture[y : y + h, x : x + w] = noisy(rgb, (h, w))


def pyramid_of(
    tmp_path: Path, picture: Picture, mpp: float = MPP, bounds: Box | None = None
) -> Pyramid:
    """A pyramid whose base is the picture."""
    h, w = picture.shape[:2]
    source = Source("t", (w, h), Scale(mpp, mpp), "test", bounds or Box(0, 0, w, h))
    pyramid = Pyramid.create(tmp_path / "t.zarr", source, 1, Layout(chunk_px=64))
    for index, level in enumerate(pyramid.levels):
        small = Image.fromarray(picture).resize(level.size_px, Image.Resampling.BOX)
        pyramid.put(index, level.box, np.asarray(small).transpose(2, 0, 1))
    return pyramid


@pytest.mark.parametrize(
    "rgb",
    [
        (255, 255, 255),
        (244, 243, 245),
        (235, 228, 215),
        (225, 232, 240),
        (240, 228, 236),
        (180, 180, 183),
        (120, 120, 120),
        (0, 0, 0),
        (20, 12, 16),
    ],
)
def test_a_slide_without_tissue_has_an_empty_mask(rgb: tuple[int, int, int]) -> None:
    assert not tissue_mask(noisy(rgb, (200, 300)), MPP).any()


@pytest.mark.parametrize("rgb", [PINK, VIOLET, (232, 205, 222), (150, 60, 120)])
def test_a_slide_full_of_tissue_has_a_full_mask(rgb: tuple[int, int, int]) -> None:
    assert tissue_mask(noisy(rgb, (200, 300)), MPP).all()


@pytest.mark.parametrize("fill", [GLASS, (0, 0, 0), (190, 190, 190), (236, 230, 215)])
def test_tissue_is_found_on_any_ground(fill: tuple[int, int, int]) -> None:
    picture = noisy(fill, (240, 320))
    paint(picture, PINK, 60, 80, 120, 100)
    paint(picture, VIOLET, 100, 110, 30, 30)
    found = tissue_mask(picture, MPP)
    truth = np.zeros((240, 320), np.bool_)
    truth[60:180, 80:180] = True
    # the blur moves an edge by at most 2 px
    assert found[62:178, 82:178].all()
    grown = np.zeros_like(truth)
    grown[58:182, 78:182] = True
    assert not (found & ~grown).any()


@pytest.mark.parametrize(
    "ink",
    [(40, 130, 110), (20, 70, 60), (50, 70, 170), (25, 22, 28), (214, 25, 45)],
    ids=["green", "dark green", "blue", "black", "red"],
)
@pytest.mark.parametrize("ground", [GLASS, PINK], ids=["on glass", "on tissue"])
def test_pen_is_no_tissue(
    ink: tuple[int, int, int], ground: tuple[int, int, int]
) -> None:
    picture = noisy(ground, (240, 320))
    paint(picture, PINK, 0, 0, 100, 320)
    paint(picture, ink, 120, 20, 60, 280)
    found = tissue_mask(picture, MPP)
    assert not found[120:180, 20:300].any()
    assert found[:95].all()


def test_a_dark_nucleus_is_no_pen() -> None:
    picture = noisy(PINK, (200, 200))
    paint(picture, (45, 35, 55), 90, 90, 5, 5)
    assert tissue_mask(picture, MPP).all()


@pytest.mark.parametrize(("side", "kept"), [(20, False), (27, True)])
def test_pieces_below_the_least_area_are_dropped(side: int, kept: bool) -> None:
    picture = noisy(GLASS, (200, 200))
    paint(picture, PINK, 80, 80, side, side)
    # 25 px at 8 um is 40000 um2; edges may move by 2 px
    assert tissue_mask(picture, MPP).any() == kept


@pytest.mark.parametrize(("side", "filled"), [(265, True), (295, False)])
def test_small_holes_are_filled_and_large_ones_kept(side: int, filled: bool) -> None:
    picture = noisy(PINK, (460, 460))
    paint(picture, GLASS, 80, 80, side, side)
    # 280 px at 8 um is 5 mm2
    assert tissue_mask(picture, MPP)[80 + side // 2, 80 + side // 2] == filled


def test_no_hole_is_filled_when_the_least_hole_is_zero() -> None:
    picture = noisy(PINK, (100, 100))
    paint(picture, GLASS, 30, 30, 40, 40)
    assert not tissue_mask(picture, MPP, TissueOptions(min_hole_um2=0))[50, 50]


def test_glass_at_the_edge_is_no_hole_however_small() -> None:
    picture = noisy(PINK, (100, 100))
    paint(picture, GLASS, 0, 30, 40, 40)
    assert not tissue_mask(picture, MPP)[10, 50]


def test_tissue_near_the_edge_is_not_stretched_to_it() -> None:
    picture = noisy(GLASS, (100, 200))
    paint(picture, PINK, 6, 0, 90, 100)
    found = tissue_mask(picture, MPP)
    assert found[10:90, :98].all()
    assert not found[:4].any()
    assert not found[98:].any()


def test_black_inside_tissue_is_never_filled() -> None:
    picture = noisy(PINK, (200, 200))
    picture[80:120, 80:120] = 0
    assert not tissue_mask(picture, MPP)[80:120, 80:120].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_tiny_pictures_are_no_special_case(shape: tuple[int, int]) -> None:
    assert tissue_mask(noisy(GLASS, shape), MPP).shape == shape
    assert not tissue_mask(noisy(GLASS, shape), MPP).any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 500), st.integers(0, 2**32)
)
def test_any_picture_gives_a_mask_of_its_shape(
    h: int, w: int, mpp: float, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    found = tissue_mask(picture, mpp)
    assert (found.shape, found.dtype) == ((h, w), np.bool_)


def section(w: int = 600, h: int = 400) -> Picture:
    picture = noisy(GLASS, (h, w))
    paint(picture, PINK, 100, 150, 200, 300)
    return picture


def test_strips_give_the_same_mask_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyramid = pyramid_of(tmp_path, section())
    monkeypatch.setattr(tissue_module, "STRIP_ROWS", 37)
    parts = find_tissue(pyramid)
    monkeypatch.undo()
    whole = find_tissue(pyramid)
    np.testing.assert_array_equal(parts.mask, whole.mask)
    assert whole.mask.shape == (400, 600)
    assert whole.area_um2 == pytest.approx(200 * 300 * MPP**2, rel=0.04)


@pytest.mark.parametrize(
    ("mpp", "downsample"), [(8.0, 1), (6.0, 1), (4.04, 2), (2.0, 4), (20.0, 1)]
)
def test_the_mask_lies_on_the_level_nearest_to_the_scale_asked_for(
    tmp_path: Path, mpp: float, downsample: int
) -> None:
    picture = np.repeat(np.repeat(section(), 4, axis=0), 4, axis=1)
    found = find_tissue(pyramid_of(tmp_path, picture, mpp))
    assert found.downsample == downsample
    assert found.mask.shape == (1600 // downsample, 2400 // downsample)


def test_a_blank_slide_has_no_tissue_and_no_patches(tmp_path: Path) -> None:
    pyramid = pyramid_of(tmp_path, noisy(GLASS, (100, 150)))
    found = find_tissue(pyramid)
    assert found.area_um2 == 0
    options = TissueOptions(min_patch_tissue=0)
    assert len(lay_patches(found, (150, 100), 32, MPP, options)) == 0


def geojson(path: Path, *geometries: object) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {"objectType": "annotation"},
        }
        for geometry in geometries
    ]
    collection = {"type": "FeatureCollection", "features": features}
    path.write_bytes(orjson.dumps(collection))
    return path


def square(x: float, y: float, side: float) -> dict[str, object]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}


def test_a_geojson_replaces_the_finder_in_qupaths_frame(tmp_path: Path) -> None:
    pyramid = pyramid_of(tmp_path, section(), bounds=Box(30, 20, 500, 300))
    path = geojson(tmp_path / "own.geojson", square(10, 10, 40), square(100, 50, 10))
    found = find_tissue(pyramid, TissueOptions(mask=path))
    expected = np.zeros((400, 600), np.bool_)
    expected[30:70, 40:80] = True
    expected[70:80, 130:140] = True
    np.testing.assert_array_equal(found.mask, expected)


def test_a_geojson_beside_the_slide_is_refused(tmp_path: Path) -> None:
    path = geojson(tmp_path / "own.geojson", square(7000, 10, 40))
    with pytest.raises(RegionError, match=r"no polygon covers any .*600 x 400"):
        find_tissue(pyramid_of(tmp_path, section()), TissueOptions(mask=path))


def test_a_geojson_without_areas_is_refused(tmp_path: Path) -> None:
    point = {"type": "Point", "coordinates": [5, 5]}
    path = geojson(tmp_path / "own.geojson", point)
    with pytest.raises(RegionError, match="1 annotations and none with an area"):
        find_tissue(pyramid_of(tmp_path, section()), TissueOptions(mask=path))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_a_png_of_any_size_replaces_the_finder(tmp_path: Path, mode: str) -> None:
    values = np.zeros((40, 60), np.uint8)
    values[10:20, 30:50] = 255
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == "P":
        # index 0 is white here: colours count, not their numbers
        image = Image.fromarray((values == 0).astype(np.uint8), mode="P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    else:
        image = image.convert(mode)
    image.save(tmp_path / "own.png")
    options = TissueOptions(mask=tmp_path / "own.png")
    found = find_tissue(pyramid_of(tmp_path, section()), options)
    expected = np.zeros((400, 600), np.bool_)
    expected[100:200, 300:500] = True
    np.testing.assert_array_equal(found.mask, expected)


@pytest.mark.parametrize(("w", "fits"), [(600, True), (610, True), (620, False)])
def test_a_png_of_another_shape_is_refused_with_both_sizes(
    tmp_path: Path, w: int, fits: bool
) -> None:
    Image.new("L", (w, 400)).save(tmp_path / "own.png")
    pyramid = pyramid_of(tmp_path, section())
    options = TissueOptions(mask=tmp_path / "own.png")
    if fits:
        assert not find_tissue(pyramid, options).mask.any()
    else:
        with pytest.raises(RegionError, match=r"620 x 400 px and the slide 600 x 400"):
            find_tissue(pyramid, options)


def test_a_mask_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(b"no picture")
    with pytest.raises(RegionError, match=r"own\.png: cannot be read"):
        find_tissue(
            pyramid_of(tmp_path, section()), TissueOptions(mask=tmp_path / "own.png")
        )


def full(w: int, h: int, downsample: float = 1.0) -> Tissue:
    return Tissue(np.ones((h, w), np.bool_), downsample, Scale(1.0, 1.0))


def test_patches_tile_the_slide_and_the_last_ones_move_inside() -> None:
    grid = lay_patches(full(250, 130), (250, 130), 100, 1.0)
    assert grid.corners.tolist() == [
        [0, 0],
        [100, 0],
        [150, 0],
        [0, 30],
        [100, 30],
        [150, 30],
    ]
    assert (grid.size_px, grid.patch_px, grid.mpp) == (100, 100, 1.0)
    assert grid.tissue.tolist() == [1.0] * 6


def test_a_patch_has_its_size_at_its_own_scale() -> None:
    tissue = Tissue(np.ones((50, 50), np.bool_), 16, Scale(0.25, 0.25))
    assert lay_patches(tissue, (800, 800), 100, 1.0).size_px == 400


def test_a_slide_smaller_than_a_patch_has_one_patch_at_the_corner() -> None:
    grid = lay_patches(full(30, 20), (30, 20), 100, 1.0)
    assert grid.corners.tolist() == [[0, 0]]
    assert grid.tissue.tolist() == [1.0]


@pytest.mark.parametrize(("least", "kept"), [(0.24, 1), (0.26, 0), (0.0, 1)])
def test_a_patch_counts_from_the_least_share_of_tissue_on(
    least: float, kept: int
) -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[:25, :25] = True  # a quarter of the first 50 px patch
    tissue = Tissue(mask, 1.0, Scale(1.0, 1.0))
    options = TissueOptions(min_patch_tissue=least)
    grid = lay_patches(tissue, (100, 100), 50, 1.0, options)
    assert len(grid) == kept
    assert grid.tissue.tolist() == [0.25] * kept


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 100),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 2**32),
)
def test_shares_equal_the_counted_pixels_and_no_patch_leaves_the_slide(
    w: int, h: int, side: int, downsample: int, seed: int
) -> None:
    shape = -(-h // downsample), -(-w // downsample)
    mask = np.random.default_rng(seed).random(shape) < 0.5
    tissue = Tissue(mask, downsample, Scale(1.0, 1.0))
    options = TissueOptions(min_patch_tissue=0)
    grid = lay_patches(tissue, (w, h), side, 1.0, options)
    fine = np.repeat(np.repeat(mask, downsample, axis=0), downsample, axis=1)[:h, :w]
    covered = np.zeros((h, w), np.bool_)
    for patch in range(len(grid)):
        box = grid.box(patch)
        part = fine[box.rows, box.columns]
        covered[box.rows, box.columns] = True
        assert grid.tissue[patch] == pytest.approx(part.mean(), abs=1e-6)
        assert box.x == 0 or box.right <= w
        assert box.y == 0 or box.bottom <= h
    assert not (fine & ~covered).any()
    corners = [tuple(c) for c in grid.corners.tolist()]
    assert corners == sorted(set(corners), key=lambda c: (c[1], c[0]))
