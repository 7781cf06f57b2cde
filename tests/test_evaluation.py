import numpy as np
import pytest

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.evaluation import evaluate_masks
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid

CLASSES = tuple(MaskClass(v, f"class {v}", (v, v, v)) for v in range(3))


def masks_of(path, values, base=1, size=None) -> MaskPyramid:
    h, w = values.shape
    size = size or (w * base, h * base)
    source = Source("s", size, Scale(0.5, 0.5), "test", Box(0, 0, *size))
    masks = MaskPyramid.create(path, source, base, CLASSES)
    masks.put(0, Box(0, 0, w, h), values.astype(np.uint8))
    masks.write_coarser()
    return masks


def test_scores_are_those_counted_by_hand(tmp_path):
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    guess = np.array([[0, 1, 1, 1], [2, 2, 255, 0]])
    scores = evaluate_masks(
        masks_of(tmp_path / "p", guess), masks_of(tmp_path / "t", truth)
    )
    assert scores.iou == {"class 0": 1 / 3, "class 1": 2 / 3, "class 2": 2 / 3}
    assert scores.miou == pytest.approx(5 / 9)
    assert scores.computed_share == 7 / 8
    assert scores.to_json()["iou_all"]["class 2"] == 2 / 4


def test_pixels_without_truth_do_not_count(tmp_path):
    truth, guess = np.array([[0, 255]]), np.array([[0, 1]])
    scores = evaluate_masks(
        masks_of(tmp_path / "p", guess), masks_of(tmp_path / "t", truth)
    )
    assert scores.iou == {"class 0": 1.0}


def test_a_coarser_prediction_is_compared_on_its_own_grid(tmp_path):
    truth = np.kron(np.array([[0, 1], [2, 1]]), np.ones((512, 512), int))
    guess = truth[::2, ::2]
    scores = evaluate_masks(
        masks_of(tmp_path / "p", guess, base=2), masks_of(tmp_path / "t", truth)
    )
    assert scores.miou == 1.0
    assert scores.counts.sum() == 512 * 512


def test_masks_that_do_not_fit_are_refused(tmp_path):
    one = masks_of(tmp_path / "a", np.zeros((4, 4)))
    with pytest.raises(PyramidError, match="4, 4"):
        evaluate_masks(one, masks_of(tmp_path / "b", np.zeros((4, 5))))
    with pytest.raises(PyramidError, match="share no level"):
        evaluate_masks(one, masks_of(tmp_path / "c", np.zeros((2, 2)), 2, (4, 4)))
    with pytest.raises(PyramidError, match="7"):
        evaluate_masks(masks_of(tmp_path / "d", np.full((4, 4), 7)), one)
