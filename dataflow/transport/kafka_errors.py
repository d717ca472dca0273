"""librdkafka's errors as ours: which are final, which pass, and what a person can do."""

from __future__ import annotations

from typing import Final

import confluent_kafka as ck

from dataflow.core.errors import DataflowError, FencedError, TransportError

OFFSET_ERRORS: Final = (ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE)
GONE_ERRORS: Final = (
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
)
TOO_LARGE: Final = (ck.KafkaError.MSG_SIZE_TOO_LARGE, ck.KafkaError.INVALID_MSG_SIZE)
FENCED: Final = (
    ck.KafkaError._FENCED,
    ck.KafkaError.PRODUCER_FENCED,
    ck.KafkaError.INVALID_PRODUCER_EPOCH,
    ck.KafkaError.ILLEGAL_GENERATION,
    ck.KafkaError.UNKNOWN_MEMBER_ID,
    ck.KafkaError.FENCED_INSTANCE_ID,
    ck.KafkaError.STALE_MEMBER_EPOCH,
    ck.KafkaError.FENCED_MEMBER_EPOCH,
)
# What a partition's leader says just after the topic was made, or while it moves.
SETTLING: Final = (
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError._NOENT,  # "no leaders found": the client knows of none yet, after a broker came back
    ck.KafkaError.FENCED_LEADER_EPOCH,
    ck.KafkaError.UNKNOWN_LEADER_EPOCH,
)
PASSING_ERRORS: Final = (
    ck.KafkaError._ALL_BROKERS_DOWN,
    ck.KafkaError._TRANSPORT,
    ck.KafkaError._TIMED_OUT,
    ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
    ck.KafkaError.NOT_COORDINATOR,
    ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ck.KafkaError._MAX_POLL_EXCEEDED,
)


def refused(error: ck.KafkaError, doing: str) -> DataflowError:
    """As `translated`, and FencedError for whoever was taken over."""
    if error.code() in FENCED:
        return FencedError(f"{doing}: {error.str()}", hint="its work moved to another process")
    return translated(error, doing)


def translated(error: ck.KafkaError, doing: str) -> DataflowError:
    hints = {
        ck.KafkaError._ALL_BROKERS_DOWN: "is the broker up?",
        ck.KafkaError._TRANSPORT: "is the broker up, and the address right?",
        ck.KafkaError._TIMED_OUT: "is the broker up, and the address right?",
        ck.KafkaError.TOPIC_AUTHORIZATION_FAILED: "`dataflow plan` prints the ACLs that are needed",
        ck.KafkaError.GROUP_AUTHORIZATION_FAILED: "`dataflow plan` prints the ACLs that are needed",
    }
    return TransportError(f"{doing}: {error.str()}", hint=hints.get(error.code(), ""))
