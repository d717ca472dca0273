from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dataflow.core.errors import ModelError
from dataflow.serving import ensure_built

# Counts its runs in a file, and writes the model from what it reads.
SCRIPT = """
import pathlib
runs = pathlib.Path("runs.txt")
runs.write_text((runs.read_text() if runs.exists() else "") + "x")
print("training")
pathlib.Path("model.bin").write_text("made from " + pathlib.Path("data.csv").read_text())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "data.csv").write_text("1,2,3")
    return tmp_path


def runs(folder: Path) -> int:
    return len((folder / "runs.txt").read_text())


def test_built_on_first_use_and_then_kept(folder: Path) -> None:
    lines: list[str] = []
    first = ensure_built("m", folder, "model.bin", "python train.py", on_line=lines.append)
    again = ensure_built("m", folder, "model.bin", "python train.py")
    assert first.built
    assert not again.built
    assert runs(folder) == 1
    assert lines == ["training"]
    assert first.digest == again.digest == hashlib.sha256(b"made from 1,2,3").hexdigest()
    assert first.path == folder / "model.bin"


def test_built_again_when_script_command_or_file_changes(folder: Path) -> None:
    command = "python train.py"
    ensure_built("m", folder, "model.bin", command)
    (folder / "train.py").write_text(SCRIPT + "# changed\n")
    assert ensure_built("m", folder, "model.bin", command).built
    assert ensure_built("m", folder, "model.bin", "python  train.py").built
    (folder / "model.bin").unlink()
    assert ensure_built("m", folder, "model.bin", "python  train.py").built
    assert runs(folder) == 4


def test_declared_inputs_take_the_place_of_the_scripts(folder: Path) -> None:
    inputs = ["*.csv"]
    ensure_built("m", folder, "model.bin", "python train.py", inputs)
    (folder / "train.py").write_text(SCRIPT + "# changed\n")
    assert not ensure_built("m", folder, "model.bin", "python train.py", inputs).built
    (folder / "data.csv").write_text("4")
    assert ensure_built("m", folder, "model.bin", "python train.py", inputs).built
    (folder / "runs.txt").unlink()
    assert ensure_built("m", folder, "model.bin", "python train.py", ["*"]).built
    (
        folder / "runs.txt"
    ).unlink()  # an input that its own build writes; the artifact and the side files are none
    assert not ensure_built("m", folder, "model.bin", "python train.py", ["*"]).built
    with pytest.raises(ModelError, match=r"inputs: '\*.json' matches no file"):
        ensure_built("m", folder, "model.bin", "python train.py", ["*.json"])


def test_an_artifact_changed_by_hand_gets_its_own_digest(folder: Path) -> None:
    ensure_built("m", folder, "model.bin", "python train.py")
    (folder / "model.bin").write_text("by hand")
    found = ensure_built("m", folder, "model.bin", "python train.py")
    assert not found.built
    assert found.digest == hashlib.sha256(b"by hand").hexdigest()


def test_a_file_without_a_build(folder: Path) -> None:
    (folder / "given.bin").write_text("given")
    assert ensure_built("m", folder, "given.bin").digest == hashlib.sha256(b"given").hexdigest()
    with pytest.raises(ModelError, match=r"model 'm': no file at .*gone.bin .*declare `build:`"):
        ensure_built("m", folder, "gone.bin")


def test_a_failing_build_shows_the_end_of_its_output(folder: Path) -> None:
    (folder / "train.py").write_text("for i in range(100): print('line', i)\nraise SystemExit('no data')\n")
    with pytest.raises(ModelError, match=r"`python train.py` in .* failed with exit code 1") as caught:
        ensure_built("m", folder, "model.bin", "python train.py")
    assert "    line 99\n    no data" in str(caught.value)
    assert "line 50\n" not in str(caught.value)


def test_a_half_written_artifact_of_a_failed_build_is_not_used(folder: Path) -> None:
    (folder / "train.py").write_text("open('model.bin', 'w').write('half')\nraise SystemExit(3)\n")
    for _ in range(2):
        with pytest.raises(ModelError, match="exit code 3"):
            ensure_built("m", folder, "model.bin", "python train.py")


def test_a_build_that_leaves_no_file_or_does_not_start(folder: Path) -> None:
    (folder / "train.py").write_text("")
    with pytest.raises(ModelError, match="succeeded but left no file"):
        ensure_built("m", folder, "model.bin", "python train.py")
    with pytest.raises(ModelError, match="`no-such-program` does not start"):
        ensure_built("m", folder, "model.bin", "no-such-program")
    with pytest.raises(ModelError, match="No closing quotation"):
        ensure_built("m", folder, "model.bin", "python 'train.py")


def test_processes_that_ask_at_once_build_once(folder: Path) -> None:
    code = (
        "import sys, pathlib; from dataflow.serving.build import ensure_built;"
        "print(ensure_built('m', pathlib.Path(sys.argv[1]), 'model.bin', 'python train.py').built)"
    )

    def ask(_: int) -> str:
        command = [sys.executable, "-c", code, str(folder)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, range(3)))
    assert sorted(answers) == ["False", "False", "True"]
    assert runs(folder) == 1
