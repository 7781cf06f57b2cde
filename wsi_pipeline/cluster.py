"""Dask clients: a cluster of processes on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster

from wsi_pipeline.process import cpu_count


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
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
