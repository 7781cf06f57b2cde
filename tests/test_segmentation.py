"""Segmentation: which regions, from where, and what is stored."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import small_model
from wsi_pipeline.config import SegmentOptions
from wsi_pipeline.errors import BudgetError, ModelError, PyramidError, RegionError
from wsi_pipeline.filling import FilledStore
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.models.segmenting import open_segmenter
from wsi_pipeline.ngff import Source
from wsi_pipeline.publishing import list_files, sha256_file
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import (
    COARSE,
    DETAIL,
    PatchGrid,
    RegionPrediction,
    Selection,
    Tissue,
)
from wsi_pipeline.segmentation import Lattice, segment_regions

CPU = SegmentOptions(device="cpu")
ALL = SegmentOptions(device="cpu", coverage="all")


def make_pyramid(
    path: Path, size_px: tuple[int, int] = (1100, 700), mpp: float = 1.0, base: int = 1
) -> Pyramid:
    """A slide of coloured noise; `size_px` is level 0, `base` its base downsample."""
    source = Source("s", size_px, Scale(mpp, mpp), "test", Box(0, 0, *size_px))
    pyramid = Pyramid.create(path, source, base, Layout(chunk_px=128, block_px=1024))
    random = np.random.default_rng(0)
    for index, level in enumerate(pyramid.levels):
        w, h = level.size_px
        if index == 0:
            cells = random.integers(256, size=(3, -(-h // 16), -(-w // 16)))
            data = np.kron(cells, np.ones((1, 16, 16), int))[:, :h, :w].astype(np.uint8)
        else:
            even = np.pad(data, ((0, 0), (0, 2 * h - data.shape[1]),
                                 (0, 2 * w - data.shape[2])), mode="edge")  # fmt: skip
            data = (
                even.reshape(3, h, 2, w, 2).mean(axis=(2, 4)).round().astype(np.uint8)
            )
        pyramid.put(index, level.box, data)
    return pyramid


def choose(corners: list[tuple[int, int]], size_px: int = 64) -> Selection:
    """Patches of which all are chosen but the last, which lies at (0, 0)."""
    table = np.array([*corners, (0, 0)], np.int64)
    n = len(table)
    grid = PatchGrid(table, size_px, 64, 1.0, np.ones(n, np.float32))
    chosen = np.arange(n) < n - 1
    return Selection(
        grid, np.zeros((n, 1), np.float32), np.full(n, 1 / n), np.arange(n), chosen
    )


def tissue_of(size_px: tuple[int, int], box: Box, downsample: int = 8) -> Tissue:
    mask = np.zeros((-(-size_px[1] // downsample), -(-size_px[0] // downsample)), bool)
    part = box.scaled_down(downsample)
    mask[part.rows, part.columns] = True
    return Tissue(mask, float(downsample), Scale(1.0, 1.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A small model: regions of 128 px at 1 um/px on 16 x 16 nodes."""
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """A pyramid of 1100 x 700 px."""
    return make_pyramid(tmp_path_factory.mktemp("slide") / "s.zarr")


TISSUE = tissue_of((1100, 700), Box(160, 80, 640, 480))


# the lattice


@given(
    w=st.integers(1, 3000),
    h=st.integers(1, 3000),
    snaps=st.integers(1, 40),
    snap=st.sampled_from([1, 2, 4, 8]),
    overlap=st.floats(0, 0.5),
)
@settings(max_examples=80, deadline=None)
def test_lattice_covers_the_slide_with_enough_overlap(
    w: int, h: int, snaps: int, snap: int, overlap: float
) -> None:
    side = 4 * snap * snaps
    lattice = Lattice.over((w, h), side, overlap, snap)
    for length, starts, edges in (
        (w, lattice.xs, lattice.x_edges),
        (h, lattice.ys, lattice.y_edges),
    ):
        assert starts[0] == 0
        assert all(s % snap == 0 for s in starts)
        assert length <= starts[-1] + side < max(side + 1, length + snap)
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (steps <= max(snap, side * (1 - overlap))).all()
        # a core lies inside its region
        cores = np.concatenate([[0], edges, [length]])
        assert (cores[:-1] >= starts).all()
        assert (cores[1:] <= np.array(starts) + side).all()


def test_the_core_of_a_place_is_found() -> None:
    lattice = Lattice.over((1000, 300), 256, 0.125, 2)
    assert lattice.ys == (0, 44)
    for x in (0.0, 111.5, 500.0, 999.0):
        column = int(lattice.column_of(np.array([x]))[0])
        assert lattice.xs[column] <= x < lattice.xs[column] + 256


# which regions


