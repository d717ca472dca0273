"""The jar cache: pinned, whole, atomic, shared between processes, offline after the first time."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dataflow.broker import jars
from dataflow.broker.jars import Jar, Progress, install
from dataflow.core.errors import BrokerError

CONTENTS = {f"org.example:part-{number}:1.{number}": bytes([number]) * (100 + number) for number in range(6)}
JARS = tuple(Jar(hashlib.sha256(text).hexdigest(), len(text), name) for name, text in CONTENTS.items())


class Repository:
    """Serves `CONTENTS` and counts; `damage` is a coordinate that arrives changed."""

    def __init__(self, damage: str = "") -> None:
        self.asked: list[str] = []
        self.damage = damage

    def __call__(self, jar: Jar, folder: Path, arrived: Callable[[int], None]) -> Path:
        self.asked.append(jar.coordinate)
        folder.mkdir(parents=True, exist_ok=True)
        content = CONTENTS[jar.coordinate]
        path = folder / jar.name
        path.write_bytes(content[::-1] + b"x" if jar.coordinate == self.damage else content)
        arrived(len(content))
        return path


def unreachable(jar: Jar, folder: Path, arrived: Callable[[int], None]) -> Path:
    raise AssertionError("the network was asked")


def ignore(progress: Progress) -> None:
    pass


def test_the_pinned_list_is_the_whole_closure_of_one_kafka() -> None:
    pinned = jars.pinned_jars()
    names = [jar.name for jar in pinned]
    assert "kafka_2.13-4.3.0.jar" in names
    assert len(set(names)) == len(names) == 46
    assert all(len(jar.sha256) == 64 and jar.size_bytes > 0 for jar in pinned)
    assert {
        jar.coordinate.split(":")[2] for jar in pinned if jar.coordinate.startswith("org.apache.kafka:")
    } == {"4.3.0"}


def test_fetched_once_then_offline(tmp_path: Path) -> None:
    seen: list[Progress] = []
    repository = Repository()
    folder = install(seen.append, cache=tmp_path, jars=JARS, fetch=repository)
    assert {path.name: path.read_bytes() for path in folder.glob("*.jar")} == {
        jar.name: CONTENTS[jar.coordinate] for jar in JARS
    }
    total = sum(jar.size_bytes for jar in JARS)
    assert seen[-1].done == seen[-1].total == total
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert install(ignore, cache=tmp_path, jars=JARS, fetch=unreachable) == folder
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_only_the_damaged_jar_is_fetched_again(tmp_path: Path) -> None:
    folder = install(ignore, cache=tmp_path, jars=JARS, fetch=Repository())
    (folder / JARS[2].name).write_bytes(b"\0" * JARS[2].size_bytes)
    (folder / JARS[4].name).unlink()
    seen: list[Progress] = []
    repository = Repository()
    install(seen.append, cache=tmp_path, jars=JARS, fetch=repository)
    assert sorted(repository.asked) == sorted([JARS[2].coordinate, JARS[4].coordinate])
    assert "damaged" in seen[0].step
    assert JARS[2].name in seen[0].step
    assert (folder / JARS[2].name).read_bytes() == CONTENTS[JARS[2].coordinate]


def test_a_touched_but_whole_cache_is_only_checked(tmp_path: Path) -> None:
    folder = install(ignore, cache=tmp_path, jars=JARS, fetch=Repository())
    (folder / JARS[0].name).touch()
    assert install(ignore, cache=tmp_path, jars=JARS, fetch=unreachable) == folder


def test_a_download_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"part-3:1\.3 arrived damaged"):
        install(ignore, cache=tmp_path, jars=JARS, fetch=Repository(damage=JARS[3].coordinate))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    install(ignore, cache=tmp_path, jars=JARS, fetch=Repository())


def test_two_at_once_fetch_once(tmp_path: Path) -> None:
    repository = Repository()
    gate = threading.Barrier(4)
    found: list[Path] = []

    def one() -> None:
        gate.wait()
        found.append(install(ignore, cache=tmp_path, jars=JARS, fetch=repository))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sorted(repository.asked) == sorted(CONTENTS)


def test_no_network_on_first_use_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(BrokerError, match=r"no repository answered") as caught:
        install(ignore, cache=tmp_path)
    assert "--bootstrap" in caught.value.hint
    assert "once" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match="DATAFLOW_CACHE"):
        install(ignore, cache=tmp_path / "file", jars=JARS, fetch=Repository())


def test_a_full_disk_while_fetching_is_not_taken_for_a_missing_network(tmp_path: Path) -> None:
    def fetch(jar: Jar, folder: Path, arrived: Callable[[int], None]) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BrokerError, match="No space left on device") as caught:
        install(ignore, cache=tmp_path, jars=JARS, fetch=fetch)
    assert "DATAFLOW_CACHE" in caught.value.hint


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_CACHE", str(tmp_path / "mine"))
    assert jars.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DATAFLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jars.cache_folder() == tmp_path / "dataflow"
