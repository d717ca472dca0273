"""Which cluster a command talks to: one answer for all of them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dataflow.broker import status
from dataflow.core.errors import BrokerError, TransportError
from dataflow.spec.documents import KafkaSpec
from dataflow.spec.loader import load_project
from dataflow.transport.kafka import KafkaFabric

BOOTSTRAP_VARIABLE: Final = "DATAFLOW_BOOTSTRAP"
_PROBE_S: Final = 5.0
BROKER_FOLDER: Final = Path(".dataflow") / "broker"


@dataclass(frozen=True)
class Address:
    """Where a cluster is, how to speak to it, and who said so. Settings may be secret: they are never shown."""

    bootstrap: str
    source: str
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


def find_address(project: Path | None, bootstrap: str | None, environ: Mapping[str, str]) -> Address | None:
    """The cluster that was named, None where none was.

    The first of: `bootstrap` (option --bootstrap), DATAFLOW_BOOTSTRAP, the project's `kafka:` section, the embedded
    broker that runs in the project.

    Settings of the `kafka:` section (TLS, SASL) go with its own address, or with any if it names none: credentials
    are not sent to a cluster that they were not declared for. Raises SpecError for a secret's file that is not there.
    """
    section = _section(project, environ)
    settings = {}
    if project is not None:
        settings = section.settings(project)
        settings.pop("bootstrap.servers", None)
    for given, source in ((bootstrap, "--bootstrap"), (environ.get(BOOTSTRAP_VARIABLE), BOOTSTRAP_VARIABLE)):
        if given:
            ours = not section.bootstrap or section.bootstrap == given
            return Address(given, source, settings if ours else {})
    if section.bootstrap:
        return Address(section.bootstrap, "the kafka section of dataflow.yaml", settings)
    if project is not None:
        running = status(project / BROKER_FOLDER)
        if running is not None:
            return Address(running.bootstrap, "the project's broker")
    return None


def connect(project: Path | None, bootstrap: str | None, environ: Mapping[str, str]) -> KafkaFabric:
    """The cluster that `find_address` finds, reached once to be sure. The caller closes it.

    Raises BrokerError where no broker is known, TransportError where it does not answer.
    """
    address = find_address(project, bootstrap, environ)
    if address is None:
        place = f" for the project '{project}'" if project is not None else ""
        raise BrokerError(
            f"no broker is known{place}: none runs, and neither --bootstrap, {BOOTSTRAP_VARIABLE} nor `kafka:` names one",
            hint="dataflow up, or dataflow broker start",
        )
    refused = _refusals(address.bootstrap)
    if refused:
        raise TransportError(
            f"no broker answers at {address.bootstrap} (from {address.source}): {refused}",
            hint="is it up, and the address right?",
        )
    fabric = KafkaFabric(address.bootstrap, dict(address.settings))
    try:
        fabric.admin().topics()
    except TransportError as error:
        fabric.close()
        raise TransportError(
            f"the broker at {address.bootstrap} (from {address.source}) does not answer: {error.message}",
            hint=error.hint or "is it up, and the address right?",
        ) from error
    return fabric


def _refusals(bootstrap: str) -> str:
    """Why none of the addresses takes a connection; "" if one does. The client itself would try for long, in silence."""
    reasons = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition("://")[2].rpartition(":")
        if not port.isdigit():
            return ""  # whatever it means is the client's to judge
        try:
            socket.create_connection((host.strip("[]"), int(port)), _PROBE_S).close()
        except OSError as error:
            reasons.append(error.strerror or str(error))
        else:
            return ""
    return "; ".join(dict.fromkeys(reasons))


def _section(project: Path | None, environ: Mapping[str, str]) -> KafkaSpec:
    if project is None or not project.is_dir():
        return KafkaSpec()
    return load_project(project, environ=environ).settings.kafka
