"""Metrics and health of a process without a gateway, over HTTP: what a worker shows to Prometheus and to a scheduler."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

from dataflow.control.host import Host
from dataflow.core.errors import DataflowError
from dataflow.gateway.app import is_loopback

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


@contextmanager
def show_metrics(address: str, running: Host, environ: Mapping[str, str]) -> Iterator[str]:
    """Show what `running` does at ``[HOST:]PORT`` while the context is open, and yield the URL; "" shows it nowhere.

    DATAFLOW_TOKEN protects the metrics. Raises DataflowError for what is no address, see also `MetricsDoor`.
    """
    if not address:
        yield ""
        return
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise DataflowError(f"metrics: '{address}' is no address", hint="e.g. 9000 or 0.0.0.0:9000")
    token = environ.get("DATAFLOW_TOKEN", "")
    host = host.strip("[]") or "127.0.0.1"
    with MetricsDoor(host, int(port), running.shop.metrics.prometheus, lambda: running.ready, token) as door:
        yield f"http://{host}:{door.port}/metrics"


class MetricsDoor:
    """Serves ``/metrics``, ``/livez`` and ``/readyz`` on a thread of its own while the context is open.

    metrics  the Prometheus text; `ready` whether the process does its work. Both are called on the server's threads
    token    what ``Authorization: Bearer`` must say for the metrics; "" asks for none
    port     0 takes a free one; `self.port` is the one taken

    Raises DataflowError for an address that cannot be had, and for one that is not loopback without a token.
    """

    def __init__(
        self, host: str, port: int, metrics: Callable[[], bytes], ready: Callable[[], bool], token: str = ""
    ) -> None:
        if not token and not is_loopback(host):
            raise DataflowError(
                f"metrics would be shown on {host} to everyone", hint="set DATAFLOW_TOKEN, or use 127.0.0.1"
            )
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(metrics, ready, token))
        except OSError as error:
            raise DataflowError(
                f"metrics cannot be shown on {host}:{port}: {error.strerror or error}",
                hint="choose another port, or 0 for any free one",
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    metrics: Callable[[], bytes], ready: Callable[[], bool], token: str
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def do_GET(self) -> None:
            if self.path == "/livez":
                self._answer(200, b"live\n")
            elif self.path == "/readyz":
                is_ready = ready()
                self._answer(200 if is_ready else 503, b"ready\n" if is_ready else b"not ready\n")
            elif self.path != "/metrics":
                self._answer(404, b"valid: /metrics, /livez, /readyz\n")
            elif self._is_allowed():
                self._answer(200, metrics())
            else:
                self._answer(401, b"a token is needed: Authorization: Bearer TOKEN\n")

        def _is_allowed(self) -> bool:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            return not token or hmac.compare_digest(given.encode(), token.encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", _TEXT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
            """Scrapes are no news."""

    return Handler
