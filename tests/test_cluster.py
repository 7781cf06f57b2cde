"""Who tiles the blocks: threads, processes, Dask clusters, and how they fail."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path

import pytest

from tests.servers import local_client
from tests.slides import NumberSlide
from tests.test_tiling import SMALL, digest
from wsi_pipeline import cluster
from wsi_pipeline.cluster import Workers, processes
from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ConfigError, ExportError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.places import as_place
from wsi_pipeline.tiling import tile_slide


def test_an_existing_dask_cluster_does_the_same_work(tmp_path):
    slide = NumberSlide.of(2600, 1900)
    threads = tile_slide(slide, tmp_path / "threads.zarr", SMALL)
    with local_client(1) as running:
        address = TileOptions(scheduler=running.scheduler.address).scheduler
        with Workers(address) as workers:
            pool = workers.pool_for(slide.info)
            there = tile_slide(slide, tmp_path / "there.zarr", SMALL, pool=pool)
    assert digest(threads.path) == digest(there.path)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE_S", 1)
    with (
        pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127"),
        Workers("tcp://127.0.0.1:9"),
    ):
        pass


@pytest.mark.parametrize("wrong", ["thread", "127.0.0.1:8786", "tcp://", "file:///x"])
def test_a_scheduler_is_one_of_the_words_or_an_address(wrong):
    with pytest.raises(ConfigError, match="scheduler"):
        TileOptions(scheduler=wrong)


def test_a_cluster_leaves_nothing_when_a_block_cannot_be_read(tmp_path):
    slide = NumberSlide.of(6000, 6000, broken=Box(1500, 1500, 1, 1))
    with local_client(2) as client:
        with pytest.raises(SlideError, match="damaged"):
            tile_slide(slide, tmp_path / "a.zarr", SMALL, pool=client)
        assert not client.processing() or not any(client.processing().values())
        assert list(tmp_path.iterdir()) == []


def test_processes_leave_nothing_when_a_block_cannot_be_read(tmp_path):
    slide = NumberSlide.of(6000, 6000, broken=Box(1500, 1500, 1, 1))
    with processes(2) as pool:
        with pytest.raises(SlideError, match="damaged"):
            tile_slide(slide, tmp_path / "a.zarr", SMALL, pool=pool)
        assert list(tmp_path.iterdir()) == []
        whole = NumberSlide.of(600, 600)
        assert tile_slide(whole, tmp_path / "b.zarr", SMALL, pool=pool).levels


@dataclass(frozen=True)
class DeadlySlide(NumberSlide):
    """Kills the process that reads it, as a decoder may."""

    def read_planes(self, box, level=0):
        if parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_planes(box, level)


def test_a_process_that_dies_fails_its_slide_and_is_replaced(tmp_path):
    deadly, good = DeadlySlide.of(3000, 3000), NumberSlide.of(600, 600)
    with Workers("processes", 2) as workers:
        pool = workers.pool_for(deadly.info)
        with pytest.raises(ExportError, match="fewer --workers"):
            tile_slide(deadly, tmp_path / "a.zarr", SMALL, pool=pool)
        assert list(tmp_path.iterdir()) == []
        pool = workers.pool_for(good.info)
        assert tile_slide(good, tmp_path / "b.zarr", SMALL, pool=pool).levels


def test_processes_are_started_once_and_only_for_what_is_worth_it():
    small, large = NumberSlide.of(3000, 3000).info, NumberSlide.of(40000, 40000).info
    with Workers("auto", 2) as workers:
        assert workers.pool_for(small) is None
        pool = workers.pool_for(large)
        assert isinstance(pool, ProcessPoolExecutor)
        assert workers.pool_for(large) is pool is workers.pool_for(small)
    with Workers("auto", 1) as workers:
        assert workers.pool_for(large) is None
    with Workers("threads", 2) as workers:
        assert workers.pool_for(large) is None


def test_of_several_slides_each_is_tiled_by_processes():
    small = NumberSlide.of(3000, 3000).info
    remote = replace(small, path=as_place("memory://slides/a.tif"))
    with Workers.of(TileOptions(workers=1), apart=True) as workers:
        pool = workers.pool_for(small)
        assert isinstance(pool, ProcessPoolExecutor)
        assert workers.pool_for(small) is pool
    with Workers.of(TileOptions(workers=1), apart=True) as workers:
        assert workers.pool_for(remote) is None
    with Workers.of(TileOptions(scheduler="threads"), apart=True) as workers:
        assert workers.pool_for(small) is None


def interrupted_at_start(pool):
    """Send Ctrl-C to a process that is just starting; what it answers then."""
    with pool:
        future = pool.submit(os.getpid)
        (number,) = pool._processes
        os.kill(number, signal.SIGINT)
        return future.result() == number


def test_a_process_that_is_interrupted_while_it_starts_works_on():
    assert interrupted_at_start(processes(1))


def test_unguarded_it_would_end_with_an_error():
    unguarded = ProcessPoolExecutor(1, get_context("spawn"), cluster._begin)
    with pytest.raises(BrokenExecutor):
        interrupted_at_start(unguarded)


def test_processes_end_with_their_parent():
    script = (
        "import os, signal, sys\n"
        "from wsi_pipeline.cluster import processes\n"
        "if __name__ == '__main__':\n"
        "    pool = processes(1)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    child = Path(f"/proc/{int(run.stdout)}")
    deadline = time.monotonic() + 10
    while child.exists() and _state(child) != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or _state(child) == "Z"


def _state(process):
    try:
        return (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
