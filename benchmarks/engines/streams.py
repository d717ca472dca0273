"""Kafka Streams, installed into the user's cache folder: jars by the machine's Maven, our few lines of Java by its compiler."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from benchmarks.peers import PeerError, cache_folder, run_command
from benchmarks.report import tell
from dataflow.broker.settings import KAFKA_VERSION

SOURCE: Final = Path(__file__).with_name("Passthrough.java")

_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>benchmarks</groupId><artifactId>streams</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka-streams</artifactId><version>{KAFKA_VERSION}</version>
  </dependency></dependencies>
</project>
"""


def class_path() -> str:
    """Where java finds `Passthrough` and all it needs. Raises PeerError without Maven, a compiler, or the jars."""
    missing = [tool for tool in ("mvn", "javac", "java") if shutil.which(tool) is None]
    if missing:
        raise PeerError(f"Kafka Streams needs {' and '.join(missing)} on the path")
    folder = cache_folder() / f"kafka-streams-{KAFKA_VERSION}"
    jars, installed = folder / "jars", folder / "installed"
    found = f"{folder}:{jars}/*"
    if installed.is_file() and installed.read_text() == SOURCE.read_text():
        return found
    tell(f"installing Kafka Streams {KAFKA_VERSION} into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pom.xml").write_text(_POM)
    copy = ("dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}")
    run_command(["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), *copy])
    run_command(["javac", "-cp", found, "-d", str(folder), str(SOURCE)])
    installed.write_text(SOURCE.read_text())
    return found
