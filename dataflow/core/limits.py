"""Every bound in one place, each with its reason. One that is made by `setting` may be set for a process, see there."""

from __future__ import annotations

from typing import Final

from dataflow.core.limit_settings import setting

# One poll: big enough that per-batch costs vanish, small enough that a batch of small records takes ~10 ms.
MAX_BATCH_RECORDS: Final = 500
# A batch's undecoded bytes in hand per task: bounds memory with large records (images).
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
# Batches whose outputs are not yet acknowledged, per task: beyond it the task's partitions are paused.
MAX_BATCHES_IN_FLIGHT: Final = 8
# Batches of a task of which records wait for a retry, and how many records these have: later ones overtake them until then.
MAX_BATCHES_WAITING: Final = 64
MAX_RECORDS_WAITING: Final = 4_000
# Offsets are committed this often: what a crash may run again, against a broker round trip.
COMMIT_INTERVAL_MS: Final = 100
# A drain (SIGTERM, revoked partition) may take this long before work in hand is left to the next owner.
DRAIN_TIMEOUT_MS: Final = setting("DRAIN_TIMEOUT_MS", 10_000)
# librdkafka's queue of fetched records per consumer: the default of 64 MB is most of a worker's memory budget.
CONSUMER_QUEUE_KBYTES: Final = setting("CONSUMER_QUEUE_KBYTES", 16_384)
# ... and so many records of one partition: 10 ms at full speed, where a fetch takes one; each takes 0.7 kB on top.
CONSUMER_QUEUE_RECORDS: Final = 2_000
# librdkafka's queue of unsent records per producer: as above.
PRODUCER_QUEUE_KBYTES: Final = setting("PRODUCER_QUEUE_KBYTES", 32_768)
PRODUCER_QUEUE_RECORDS: Final = 100_000
# Record value limit unless a contract says otherwise: Kafka's own default, less room for headers.
MAX_RECORD_BYTES: Final = 1_000_000
# ... and the most a contract may say: with its causes, its dead letter must still fit the broker's 16 MiB.
MAX_RECORD_BYTES_DECLARED: Final = 15_000_000
# Dead letters carry the original record and its causes on top.
DEAD_LETTER_ROOM_BYTES: Final = 64 * 1024
# Error text in headers and replies: enough for a cause, not for a dump.
MAX_ERROR_BYTES: Final = 4_096
# Headers of one record, carried along every hop.
MAX_HEADER_BYTES: Final = 32 * 1024
# Our own headers of one record, and Kafka's framing of a batch of one.
OWN_HEADER_BYTES: Final = 1024
# What a topic takes that was made without a limit of its own: Kafka's default.
BROKER_RECORD_BYTES: Final = 1_048_588
# Partitions one plan may create: [measured] 4,000 topics x 4 partitions bring a 384 MB broker down.
MAX_PLAN_PARTITIONS: Final = 1_000
# Requests one gateway holds unanswered; beyond it callers get 429 at once instead of a slow time-out.
MAX_PENDING_REQUESTS: Final = setting("MAX_PENDING_REQUESTS", 10_000)
# Rows in one request: each becomes a record.
MAX_REQUEST_ROWS: Final = setting("MAX_REQUEST_ROWS", 10_000)
# Body of one HTTP request.
MAX_BODY_BYTES: Final = setting("MAX_BODY_BYTES", 64 * 1024 * 1024)
# Bodies in hand of all requests together: one body's limit times the requests allowed would be all memory there is.
MAX_BODIES_BYTES: Final = setting("MAX_BODIES_BYTES", 4 * MAX_BODY_BYTES)
# Lists and objects in one JSON body: an empty list is 3 bytes of text and 64 of memory; 40 images as nested lists have these.
MAX_JSON_CONTAINERS: Final = setting("MAX_JSON_CONTAINERS", 2_000_000)
# HTTP connections of a gateway, [measured] 7 kB each; then the longest idle one makes room; where none is idle: 503.
MAX_CONNECTIONS: Final = setting("MAX_CONNECTIONS", 16_384)
# What stays for topics, files and models when connections take file descriptors.
OTHER_DESCRIPTORS: Final = setting("OTHER_DESCRIPTORS", 512)
# A request's line and headers: their number, and bytes together (traces and tokens take some kB); its address alone.
MAX_HEADERS: Final = setting("MAX_HEADERS", 128)
MAX_HEAD_BYTES: Final = setting("MAX_HEAD_BYTES", 64 * 1024)
MAX_URL_BYTES: Final = setting("MAX_URL_BYTES", 16 * 1024)
# Requests sent ahead on one connection while one is under way: clients that do it at all send a few.
MAX_PIPELINED: Final = setting("MAX_PIPELINED", 64)
# From the first byte of a request (or the connection's begin) to the end of its headers: more is somebody who holds us up.
HEAD_TIMEOUT_MS: Final = setting("HEAD_TIMEOUT_MS", 20_000)
# A body may take so long, and a second more for each of so many bytes: a poor mobile link is faster.
BODY_TIMEOUT_MS: Final = setting("BODY_TIMEOUT_MS", 20_000)
MIN_BODY_BYTES_PER_S: Final = setting("MIN_BODY_BYTES_PER_S", 16 * 1024)
# A body that goes on when its request is answered already (it was refused) is listened to for so long.
LINGER_MS: Final = setting("LINGER_MS", 5_000)
# A caller who takes nothing of an answer for so long is gone.
STALL_TIMEOUT_MS: Final = setting("STALL_TIMEOUT_MS", 30_000)
# Answers not yet taken by their callers, all together; beyond it those who were slowest are cut off.
MAX_UNSENT_BYTES: Final = setting("MAX_UNSENT_BYTES", 4 * MAX_BODY_BYTES)
# An idle connection is kept for so long: longer than the 60 s of load balancers, that they close first and never fall on a
# closed one.
KEEP_ALIVE_MS: Final = setting("KEEP_ALIVE_MS", 75_000)
# At the end idle connections stay for so long: a request that is under way to us is answered, with `Connection: close`.
FAREWELL_MS: Final = setting("FAREWELL_MS", 1_000)
# gRPC messages that arrive at once; each may be as large as a body, and its size is known at its end only.
MAX_GRPC_ARRIVALS: Final = setting("MAX_GRPC_ARRIVALS", 32)
# ... and how long one may take: a body of 64 MiB at 25 Mbit/s; where others wait for its place, that of 300 kB at 1 Mbit/s.
GRPC_ARRIVAL_MS: Final = setting("GRPC_ARRIVAL_MS", 20_000)
GRPC_HURRY_MS: Final = setting("GRPC_HURRY_MS", 2_000)
# Streams open at once over gRPC, each of which may have a message arriving; and calls at once on one connection.
MAX_GRPC_STREAMS: Final = setting("MAX_GRPC_STREAMS", 256)
# Requests of one gRPC stream that run at once: what a client sends beyond waits in its connection.
MAX_STREAM_REQUESTS: Final = setting("MAX_STREAM_REQUESTS", 64)
# Callers at once who are told over gRPC when health changes; no token is asked of them.
MAX_HEALTH_WATCHES: Final = setting("MAX_HEALTH_WATCHES", 64)
# A caller waits this long unless the pipeline or the request says otherwise; and never longer than the second.
DEFAULT_DEADLINE_MS: Final = setting("DEFAULT_DEADLINE_MS", 30_000)
MAX_DEADLINE_MS: Final = setting("MAX_DEADLINE_MS", 600_000)
# A caller who comes back for the answer: how long the request may run unless it says otherwise, and at most; what was
# accepted and answered is kept for twice that, so that an answer that came last is there for a day.
ASYNC_DEADLINE_MS: Final = setting("ASYNC_DEADLINE_MS", 3_600_000)
MAX_ASYNC_DEADLINE_MS: Final = setting("MAX_ASYNC_DEADLINE_MS", 24 * 3_600_000)
REQUEST_RETENTION_MS: Final = 2 * MAX_ASYNC_DEADLINE_MS
# The same idempotency key means the same request for so long; each gateway knows all keys of that time, 0.5 kB each, and
# refuses more.
IDEMPOTENCY_TTL_MS: Final = 24 * 3_600_000
MAX_IDEMPOTENCY_KEYS: Final = setting("MAX_IDEMPOTENCY_KEYS", 200_000)
# A request that was claimed by a key and is not sent after this is left over from a gateway that died: it is sent again.
IDEMPOTENCY_LEASE_MS: Final = 15_000
# Callers at once who take all records of a request, and how far one of them may be behind before it is cut off.
MAX_STREAMS: Final = setting("MAX_STREAMS", 256)
MAX_STREAM_BACKLOG: Final = setting("MAX_STREAM_BACKLOG", 10_000)
# Callers at once who wait for answers that are looked for in the log: each is a consumer.
MAX_LOOKUPS: Final = setting("MAX_LOOKUPS", 16)
# Concurrent calls of an async node within one batch.
MAX_ASYNC_CALLS: Final = setting("MAX_ASYNC_CALLS", 64)
# A broadcast lookup table in memory: beyond it the stage refuses to start instead of being killed later.
MAX_TABLE_BYTES: Final = setting("MAX_TABLE_BYTES", 512 * 1024 * 1024)
# Attempts of a record at one node, first included, unless the node declares its own retry policy.
MAX_ATTEMPTS: Final = 3
RETRY_BACKOFF_MS: Final = 100
RETRY_BACKOFF_MAX_MS: Final = 10_000
# Inferred edges: how long anyone may come and look, and how much disk that may cost per partition.
EDGE_RETENTION_MS: Final = 24 * 3_600_000
EDGE_RETENTION_BYTES: Final = 1_000_000_000
# Values above this size are compressed by the producer's batch anyway; below it lz4 costs more than it saves.
COMPRESS_ABOVE_BYTES: Final = 1_024
# One server-sent-events tap may be this many records behind before it is told and cut off.
MAX_TAP_BACKLOG: Final = setting("MAX_TAP_BACKLOG", 10_000)
# Concurrent taps of one gateway: each is a consumer.
MAX_TAPS: Final = setting("MAX_TAPS", 64)
# One declaration file: people write a few kB; a parser in Python needs seconds for more than this.
MAX_YAML_BYTES: Final = 1_000_000
# Nesting and values (aliases expanded) of one declaration file: against files made to exhaust memory.
MAX_YAML_DEPTH: Final = 50
MAX_YAML_VALUES: Final = 100_000
# A join across stages knows for so long that a record is joined, all sides of it: what comes then was written twice, by a
# worker that was killed, and is written again within minutes. Each record costs some 100 bytes of state meanwhile.
APART_DOUBLES_MS: Final = 10 * 60_000
# One entry of keyed state, key and value: it is a record of the changelog topic, of Kafka's default size.
MAX_STATE_RECORD_BYTES: Final = MAX_RECORD_BYTES
# Entries of one key given at once: a fan-out of 10,000 and room; a list without an end belongs in keys of its own.
MAX_STATE_ITEMS: Final = 100_000
# Changed state that waits for a commit, per task: more is committed before the interval is over.
MAX_STATE_PENDING_BYTES: Final = 8 * 1024 * 1024
# Committed changes go to the local file so many at once ([measured] 4,096 random keys take 20 to 60 ms), or so often: a hot
# key is written once, and a start reads no more than this again.
STATE_SAVE_ENTRIES: Final = 4_096
STATE_SAVE_INTERVAL_MS: Final = 1_000
# A restore stores so many records at once, or bytes: [measured] 1,000,000 random keys take 6 s so, 23 s by 5,000.
STATE_RESTORE_RECORDS: Final = 50_000
STATE_RESTORE_BYTES: Final = 16 * 1024 * 1024
# Entries of state kept decoded-ready in memory, per task; the rest is in the file's page cache.
MAX_STATE_CACHE_BYTES: Final = 4 * 1024 * 1024
# Timers read ahead from the file at once, and held in memory per node and clock before the far ones are let go.
STATE_TIMERS_AHEAD: Final = 256
MAX_STATE_TIMERS_HELD: Final = 16_384
# Entries whose time to live is over are gone for readers at once; they are removed this late, and so many at once.
STATE_EXPIRY_DELAY_MS: Final = 1_000
MAX_STATE_EXPIRED: Final = 1_000
# A local file not in use for longer is read from the changelog anew: Kafka keeps tombstones 24 h, then the file would
# keep what was deleted meanwhile.
MAX_STATE_FILE_AGE_MS: Final = 12 * 3_600_000
# A gateway's copies of changelog partitions, each a temporary file; of one key so much is shown; callers who may wait for
# their turn; and a caller waits so long for a copy to catch up (it goes on from there for the next).
MAX_STATE_VIEWS: Final = setting("MAX_STATE_VIEWS", 16)
MAX_STATE_VIEW_ENTRIES: Final = setting("MAX_STATE_VIEW_ENTRIES", 1_000)
MAX_STATE_VIEW_BYTES: Final = setting("MAX_STATE_VIEW_BYTES", 4 * 1024 * 1024)
MAX_STATE_VIEW_CALLERS: Final = setting("MAX_STATE_VIEW_CALLERS", 16)
STATE_VIEW_WAIT_MS: Final = setting("STATE_VIEW_WAIT_MS", 10_000)
