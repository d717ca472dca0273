"""The one place that spells the Kafka headers. Tapped topics hold plain payloads; what the engine needs is here.

Values are ASCII text unless said otherwise. All names starting with ``df-`` are ours; every other header belongs to
the user and travels on unchanged.
"""

from __future__ import annotations

from typing import Final

ID: Final = "df-id"  # canonical UUID text; deterministic, see core.ids
SCHEMA: Final = "df-schema"  # fingerprint of the writer's schema, hex; see topic dataflow.schemas
ORIGIN: Final = "df-origin"  # pipeline@plan-version/node that wrote the record
PARENTS: Final = "df-parents"  # comma-separated ids, where the record's own id differs from its parent's
ATTEMPT: Final = "df-attempt"  # decimal count of earlier drives, absent when 0

# topic/partition/id of the gateway replica that waits and of the request's record there: carried to the answer as it
# is, so that the answer finds its caller whatever ids it got on the way. Where a request went several ways at once, with
# the share of the caller that each has behind it: see core.shares.
REPLY_TO: Final = "df-reply-to"
# In a loop: rounds begun, as pipeline/node=3. A record keeps its id; this tells its rounds apart.
VISITS: Final = "df-visits"
# On children that were keyed anew: the edge that they went by, and their partition before, as pipeline.edge=3.
HOME: Final = "df-home"
DEADLINE: Final = "df-deadline"  # Unix time in ms, decimal: work past it is not done
CALLER_ID: Final = "df-caller-id"  # the caller's own request id, echoed
STREAM: Final = "df-stream"  # id of the request, where its caller takes all records that come of it
STATUS: Final = "df-status"  # on replies only: ok | dropped | failed | expired
REASON: Final = "df-reason"  # on replies only, when not ok: JSON {reason, node, error}
# On replies only, absent for the whole: the share of the caller that is given back, and with df-stream that is answered.
SHARE: Final = "df-share"
EDGE: Final = (
    "df-edge"  # on replies only, when ok: the edge whose record this is, so the gateway knows its contract
)

TRACEPARENT: Final = "traceparent"  # W3C trace context
TRACESTATE: Final = "tracestate"

# On dead letters only.
ERROR: Final = "df-error"  # exception class or short error name
ERROR_MESSAGE: Final = "df-error-message"  # UTF-8, cut to limits.MAX_ERROR_BYTES
ERROR_NODE: Final = "df-error-node"  # pipeline/node
ERROR_TOPIC: Final = "df-error-topic"  # where the record was read
ERROR_PARTITION: Final = "df-error-partition"
ERROR_OFFSET: Final = "df-error-offset"
ERROR_TIME: Final = "df-error-time"  # Unix time in ms
ERROR_VERSION: Final = "df-error-version"  # pipeline@plan-version that could not process it
REDRIVE_ID: Final = "df-redrive-of"  # on a redriven record: topic/partition/offset of its dead letter
SOURCE: Final = "df-source"  # on records of an agent: topic/partition/offset of what it processed, and which of its outputs
RUN: Final = "df-run"  # on records of `dataflow run`: run/input/row that they come from

# Headers the engine writes anew on every hop; all others travel on with the record.
PER_HOP: Final = frozenset({ID, SCHEMA, ORIGIN, PARENTS})
# Headers that belong to a request and not to its content: never copied to a record for strangers (published outputs).
REQUEST: Final = frozenset({REPLY_TO, DEADLINE, CALLER_ID, STREAM})

# What a dead letter adds; a record that died before sheds the earlier ones.
ON_DEAD_LETTER: Final = frozenset(
    {ERROR, ERROR_MESSAGE, ERROR_NODE, ERROR_TOPIC, ERROR_PARTITION, ERROR_OFFSET, ERROR_TIME, ERROR_VERSION}
)

STATUS_OK: Final = "ok"
STATUS_DROPPED: Final = "dropped"
STATUS_FAILED: Final = "failed"
STATUS_EXPIRED: Final = "expired"
