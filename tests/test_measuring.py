"""What is measured of objects: probabilities and scores, whatever the blocks."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from tests.test_geojson import EXACT, features, make_masks
from tests.tracing import Mask, trace
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.exporters import export_masks
from wsi_pipeline.exporters.labels import LabelSource
from wsi_pipeline.exporters.pieces import Rules
from wsi_pipeline.exporters.scores import PatchScores
from wsi_pipeline.geometry import Box
from wsi_pipeline.regions import PatchGrid, Selection

Found = list[tuple[int, int, float, float, float | None]]


def patches(
    corners: NDArray[np.int64], size: int, scores: list[float], unseen: int = 0
) -> Selection:
    """A selection of patches; the last `unseen` ones were not examined."""
    count = len(corners)
    grid = PatchGrid(corners, size, size, 0.5, np.ones(count, np.float32))
    weight = np.ones(count)
    weight[count - unseen :] = 0
    return Selection(
        grid,
        np.zeros((count, 1), np.float32),
        np.where(weight > 0, scores, np.nan),
        np.argsort(np.argsort(-np.array(scores), kind="stable")),
        np.zeros(count, bool),
        weight=weight if unseen else None,
    )


def measured(mask: Mask, sure: Mask, scores: PatchScores) -> Found:
    """Each object by its pixels alone: value, pixels, mean, highest, score."""
    field = np.full(mask.shape, -1.0)
    for (left, top, right, bottom), score in zip(
        scores.edges.clip(0).tolist(), scores.scores.tolist(), strict=True
    ):
        part = field[top:bottom, left:right]
        np.maximum(part, score, out=part)
    found: Found = []
    for value in (1, 2):
        labels, count = ndimage.label(mask == value)
        for number in range(1, count + 1):
            mine = labels == number
            probability = sure[mine] / 254
            score = field[mine].max()
            told = None if score < 0 else score
            found.append(
                (value, mine.sum(), probability.mean(), probability.max(), told)
            )
    return found


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 30)] * 2), elements=st.integers(0, 2)),
    st.integers(1, 9),
    st.lists(st.tuples(*[st.integers(-5, 30)] * 2), min_size=1, max_size=9),
    st.integers(2, 30),
)
def test_objects_have_the_highest_of_their_own_pixels(
    mask: Mask, size: int, corners: list[tuple[int, int]], block: int
) -> None:
    sure = (np.arange(mask.size).reshape(mask.shape) * 7 % 255).astype(np.uint8)
    values = [0.3 / (1 + n) for n in range(len(corners))]
    scores = PatchScores.of(patches(np.array(corners), size, values), 1.0)
    found = trace(mask, block, confidence=sure, scores=scores)
    expected = measured(mask, sure, scores)
    assert [(o.value, o.pixels) for o in found.items] == [row[:2] for row in expected]
    for item, (*_, mean, highest, score) in zip(found.items, expected, strict=True):
        assert item.probability == pytest.approx(mean, rel=1e-12)
        assert (item.highest, item.score) == (highest, score)
    alone = trace(mask, block, scores=scores)
    assert [o.score for o in alone.items] == [o.score for o in found.items]
    assert {(o.probability, o.highest) for o in alone.items} <= {(None, None)}
    plain = trace(mask, block, confidence=sure)
    assert {o.score for o in plain.items} <= {None}
    assert [o.highest for o in plain.items] == [o.highest for o in found.items]


def test_patch_that_was_not_examined_has_no_score() -> None:
    corners = np.array([(0, 0), (8, 0), (16, 0)])
    selection = patches(corners, 8, [0.25, 0.75, 0.5], unseen=1)
    mask = np.zeros((4, 30), np.uint8)
    mask[1, [1, 9, 17]] = 1  # one in each, the last one in the patch left out
    mask[3, 6:20] = 1  # in all three
    mask[3, 24:] = 1  # in none
    found = trace(mask, scores=PatchScores.of(selection, 1.0))
    assert [item.score for item in found.items] == [0.25, 0.75, None, 0.75, None]


def test_file_states_the_score_of_objects_that_a_patch_overlaps(tmp_path: Path) -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[2:4, 2:4] = mask[2:4, 30:34] = 1
    masks = make_masks(tmp_path / "m.zarr", mask, base=2)
    selection = patches(np.array([(0, 0), (20, 0)]), 20, [0.123456789, 1e-9])
    path = tmp_path / "x.geojson"
    export_masks(masks, path, EXACT, slide_id="s", selection=selection)
    first, second = (row["properties"]["measurements"] for row in features(path))
    assert first["Selection score"] == 0.1235
    assert set(second) == {"Area um^2", "Perimeter um"}
    head = orjson.loads(path.read_bytes())["wsi_pipeline"]
    assert set(first) <= set(head["measurements"])
    assert check_geojson(path) == []


def test_pixels_that_a_patch_cuts_belong_to_it() -> None:
    selection = patches(np.array([(6, 5)]), 10, [1.0])  # level 0, to (16, 15)
    scores = PatchScores.of(selection, 4.0)
    mask = np.zeros((6, 7), np.uint8)
    mask[2, :2] = mask[2, 3] = mask[4, 2] = mask[0, 2] = 1
    mask[2, 4] = mask[3, 3] = 2
    found = trace(mask, scores=scores)
    told = {(i.value, i.outline.bounds): i.score for i in found.items}
    assert told == {
        (1, (0, 2, 2, 3)): 1.0,
        (1, (3, 2, 4, 3)): 1.0,
        (1, (2, 4, 3, 5)): None,
        (1, (2, 0, 3, 1)): None,
        (2, (4, 2, 5, 3)): None,
        (2, (3, 3, 4, 4)): 1.0,
    }


def test_objects_that_are_dropped_take_no_measurements_along() -> None:
    mask = np.zeros((12, 12), np.uint8)
    mask[1, 1] = 1
    mask[3:9, 3:9] = 1
    sure = np.where(mask > 0, 100, 0).astype(np.uint8)
    sure[1, 1] = 254
    for block in (4, 64):
        (item,) = trace(mask, block, Rules(4), confidence=sure).items
        assert item.highest == 100 / 254


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_objects_beside_a_region_are_no_surer_than_their_pixels(
    tmp_path: Path, left: int
) -> None:
    # a region from x = left on, in which the network is half sure; the label of that
    # has a value where the middle of 4 x 4 pixels lies in the region
    mask = np.full((16, 32), 255, np.uint8)
    mask[:, left:] = 1
    certain = np.full((4, 8), 127, np.uint8)
    certain[:, 0] = 127 if left <= 2 else 255
    masks = make_masks(tmp_path / "m.zarr", mask)
    sure = make_masks(tmp_path / "c.zarr", certain, base=4, size_px=(32, 16))
    source = LabelSource(masks, sure)
    found = trace(mask, confidence=source.read_confidence(Box(0, 0, 32, 16)))
    (item,) = found.items
    assert (item.probability, item.highest) == (0.5, 0.5)
    part = source.read_confidence(Box(1, 5, 2, 2))  # needs the pixel beside its own
    assert part is not None
    assert part.tolist() == [[127, 127], [127, 127]]
