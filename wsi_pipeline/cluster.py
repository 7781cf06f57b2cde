"""Dask clients: processes on this machine, or a cluster that is running."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import dask
from distributed import Client, LocalCluster

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.process import cpu_count

_PATIENCE_S = 15


def client_of(
    scheduler: str, workers: int = 0
) -> AbstractContextManager[Client | None]:
    """The client that `TileOptions.scheduler` asks for.

    Parameters
    ----------
    scheduler : str
        "threads", "processes", or the address of a Dask scheduler.
    workers : int
        Processes; 0 = one per CPU. An existing cluster has its own.

    Returns
    -------
    context manager of distributed.Client or None
        None stands for threads of this process.
    """
    if scheduler == "threads":
        return nullcontext()
    return (
        local_client(workers) if scheduler == "processes" else remote_client(scheduler)
    )


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
            "threads, processes, or the address that `dask scheduler` prints"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise ConfigError(f"the Dask scheduler at {address} has no workers")
        yield client


@contextmanager
def local_client(workers: int = 0) -> Iterator[Client]:
    """Start worker processes that listen on loopback only, and stop them at the end.

    Parameters
    ----------
    workers : int
        Processes; 0 = one per CPU.

    Yields
    ------
    distributed.Client
    """
    spawn = {"distributed.worker.multiprocessing-method": "spawn"}
    with (
        dask.config.set(spawn),
        LocalCluster(
            n_workers=workers or cpu_count(),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None still takes port 8787
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
