"""The wheel, alone: installed in an empty environment, used in an empty folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_for

ROOT = Path(__file__).parent.parent


def uv() -> str:
    found = shutil.which("uv") or str(ROOT / ".uv/bin/uv")
    assert Path(found).exists(), "make setup brings uv"
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `dataflow` command of an environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([uv(), "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)], check=True)
    wheel = next(folder.glob("*.whl"))
    environment = folder / "env"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    # What the lock says, so that the test does not depend on the day.
    locked = subprocess.run(
        [uv(), "export", "--frozen", "--quiet", "--no-hashes", "--no-emit-project", "--no-default-groups",
         "--extra", "cpu", "--extra", "local"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    (folder / "constraints.txt").write_text(locked)
    subprocess.run(
        [uv(), "pip", "install", "--quiet", "--python", str(environment), "--constraint",
         str(folder / "constraints.txt"), f"{wheel}[cpu,local]"],
        check=True,
    )  # fmt: skip
    return environment / "bin" / "dataflow"


@pytest.fixture(scope="module")
def project(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    run(installed, folder, "new", "shop")
    return folder / "shop"


def run(command: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [command, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, f"dataflow {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_has_the_kinds_of_the_tree(installed: Path, tmp_path: Path) -> None:
    from dataflow.registry import Registry

    listed = json.loads(run(installed, tmp_path, "nodes", "--format", "json"))
    assert sorted(k["name"] for k in listed["kinds"]) == sorted(
        k.name for k in Registry.default(None).kinds()
    )


def test_a_new_project_lints_and_tests(installed: Path, project: Path) -> None:
    run(installed, project, "lint")
    run(installed, project, "test")


@pytest.fixture
def up(installed: Path, project: Path) -> Iterator[str]:
    """Address of the new project's gateway, run by `dataflow up` on its own broker."""
    state = project / ".dataflow" / "up.json"
    process = subprocess.Popen([installed, "up", "--port", "0", "--ephemeral", "--no-reload"], cwd=project)
    try:
        wait_for(lambda: state.exists() or process.poll() is not None, "dataflow up", 90)
        assert process.poll() is None, "dataflow up ended"
        yield json.loads(state.read_text())["gateway"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not state.exists()


@pytest.mark.broker
def test_a_new_project_runs(up: str) -> None:
    assert json.load(urllib.request.urlopen(f"{up}/v2/models", timeout=10)) == {"models": ["shop"]}
    record = {"sensor": "s1", "celsius": 40.0, "at": "2024-05-01T12:30:00Z"}
    request = urllib.request.Request(f"{up}/pipelines/shop", json.dumps(record).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["fahrenheit"] == 104.0
