"""Apache Kafka's jars in the user's cache folder: fetched once by `jgo`, pinned and checked by SHA-256.

The list beside this module (`kafka-4.3.0.sha256`: digest, bytes, group:artifact:version) is the whole closure of
`org.apache.kafka:kafka_2.13` and a logger that writes to standard error, so nothing is resolved at run time.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.resources
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflow.broker.locks import hold_lock
from dataflow.broker.settings import KAFKA_VERSION
from dataflow.core.errors import BrokerError

_CHECKED = "checked.json"
_DOWNLOADS = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """One report while a broker gets ready: what is being done, and how far (`total` 0 where unknown)."""

    step: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Jar:
    """A pinned artifact: `coordinate` is group:artifact:version."""

    sha256: str
    size_bytes: int
    coordinate: str

    @property
    def name(self) -> str:
        _group, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


OnProgress = Callable[[Progress], None]
# Puts the jar into the folder and calls back with each count of bytes that arrived.
Fetch = Callable[[Jar, Path, Callable[[int], None]], Path]


def pinned_jars() -> tuple[Jar, ...]:
    """The checksum list that ships with the package."""
    text = (importlib.resources.files("dataflow.broker") / f"kafka-{KAFKA_VERSION}.sha256").read_text()
    rows = (line.split() for line in text.splitlines())
    return tuple(Jar(sha256, int(size), coordinate) for sha256, size, coordinate in rows)


def cache_folder() -> Path:
    """`$DATAFLOW_CACHE`, else `dataflow` in the user's cache folder."""
    chosen = os.environ.get("DATAFLOW_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dataflow"


def install(
    on_progress: OnProgress,
    *,
    cache: Path | None = None,
    jars: Sequence[Jar] | None = None,
    fetch: Fetch | None = None,
) -> Path:
    """The folder with all jars, whole and checked. Fetches what is missing or damaged; offline otherwise.

    Safe for several processes at once: the first fetches, the others wait. The folder appears by a rename.
    """
    jars = pinned_jars() if jars is None else jars
    folder = (cache or cache_folder()) / f"kafka-{KAFKA_VERSION}"
    if _is_as_checked(folder, jars):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder.parent / f"kafka-{KAFKA_VERSION}.lock", wait=True):
            damaged = _check(folder, jars)
            if damaged:
                if folder.exists():
                    names = ", ".join(jar.name for jar in damaged[:3]) + (", ..." if len(damaged) > 3 else "")
                    on_progress(Progress(f"{folder} is damaged ({names}): fetching again"))
                _replace(folder, jars, damaged, on_progress, fetch or _fetch_by_jgo)
    except OSError as error:
        raise BrokerError(
            f"cannot keep Apache Kafka in {folder}: {error.strerror or error}",
            hint="free some space or choose another folder with DATAFLOW_CACHE",
        ) from error
    return folder


def _is_as_checked(folder: Path, jars: Sequence[Jar]) -> bool:
    """Cheap: sizes and times are those of the last full check."""
    try:
        noted = json.loads((folder / _CHECKED).read_text())
        return bool(noted == _stamp(folder, jars))
    except (OSError, ValueError):
        return False


def _stamp(folder: Path, jars: Sequence[Jar]) -> dict[str, list[Any]]:
    stats = {jar: (folder / jar.name).stat() for jar in jars}
    return {jar.name: [jar.sha256, stat.st_size, stat.st_mtime_ns] for jar, stat in stats.items()}


def _check(folder: Path, jars: Sequence[Jar]) -> list[Jar]:
    """The jars that are missing or wrong, by digest; a whole folder is marked as checked."""
    damaged = [jar for jar in jars if not _is_whole(folder / jar.name, jar)]
    if not damaged:
        (folder / _CHECKED).write_text(json.dumps(_stamp(folder, jars)))
    return damaged


def _is_whole(path: Path, jar: Jar) -> bool:
    if not path.is_file() or path.stat().st_size != jar.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256


def _replace(
    folder: Path, jars: Sequence[Jar], damaged: Sequence[Jar], on_progress: OnProgress, fetch: Fetch
) -> None:
    """Build a whole folder beside the old one, then put it in its place."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        fresh = Path(work) / "fresh"
        fresh.mkdir()
        downloads = Path(work) / "downloads"
        _download(damaged, downloads, on_progress, fetch)
        for jar in jars:
            source = downloads / jar.name if jar in damaged else folder / jar.name
            source.replace(fresh / jar.name)
        (fresh / _CHECKED).write_text(json.dumps(_stamp(fresh, jars)))
        if folder.exists():
            folder.rename(Path(work) / "old")
        fresh.rename(folder)


def _download(jars: Sequence[Jar], folder: Path, on_progress: OnProgress, fetch: Fetch) -> None:
    folder.mkdir()
    total, done, lock = sum(jar.size_bytes for jar in jars), 0, threading.Lock()
    step = f"fetching Apache Kafka {KAFKA_VERSION}"

    def arrived(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            on_progress(Progress(step, min(done, total), total))

    def one(jar: Jar) -> None:
        path = fetch(jar, folder / "repository", arrived)
        if not _is_whole(path, jar):
            raise BrokerError(
                f"{jar.coordinate} arrived damaged: its SHA-256 is not the pinned one",
                hint="try again; if it stays so, something between here and the repository changes files",
            )
        path.replace(folder / jar.name)

    on_progress(Progress(step, 0, total))
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        for _ in pool.map(one, jars):
            pass
    shutil.rmtree(folder / "repository", ignore_errors=True)


def _fetch_by_jgo(jar: Jar, repository: Path, arrived: Callable[[int], None]) -> Path:
    """Fetch one artifact with jgo's Maven layer; its own settings may name mirrors."""
    try:
        maven = importlib.import_module("jgo.maven")
        settings = importlib.import_module("jgo.config").GlobalSettings.load()
        central = importlib.import_module("jgo.constants").MAVEN_CENTRAL_URL
    except ImportError as error:
        raise BrokerError(
            "the embedded broker needs the package jgo to fetch Apache Kafka",
            hint="pip install 'kafka-dataflow[local]', or use an existing cluster with --bootstrap HOST:PORT",
        ) from error

    @contextmanager
    def report(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield arrived

    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = report
    context = maven.MavenContext(
        resolver=maven.PythonResolver(progress_callback=progress),
        repo_cache=repository,
        remote_repos={**settings.repositories, "central": central},
        timeout=30,
    )
    group, artifact, version = jar.coordinate.split(":")
    _silence_jgo()
    try:
        return Path(context.project(group, artifact).at_version(version).artifact().resolve())
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; the network's errors are OSErrors without a number
        raise BrokerError(
            f"cannot fetch {jar.coordinate} for the embedded broker: no repository answered ({_short(error)})",
            hint="the first start needs the network, once; or copy the folder"
            f" {cache_folder()} from another machine, or use an existing cluster with --bootstrap HOST:PORT",
        ) from error


def _silence_jgo() -> None:
    logging.getLogger("jgo").setLevel(logging.CRITICAL)


def _short(error: BaseException) -> str:
    name = type(error).__name__
    return name if name != "RuntimeError" else str(error).splitlines()[0][:120]
