"""The share of patches that a calibration allows to keep holds the recall asked for."""

import numpy as np
import pytest
from pydantic import ValidationError

from tests.models import calibration_of
from wsi_pipeline.models.calibration import Calibration, MissTable


@pytest.mark.parametrize(
    ("slides", "missed", "recall", "fraction"),
    [
        (19, 0.0, 0.95, 0.1),  # (19 * 0 + 1) / 20 is 0.05 exactly
        (18, 0.0, 0.95, 1.0),
        (18, 0.0, 0.94, 0.1),
        (99, 0.04, 0.95, 0.1),  # (99 * 0.04 + 1) / 100 = 0.0496
        (99, 0.041, 0.95, 0.2),
        (99, 0.041, 0.9, 0.1),
        (1, 0.0, 0.5, 0.1),
        (1, 0.0, 0.51, 1.0),
    ],
)
def test_the_fraction_is_the_smallest_that_the_bound_allows(
    slides: int, missed: float, recall: float, fraction: float
) -> None:
    found = calibration_of({0.1: missed, 0.2: 0.0}, slides)
    assert found.fraction_for(recall, 9) == fraction


def test_recall_of_new_slides_holds_on_average_over_calibrations() -> None:
    """Slides of very unlike difficulty; few of them calibrate."""
    rng = np.random.default_rng(0)
    fractions = np.linspace(0, 1, 41)[1:]

    def losses(count: int) -> np.ndarray:
        hard = rng.beta(0.5, 3, (count, 1))  # what a slide needs
        return np.maximum(0, 1 - fractions / np.maximum(hard, 1e-9))

    for slides, recall in ((12, 0.8), (30, 0.9), (40, 0.95)):
        realised = []
        for _ in range(400):
            table = MissTable(
                top_m=9,
                missed=tuple(losses(slides).mean(axis=0)),
                kept=tuple(fractions),
            )
            found = Calibration(
                slides=slides, fractions=tuple(fractions), tables=(table,)
            ).fraction_for(recall, 9)
            realised.append(losses(1)[0, np.searchsorted(fractions, found)])
        spread = np.std(realised) / np.sqrt(len(realised))
        assert np.mean(realised) <= 1 - recall + 2 * spread
        # and it does not just keep everything
        assert np.mean(realised) > 0.2 * (1 - recall)


def test_another_m_is_looked_up_in_the_next_larger_table() -> None:
    tables = tuple(
        MissTable(top_m=m, missed=(lost, 0.0), kept=(0.1, 1.0))
        for m, lost in ((4, 0.0), (16, 0.5))
    )
    found = Calibration(slides=99, fractions=(0.1, 1.0), tables=tables)
    assert [found.table_for(m).top_m for m in (1, 4, 5, 16, 17)] == [4, 4, 16, 16, 16]
    assert found.fraction_for(0.9, 4) == 0.1
    assert found.fraction_for(0.9, 5) == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fractions": (0.2, 0.1, 1.0)}, "ascend to 1"),
        ({"fractions": (0.1, 0.2, 0.9)}, "ascend to 1"),
        ({"fractions": (0.1, 1.0)}, "one number per fraction"),
        ({"slides": 0}, "slides"),
        ({"tables": ()}, "tables"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(
    change: dict[str, object], words: str
) -> None:
    whole = calibration_of({0.1: 0.0, 0.2: 0.0}).model_dump()
    with pytest.raises(ValidationError, match=words):
        Calibration(**(whole | change))


def test_tables_out_of_order_are_refused() -> None:
    whole = calibration_of({0.1: 0.0}).model_dump()
    with pytest.raises(ValidationError, match="ascend by M"):
        Calibration(**(whole | {"tables": whole["tables"] * 2}))
