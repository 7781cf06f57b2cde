"""R1: killed at any time and run again, a run gives the bytes of one left alone."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from tests.faults.victims import (
    Fault,
    leftovers,
    make_slides,
    results_of,
    run,
    run_call,
    start,
)
from wsi_pipeline import journal, publishing
from wsi_pipeline.verifying import verify_results

pytestmark = pytest.mark.promise("R1")
STEP = 5
"""Every fifth call of a run is a place to be killed at."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_slides(tmp_path_factory.mktemp("slides"), 1)


@pytest.fixture(scope="module")
def whole(
    slides: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], list[str]]:
    """Results of a run that was left alone, and the calls that it made."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(slides, folder / "out", told=folder / "told") == 0
    assert leftovers(folder / "out") == []
    calls = orjson.loads((folder / "told").read_bytes())["calls"]
    return results_of(folder / "out"), calls


def holes(out: Path) -> list[str]:
    """What a killed run left under final names and is not as it should be."""
    if not any(out.glob("*/manifest.json")):
        return []
    found = verify_results(out, jobs=1).findings
    return [f.path for f in found if f.kind not in ("missing", "extra")]


def kill_and_resume(slides: list[Path], out: Path, number: int) -> dict[str, bytes]:
    assert run(slides, out, Fault(number)) == -signal.SIGKILL
    assert holes(out) == []
    assert run(slides, out) == 0
    assert leftovers(out) == []
    assert verify_results(out, jobs=1).findings == ()
    return results_of(out)


@pytest.mark.parametrize("share", [0.3, 0.75, 0.97])
def test_a_killed_run_goes_on_to_the_same_bytes(slides, whole, tmp_path, share):
    expected, calls = whole
    assert {"open", "rename", "mkdir", "fsync", "write"} == set(calls)
    number = int(share * len(calls))
    assert kill_and_resume(slides, tmp_path / "out", number) == expected


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
def test_every_fifth_call_may_be_the_last(slides, whole, tmp_path, record_property):
    expected, calls = whole
    numbers = range(1, len(calls), STEP)
    for number in numbers:
        out = tmp_path / str(number)
        found = kill_and_resume(slides, out, number)
        assert found == expected, f"killed at call {number}, {calls[number - 1]}"
    record_property("measured", f"{len(numbers)} of {len(numbers)} kills, same bytes")


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
def test_a_batch_may_be_killed_at_any_time(tmp_path, record_property):
    slides, kills = make_slides(tmp_path / "slides", 6), 50
    begin = time.monotonic()
    assert run(slides, tmp_path / "whole") == 0
    duration, expected = time.monotonic() - begin, results_of(tmp_path / "whole")
    at_random = random.Random(0)  # noqa: S311  # instants, not secrets
    for number in range(kills):
        out = tmp_path / str(number)
        process = start(slides, out)
        time.sleep(at_random.uniform(0.1, duration))
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert holes(out) == []
        assert run(slides, out) == 0
        assert leftovers(out) == []
        assert results_of(out) == expected
    record_property("measured", f"{kills} of {kills} kills of a batch, same bytes")


def write_halves(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for _ in range(2):
        os.write(descriptor, bytes(500))
    os.fsync(descriptor)
    os.close(descriptor)


def write_in_place(out: Path) -> None:
    write_halves(out / "a")


def write_aside(out: Path) -> None:
    with publishing.staged(out / "a") as path:
        write_halves(path)


def sizes_after_kills(write: Callable[[Path], None], folder: Path) -> set[int]:
    """Sizes that a kill at any call leaves under the final name."""
    found: set[int] = set()
    for number in range(1, 100):
        out = folder / str(number)
        out.mkdir(parents=True)
        code = run_call(write, out, Fault(number))
        found |= {p.stat().st_size for p in out.iterdir() if p.is_file()}
        if code == 0:
            return found
        assert code == -signal.SIGKILL
    raise AssertionError("it never came to an end")


def test_a_name_shows_whole_content_or_none_whenever_it_is_killed(tmp_path):
    assert sizes_after_kills(write_aside, tmp_path / "aside") == {1000}
    # the negative control: without staging
    assert sizes_after_kills(write_in_place, tmp_path / "place") == {0, 500, 1000}


def test_without_hashing_again_rot_is_published(tmp_path, monkeypatch):
    """The negative control of resuming: a block that rotted is taken for whole."""
    from tests.test_journal import half_made

    folder, made = half_made(tmp_path)
    data = bytearray((folder / "c" / "1").read_bytes())
    data[3] ^= 1
    (folder / "c" / "1").write_bytes(data)
    monkeypatch.setattr(journal.BlockJournal, "_is_whole", lambda *_: True)
    assert "c/1" in made.resume()
