"""A broken slide never takes down the batch, whatever it does to its reader."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.conftest import ROOT
from tests.faults.mutants import PLAIN, make_bases, mutants
from tests.faults.victims import results_of
from tests.test_cluster import DeadlySlide
from tests.tiff_files import write_make
from wsi_pipeline.batch import BatchHooks, run_batch
from wsi_pipeline.cli import info
from wsi_pipeline.cluster import Workers
from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import SlideError
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.readers import probe
from wsi_pipeline.readers.probe import Prober
from wsi_pipeline.stages import SlideJob

pytestmark = pytest.mark.promise("R3")

GOOD, LONGEST_S = 5, 120.0
KILLERS = "from tests.faults.killers import serve; serve()"
QUICK = RunConfig().updated("export", detections="none").updated("tile", workers=1)
ALL = [pytest.mark.faults, pytest.mark.timeout(3600)]  # minutes on two cores
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder of sound slides, and their results when nothing else is there."""
    folder = tmp_path_factory.mktemp("good")
    slides = folder / "slides"
    slides.mkdir()
    for number in range(GOOD):
        write_make(slides / f"{number * 37:03}-good.tif", PLAIN, seed=number)
    result = run_batch([slides], folder / "out", find_model("synthetic"), QUICK)
    assert result.exit_code == 0
    return slides, results_of(folder / "out")


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=ALL)])
def test_damaged_slides_between_sound_ones_are_classed_one_by_one(
    tmp_path: Path,
    good: tuple[Path, dict[str, bytes]],
    record_property: Record,
    count: int,
) -> None:
    slides, expected = good
    folder = tmp_path / "slides"
    folder.mkdir()
    for path in slides.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = Path(os.environ.get("WSI_DATA", ROOT.parent / "shared" / "data"))
    bases = make_bases(tmp_path, data if data.is_dir() else None)
    for name, content in mutants(bases, count):
        (folder / name).write_bytes(content)
    times: list[float] = []
    hooks = BatchHooks(
        started=lambda *_: times.append(time.monotonic()),
        ended=lambda _: times.append(time.monotonic() - times.pop()),
    )
    out = tmp_path / "out"
    result = run_batch([folder], out, find_model("synthetic"), QUICK, hooks=hooks)
    assert len(result.outcomes) == len(times) == count + GOOD
    assert max(times) < LONGEST_S
    found = {o.path.name: o.manifest for o in result.outcomes}
    wrong = {
        name: manifest.reason
        for name, manifest in found.items()
        if (manifest.status != "done" and not manifest.reason)
        or "unexpected" in manifest.reason
    }
    assert wrong == {}
    assert all(m.status == "done" for name, m in found.items() if "good" in name)
    ids = {m.slide_id for name, m in found.items() if "good" in name}
    here = {n: v for n, v in results_of(out).items() if n.partition("/")[0] in ids}
    assert here == expected
    assert result.exit_code == 3
    kinds = Counter(m.status for name, m in found.items() if "good" not in name)
    assert kinds["failed"] > count // 4
    told = ", ".join(f"{number} {status}" for status, number in sorted(kinds.items()))
    record_property("figure", f"{count} of {count} classed: {told}; 5 of 5 identical")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children whose reader some slides abort, hang or fill with memory."""
    monkeypatch.setattr(probe, "SERVE", KILLERS)


def test_a_slide_that_kills_hangs_or_fills_its_reader_fails_alone(
    tmp_path: Path, killed: None
) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("1-good", "2-aborting", "3-hanging", "4-eating", "5-good"):
        write_make(tmp_path / "slides" / f"{name}.tif", PLAIN)
    config = QUICK.updated("probe", seconds=15)
    result = run_batch(
        [tmp_path / "slides"], tmp_path / "out", find_model("synthetic"), config
    )
    assert [o.manifest.status for o in result.outcomes] == [
        *("done", "failed", "failed", "failed", "done")
    ]
    reasons = [o.manifest.reason for o in result.outcomes[1:4]]
    assert reasons[0].startswith("reading it crashed the reader (signal 6)")
    assert reasons[1].startswith("opening it takes over 15 s")
    assert reasons[2].startswith("opening it needs more than 8192 MiB of memory")
    assert result.exit_code == 3


def test_a_listing_goes_on_behind_such_a_slide(
    tmp_path: Path, killed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1-good", "2-aborting", "3-good"):
        write_make(tmp_path / f"{name}.tif", PLAIN)
    with pytest.raises(typer.Exit) as caught:
        info([str(tmp_path)], as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert ["error" in row for row in rows] == [False, True, False]
    assert caught.value.exit_code == 3


def test_in_the_batchs_own_process_it_would_end_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "aborting.tif"
    write_make(path, PLAIN)
    code = (
        "import sys; from pathlib import Path; from tests.faults.killers import probe\n"
        "probe.open_slide(Path(sys.argv[1]))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGABRT


def test_a_slide_that_failed_by_a_limit_is_tried_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_make(tmp_path / "slide.tif", PLAIN)
    slides, out, model = [tmp_path / "slide.tif"], tmp_path / "out", "synthetic"
    few = QUICK.updated("probe", pixels=1000)
    probed = []
    look = Prober.probe

    def counted(self: Prober, *args: Any, **kwargs: Any) -> Any:
        probed.append(args)
        return look(self, *args, **kwargs)

    monkeypatch.setattr(Prober, "probe", counted)
    for config, status, looks in (
        (few, "failed", 1),
        (few, "failed", 1),
        (QUICK, "done", 2),
    ):
        (outcome,) = run_batch(slides, out, find_model(model), config).outcomes
        assert (outcome.manifest.status, len(probed)) == (status, looks)


@pytest.mark.parametrize("apart", [True, False])
def test_a_slide_that_kills_who_tiles_it_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """The deadly slide spares the main process, where it must not be read at all."""
    (tmp_path / "slides").mkdir()
    for name in ("1-good", "2-deadly", "3-good"):
        write_make(tmp_path / "slides" / f"{name}.tif", PLAIN)
    opened = SlideJob.open

    def deadly(self: SlideJob, config: RunConfig) -> Any:
        if "deadly" in self.path.name:
            return DeadlySlide.of(640, 480)
        return opened(self, config)

    monkeypatch.setattr(SlideJob, "open", deadly)
    if not apart:
        with_threads = Workers.of
        monkeypatch.setattr(Workers, "of", lambda tile, **_: with_threads(tile))
    result = run_batch(
        [tmp_path / "slides"], tmp_path / "out", find_model("synthetic"), QUICK
    )
    statuses = [o.manifest.status for o in result.outcomes]
    assert statuses == ["done", "failed" if apart else "done", "done"]


def test_looking_at_a_slide_first_costs_milliseconds(
    tmp_path: Path, record_property: Record
) -> None:
    """Of processor time in the child, which is what other work on it cannot change."""
    path = tmp_path / "slide.tif"
    write_make(path, PLAIN)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from wsi_pipeline.readers.probe import _look\n"
        "path = Path(sys.argv[1]); _look(path, None, '', None)\n"
        "start = time.process_time()\n"
        "for _ in range(20): _look(path, None, '', None)\n"
        "print((time.process_time() - start) / 20)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, check=True
    )
    seconds = json.loads(run.stdout)
    record_property("figure", f"{1000 * seconds:.0f} ms a slide")
    assert seconds < 0.05


def test_one_child_serves_a_batch(tmp_path: Path) -> None:
    write_make(tmp_path / "slide.tif", PLAIN)
    (tmp_path / "bad.tif").write_bytes(b"II*\0")
    with Prober() as prober:
        children = set()
        for name in ("slide.tif", "bad.tif", "slide.tif"):
            try:
                prober.probe(tmp_path / name)
            except SlideError:
                assert name == "bad.tif"
            assert prober._child is not None
            children.add(prober._child.pid)
    assert len(children) == 1
