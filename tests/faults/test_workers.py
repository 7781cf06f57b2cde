"""A worker that dies or stalls costs time only; a block that kills costs its slide."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray

from tests.servers import local_client
from tests.slides import NumberSlide
from wsi_pipeline.cluster import processes
from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ExportError
from wsi_pipeline.geometry import Box
from wsi_pipeline.publishing import list_files, sha256_file
from wsi_pipeline.tiling import tile_slide
from wsi_pipeline.tiling.watching import Watchdog

pytestmark = pytest.mark.promise("R7")

SIZE = 4096, 2048
OPTIONS = TileOptions(block_px=512, chunk_px=64, scheduler="threads", workers=2)


@dataclass(frozen=True)
class SlowSlide(NumberSlide):
    """Its reads take a while; one box hangs once, or kills whoever reads it."""

    seconds: float = 0.0
    hangs: tuple[Box, Path] | None = None
    kills: Box | None = None

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        time.sleep(self.seconds)
        if self.kills and self.kills.intersect(box).area_px:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hangs and self.hangs[0].intersect(box).area_px:
            flag = self.hangs[1]
            if not flag.exists():
                flag.touch()
                time.sleep(3600)
        return super().read(box, level)


CORNER = Box(0, 0, 8, 8)
PATIENCE_S = 90.0  # beyond what a new worker takes to start on a busy machine


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_client(2) as made:
        made.wait_for_workers(2)
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return digests(tile(tmp_path_factory.mktemp("whole"), SlowSlide.of(*SIZE)))


def tile(
    folder: Path,
    slide: SlowSlide,
    pool: Client | ProcessPoolExecutor | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> Path:
    told, path = OPTIONS.model_copy(update=options), folder / "s.zarr"
    return Path(tile_slide(slide, path, told, pool=pool, progress=progress).path)


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256_file(file)
        for file in list_files(folder)
    }


class Killer:
    """Kills a worker whenever one of some blocks has ended."""

    def __init__(self, client: Client, seed: int) -> None:
        self._client, self._random = client, np.random.default_rng(seed)
        self._when = {int(n) for n in self._random.integers(1, 30, 3)}
        self.killed: list[int] = []

    def __call__(self, done: int, total: int) -> None:
        if done in self._when:
            alive = self._client.run(os.getpid, on_error="ignore").values()
            if alive:
                victim = int(self._random.choice(sorted(alive)))
                os.kill(victim, signal.SIGKILL)
                self.killed.append(victim)


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=() if n < 2 else pytest.mark.faults) for n in range(20)],
)
def test_dead_workers_cost_time_only(
    client: Client, undisturbed: dict[str, str], tmp_path: Path, seed: int
) -> None:
    killer = Killer(client, seed)
    made = tile(tmp_path, SlowSlide.of(*SIZE, seconds=0.01), client, killer)
    assert killer.killed
    assert digests(made) == undisturbed


def hanging(folder: Path) -> SlowSlide:
    """A slide over which the first worker to read a corner hangs."""
    return SlowSlide.of(*SIZE, hangs=(CORNER, folder / "hung"))


@pytest.mark.faults
def test_stalled_workers_are_replaced(
    client: Client, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    client.wait_for_workers(2)
    made = tile(tmp_path, hanging(tmp_path), client, patience=PATIENCE_S)
    assert (tmp_path / "hung").exists()
    assert digests(made) == undisturbed


@pytest.mark.faults
def test_without_a_watchdog_a_stalled_worker_is_waited_for(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watchdog, "_watch", lambda self: None)
    work = Thread(target=tile, args=(tmp_path, hanging(tmp_path), client))
    work.start()
    work.join(PATIENCE_S)
    waited = work.is_alive()
    client.restart()
    work.join()
    assert waited


def test_stalled_processes_end_the_slide_and_say_so(tmp_path: Path) -> None:
    with processes(1) as pool, pytest.raises(ExportError, match="died or stalled"):
        tile(tmp_path, hanging(tmp_path), pool, patience=20.0)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.faults
def test_a_block_that_kills_its_workers_fails_its_slide_only(
    client: Client, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="workers died or stalled"):
        tile(tmp_path, SlowSlide.of(*SIZE, kills=CORNER), client)
    assert not (tmp_path / "s.zarr").exists()
    assert digests(tile(tmp_path, SlowSlide.of(*SIZE), client)) == undisturbed


def test_a_watchdog_barks_only_when_nothing_moves() -> None:
    barks: list[float] = []
    with Watchdog(0.5, lambda: barks.append(time.monotonic())) as watchdog:
        watchdog.tell()
        assert not barks
        start = time.monotonic()
        while not barks and time.monotonic() < start + 60:
            time.sleep(0.01)
    assert barks
    count = len(barks)
    time.sleep(0.7)
    assert len(barks) == count  # it went with its block
