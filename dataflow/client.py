"""`Client` and `AsyncClient`: a pipeline and its streams from a program of one's own.

`request` goes by HTTP to a gateway, `produce` and `tap` to the Kafka cluster; each connects when it is first used.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import math
import os
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import numpy as np
import orjson

from dataflow.codecs.tables import columns_of, table_of
from dataflow.codecs.values import coerce_records
from dataflow.control.connect import connect
from dataflow.control.deploy import read_plans
from dataflow.control.produce import TopicProducer, create_topic
from dataflow.control.records import Stream, TapRecord, columns_of_records
from dataflow.control.starts import FROM_LATEST, parse_start, start_of_id
from dataflow.control.streams import EdgeReader, find_stream, find_writable
from dataflow.core.errors import GatewayError, TransportError
from dataflow.core.limits import DEFAULT_DEADLINE_MS, MAX_DEADLINE_MS
from dataflow.core.schema import Schema
from dataflow.planner.plan import Plan
from dataflow.spec.loader import Project, load_project
from dataflow.transport.api import Fabric

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

URL_VARIABLE: Final = "DATAFLOW_URL"
TOKEN_VARIABLE: Final = "DATAFLOW_TOKEN"  # noqa: S105  (a name)
_DEFAULT_URL: Final = "http://127.0.0.1:8080"
# A gateway closes idle connections after some seconds; an older one is not used, so that no request is ever sent twice.
_MAX_IDLE_S: Final = 2.0
# How much longer than its deadline a request is waited for: the gateway answers every one, with 504 at the latest.
_GRACE_S: Final = 5.0

Result = TypeVar("Result")
Record = Mapping[str, Any]


class Tap:
    """The records of one stream, to be iterated once (again starts anew). `schema` is the contract of the values."""

    def __init__(self, make: Callable[[], EdgeReader]) -> None:
        self._make = make
        self._reader = make()

    @property
    def schema(self) -> Schema:
        return self._reader.schema

    @property
    def stream(self) -> Stream:
        return self._reader.stream

    def __iter__(self) -> Iterator[TapRecord]:
        with closing(self.batches()) as batches:
            for batch in batches:
                yield from batch

    def batches(self) -> Generator[list[TapRecord], None, None]:
        """Runs of records as they are at hand."""
        yield from self._reader.batches()
        self._reader = self._make()

    def stop(self) -> None:
        """End an iteration that follows. Thread-safe."""
        self._reader.stop()

    def to_arrow(self) -> pa.Table:
        """All values as an Arrow table; records that do not decode are left out. Ends with the tap (see `limit`)."""
        records = list(self)
        columns, _ = columns_of_records(self.schema, records)
        return table_of(self.schema, columns)

    def to_pandas(self) -> pd.DataFrame:
        """As `to_arrow`, with tensors as lists and times as UTC timestamps. Needs pandas."""
        return self.to_arrow().to_pandas()


class Client:
    """One gateway and one cluster. Thread-safe; close it, or use it in a ``with``.

    url        the gateway; else DATAFLOW_URL, else that of the project's running `dataflow up`, else port 8080 here
    bootstrap  the cluster; else DATAFLOW_BOOTSTRAP, the project's `kafka:` section, or its running embedded broker
    project    folder of the project: contracts of topics and all of the above. Default: the working directory
    token      for a gateway that wants one; else DATAFLOW_TOKEN
    """

    def __init__(
        self,
        url: str | None = None,
        bootstrap: str | None = None,
        project: str | Path | None = None,
        *,
        token: str | None = None,
        environ: Mapping[str, str] = os.environ,
        fabric: Fabric | None = None,
    ) -> None:
        self._folder = Path(project) if project is not None else Path.cwd()
        self._environ = environ
        self._bootstrap = bootstrap
        self._token = token or environ.get(TOKEN_VARIABLE, "")
        self._url = url or environ.get(URL_VARIABLE, "")
        self._lock = threading.Lock()
        self._fabric = fabric
        self._ours = fabric is None
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []

    # ------------------------------------------------------------ request and answer

    def request(
        self, pipeline: str, records: Record | Sequence[Record], *, deadline: float | None = None
    ) -> Any:
        """The pipeline's answer to one record (a dict), or to each of a list, in order. `deadline` is in seconds.

        Of a list, a row without an answer is ``{"error": ..., "status": ..., "id": ...}`` in its place. Values are those
        of the plain JSON door. Raises GatewayError with the HTTP status, TransportError where no gateway answers.
        """
        wait_s = (DEFAULT_DEADLINE_MS if deadline is None else min(deadline * 1000, MAX_DEADLINE_MS)) / 1000
        head = {"content-type": "application/json"}
        if deadline is not None:
            head["x-deadline-ms"] = str(max(math.ceil(wait_s * 1000), 1))
        else:
            wait_s = MAX_DEADLINE_MS / 1000  # the pipeline's own may be longer than the default
        if self._token:
            head["authorization"] = f"Bearer {self._token}"
        body = orjson.dumps(_sayable(records if isinstance(records, Mapping) else list(records)))
        path = f"/pipelines/{urllib.parse.quote(pipeline, safe='')}"
        status, answer = self._post(path, body, head, wait_s + _GRACE_S)
        if status == 200:
            return answer
        said = answer if isinstance(answer, dict) else {"error": str(answer)}
        raise GatewayError(status, str(said.get("error", "no reason given")), hint=str(said.get("hint", "")))

    def _post(self, path: str, body: bytes, head: Mapping[str, str], timeout_s: float) -> tuple[int, Any]:
        connection = self._connection(timeout_s)
        place = f"{connection.host}:{connection.port}"
        try:
            connection.request("POST", path, body, dict(head))
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise TransportError(
                f"asking the gateway at {place}: {error or type(error).__name__}",
                hint="is `dataflow up` running?",
            ) from error
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append((time.monotonic(), connection))
        try:
            return response.status, orjson.loads(content)
        except orjson.JSONDecodeError:
            return response.status, content[:200].decode("utf-8", "replace")

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        now = time.monotonic()
        with self._lock:
            fresh = [(used, c) for used, c in self._idle if now - used < _MAX_IDLE_S]
            for _, stale in (entry for entry in self._idle if entry not in fresh):
                stale.close()
            self._idle = fresh
            if fresh:
                _, connection = self._idle.pop()
                if connection.sock is not None:
                    connection.sock.settimeout(timeout_s)
                    return connection
        address = urllib.parse.urlsplit(self.url)
        made = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        return made(address.hostname or "127.0.0.1", address.port, timeout=timeout_s)

    @property
    def url(self) -> str:
        """The gateway that requests go to."""
        if self._url:
            return self._url
        try:
            return str(json.loads((self._folder / ".dataflow" / "up.json").read_text())["gateway"])
        except (OSError, ValueError, KeyError, TypeError):
            return _DEFAULT_URL

    # ------------------------------------------------------------ streams

    def produce(self, topic: str, records: Any, *, key: Sequence[str] = ()) -> list[str]:
        """Write records (dicts, an Arrow table or a pandas frame) to a topic by its contract; their ids.

        Returns when all are acknowledged. Raises CodecError for the first row that does not fit: nothing is sent then.
        """
        fabric = self._cluster()
        project = self._project()
        stream = find_writable(topic, self._plans(), project)
        columns, count = _columns(stream.schema, records)
        create_topic(fabric, project, topic)
        with TopicProducer(fabric, stream, key=key) as producer:
            sent = producer.send(columns, count)
            producer.flush()
        if sent.failed:
            raise sent.failed[0][1]
        return [record_id.decode() for record_id in sent.ids]

    def tap(
        self,
        edge: str,
        *,
        start: str | None = None,
        follow: bool | None = None,
        where: str = "",
        record_id: str = "",
        limit: int | None = None,
        show_private: bool = False,
    ) -> Tap:
        """The records of ``PIPELINE.EDGE`` or ``topic:NAME``.

        start   earliest, latest (default), offset:N, id:ID, an ISO 8601 time, or -5m
        follow  go on as records come (`Tap.stop` ends it); default: when starting at the latest
        """
        begin = FROM_LATEST
        if start is not None:
            begin = parse_start(start, int(time.time() * 1000))
        elif record_id:
            begin = start_of_id(record_id)
        stream = find_stream(edge, self._plans(), self._project())
        going_on = begin == FROM_LATEST if follow is None else follow
        return Tap(
            partial(
                EdgeReader,
                self._cluster(),
                stream,
                start=begin,
                follow=going_on,
                where=where,
                record_id=record_id,
                limit=limit,
                show_private=show_private,
            )
        )

    def _cluster(self) -> Fabric:
        with self._lock:
            if self._fabric is None:
                self._fabric = connect(self._folder, self._bootstrap, self._environ)
            return self._fabric

    def _plans(self) -> dict[str, Plan]:
        return read_plans(self._cluster())

    def _project(self) -> Project | None:
        return load_project(self._folder, environ=self._environ) if self._folder.is_dir() else None

    def close(self) -> None:
        with self._lock:
            for _, connection in self._idle:
                connection.close()
            self._idle = []
            if self._fabric is not None and self._ours:
                self._fabric.close()
                self._fabric = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTap:
    """As `Tap`, for ``async for``. Leaving the loop ends the reading."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self.schema = tap.schema

    async def __aiter__(self) -> AsyncIterator[TapRecord]:
        loop = asyncio.get_running_loop()
        batches = self._tap.batches()
        # A thread of its own: taps that wait must not fill the loop's pool.
        pool = ThreadPoolExecutor(1, thread_name_prefix="dataflow-tap")
        try:
            while True:
                batch = await loop.run_in_executor(pool, next, batches, None)
                if batch is None:
                    return
                for record in batch:
                    yield record
        finally:
            self._tap.stop()
            pool.submit(batches.close)
            pool.shutdown(wait=False)

    def stop(self) -> None:
        self._tap.stop()

    async def to_arrow(self) -> pa.Table:
        return await asyncio.to_thread(self._tap.to_arrow)

    async def to_pandas(self) -> pd.DataFrame:
        return await asyncio.to_thread(self._tap.to_pandas)


