"""R16: the exit code and the list of slides say what came of a batch."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.victims import (
    CONFIG,
    leftovers,
    make_slides,
    results_of,
    run,
    start,
    start_command,
)
from wsi_pipeline.batch import BatchResult, run_batch
from wsi_pipeline.models.cards import find_model

pytestmark = pytest.mark.promise("R16")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_slides(tmp_path_factory.mktemp("slides"), 1)


def broken(folder: Path, count: int) -> list[Path]:
    """Files that pass for slides by their names."""
    folder.mkdir()
    paths = [folder / f"broken{number}.tif" for number in range(count)]
    for path in paths:
        path.write_bytes(b"II*\0 cut short")
    return paths


def listed(out: Path) -> dict[str, str]:
    """Status of each slide in slides.csv."""
    with (out / "slides.csv").open(encoding="utf-8", newline="") as file:
        return {row["slide"]: row["status"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("good", "bad", "code"), [(1, 0, 0), (1, 2, 3), (0, 2, 1)], ids=str
)
def test_the_code_and_the_table_tell_what_failed(slides, tmp_path, good, bad, code):
    batch = [*slides[:good], *broken(tmp_path / "bad", bad)]
    result = run_batch(batch, tmp_path / "out", find_model("synthetic"), CONFIG)
    assert result.exit_code == code
    assert listed(tmp_path / "out") == {
        path.name: "done" if path in slides else "failed" for path in batch
    }


def test_a_count_that_forgets_failures_is_seen(slides, tmp_path, monkeypatch):
    """The negative control: a code that looks at what is done alone."""
    real = BatchResult.count
    monkeypatch.setattr(
        BatchResult,
        "count",
        lambda self, *names: 0 if "failed" in names else real(self, *names),
    )
    batch = [*slides, *broken(tmp_path / "bad", 1)]
    result = run_batch(batch, tmp_path / "out", find_model("synthetic"), CONFIG)
    assert result.exit_code == 0
    assert "failed" in listed(tmp_path / "out").values()


def wait_for(pattern: str, folder: Path) -> None:
    end = time.monotonic() + 300
    while not any(folder.glob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str
)
def test_an_interrupted_run_says_so_and_goes_on_later(slides, tmp_path, sent, code):
    out = tmp_path / "out"
    config = tmp_path / "run.toml"
    config.write_text("[tile]\nworkers = 1\n[export]\ndetections = 'none'\n")
    words = ["run", *map(str, slides), "-o", str(out), "-m", "synthetic"]
    process = start_command([*words, "--config", str(config)])
    wait_for("*/stages/tissue.json", out)
    os.kill(process.pid, sent)
    process.join()
    assert process.exitcode == code
    assert not any(out.glob("*/manifest.json"))
    assert (out / "run.json").is_file()
    assert run(slides, out) == 0
    assert leftovers(out) == []
    assert len(results_of(out)) > 30


def test_without_a_handler_a_termination_has_no_code_of_ours(slides, tmp_path):
    """The negative control."""
    process = start(slides, tmp_path / "out")
    wait_for("*/stages/tissue.json", tmp_path / "out")
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == -signal.SIGTERM
