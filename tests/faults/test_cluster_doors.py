"""Nobody is let in: no door is opened, and clusters are spoken to through TLS."""

import os
import socket
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster
from distributed.security import Security

from tests.slides import info_of
from wsi_pipeline import cluster
from wsi_pipeline.cluster import Tls, Workers, remote_client
from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ConfigError


def doors() -> set[tuple[str, int]]:
    """Addresses at which this process and those it started listen."""
    own = psutil.Process()
    return {
        connection.laddr
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_processes_and_threads_listen_nowhere() -> None:
    before = doors()
    for scheduler in ("processes", "threads", "auto"):
        with Workers(scheduler, 1) as workers:
            pool = workers.pool_for(info_of((40_000, 40_000)))
            if pool is not None:
                assert pool.submit(os.getpid).result() != os.getpid()
            assert doors() == before
    with socket.create_server(("127.0.0.1", 0)):
        assert doors() != before  # a door would have been seen


@pytest.mark.filterwarnings("default")  # of the cluster as it ends
def test_a_cluster_with_tls_is_reached_with_its_certificates_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_S", 3)
    own = Security.temporary()
    files = [tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")]
    texts = own.tls_ca_file, own.tls_client_cert, own.tls_client_key
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    with LocalCluster(
        n_workers=1,
        processes=False,
        host="127.0.0.1",
        protocol="tls://",
        security=own,
        dashboard_address="127.0.0.1:0",
    ) as running:
        address = running.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        options = TileOptions(
            scheduler=address, tls_ca=files[0], tls_cert=files[1], tls_key=files[2]
        )
        with Workers.of(options) as workers:
            pool = workers.pool_for(info_of((600, 600)))
            assert pool.submit(int, "7").result() == 7
        with (
            pytest.raises(ConfigError, match="no Dask scheduler"),
            remote_client(address),
        ):
            pass


def test_files_of_tls_are_given_together_with_such_an_address(tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    every = {"tls_ca": file, "tls_cert": file, "tls_key": file}
    for wrong in (
        {"tls_ca": file, "scheduler": "tls://host:1"},
        every,
        every | {"scheduler": "tcp://host:1"},
    ):
        with pytest.raises(ConfigError, match="given together"):
            TileOptions(**wrong)
    TileOptions(**every, scheduler="wss://host:1")
    with (
        pytest.raises(ConfigError, match="no such file for TLS"),
        remote_client("tls://127.0.0.1:9", Tls(file, file, file)),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        *(("tcp://127.0.0.1:9", False), ("tcp://localhost:9", False)),
        *(("tcp://[::1]:9", False), ("tls://10.0.0.1:9", False)),
        *(("tcp://10.0.0.1:9", True), ("ws://head.example:9", True)),
        ("tcp://[[head:9", False),
    ],
)
def test_an_address_in_the_open_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    address: str,
    warned: bool,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not asked")

    monkeypatch.setattr(cluster, "Client", refuse)
    with pytest.raises(ConfigError), remote_client(address):
        pass
    assert ("neither encrypted" in caplog.text) == warned