def test_regions_in_detail_cover_the_chosen_patches_and_little_more(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    selection = choose([(300, 200), (836, 600)])
    store, facts = segment_regions(
        pyramid, selection, TISSUE, model, tmp_path / "p", CPU
    )
    boxes, kinds = store.boxes()
    assert (kinds == DETAIL).all()
    assert facts["regions_detail"] == len(boxes) == len(store)
    assert facts["regions_coarse"] == 0
    assert facts["region_side_px"] == 128
    seen = np.zeros((700, 1100), bool)
    for box in boxes:
        assert (box.w, box.h) == (128, 128)
        seen[box.rows, box.columns] = True
    assert seen[200:264, 300:364].all()
    assert seen[600:664, 836:900].all()
    # at most 2 x 2 regions per patch; the patch that was not chosen has none
    assert len(boxes) <= 8
    assert not seen[:64, :64].any()
    assert boxes == sorted(boxes, key=lambda box: (box.y, box.x))


def test_all_tissue_is_covered_once_the_coarse_regions_are_there(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    for overlap in (0.0, 0.125, 0.4):
        options = ALL.model_copy(update={"overlap": overlap})
        store, facts = segment_regions(
            pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / "p", options
        )
        boxes, kinds = store.boxes()
        seen = np.zeros((700, 1100), bool)
        for box, kind in zip(boxes, kinds, strict=True):
            assert box.w == box.h == (128 if kind == DETAIL else 256)
            seen[box.rows, box.columns] = True
        assert seen[80:560, 160:800].all()
        assert (kinds == COARSE).sum() == facts["regions_coarse"] > 0
        # coarse regions follow those in detail
        assert (np.diff(kinds) >= 0).all()


def test_tissue_that_is_covered_in_detail_gets_no_coarse_region(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    small = tissue_of((1100, 700), Box(304, 208, 56, 48))
    store, _ = segment_regions(
        pyramid, choose([(300, 200)]), small, model, tmp_path / "p", ALL
    )
    assert (store.boxes()[1] == DETAIL).all()


def test_nothing_chosen_gives_an_empty_store(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    store, facts = segment_regions(
        pyramid, choose([]), TISSUE, model, tmp_path / "p", CPU
    )
    assert len(store) == facts["regions_detail"] == 0


# what is in them


def test_a_stored_region_is_what_the_net_says_of_those_pixels(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    store, _ = segment_regions(
        pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / "p", ALL
    )
    with open_segmenter(model, ALL, 128.0) as segmenter:
        level = segmenter.level_for(128)
        assert level == 1
        for region in store:
            deeper = level + (region.kind == COARSE)
            part = region.box.scaled_down(2**deeper)
            pixels = pyramid.read_padded(part, deeper)
            assert pixels.shape == (3, 64, 64)
            probabilities, grids = segmenter(pixels[None], deeper)
            np.testing.assert_array_equal(region.probabilities, probabilities[0])
            np.testing.assert_array_equal(region.grid, grids[0])


def test_strategies_place_nodes_differently(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    grids = {}
    for strategy in ("learned", "uniform"):
        options = SegmentOptions(device="cpu", strategy=strategy)
        store, facts = segment_regions(
            pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / strategy, options
        )
        assert facts["strategy"] == strategy
        grids[strategy] = store.get(0).grid
    assert np.abs(grids["learned"] - grids["uniform"]).max() > 0.002
    assert np.ptp(grids["uniform"][0], axis=0).max() == 0


def test_a_finer_base_gives_regions_of_the_same_physical_size(
    model: ModelFolder, tmp_path: Path
) -> None:
    fine = make_pyramid(tmp_path / "s.zarr", (1200, 1000), mpp=0.25, base=2)
    store, facts = segment_regions(
        fine, choose([(400, 300)], 256), TISSUE, model, tmp_path / "p", CPU
    )
    # 128 um at 0.25 um/px of level 0
    assert facts["region_side_px"] == 512
    for box in store.boxes()[0]:
        assert (box.w, box.x % 8, box.y % 8) == (512, 0, 0)


def test_a_slide_smaller_than_a_region_is_padded_with_white(
    model: ModelFolder, tmp_path: Path
) -> None:
    tiny = make_pyramid(tmp_path / "s.zarr", (90, 50))
    assert len(tiny.levels) == 1
    store, _ = segment_regions(
        tiny, choose([(0, 0)]), tissue_of((90, 50), Box(0, 0, 90, 50)),
        model, tmp_path / "p", ALL,
    )  # fmt: skip
    assert store.boxes()[0] == [Box(0, 0, 128, 128)]
    whole = np.full((3, 128, 128), 255)
    whole[:, :50, :90] = tiny.read_level(Box(0, 0, 90, 50), 0)
    half = whole.reshape(3, 64, 2, 64, 2).sum(axis=(2, 4))
    with open_segmenter(model, CPU, 128.0) as segmenter:
        expected = segmenter(((half + 2) // 4).astype(np.uint8)[None], 1)
    np.testing.assert_array_equal(store.get(0).probabilities, expected[0][0])


def test_progress_counts_regions(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    store, _ = segment_regions(
        pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / "p", ALL,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (len(store), len(store))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# twice, and when things go wrong


def test_two_runs_write_the_same_bytes(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    shas = []
    for name in ("a", "b"):
        segment_regions(
            pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / name, ALL
        )
        files = list_files(tmp_path / name)
        shas.append([sha256_file(file) for file in files])
    assert len(shas[0]) > 10
    assert shas[0] == shas[1]


def test_an_unreadable_region_raises_and_publishes_nothing(
    model: ModelFolder, tmp_path: Path
) -> None:
    broken = make_pyramid(tmp_path / "s.zarr")
    files = [f for f in list_files(broken.path / "1") if f.name != "zarr.json"]
    for file in files:
        data = bytearray(file.read_bytes())
        data[100:-400] = bytes(len(data) - 500)
        file.write_bytes(data)
    with pytest.raises(PyramidError, match="cannot be read"):
        segment_regions(
            broken, choose([(300, 200)]), TISSUE, model, tmp_path / "p", CPU
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr"]


def test_an_old_store_is_replaced(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "p"
    for corners in ([(300, 200), (600, 400)], [(300, 200)]):
        segment_regions(pyramid, choose(corners), TISSUE, model, path, CPU)
    fresh, _ = segment_regions(
        pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / "q", CPU
    )
    assert len(RegionStore(path)) == len(fresh)


def test_a_base_too_coarse_for_the_model_is_refused(
    model: ModelFolder, tmp_path: Path
) -> None:
    coarse = make_pyramid(tmp_path / "s.zarr", (300, 300), mpp=2.5)
    with pytest.raises(
        ModelError, match=r"2.5 um/px, the model needs at most 2.*--mpp"
    ):
        segment_regions(coarse, choose([(0, 0)]), TISSUE, model, tmp_path / "p", CPU)


def test_too_little_memory_is_refused_before_anything_is_written(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    options = SegmentOptions(device="cpu", memory="1MiB")
    with pytest.raises(BudgetError, match="give --memory"):
        segment_regions(
            pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / "p", options
        )
    assert list(tmp_path.iterdir()) == []


def test_the_batch_does_not_change_the_answer(
    pyramid: Pyramid, model: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError) as caught:
        segment_regions(
            pyramid,
            choose([(300, 200)]),
            TISSUE,
            model,
            tmp_path / "none",
            SegmentOptions(device="cpu", memory="1MiB"),
        )
    smallest = str(caught.value).split("give --memory ")[1].split(" ")[0]
    stores = []
    for name, memory in (("roomy", "1GiB"), ("tight", smallest)):
        options = SegmentOptions(device="cpu", memory=memory)
        store, facts = segment_regions(
            pyramid, choose([(300, 200)]), TISSUE, model, tmp_path / name, options
        )
        stores.append((store, facts["batch"]))
    assert stores[0][1] > stores[1][1]
    for a, b in zip(stores[0][0], stores[1][0], strict=True):
        assert replace(a, probabilities=b.probabilities, grid=b.grid).box == b.box
        assert np.abs(a.grid - b.grid).max() < 1e-5
        assert np.abs(a.probabilities.astype(float) - b.probabilities).max() < 2e-3


def test_a_killed_segmentation_goes_on_behind_the_batches_that_are_whole(
    pyramid: Pyramid,
    model: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    always = partial(FilledStore, every_s=0.0)
    monkeypatch.setattr("wsi_pipeline.segmentation.FilledStore", always)
    call = partial(segment_regions, pyramid, choose([(300, 200)]), TISSUE, model)
    whole, _ = call(tmp_path / "whole", ALL)
    seen: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "p", ALL, key="k", progress=stopped)
    done, total = seen.pop()
    again = partial(call, tmp_path / "p", ALL)
    again(key="k", progress=lambda *counts: seen.append(counts))
    assert done < seen[0][0] <= seen[-1][0] == total
    assert content(tmp_path / "p") == content(whole.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "whole"]


def content(folder: Path) -> dict[str, str]:
    files = list_files(folder)
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}


def test_batches_that_were_not_kept_are_segmented_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("wsi_pipeline.filling.time.monotonic", lambda: now[0])
    boxes = [Box(i * 64, 0, 64, 64) for i in range(4)]
    make = partial(
        FilledStore, tmp_path / "p", boxes, [DETAIL] * 4, 3, (4, 4), lasting=True
    )
    values, grid = np.full((3, 4, 4), 0.5, np.float16), np.zeros((2, 4, 4), np.float32)
    store = make()
    for row, second in ((0, 1), (1, 6), (2, 7)):
        now[0] = second
        store.put(row, [RegionPrediction(boxes[row], values, grid)])
    again = make()
    assert again.done == {0, 1}
    with pytest.raises(RegionError, match="every region written"):
        RegionStore(tmp_path / "p").get(2)
    again.put(2, [RegionPrediction(b, values, grid) for b in boxes[2:]])
    assert [r.box for r in RegionStore(tmp_path / "p")] == boxes


def test_a_flipped_bit_of_a_region_raises(tmp_path: Path) -> None:
    box = Box(0, 0, 64, 64)
    store = RegionStore.create(tmp_path / "p", [box], [DETAIL], 3, (16, 16))
    values = np.random.default_rng(0).random((3, 16, 16)).astype(np.float16)
    (file, _) = store.put(
        0, [RegionPrediction(box, values, np.zeros((2, 16, 16), np.float32))]
    )
    data = bytearray(file.read_bytes())
    for place in range(10, len(data), 37):
        data[place] ^= 8
        file.write_bytes(data)
        with pytest.raises(RegionError, match="damaged"):
            store.get(0)
        data[place] ^= 8
