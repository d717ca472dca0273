"""A worker's metrics and health over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from dataflow.control.metrics_door import MetricsDoor
from dataflow.core.errors import DataflowError


def get(port: int, path: str, token: str = "") -> tuple[int, bytes]:
    head = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=head)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_metrics_and_health() -> None:
    state = {"ready": False}
    with MetricsDoor("127.0.0.1", 0, lambda: b"up 1\n", lambda: state["ready"]) as door:
        assert get(door.port, "/metrics") == (200, b"up 1\n")
        assert get(door.port, "/livez")[0] == 200
        assert get(door.port, "/readyz")[0] == 503
        state["ready"] = True
        assert get(door.port, "/readyz")[0] == 200
        assert get(door.port, "/nonsense")[0] == 404
    with pytest.raises(urllib.error.URLError):
        get(door.port, "/livez")


def test_a_token_protects_metrics_and_not_health() -> None:
    with MetricsDoor("127.0.0.1", 0, lambda: b"up 1\n", lambda: True, "secret") as door:
        assert get(door.port, "/metrics")[0] == 401
        assert get(door.port, "/metrics", "wrong")[0] == 401
        assert get(door.port, "/metrics", "secret") == (200, b"up 1\n")
        assert get(door.port, "/readyz")[0] == 200


def test_strangers_are_not_served_without_a_token() -> None:
    with pytest.raises(DataflowError, match=r"0\.0\.0\.0 to everyone \(set DATAFLOW_TOKEN"):
        MetricsDoor("0.0.0.0", 0, bytes, lambda: True)


def test_a_port_in_use_is_said() -> None:
    with (
        MetricsDoor("127.0.0.1", 0, bytes, lambda: True) as door,
        pytest.raises(DataflowError, match=f"127.0.0.1:{door.port}"),
    ):
        MetricsDoor("127.0.0.1", door.port, bytes, lambda: True)
