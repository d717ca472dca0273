"""librdkafka's mock cluster, by ctypes on the library that confluent-kafka brings: real clients, brokers that err to order.

It is no broker: it cannot show that exactly-once holds. It shows what our transport makes of a single error code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import confluent_kafka as ck


class Api(IntEnum):
    """Keys of Kafka's requests."""

    PRODUCE = 0
    FETCH = 1
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    HEARTBEAT = 12
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS = 24
    ADD_OFFSETS = 25
    END_TRANSACTION = 26
    TRANSACTION_OFFSETS = 28


def library() -> Any:
    """The client's own librdkafka. Raises AssertionError where it is not bundled as expected, or not the tested one."""
    found = sorted(Path(ck.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*.so*"))
    assert found, (
        "confluent-kafka brings no librdkafka beside it: look for rd_kafka_mock_cluster_new in its module"
    )
    lib = ctypes.CDLL(str(found[0]))
    lib.rd_kafka_conf_new.restype = ctypes.c_void_p
    lib.rd_kafka_new.restype = ctypes.c_void_p
    lib.rd_kafka_new.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    lib.rd_kafka_destroy.argtypes = [ctypes.c_void_p]
    lib.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    lib.rd_kafka_mock_cluster_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    lib.rd_kafka_mock_cluster_destroy.argtypes = [ctypes.c_void_p]
    lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    lib.rd_kafka_mock_cluster_bootstraps.argtypes = [ctypes.c_void_p]
    lib.rd_kafka_mock_topic_create.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    lib.rd_kafka_mock_push_request_errors_array.argtypes = [
        ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int),
    ]  # fmt: skip
    lib.rd_kafka_mock_clear_request_errors.argtypes = [ctypes.c_void_p, ctypes.c_int16]
    lib.rd_kafka_mock_coordinator_set.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int32,
    ]  # fmt: skip
    for name in ("rd_kafka_mock_broker_set_down", "rd_kafka_mock_broker_set_up"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_int32]
    lib.rd_kafka_mock_broker_set_rtt.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int]
    return lib


class MockCluster:
    """Brokers 1 to n. `fail` orders errors for the next requests of a kind; each is used once."""

    def __init__(self, lib: Any, handle: Any) -> None:
        self._lib = lib
        self._handle = handle
        self.bootstrap: str = lib.rd_kafka_mock_cluster_bootstraps(handle).decode()

        lib.rd_kafka_mock_group_initial_rebalance_delay_ms(handle, 0)

    def topic(self, name: str, partitions: int) -> None:
        assert not self._lib.rd_kafka_mock_topic_create(self._handle, name.encode(), partitions, 1)

    def fail(self, api: Api, code: int, times: int = 1) -> None:
        codes = (ctypes.c_int * times)(*[code] * times)
        self._lib.rd_kafka_mock_push_request_errors_array(self._handle, api, times, codes)

    def heal(self, api: Api) -> None:
        self._lib.rd_kafka_mock_clear_request_errors(self._handle, api)

    def coordinate(self, kind: str, key: str, broker: int) -> None:
        """Let a broker be the coordinator of a `transaction` or a `group`."""
        assert not self._lib.rd_kafka_mock_coordinator_set(self._handle, kind.encode(), key.encode(), broker)

    def slow(self, broker: int, answer_ms: int) -> None:
        """Let a broker answer so late."""
        assert not self._lib.rd_kafka_mock_broker_set_rtt(self._handle, broker, answer_ms)

    def down(self, broker: int) -> None:
        assert not self._lib.rd_kafka_mock_broker_set_down(self._handle, broker)

    def up(self, broker: int) -> None:
        assert not self._lib.rd_kafka_mock_broker_set_up(self._handle, broker)


@contextmanager
def mock_cluster(brokers: int = 2) -> Iterator[MockCluster]:
    lib = library()
    text = ctypes.create_string_buffer(512)
    client = lib.rd_kafka_new(0, lib.rd_kafka_conf_new(), text, len(text))
    assert client, text.value
    handle = lib.rd_kafka_mock_cluster_new(client, brokers)
    try:
        yield MockCluster(lib, handle)
    finally:
        lib.rd_kafka_mock_cluster_destroy(handle)
        lib.rd_kafka_destroy(client)
