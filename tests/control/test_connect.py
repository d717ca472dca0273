from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.control.connect import connect, find_address
from dataflow.core.errors import BrokerError, SpecError, TransportError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "dataflow.yaml").write_text(
        "kafka:\n  bootstrap: prod:9092\n  sasl.username: me\n  sasl.password: {file: secret}\n"
    )
    return tmp_path


def test_the_first_that_is_named_counts(project: Path, tmp_path: Path) -> None:
    environ = {"DATAFLOW_BOOTSTRAP": "env:1"}
    named = find_address(project, "option:1", environ)
    assert named is not None
    assert (named.bootstrap, named.source) == ("option:1", "--bootstrap")
    from_environ = find_address(project, None, environ)
    assert from_environ is not None
    assert from_environ.bootstrap == "env:1"
    declared = find_address(project, None, {})
    assert declared is not None
    assert (declared.bootstrap, declared.settings["sasl.password"]) == ("prod:9092", "hunter2")
    assert find_address(None, None, {}) is None


def test_credentials_go_only_where_they_were_declared_for(project: Path) -> None:
    other = find_address(project, "other:9092", {})
    assert other is not None
    assert other.settings == {}
    same = find_address(project, "prod:9092", {})
    assert same is not None
    assert same.settings["sasl.username"] == "me"
    (project / "dataflow.yaml").write_text("kafka:\n  sasl.username: me\n")
    anywhere = find_address(project, "other:9092", {})
    assert anywhere is not None
    assert anywhere.settings == {"sasl.username": "me"}


def test_secrets_are_not_shown(project: Path) -> None:
    assert "hunter2" not in repr(find_address(project, None, {}))
    (project / "secret").unlink()
    with pytest.raises(SpecError, match=r"sasl\.password: cannot read 'secret'"):
        find_address(project, None, {})


def test_no_broker_is_known(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"no broker is known.*dataflow broker start"):
        connect(tmp_path, None, {})


@pytest.mark.broker
def test_a_broker_that_answers(bootstrap: str, tmp_path: Path) -> None:
    fabric = connect(tmp_path, None, {"DATAFLOW_BOOTSTRAP": bootstrap})
    assert fabric.admin().cluster_id()
    fabric.close()


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"no broker answers at 127\.0\.0\.1:1 \(from --bootstrap\)"):
        connect(tmp_path, "127.0.0.1:1", {})
