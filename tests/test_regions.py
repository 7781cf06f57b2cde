import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import (
    COARSE,
    DETAIL,
    PatchGrid,
    RegionPrediction,
    Selection,
    Tissue,
)


def grid_of(n: int, seed: int = 0) -> PatchGrid:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 10**6, (n, 2))
    return PatchGrid(corners, 159, 128, 0.62, rng.random(n, dtype=np.float32))


def same_grid(a: PatchGrid, b: PatchGrid) -> bool:
    return (
        (a.corners == b.corners).all()
        and (a.tissue == b.tissue).all()
        and (a.size_px, a.patch_px, a.mpp) == (b.size_px, b.patch_px, b.mpp)
    )


@pytest.mark.parametrize("n", [0, 1, 50])
def test_patches_and_selections_come_back_as_saved(tmp_path, n):
    grid = grid_of(n)
    grid.save(tmp_path / "patches.parquet")
    assert same_grid(PatchGrid.load(tmp_path / "patches.parquet"), grid)
    rng = np.random.default_rng(1)
    selection = Selection(
        grid,
        rng.normal(size=(n, 8)).astype(np.float32),
        np.full(n, 1 / max(n, 1)),
        np.arange(n),
        np.arange(n) < 3,
        {"mode": "exact", "peak": 12},
    )
    selection.save(tmp_path / "selection.parquet")
    back = Selection.load(tmp_path / "selection.parquet")
    assert same_grid(back.grid, grid)
    np.testing.assert_array_equal(back.logits, selection.logits)
    np.testing.assert_array_equal(back.chosen, selection.chosen)
    assert back.captured_mass == pytest.approx(min(n, 3) / max(n, 1))


def test_a_table_of_patches_is_no_selection(tmp_path):
    grid_of(3).save(tmp_path / "a.parquet")
    with pytest.raises(RegionError, match="wsi select"):
        Selection.load(tmp_path / "a.parquet")


def test_foreign_files_are_refused_by_name(tmp_path):
    (tmp_path / "a").write_text("hello")
    for load in (PatchGrid.load, Selection.load, Tissue.load):
        with pytest.raises(RegionError, match="/a: no"):
            load(tmp_path / "a")


def test_shapes_that_disagree_are_refused():
    with pytest.raises(RegionError, match=r"\(3,\)"):
        PatchGrid(np.zeros((3, 2), np.int64), 1, 1, 1.0, np.zeros(2, np.float32))
    with pytest.raises(RegionError, match="grid must be"):
        RegionPrediction(Box(0, 0, 1, 1), np.zeros((2, 4, 4)), np.zeros((2, 4, 5)))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_tissue_comes_back_as_saved(tmp_path_factory, w, h, seed):
    path = tmp_path_factory.mktemp("t") / "tissue.png"
    mask = np.random.default_rng(seed).random((h, w)) > 0.5
    Tissue(mask, 16.25, Scale(0.5, 0.51)).save(path)
    back = Tissue.load(path)
    np.testing.assert_array_equal(back.mask, mask)
    assert (back.downsample, back.scale) == (16.25, Scale(0.5, 0.51))


def test_tissue_knows_its_area_and_crops_to_boxes():
    mask = np.zeros((10, 10), bool)
    mask[2:4, 5:8] = True
    tissue = Tissue(mask, 4.0, Scale(0.5, 0.5))
    assert tissue.area_um2 == 6 * 16 * 0.25
    assert tissue.crop(Box(20, 8, 12, 8)).all()
    assert tissue.crop(Box(20, 8, 12, 8)).shape == (2, 3)


def test_regions_come_back_as_put(tmp_path):
    rng = np.random.default_rng(0)
    regions = [
        RegionPrediction(
            Box(i * 10, 7, 512, 512),
            rng.random((4, 5, 6)).astype(np.float16),
            rng.random((2, 5, 6)).astype(np.float32),
            COARSE,
        )
        for i in range(3)
    ]
    boxes, kinds = [r.box for r in regions], [r.kind for r in regions]
    store = RegionStore.create(tmp_path / "p.zarr", boxes, kinds, 4, (6, 5))
    store.put(0, regions[:2])
    store.put(2, regions[2:])
    for found, region in zip(RegionStore(store.path), regions, strict=True):
        assert (found.box, found.kind) == (region.box, COARSE)
        np.testing.assert_array_equal(found.probabilities, region.probabilities)
        np.testing.assert_array_equal(found.grid, region.grid)


def test_a_store_of_no_regions_is_empty(tmp_path):
    store = RegionStore.create(tmp_path / "p.zarr", [], [], 3, (4, 4))
    assert (len(store), store.boxes()[0]) == (0, [])


def test_a_lost_region_raises_instead_of_reading_zeros(tmp_path):
    box = Box(0, 0, 8, 8)
    store = RegionStore.create(
        tmp_path / "p.zarr", [box, box], [DETAIL, DETAIL], 3, (4, 4)
    )
    region = RegionPrediction(
        box, np.ones((3, 4, 4), np.float16), np.ones((2, 4, 4), np.float32)
    )
    store.put(0, [region, region])
    (store.path / "probabilities" / "c" / "1" / "0" / "0" / "0").unlink()
    store.get(0)
    with pytest.raises(RegionError, match="every region written"):
        store.get(1)


def test_the_table_does_not_depend_on_what_was_measured(tmp_path):
    grid, scores = grid_of(4), np.full(4, 0.25)
    for name, peak in (("a", 1), ("b", 2)):
        Selection(
            grid, np.ones((4, 2), np.float32), scores, np.arange(4), scores > 0,
            {"peak": peak},
        ).save(tmp_path / name)  # fmt: skip
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_store_names_the_verb_that_makes_it(tmp_path):
    with pytest.raises(RegionError, match="wsi segment"):
        len(RegionStore(tmp_path / "none"))
