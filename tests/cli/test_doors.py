from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dataflow.cli import doors
from dataflow.cli.doors import Door, grpc_port_of
from dataflow.core.errors import DataflowError
from dataflow.gateway.connection import DoorLimits
from dataflow.spec import Project, load_project


def project(folder: Path, gateway: str = "") -> Project:
    (folder / "dataflow.yaml").write_text(f"kind: Project\nname: p\n{gateway}\n")
    return load_project(folder, environ={})


@pytest.mark.parametrize(
    ("gateway", "port", "wanted", "expected"),
    [
        ("", None, None, 0),
        ("", 8081, None, 8081),
        ("", None, False, None),
        ("", 8081, False, None),
        ("gateway: {grpc_port: 9001}", None, None, 9001),
        ("gateway: {grpc_port: 9001}", 0, None, 0),
        ("gateway: {grpc: false}", None, None, None),
        ("gateway: {grpc: false}", None, True, 0),
        ("gateway: {grpc: false}", 8081, None, 8081),
    ],
)
def test_options_say_more_than_settings(
    tmp_path: Path, gateway: str, port: int | None, wanted: bool | None, expected: int | None
) -> None:
    assert grpc_port_of(project(tmp_path, gateway), port, wanted=wanted) == expected


@pytest.mark.parametrize("absent", ["grpc", "grpc_health", "grpc_reflection"])
def test_without_grpcio_the_door_stays_shut_and_says_so(
    tmp_path: Path, absent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(name: str) -> Any:
        return None if name == absent else find_spec(name)

    monkeypatch.setattr(doors, "find_spec", found)
    made = project(tmp_path)
    assert grpc_port_of(made, None, wanted=None) is None
    assert "no gRPC door: grpcio is not installed" in "".join(capsys.readouterr())
    assert grpc_port_of(made, None, wanted=False) is None
    assert not "".join(capsys.readouterr())
    for port, wanted in ((8081, None), (None, True)):
        with pytest.raises(DataflowError, match="needs grpcio"):
            grpc_port_of(made, port, wanted=wanted)


def test_a_grpc_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        door = Door(project(tmp_path), None, 0, None, taken.getsockname()[1])
        with pytest.raises(DataflowError, match="cannot listen on"):
            door.reserve()


def test_limits_of_connections_are_set_in_the_project(tmp_path: Path) -> None:
    said = "gateway: {limits: {connections: 7, head: 5s, keep_alive: 5m}}"
    door = Door(project(tmp_path, said), None, 0, None, None)
    assert door.limits == DoorLimits(connections=7, head_ms=5_000, keep_alive_ms=300_000)
    assert Door(project(tmp_path), None, 0, None, None).limits == DoorLimits()
