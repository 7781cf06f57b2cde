"""Who tiles the blocks of slides: threads, processes, or a Dask cluster that is there.

Threads share one Python and wait for each other: two of them keep 1.7 cores busy. Two
processes keep two, but take a second to start; they serve one slide after the other.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Self

from distributed import Client

from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.process import cpu_count, keep_freed_memory
from wsi_pipeline.slide import SlideInfo

_PATIENCE_S = 15
_WORTH_PX = 1e9  # of a slide: below, starting processes takes as long as they save

type Pool = Client | ProcessPoolExecutor


class Workers:
    """Those that `TileOptions.scheduler` asks for; a context manager.

    Parameters
    ----------
    scheduler : str
        "threads", "processes", "auto" (processes from the first slide on that is worth
        it), or the address of a Dask scheduler.
    count : int
        Processes; 0 = one per CPU. An existing cluster has its own.

    Raises
    ------
    ConfigError
        On entering, if no scheduler answers at the address, or it has no workers.
    """

    def __init__(self, scheduler: str = "auto", count: int = 0) -> None:
        self._scheduler = scheduler
        self._count = count or cpu_count()
        self._open = ExitStack()
        self._pool: Pool | None = None

    @classmethod
    def of(cls, options: TileOptions) -> Self:
        """Those of a config."""
        return cls(options.scheduler, options.workers)

    def __enter__(self) -> Self:
        if self._scheduler not in ("auto", "threads", "processes"):
            self._pool = self._open.enter_context(remote_client(self._scheduler))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def pool_for(self, slide: SlideInfo) -> Pool | None:
        """The pool that a slide is tiled by; None stands for threads."""
        if isinstance(self._pool, Client):
            return self._pool
        if self._scheduler == "threads":
            return None
        if self._pool is not None and not _is_broken(self._pool):
            return self._pool
        if self._scheduler == "processes" or self._is_worth_it(slide):
            self._pool = self._open.enter_context(processes(self._count))
            return self._pool
        return None

    def _is_worth_it(self, slide: SlideInfo) -> bool:
        w, h = slide.size_px
        # threads do for a slide that comes over the network
        return self._count > 1 and w * h >= _WORTH_PX and isinstance(slide.path, Path)


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """Connect to a Dask scheduler; its workers must see the same files.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ConfigError
        If none answers at the address, or it has no workers.
    """
    try:
        client = Client(address, timeout=_PATIENCE_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({error}); --scheduler takes "
            "auto, threads, processes, or the address that `dask scheduler` prints"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise ConfigError(f"the Dask scheduler at {address} has no workers")
        yield client


def processes(count: int) -> ProcessPoolExecutor:
    """Fresh interpreters, which end with this process however it ends."""
    return ProcessPoolExecutor(count, get_context("spawn"), _begin)


def _begin() -> None:
    """Leave Ctrl-C to the parent, which waits for what is under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _is_broken(pool: ProcessPoolExecutor) -> bool:
    """Whether one of its processes has died, which ends all."""
    try:
        pool.submit(int)
    except BrokenExecutor:
        return True
    return False
