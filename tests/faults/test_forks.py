"""No process or thread gets pixels that another asked for."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.reads import TILES, WORKERS, write_tiles

pytestmark = pytest.mark.promise("R11")

METHODS = ("fork", "forkserver", "spawn", "threads")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "tiles.tif"
    write_tiles(path)
    return path


def read_at_once(path: Path, *how: str) -> dict[str, list[int]]:
    """By method, wrong reads and errors of the 4 x 1,024."""
    assert WORKERS * TILES == 4 * 1024
    # Python warns of forks beside threads, which are what is tried here
    code = [sys.executable, "-W", "ignore", "-m", "tests.faults.reads", str(path), *how]
    run = subprocess.run(
        code, capture_output=True, text=True, check=True, cwd=ROOT, timeout=300
    )
    found: dict[str, list[int]] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_no_read_is_wrong_or_fails(
    slide: Path, backend: str, record_property: Callable[[str, object], None]
) -> None:
    found = read_at_once(slide, backend, "guarded", *METHODS)
    assert found == {method: [0, 0] for method in METHODS}
    reads = f"{WORKERS} x {TILES:,} reads under {', '.join(METHODS)}"
    record_property("figure", f"0 wrong, 0 errors in {reads}")


def test_handles_of_their_own_keep_processes_apart_even_with_a_cursor(
    slide: Path,
) -> None:
    found = read_at_once(slide, "tiff", "cursor", "fork")
    assert found == {"fork": [0, 0]}


@pytest.mark.parametrize(
    ("guards", "method"), [("shared", "fork"), ("cursor", "threads")]
)
def test_without_the_guards_reads_are_mixed_up(
    slide: Path, guards: str, method: str
) -> None:
    ((wrong, errors),) = read_at_once(slide, "tiff", guards, method).values()
    assert wrong + errors > 0
