"""Servers on loopback: an S3 store (moto) and a web server, both of which can fail;
a Dask cluster."""

import base64
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import dask
from distributed import Client, LocalCluster
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Store:
    """A running S3 store.

    Parameters
    ----------
    url : str
        Its endpoint.
    requests : list of (method, path, range)
        What it was asked for.
    refused, cut : str
        Part of the names of objects that nobody may read, and of those that come short.
    cuts : int
        How many answers are still to come short.
    """

    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    refused: str = "forbidden"
    cut: str = "/cut."
    cuts: int = 0

    def count(self, method: str) -> int:
        return sum(m == method for m, _, _ in self.requests)

    def wrap(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Any]:
        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            asked = environ.get("HTTP_RANGE", "")
            self.requests.append((method, path, asked))
            if self.refused in path:
                start("403 Forbidden", [("Content-Length", str(len(REFUSAL)))])
                return [] if method == "HEAD" else [REFUSAL]
            if self.cut in path and method == "GET" and asked and self.cuts:
                self.cuts -= 1
                return self._short(app, environ, start)
            return app(environ, start)

        return answer

    def _short(
        self,
        app: Callable[..., Iterable[bytes]],
        environ: dict[str, Any],
        start: Callable[..., Any],
    ) -> Iterable[bytes]:
        """Half of what was asked for, as if it were all."""
        told: list[Any] = []
        body = b"".join(app(environ, lambda *words: told.extend(words)))
        status, headers = told[:2]
        half = body[: len(body) // 2]
        kept = [h for h in headers if h[0].lower() != "content-length"]
        start(status, [*kept, ("Content-Length", str(len(half)))])
        return [half]


class _Quiet(WSGIRequestHandler):
    def log(self, *args: object) -> None: ...


@contextmanager
def s3_store() -> Iterator[Store]:
    store = Store()
    app = store.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Web:
    """A running web server.

    Parameters
    ----------
    url : str
        Its address.
    files : dict of str to bytes
        Name to content.
    user, query : str
        "user:password" and the query that every request has to carry, if any.
    ranges : bool
        Whether parts of files can be asked for.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    user: str = ""
    query: str = ""
    ranges: bool = True


@contextmanager
def web_server() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # http.server's name
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def log_message(self, *args: object) -> None: ...

        def _answer(self, whole: bool) -> None:
            parts = urlsplit(self.path)
            wanted = "Basic " + base64.b64encode(web.user.encode()).decode()
            stranger = web.user and self.headers.get("Authorization") != wanted
            data = web.files.get(parts.path.lstrip("/"))
            if stranger or (web.query and parts.query != web.query):
                status, body = 403, b"no"
            elif data is None:
                status, body = 404, b"gone"
            else:
                status, body = 200, data
            asked = self.headers.get("Range", "")
            self.send_response(
                206 if asked and status == 200 and web.ranges else status
            )
            if asked and status == 200 and web.ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                stop = int(last) + 1 if last else len(body)
                span = f"bytes {first}-{min(stop, len(body)) - 1}/{len(body)}"
                self.send_header("Content-Range", span)
                body = body[int(first) : stop]
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if whole:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A Dask cluster of processes."""
    spawn = {"distributed.worker.multiprocessing-method": "spawn"}
    with (
        dask.config.set(spawn),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None still takes port 8787
        ) as running,
        Client(running) as client,
    ):
        yield client
