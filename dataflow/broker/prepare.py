"""What is done once for each cache and Java, so that every start is short.

- The initial feature levels of a new cluster, in Kafka's own format (`bootstrap.checkpoint`), made by Kafka's
  storage tool once; a new data folder then needs no second JVM.
- An archive of parsed classes (JDK class data sharing): a start then takes 1.3 s instead of 2.9 s. [measured]
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from dataflow.broker import storage
from dataflow.broker.jars import OnProgress, Progress, install
from dataflow.broker.java import find_java
from dataflow.broker.locks import hold_lock
from dataflow.broker.node import Process, Runtime, await_ready, free_ports
from dataflow.broker.settings import Address, BrokerSettings, properties_text, server_properties
from dataflow.core.errors import BrokerError

_CHECKPOINT = "bootstrap.checkpoint"
_DUMP_LIMIT_S = 300


def runtime(on_progress: OnProgress) -> Runtime:
    """Java and Kafka, installed and prepared if need be. Safe for several processes at once."""
    found = Runtime(find_java(), install(on_progress))
    checkpoint, archive = found.jars / _CHECKPOINT, _archive_of(found)
    if not (checkpoint.exists() and (archive.exists() or _failed(archive).exists())):
        try:
            _prepare(found, checkpoint, archive, on_progress)
        except OSError as error:
            raise BrokerError(
                f"cannot prepare Kafka in {found.jars}: {error.strerror or error}",
                hint="free some space or choose another folder with DATAFLOW_CACHE",
            ) from error
    return replace(found, archive=archive if archive.exists() else None)


def _prepare(runtime: Runtime, checkpoint: Path, archive: Path, on_progress: OnProgress) -> None:
    with hold_lock(runtime.jars / "prepare.lock", wait=True):
        if not checkpoint.exists():
            on_progress(Progress("preparing Kafka, once: features"))
            _make_checkpoint(runtime, checkpoint)
        if not archive.exists() and not _failed(archive).exists():
            on_progress(Progress("preparing Kafka, once: class archive"))
            _try_archive(runtime, archive, checkpoint)


def feature_checkpoint(runtime: Runtime) -> Path:
    """The file that a new log folder starts from."""
    return runtime.jars / _CHECKPOINT


def _archive_of(runtime: Runtime) -> Path:
    """One archive for each Java: another build of it cannot read this one."""
    executable = runtime.java.executable
    build = f"{executable} {executable.stat().st_mtime_ns} {runtime.java.version}"
    return runtime.jars / f"classes-{hashlib.sha256(build.encode()).hexdigest()[:16]}.jsa"


def _failed(archive: Path) -> Path:
    """Says why there is no archive; it only costs time, so nobody is told and it is not tried again."""
    return archive.with_suffix(".failed")


def _make_checkpoint(runtime: Runtime, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".format-", dir=runtime.jars) as work:
        folder = Path(work)
        configuration = _configure(folder, Address(1, 1, 2))
        tool = ("kafka.tools.StorageTool", "format", "-t", storage.random_uuid(), "-c", str(configuration))
        done = _run_java(runtime, folder, *tool)
        made = folder / "kafka" / _CHECKPOINT
        if done.returncode or not made.exists():
            raise BrokerError(
                f"Kafka's storage tool failed with {runtime.java.executable}: {(done.stderr or done.stdout)[-400:]}",
                hint="set JAVA_HOME to another Java, or pip install 'kafka-dataflow[local]'",
            )
        made.replace(path)


def _try_archive(runtime: Runtime, archive: Path, checkpoint: Path) -> None:
    """Start a broker once to learn which classes it loads, then let the JVM write them down, parsed."""
    with tempfile.TemporaryDirectory(prefix=".archive-", dir=runtime.jars) as work:
        folder = Path(work)
        classes, made = folder / "classes", folder / archive.name
        try:
            _learn_classes(runtime, folder, classes, checkpoint)
            dump = ("-Xshare:dump", f"-XX:SharedClassListFile={classes}", f"-XX:SharedArchiveFile={made}")
            done = _run_java(runtime, folder, *dump)
        except (BrokerError, subprocess.SubprocessError) as error:
            _failed(archive).write_text(f"{error}\n")
            return
        if done.returncode or not made.exists():
            _failed(archive).write_text(done.stdout[-2000:] + done.stderr[-2000:])
            return
        made.replace(archive)


def _learn_classes(runtime: Runtime, folder: Path, classes: Path, checkpoint: Path) -> None:
    ports = free_ports()
    address = Address(1, next(ports), next(ports))
    cluster_id = storage.random_uuid()
    storage.format_storage(folder, 1, cluster_id, checkpoint)
    configuration = _configure(folder, address)
    learn = f"-XX:DumpLoadedClassList={classes}"
    process = Process(
        runtime, folder, arguments=(learn, "kafka.Kafka", str(configuration)), heap_mb=384, owned=True
    )
    try:
        await_ready(process, address, cluster_id=cluster_id, node_ids=[1], timeout_s=60.0)
    finally:
        process.end()


def _configure(folder: Path, address: Address) -> Path:
    path = folder / "server.properties"
    path.write_text(properties_text(server_properties(BrokerSettings(folder), address, [address])))
    return path


def _run_java(runtime: Runtime, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        runtime.command(*arguments, heap_mb=384),
        cwd=folder,
        env=runtime.environment(),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_DUMP_LIMIT_S,
        check=False,
    )
