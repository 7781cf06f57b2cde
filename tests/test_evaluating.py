"""Evaluation of a model on labelled images, and the pictures made in training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small_model, small_spec
from tests.test_comparing import images, knowing
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.metrics import mean_iou
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.training.comparing import compare_frames
from wsi_pipeline.training.evaluating import (
    ArmReport,
    by_group,
    evaluate_segmenter,
    markdown,
)
from wsi_pipeline.training.frames import cropped
from wsi_pipeline.training.gallery import Gallery, show_region

CLASSES = tuple(MaskClass(k, f"class {k}", (80 * k, 90, 200)) for k in range(3))


def test_crops_cover_every_pixel_once() -> None:
    data = images(2, (100, 130))
    parts = cropped(data, 64)
    assert len(parts) == 2 * 2 * 3
    assert parts.groups == ("0",) * 6 + ("1",) * 6
    whole = np.full((128, 192), 7, np.uint8)
    for label, (y, x) in zip(
        parts.labels, [(y, x) for y in (0, 64) for x in (0, 64, 128)], strict=False
    ):
        whole[y : y + 64, x : x + 64] = label
    np.testing.assert_array_equal(whole[:100, :130], data.labels[0])
    assert (whole[100:] == 255).all()
    assert (whole[:, 130:] == 255).all()
    assert parts.images[2].shape == (3, 64, 64)
    assert (parts.images[2][:, :, 2:] == 255).all()


def test_counts_are_summed_by_patient() -> None:
    counts = np.arange(24).reshape(4, 2, 3)
    found = by_group(counts, ("b", "a", "b", "b"))
    np.testing.assert_array_equal(found[0], counts[1])
    np.testing.assert_array_equal(found[1], counts[[0, 2, 3]].sum(axis=0))


def test_a_model_is_evaluated_in_every_arm(tmp_path: Path) -> None:
    model = small_model(tmp_path / "small")
    data = images(2, (128, 200))
    reports = evaluate_segmenter(model, data, CLASSES)
    assert [report.strategy for report in reports] == ["learned", "uniform"]
    for report in reports:
        found = report.to_json()
        assert found["patients"] == 2
        assert found["regions"] == 4
        assert np.sum(found["counts"]) == 2 * 128 * 200
        assert 0 <= found["miou"] <= found["miou_bound"] <= 1
        low, high = found["miou_interval_by_patient"]
        assert low <= found["miou"] <= high
        assert found["peak_bytes"] > 2**20
    assert reports[0].scores.flops > reports[1].scores.flops
    with pytest.raises(UnknownNameError, match="it has: learned, uniform"):
        evaluate_segmenter(model, data, CLASSES, ["edge"])
    with pytest.raises(ConfigError, match=r"has 3 classes .* the dataset 2"):
        evaluate_segmenter(model, data, CLASSES[:2])


def test_the_report_states_what_was_counted() -> None:
    data = images(2)
    scores = compare_frames(knowing("uniform"), data)
    names = tuple(c.name for c in CLASSES)
    report = ArmReport("uniform", names, data.groups, scores, 3 * 2**20)
    lines = list(markdown([report]))
    assert f"| uniform | {mean_iou(scores.full.sum(axis=0)):.3f} |" in lines[2]
    assert lines[2].endswith(" 3 |")
    assert lines[-3].startswith("| class 0 | 0.")


def test_pictures_show_chosen_regions_and_what_was_found(tmp_path: Path) -> None:
    data = images(4)
    net = knowing("learned")
    shown = show_region(net, data, 1)
    assert shown.density is not None
    assert shown.density.shape == (24, 32)
    assert (shown.predicted == data.labels[1]).mean() > 0.9
    np.testing.assert_array_equal(shown.image, data.images[1])
    gallery = Gallery(tmp_path, data, CLASSES)
    gallery.hang("learned", net, 500)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"learned-000500-{k}.png" for k in range(3)]
    with Image.open(tmp_path / files[0]) as picture:
        assert min(picture.size) > 200


def test_one_region_is_drawn_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SegmentNet(small_spec(), "uniform").eval()
    Gallery(tmp_path, images(1), CLASSES).hang("uniform", net, 0)
    assert len(list(tmp_path.iterdir())) == 1
