"""Who tiles the blocks of slides: threads, processes, or a Dask cluster that is there.

Threads share one Python and wait for each other: two of them keep 1.7 cores busy. Two
processes keep two, but take a second to start; they serve one slide after the other.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Self
from urllib.parse import urlsplit

from distributed import Client
from distributed.security import Security

from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.process import (
    cpu_count,
    keep_freed_memory,
    listen,
    undisturbed,
)
from wsi_pipeline.slide import SlideInfo

_log = logging.getLogger(__name__)
_PATIENCE_S = 15
_WORTH_PX = 1e9  # of a slide: below, starting processes takes as long as they save

type Pool = Client | ProcessPoolExecutor


@dataclass(frozen=True)
class Tls:
    """Files by which both sides of a connection know each other, PEM.

    Parameters
    ----------
    ca : Path
        Certificate of who signed both sides'.
    cert, key : Path
        This side's certificate and its key.
    """

    ca: Path
    cert: Path
    key: Path

    def security(self) -> Security:
        """What Dask is told; nothing is sent in the open.

        Raises
        ------
        ConfigError
            If a file is not there.
        """
        for file in (self.ca, self.cert, self.key):
            if not file.is_file():
                raise ConfigError(f"{file}: no such file for TLS")
        return Security(
            require_encryption=True,
            tls_ca_file=str(self.ca),
            tls_client_cert=str(self.cert),
            tls_client_key=str(self.key),
        )


class Workers:
    """Those that `TileOptions.scheduler` asks for; a context manager.

    Parameters
    ----------
    scheduler : str
        "threads", "processes", "auto" (processes from the first slide on that is worth
        it), or the address of a Dask scheduler.
    count : int
        Processes; 0 = one per CPU. An existing cluster has its own.
    apart : bool
        With "auto", processes for every local slide, however small: one that crashes or
        hangs its reader then takes nothing else with it.
    tls : Tls, optional
        For a scheduler at tls:// or wss://; left out, as Dask is configured.

    Raises
    ------
    ConfigError
        On entering, if no scheduler answers at the address, or it has no workers.
    """

    def __init__(
        self,
        scheduler: str = "auto",
        count: int = 0,
        *,
        apart: bool = False,
        tls: Tls | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._apart = apart
        self._tls = tls
        self._count = count or cpu_count()
        self._open = ExitStack()
        self._pool: Pool | None = None

    @classmethod
    def of(cls, options: TileOptions, *, apart: bool = False) -> Self:
        """Those of a config."""
        tls = None
        if options.tls_ca and options.tls_cert and options.tls_key:
            tls = Tls(options.tls_ca, options.tls_cert, options.tls_key)
        return cls(options.scheduler, options.workers, apart=apart, tls=tls)

    def __enter__(self) -> Self:
        if self._scheduler not in ("auto", "threads", "processes"):
            client = remote_client(self._scheduler, self._tls)
            self._pool = self._open.enter_context(client)
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
        if not isinstance(slide.path, Path):
            return False  # threads do for a slide that comes over the network
        w, h = slide.size_px
        return self._apart or (self._count > 1 and w * h >= _WORTH_PX)


@contextmanager
def remote_client(address: str, tls: Tls | None = None) -> Iterator[Client]:
    """Connect to a Dask scheduler; its workers must see the same files.

    This side listens nowhere. Who is connected runs code on the other side, so an
    address in the open that is not this machine's is warned of.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ConfigError
        If none answers at the address, or it has no workers, or a file of TLS is not
        there.
    """
    if _is_open(address):
        _log.warning(
            "%s: neither encrypted nor authenticated; start the scheduler with TLS and "
            "give tls:// where others can reach it",
            address,
        )
    security = tls.security() if tls else None
    try:
        client = Client(
            address, timeout=_PATIENCE_S, set_as_default=False, security=security
        )
    except (OSError, ValueError, TypeError) as error:  # TypeError: no certificates
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({error}); --scheduler takes "
            "auto, threads, processes, or the address that `dask scheduler` prints"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise ConfigError(f"the Dask scheduler at {address} has no workers")
        yield client


def _is_open(address: str) -> bool:
    """Whether an address is on the network, and without TLS."""
    try:
        parts = urlsplit(address)
    except ValueError:  # no address at all: connecting will say so
        return False
    if parts.scheme not in ("tcp", "ws"):
        return False
    try:
        return not ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname != "localhost"


def processes(count: int) -> ProcessPoolExecutor:
    """Fresh interpreters, which end with this process however it ends."""
    return _Processes(count, get_context("spawn"), _begin)


class _Processes(ProcessPoolExecutor):
    def submit[**P, T](
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """As `Executor.submit`, which starts the processes one by one."""
        with undisturbed():
            return super().submit(fn, *args, **kwargs)


def _begin() -> None:
    """Leave Ctrl-C to the parent, which waits for what is under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen()
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
