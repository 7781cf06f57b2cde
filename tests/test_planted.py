"""One small lesion in a gigapixel slide: found and segmented, at little cost."""

import logging

import pytest

from wsi_pipeline.batch import run_batch
from wsi_pipeline.classes import IN_DETAIL
from wsi_pipeline.config import RunConfig
from wsi_pipeline.geometry import Box
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.synthetic import write_slide

LOG = logging.getLogger(__name__)
GLEASON = (3, 4, 5)


def crop(masks: MaskPyramid, box: Box, downsample: float):
    """Pixels of a level-0 box on the level with a given downsample."""
    for index, level in enumerate(masks.levels):
        if level.downsample == downsample:
            return masks.read_level(level.cover(box), index)
    raise AssertionError(downsample)


def find_and_measure(tmp_path, seed: int, megapixels: float) -> dict[str, float]:
    slide = write_slide(
        tmp_path / "slide.tif",
        seed=seed,
        megapixels=megapixels,
        kind="section",
        lesions="one",
        workers=2,
    )
    (lesion,) = slide.lesions
    result = run_batch(
        [slide.slide_path], tmp_path / "out", find_model("synthetic"), RunConfig()
    )
    (outcome,) = result.outcomes
    assert outcome.manifest.status == "done"
    folder = SlideFolder(tmp_path / "out" / outcome.manifest.slide_id)
    pyramid = Pyramid(folder.pyramid)
    masks, truth = pyramid.masks("synthetic"), MaskPyramid(slide.truth_path)
    downsample = max(masks.levels[0].downsample, truth.levels[0].downsample)
    found = crop(masks, lesion.box, downsample)
    true = crop(truth, lesion.box, downsample)
    coverage = crop(pyramid.masks("coverage"), lesion.box, downsample)
    cancer = sum((true == value) for value in GLEASON) > 0
    guess = sum((found == value) for value in GLEASON) > 0
    return {
        "lesion px": int(cancer.sum()),
        "lesion examined": float((coverage[cancer] == IN_DETAIL).mean()),
        "lesion recall": float((cancer & guess).sum() / cancer.sum()),
        "lesion IoU": float((cancer & guess).sum() / (cancer | guess).sum()),
        "tissue examined": outcome.manifest.facts["stitch"]["share_in_detail"],
    }


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [301])
def test_a_planted_lesion_in_a_gigapixel_slide_is_found_and_segmented(tmp_path, seed):
    figures = find_and_measure(tmp_path, seed, 1000)
    LOG.info("%s", figures)
    assert figures["lesion examined"] > 0.9
    assert figures["lesion recall"] > 0.5
    assert figures["tissue examined"] < 0.2
