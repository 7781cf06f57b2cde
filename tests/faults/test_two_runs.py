"""R15: two runs on one folder compute each slide once."""

from pathlib import Path

import orjson
import pytest

from tests.faults.victims import leftovers, make_slides, results_of, run, start
from wsi_pipeline.locking import Lock
from wsi_pipeline.verifying import verify_results

pytestmark = pytest.mark.promise("R15")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_slides(tmp_path_factory.mktemp("slides"), 2)


@pytest.fixture(scope="module")
def expected(
    slides: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(slides, out) == 0
    return results_of(out)


def run_twice(slides: list[Path], folder: Path, **how: object) -> list[bool]:
    """Two runs at once: for each outcome whether the other's result was kept."""
    told = [folder / "first", folder / "second"]
    processes = [start(slides, folder / "out", told=path, **how) for path in told]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    rows = [row for path in told for row in orjson.loads(path.read_bytes())["slides"]]
    return [row["reused"] for row in rows]


def test_each_slide_is_computed_once(slides, expected, tmp_path):
    reused = run_twice(slides, tmp_path)
    assert sorted(reused) == [False, False, True, True]
    assert results_of(tmp_path / "out") == expected
    assert leftovers(tmp_path / "out") == []
    assert verify_results(tmp_path / "out").findings == ()


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_twenty_pairs_compute_each_slide_once(
    slides, expected, tmp_path, record_property
):
    for pair in range(20):
        folder = tmp_path / str(pair)
        folder.mkdir()
        assert sorted(run_twice(slides, folder)) == [False, False, True, True]
        assert results_of(folder / "out") == expected
        assert verify_results(folder / "out").findings == ()
    record_property("measured", "20 of 20 pairs computed each slide once")


def no_lock() -> None:
    """Take the lock away."""
    Lock.acquire = lambda self: True
    Lock.check = lambda self: None


@pytest.mark.faults
def test_without_a_lock_slides_are_computed_twice(slides, tmp_path):
    """The negative control; runs that disturb each other may fail too."""
    try:
        reused = run_twice(slides, tmp_path, hook=no_lock)
    except AssertionError:
        return
    assert sum(reused) < 2
