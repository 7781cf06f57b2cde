"""R6: a full or failing disk stops a run clearly; nothing half made is published."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from tests.faults.victims import FULL, Fault, leftovers, make_slides, results_of, run
from wsi_pipeline.publishing import staged
from wsi_pipeline.results import Manifest, SlideFolder
from wsi_pipeline.verifying import verify_results

pytestmark = pytest.mark.promise("R6")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_slides(tmp_path_factory.mktemp("slides"), 1)


@pytest.fixture(scope="module")
def whole(
    slides: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], int, int]:
    """Results of a run with room enough, its calls, and the bytes that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(slides, folder / "out", told=folder / "told") == 0
    calls = orjson.loads((folder / "told").read_bytes())["calls"]
    blocks = (p.stat().st_blocks * 512 for p in (folder / "out").rglob("*"))
    return results_of(folder / "out"), len(calls), sum(blocks)


def reasons(out: Path) -> list[str]:
    found = [Manifest.load(SlideFolder(p.parent)) for p in out.glob("*/manifest.json")]
    return [m.reason for m in found if m is not None and m.status == "failed"]


def check_clean(out: Path) -> None:
    """Nothing that was published is damaged."""
    if any(out.glob("*/stages")) or any(out.glob("*/manifest.json")):
        findings = verify_results(out, jobs=1).findings
        assert [f for f in findings if f.kind not in ("missing", "extra")] == []


def fail_and_repeat(
    slides: list[Path], out: Path, fault: Fault, expected: dict[str, bytes]
) -> int:
    """A run whose N-th call fails, then one with a sound disk; code of the first."""
    told = out.with_name(f"{out.name}.told")
    code = run(slides, out, fault, told=told)
    check_clean(out)
    if code:
        words = " ".join(reasons(out)) or told.read_text()
        assert os.strerror(FULL[fault.error]) in words, words
    assert run(slides, out) == 0
    assert leftovers(out) == []
    assert results_of(out) == expected
    return code


@pytest.mark.parametrize(("share", "error"), [(0.2, "ENOSPC"), (0.6, "EIO")])
def test_a_call_that_fails_stops_the_slide(slides, whole, tmp_path, share, error):
    expected, calls, _ = whole
    fault = Fault(int(share * calls), error)
    assert fail_and_repeat(slides, tmp_path / "out", fault, expected) == 1


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("error", sorted(FULL))
def test_each_tenth_call_may_fail(slides, whole, tmp_path, error, record_property):
    expected, calls, _ = whole
    numbers = range(1, min(calls, 200), 10)
    codes = [
        fail_and_repeat(slides, tmp_path / str(n), Fault(n, error), expected)
        for n in numbers
    ]
    assert set(codes) <= {0, 1}  # what may be missing (plans.json) fails no run
    record_property("measured", f"{len(codes)} of {len(codes)} calls with {error}")


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in memory of so many bytes."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may mount no tmpfs here: injected errors stand for it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_and_free(
    slides: list[Path], folder: Path, size_bytes: int, expected: dict[str, bytes]
) -> None:
    with small_disk(folder, size_bytes) as disk:
        told = folder.with_name(f"{folder.name}.told")
        assert run(slides, disk / "out", told=told) == 1
        check_clean(disk / "out")
        words = " ".join(reasons(disk / "out")) or told.read_text()
        assert "No space left" in words or "are free there" in words, words
        subprocess.run(["mount", "-o", "remount,size=1g", "tmpfs", folder], check=True)
        assert run(slides, disk / "out") == 0
        assert leftovers(disk / "out") == []
        assert results_of(disk / "out") == expected


def test_a_small_disk_is_survived(slides, whole, tmp_path):
    expected, _, needed = whole
    fill_and_free(slides, tmp_path / "disk", needed // 2, expected)


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
def test_disks_of_twenty_sizes_are_survived(slides, whole, tmp_path, record_property):
    expected, _, needed = whole
    for percent in [1, *range(5, 96, 5)]:
        size = needed * percent // 100 // 4096 * 4096 + 4096
        fill_and_free(slides, tmp_path / str(percent), size, expected)
    record_property("measured", "20 of 20 sizes of tmpfs clean, then the same bytes")


def test_without_staging_a_full_disk_leaves_half_a_file(tmp_path):
    """The negative control: the same write, to its final name."""
    if not shutil.which("mount"):
        pytest.skip("no mount here")
    data = bytes(4 * 4096)
    with small_disk(tmp_path / "disk", 3 * 4096) as disk:
        with pytest.raises(OSError, match="space"), staged(disk / "a") as path:
            path.write_bytes(data)
        assert list(disk.iterdir()) == []
        with pytest.raises(OSError, match="space"):
            (disk / "a").write_bytes(data)
        assert 0 < (disk / "a").stat().st_size < len(data)
