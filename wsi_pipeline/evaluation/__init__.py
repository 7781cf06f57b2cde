"""Compares predicted masks with true ones: labels, results, annotations."""

from wsi_pipeline.evaluation.cohort import CohortScores, SlideScores, evaluate_pairs
from wsi_pipeline.evaluation.comparing import Comparison, compare_masks
from wsi_pipeline.evaluation.opening import (
    DrawnOptions,
    open_drawn,
    open_prediction,
    open_truth,
)
from wsi_pipeline.evaluation.pairing import LeftOut, Pair, find_pairs
from wsi_pipeline.evaluation.scores import MaskScores
from wsi_pipeline.evaluation.views import DrawnView, MaskView, PyramidView
from wsi_pipeline.pyramid import MaskPyramid

__all__ = [
    "CohortScores",
    "Comparison",
    "DrawnOptions",
    "DrawnView",
    "LeftOut",
    "MaskScores",
    "MaskView",
    "Pair",
    "PyramidView",
    "SlideScores",
    "compare_masks",
    "evaluate_masks",
    "evaluate_pairs",
    "find_pairs",
    "open_drawn",
    "open_prediction",
    "open_truth",
]


def evaluate_masks(predicted: MaskPyramid, truth: MaskPyramid) -> MaskScores:
    """Count agreement of two label pyramids on the finest grid that both have.

    Parameters
    ----------
    predicted, truth : MaskPyramid
        Of the same slide; their bases may differ by a power of two.

    Returns
    -------
    MaskScores

    Raises
    ------
    PyramidError
        See `compare_masks`.
    """
    return compare_masks(PyramidView(predicted), PyramidView(truth)).scores