class AsyncClient:
    """`Client` with awaitable methods; the work is done by threads. Parameters and errors are the same."""

    def __init__(
        self,
        url: str | None = None,
        bootstrap: str | None = None,
        project: str | Path | None = None,
        *,
        token: str | None = None,
        environ: Mapping[str, str] = os.environ,
        fabric: Fabric | None = None,
    ) -> None:
        self.sync = Client(url, bootstrap, project, token=token, environ=environ, fabric=fabric)

    async def request(
        self, pipeline: str, records: Record | Sequence[Record], *, deadline: float | None = None
    ) -> Any:
        return await asyncio.to_thread(self.sync.request, pipeline, records, deadline=deadline)

    async def produce(self, topic: str, records: Any, *, key: Sequence[str] = ()) -> list[str]:
        return await asyncio.to_thread(self.sync.produce, topic, records, key=key)

    async def tap(self, edge: str, **options: Any) -> AsyncTap:
        """``async for record in await client.tap(...)``; options are those of `Client.tap`."""
        return AsyncTap(await asyncio.to_thread(partial(self.sync.tap, edge, **options)))

    async def close(self) -> None:
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _columns(schema: Schema, records: Any) -> tuple[dict[str, Any], int]:
    if hasattr(records, "to_dict") and hasattr(records, "columns"):  # a pandas frame
        import pyarrow as pa

        records = pa.Table.from_pandas(records, preserve_index=False)
    if hasattr(records, "num_rows"):
        return columns_of(schema, records), records.num_rows
    given = [records] if isinstance(records, Mapping) else list(records)
    decoded = coerce_records(schema, given, form="python")
    if decoded.failed:
        raise decoded.failed[0][1]
    return decoded.columns, len(given)


def _sayable(value: Any) -> Any:
    """A Python value as the plain JSON door takes it."""
    if isinstance(value, Mapping):
        return {str(name): _sayable(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _sayable(value.item() if value.ndim == 0 else value.tolist())
    if isinstance(value, list | tuple):
        return [_sayable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, date):
        return value.isoformat()
    return value
