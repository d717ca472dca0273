"""The real broker, started once a session and only if a test asks for it."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dataflow.broker import Broker, BrokerSettings
from dataflow.transport.kafka import KafkaFabric

# Generous, because machines are shared: what takes seconds alone takes a minute beside others.
# Under CI the same cases come each time; elsewhere new ones are tried.
settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared")

# In the background of a script a process begins with Ctrl-C ignored, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Minutes long: begun last, they would keep one process busy while the others have nothing left to do.
LONGEST = ("test_fault_suite.py", "test_benchmarks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 90.0) -> object:
    """Wait until `condition()` is truthy and return it; fail with `what` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout_s:.0f} s for {what}")


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Apache Kafka."""
    data: Path = tmp_path_factory.mktemp("broker")
    with Broker(BrokerSettings(data=data, ephemeral=True)) as broker:
        yield broker.bootstrap


@pytest.fixture(scope="session")
def kafka(bootstrap: str) -> Iterator[KafkaFabric]:
    fabric = KafkaFabric(bootstrap)
    yield fabric
    fabric.close()


@pytest.fixture
def unique() -> str:
    """A name nobody else uses: the broker is shared."""
    return f"t{uuid.uuid4().hex[:10]}"
