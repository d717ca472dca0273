"""One `dataflow up` over one project, for all tests that only ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import wait_for
from tests.e2e.processes import Running
from tests.e2e.project import FILES, train_iris, write_files


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_files(tmp_path_factory.mktemp("plant"), FILES)
    train_iris(folder / "pipelines/iris/iris.onnx")
    return folder


@pytest.fixture(scope="session")
def up(project: Path) -> Iterator[Running]:
    """`dataflow up --port 0 --ephemeral`, ready to answer."""
    with Running(project, "up", "--port", "0", "--ephemeral") as running:
        running.shows("Ctrl-C")
        yield running


@pytest.fixture(scope="session")
def url(up: Running, project: Path) -> str:
    """Of the gateway, as the state file says, once every pipeline is ready."""
    address = str(json.loads((project / ".dataflow/up.json").read_text())["gateway"])
    wait_for(lambda: httpx.get(f"{address}/v2/health/ready").status_code == 200, "readiness")
    return address


@pytest.fixture(scope="session")
def door(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
