"""Masks against the truth: one slide, labels and drawings, block by block."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsi_pipeline.annotations import Annotation
from wsi_pipeline.annotations.classing import ClassMap
from wsi_pipeline.annotations.writing import write_annotations
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.errors import ConfigError, PyramidError, RegionError
from wsi_pipeline.evaluation import (
    DrawnOptions,
    PyramidView,
    compare_masks,
    comparing,
    evaluate_masks,
    open_prediction,
    open_truth,
)
from wsi_pipeline.evaluation.changes import RegionCounter
from wsi_pipeline.exporters import export_masks
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid

CLASSES = tuple(MaskClass(v, f"class {v}", (v, v, v)) for v in range(3))


def masks_of(path, values, base=1, size=None, classes=CLASSES, bounds=None):
    h, w = values.shape
    size = size or (w * base, h * base)
    box = bounds or Box(0, 0, *size)
    source = Source("s.tif", size, Scale(0.5, 0.5), "test", box)
    masks = MaskPyramid.create(path, source, base, classes)
    masks.put(0, Box(0, 0, w, h), values.astype(np.uint8))
    masks.write_coarser()
    return masks


def compared(tmp_path, guess, truth, **how):
    left, right = (
        PyramidView(masks_of(tmp_path / name, np.array(values)))
        for name, values in (("p", guess), ("t", truth))
    )
    return compare_masks(left, right, **how)


def test_scores_are_those_counted_by_hand(tmp_path):
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    guess = np.array([[0, 1, 1, 1], [2, 2, 255, 0]])
    scores = evaluate_masks(
        masks_of(tmp_path / "p", guess), masks_of(tmp_path / "t", truth)
    )
    assert scores.iou == {"class 0": 1 / 3, "class 1": 2 / 3, "class 2": 2 / 3}
    assert scores.dice == {"class 0": 1 / 2, "class 1": 4 / 5, "class 2": 4 / 5}
    assert scores.miou == pytest.approx(5 / 9)
    assert scores.computed_share == 7 / 8
    assert scores.to_json()["iou_all"]["class 2"] == 2 / 4
    # a pixel is 0.25 um2
    names = "predicted", "truth", "added", "removed", "not_computed"
    areas = scores.to_json()["areas_um2"]
    assert {kind: [row[name] for name in names] for kind, row in areas.items()} == {
        "class 0": [0.5, 0.5, 0.25, 0.25, 0],
        "class 1": [0.75, 0.5, 0, 0.25, 0],
        "class 2": [0.5, 0.75, 0.25, 0, 0.25],
    }


def test_pixels_without_truth_do_not_count(tmp_path):
    truth, guess = np.array([[0, 255]]), np.array([[0, 1]])
    scores = evaluate_masks(
        masks_of(tmp_path / "p", guess), masks_of(tmp_path / "t", truth)
    )
    assert scores.iou == {"class 0": 1.0}


def test_nothing_in_common_is_no_score(tmp_path):
    found = compared(tmp_path, [[255, 255]], [[255, 255]])
    assert found.scores.to_json()["miou"] is None
    assert found.scores.computed_share == 0


def test_a_coarser_prediction_is_compared_on_its_own_grid(tmp_path):
    truth = np.kron(np.array([[0, 1], [2, 1]]), np.ones((512, 512), int))
    guess = truth[::2, ::2]
    scores = evaluate_masks(
        masks_of(tmp_path / "p", guess, base=2), masks_of(tmp_path / "t", truth)
    )
    assert scores.miou == 1.0
    assert scores.counts.sum() == 512 * 512
    assert scores.pixel_um2 == 1.0


def test_the_grid_can_be_chosen(tmp_path):
    truth = np.kron(np.array([[0, 1], [2, 1]]), np.ones((1024, 1024), int))
    found = compared(tmp_path, truth, truth, mpp=1.0)
    assert found.downsample == 2
    assert compared(tmp_path / "finer", truth, truth, mpp=0.1).downsample == 1


def test_masks_that_do_not_fit_are_refused(tmp_path):
    one = masks_of(tmp_path / "a", np.zeros((4, 4)))
    with pytest.raises(PyramidError, match="4, 4"):
        evaluate_masks(one, masks_of(tmp_path / "b", np.zeros((4, 5))))
    with pytest.raises(PyramidError, match="share no level"):
        evaluate_masks(one, masks_of(tmp_path / "c", np.zeros((2, 2)), 2, (4, 4)))
    with pytest.raises(PyramidError, match=r"values \[7\] are no classes"):
        evaluate_masks(masks_of(tmp_path / "d", np.full((4, 4), 7)), one)


def test_classes_are_matched_by_name_and_backgrounds_by_value(tmp_path):
    other = (
        MaskClass(0, "No gland", (0, 0, 0)),
        MaskClass(1, "class 2", (0, 0, 0)),
        MaskClass(5, "Extra", (1, 2, 3)),
    )
    truth = masks_of(tmp_path / "t", np.array([[0, 1, 2, 2]]))
    guess = masks_of(tmp_path / "p", np.array([[0, 5, 1, 0]]), classes=other)
    scores = evaluate_masks(guess, truth)
    assert [kind.name for kind in scores.classes] == [
        "class 0", "class 1", "class 2", "Extra",
    ]  # fmt: skip
    assert scores.counts.tolist() == [
        [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0],
    ]  # fmt: skip


# -------------------------------------------------------------------- changes


def test_regions_are_those_that_were_added_and_removed(tmp_path):
    guess, truth = np.zeros((2, 40, 60), int)
    guess[2:10, 2:10] = 1  # removed
    truth[20:30, 5:9] = 2  # added
    guess[20:30, 20:40], truth[20:30, 25:40] = 1, 1  # a strip is removed
    guess[5:8, 50:53], truth[5:8, 50:53] = 1, 2  # reclassified
    truth[35:38, 50:55], guess[35:38, 50:55] = 1, 255  # not looked at
    found = compared(tmp_path, guess, truth, min_region_um2=0)
    assert [(r.value, r.pixels, r.box) for r in found.added] == [
        (2, 40, Box(5, 20, 4, 10)),
        (2, 9, Box(50, 5, 3, 3)),
    ]
    assert [(r.value, r.pixels, r.box) for r in found.removed] == [
        (1, 64, Box(2, 2, 8, 8)),
        (1, 50, Box(20, 20, 5, 10)),
        (1, 9, Box(50, 5, 3, 3)),
    ]
    small = compared(tmp_path / "b", guess, truth, min_region_um2=10.01)
    assert [r.pixels for r in small.added + small.removed] == [64, 50]
    shares = found.shares
    assert shares.shape == (4, 40, 60)
    assert shares.sum(axis=(1, 2)).tolist() == [150, 49, 114, 15]


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.2, 0.5, 0.6, 0.9]),
    st.sampled_from([5, 8, 64]),
    st.sampled_from([1, 4]),
)
def test_blocks_change_no_region(seed, density, side, least):
    rng = np.random.default_rng(seed)
    values = (rng.random((37, 29)) < density) * rng.integers(1, 3, (37, 29))
    counter = RegionCounter(29, least)
    for block in Box(0, 0, 29, 37).blocks(side):
        counter.add(block, values[block.rows, block.columns].astype(np.uint8))
    found = counter.regions()
    expected = []
    for kind in (1, 2):
        numbers, _ = ndimage.label(values == kind)
        for number, (down, across) in enumerate(ndimage.find_objects(numbers), 1):
            pixels = int((numbers == number).sum())
            if pixels >= least:
                box = Box(
                    across.start,
                    down.start,
                    across.stop - across.start,
                    down.stop - down.start,
                )
                expected.append((kind, pixels, box))
    got = [(r.value, r.pixels, r.box) for r in found]
    assert sorted(got, key=str) == sorted(expected, key=str)
    assert [r.pixels for r in found] == sorted((r.pixels for r in found), reverse=True)


def test_pieces_that_cannot_matter_are_forgotten_at_once():
    counter = RegionCounter(64, 10)
    values = np.zeros((64, 64), np.uint8)
    values[1:-1:2, 1:-1:2] = 1  # 31 x 31 single pixels, none at an edge
    counter.add(Box(0, 0, 64, 64), values)
    assert counter._count == 0


def test_blocks_change_no_figure(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 3, (2, 40, 30))
    guess, truth = (np.kron(c, np.ones((40, 40), int)) for c in coarse)
    guess[:200, :100], truth[300:400, 500:] = 255, 255
    whole = compared(tmp_path / "a", guess, truth)
    assert whole.picture_downsample == 2
    monkeypatch.setattr(comparing, "LABEL_SHARD_PX", 128)
    parts = compared(tmp_path / "b", guess, truth)
    np.testing.assert_array_equal(parts.scores.counts, whole.scores.counts)
    np.testing.assert_allclose(parts.shares, whole.shares)
    assert (parts.added, parts.removed) == (whole.added, whole.removed)
    assert whole.added
    # shares of a pixel add up to what is not background in both
    plain = (guess == 0) & (truth == 0) | (truth == 255)
    np.testing.assert_allclose(
        whole.shares.sum(axis=0),
        (~plain).reshape(800, 2, 600, 2).mean(axis=(1, 3)),
        atol=1e-6,
    )


# ------------------------------------------------------------------- drawings


def square(x, y, side, name, rgb=(1, 2, 3)):
    return Annotation(shapely.box(x, y, x + side, y + side), name, rgb)


def drawn(path, *annotations, offset=(0, 0)):
    write_annotations(path, annotations, offset)
    return path


def predicted(tmp_path, **how):
    values = np.zeros((100, 200), int)
    values[10:30, 10:30], values[50:70, 10:30] = 1, 2
    return masks_of(tmp_path / "p", values, **how)


def test_a_corrected_drawing_is_compared_with_the_label(tmp_path):
    view = PyramidView(predicted(tmp_path))
    path = drawn(
        tmp_path / "t.geojson", square(10, 10, 20, "class 1"), square(80, 50, 10, "X")
    )
    with pytest.raises(RegionError, match=r"t\.geojson: .*'X'"):
        open_truth(path, view, DrawnOptions())
    options = DrawnOptions(ClassMap((("X", "class 2"),)))
    found = compare_masks(view, open_truth(path, view, options))
    assert found.scores.iou == {
        "class 0": (20_000 - 900) / (20_000 - 400),
        "class 1": 1.0,
        "class 2": 0.0,
    }
    assert [r.box for r in found.removed] == []  # 400 px are 100 um2
    # a class that the map makes is a new one
    wider = DrawnOptions(ClassMap((("X", "Necrosis"),)))
    again = compare_masks(view, open_truth(path, view, wider))
    (kind,) = (k for k in again.scores.classes if k.name == "Necrosis")
    assert (kind.value, kind.rgb) == (3, (1, 2, 3))
    assert again.scores.counts[3].tolist() == [100, 0, 0, 0, 0]


def test_the_truth_can_be_limited_to_areas(tmp_path):
    view = PyramidView(predicted(tmp_path))
    path = drawn(
        tmp_path / "t.geojson",
        square(10, 10, 20, "class 1"),
        square(0, 0, 40, "Seen"),
        square(150, 50, 10, "class 2"),
    )
    found = compare_masks(view, open_truth(path, view, DrawnOptions(within="Seen")))
    assert found.scores.counts.sum() == 1600
    assert found.scores.iou == {"class 0": 1.0, "class 1": 1.0}
    with pytest.raises(ConfigError, match="no area of class 'Sen'"):
        open_truth(path, view, DrawnOptions(within="Sen"))


def test_qupaths_frame_is_moved_by_the_bounds(tmp_path):
    masks = predicted(tmp_path, bounds=Box(5, 5, 150, 90))
    view = PyramidView(masks)
    path = drawn(tmp_path / "t.geojson", square(5, 5, 20, "class 1"))
    plain = path.read_text().replace('"offset_px":[0,0]', '"other":1')
    path.write_text(plain)  # as QuPath writes it again
    found = compare_masks(view, open_truth(path, view, DrawnOptions()))
    assert found.scores.iou["class 1"] == 1.0
    moved = open_truth(path, view, DrawnOptions(frame="level0"))
    assert compare_masks(view, moved).scores.iou["class 1"] < 0.5


def header(path, **facts):
    stated = {"offset_px": [0, 0], "frame_size_px": [200, 100], "mpp": [0.25, 0.25]}
    own = str(stated | facts).replace("'", '"').encode()
    path.write_bytes(path.read_bytes().replace(b'{"offset_px":[0,0]}', own))
    return path


def test_a_drawing_can_be_the_prediction(tmp_path):
    guess = drawn(
        tmp_path / "p.geojson",
        square(10, 10, 20, "Tumor"),
        square(100, 0, 40, "Tissue not examined"),
        square(110, 10, 20, "Tumor"),
    )
    truth = drawn(
        tmp_path / "t.geojson", square(10, 10, 20, "Tumor"), square(100, 0, 8, "Tumor")
    )
    with pytest.raises(ConfigError, match=r"p\.geojson: does not state .*--slide"):
        open_prediction(guess, DrawnOptions())
    view = open_prediction(header(guess), DrawnOptions())
    assert [kind.name for kind in view.classes] == ["Background", "Tumor"]
    found = compare_masks(view, open_truth(truth, view, DrawnOptions()))
    assert found.downsample == 2  # 0.5 um/px
    assert found.scores.iou == {"Background": 1.0, "Tumor": 1.0}
    assert found.scores.counts[:, -1].tolist() == [400 - 16, 16]
    slide = Source("s", (200, 100), Scale(0.5, 0.5), "test", Box(0, 0, 200, 100))
    other = open_prediction(truth, DrawnOptions(), slide)
    assert compare_masks(other, other).downsample == 1


def test_an_exported_mask_agrees_with_itself_to_the_pixel(tmp_path):
    rng = np.random.default_rng(2)
    noise = ndimage.gaussian_filter(rng.normal(size=(90, 140)), 2)
    values = np.digitize(noise, [0.02, 0.1])
    values[:5], values[-5:], values[:, :5], values[:, -5:] = 0, 0, 0, 0
    masks = masks_of(tmp_path / "p", values, base=2, bounds=Box(6, 4, 270, 172))
    exact = ExportOptions(simplify_um=0, min_area_um2=0, min_hole_um2=0)
    for frame in ("qupath", "level0"):
        options = exact.model_copy(update={"frame": frame})
        path = tmp_path / f"{frame}.geojson"
        export_masks(masks, path, options, slide_id="s")
        view = PyramidView(masks)
        found = compare_masks(view, open_truth(path, view, DrawnOptions()))
        assert set(found.scores.iou.values()) == {1.0}
        assert found.scores.counts.sum() == values.size
        both = open_prediction(path, DrawnOptions())
        assert compare_masks(both, both, mpp=0.5).scores.miou == 1.0
