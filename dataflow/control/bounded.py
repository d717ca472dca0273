"""A pipeline over files, to the end: the same stages on a real log, and every input row accounted for.

Each row carries header `df-run` (run/input/row) through the pipeline, so that what came of it is found whatever ids it
got on the way. The run is over when every stage has committed all that was written for it. What nodes with state make of
many rows carries no such header: it is taken for the run's if it was written meanwhile, and comes after the others.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dataflow.control.dead_letters import Letter, read_letters
from dataflow.control.deploy import deploy, read_plans
from dataflow.control.files import BadRow, FileBatch, FileWriter, read_file
from dataflow.control.produce import TopicProducer
from dataflow.control.records import RecordReader, Stream
from dataflow.control.streams import read_messages
from dataflow.core import headers
from dataflow.core.errors import CodecError, DataflowError, PlanError, SpecError, nearest
from dataflow.core.schema import Field, FieldType, Schema, column_of
from dataflow.gateway.doors import union
from dataflow.planner.plan import EdgePlan, Plan, StagePlan
from dataflow.runtime.schemas import reader_codecs
from dataflow.runtime.worker import StageThread, Worker
from dataflow.runtime.workshop import Workshop
from dataflow.transport.api import EARLIEST, LATEST, Fabric, Header, Message, Position

ROW_FIELD: Final = "row"
NO_ROW: Final = -1  # of a record that no row of the files is, but many
_POLL_S: Final = 0.05
# A stage that commits nothing for this long may be at its end: what is left may be markers of transactions only.
_STALL_S: Final = 2.0
_WRITE_RECORDS: Final = 1_000

OnProgress = Callable[[str, int, int], None]  # what is done, how many rows, of how many (0: not known yet)


@dataclass(frozen=True)
class Source:
    """A file for an input of the pipeline, or for the topic of one of its tables."""

    path: str
    form: str | None = None


@dataclass
class RunReport:
    """What became of the rows. `dropped` counts by "node: reason"; `unread` are answers that did not decode."""

    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.bad or self.letters or self.unread)


def answer_edges(plan: Plan, named: Sequence[str] = ()) -> list[EdgePlan]:
    """The edges whose records a run gives: those named, else the answer's, else the published, else what nobody reads.

    Raises SpecError for one that is not there or is not written.
    """
    chosen: Iterable[str] = named
    if not named:
        read = {e for node in plan.nodes.values() for edges in node.inputs.values() for e in edges}
        published = [n for n, e in plan.edges.items() if e.publish]
        ends = [n for n, e in plan.edges.items() if e.node and e.write and n not in read]
        chosen = plan.answer.edges if plan.answer is not None else published or ends
    found = []
    for name in chosen:
        edge = plan.edges.get(name)
        if edge is None:
            raise SpecError(
                f"pipeline '{plan.pipeline}' has no edge '{name}'", hint=nearest(name, plan.edges)
            )
        if not edge.topics:
            raise SpecError(f"edge '{name}' is declared `write: off`: its records are not kept")
        found.append(edge)
    return found


def run_files(
    shop: Workshop,
    plan: Plan,
    sources: Mapping[str, Source],
    tables: Mapping[str, tuple[Stream, Source]],
    out: str,
    *,
    form: str | None = None,
    edges: Sequence[str] = (),
    row_numbers: bool = False,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> RunReport:
    """Feed `sources` (by input) through the pipeline, write what `answer_edges` gives to `out` in input order.

    `tables` (by topic) are written before the stages start. Raises DataflowError if a stage fails for good, PlanError
    if the cluster runs another version of the pipeline.
    """
    fabric = shop.fabric
    running = read_plans(fabric).get(plan.pipeline)
    if running is not None and running.version != plan.version:
        raise PlanError(
            f"pipeline '{plan.pipeline}' is deployed as {running.version}, here it is {plan.version}",
            hint="run without --bootstrap, or deploy this version first",
        )
    chosen = answer_edges(plan, edges)
    report = RunReport()
    deploy(fabric, plan)
    for stream, source in tables.values():
        _feed(fabric, stream, source, report, lambda _count: None)
    starts = ends_of(fabric, [t for e in chosen for t in e.topics[:1]])
    began_ms = int(time.time() * 1000)
    run = uuid.uuid4().hex[:12]
    worker = Worker(shop, [plan])
    worker.start()
    try:
        for name, source in sources.items():
            edge = plan.edges[name]
            stream = Stream(name, edge.topics[:1], edge.schema, edge.codec, edge.key, edge.key_encoding)
            _feed(
                fabric, stream, source, report, lambda count: on_progress("sent", count, 0), f"{run}/{name}"
            )
        await_end(fabric, plan, worker, report.rows, on_progress)
    finally:
        worker.stop()
    _write_answers(shop, plan, chosen, starts, run, out, form, report, row_numbers=row_numbers)
    for (pipeline, node), metrics in shop.metrics.nodes.items():
        if pipeline == plan.pipeline:
            for reason, count in metrics.dropped.counts.items():
                report.dropped[f"{node}: {reason}"] = count
    report.letters = [
        x for x in read_letters(fabric) if x.failed_ms >= began_ms and _run_of(x.headers)[0] == run
    ]
    return report


def _feed(
    fabric: Fabric,
    stream: Stream,
    source: Source,
    report: RunReport,
    on_sent: Callable[[int], None],
    run: str = "",
) -> None:
    with TopicProducer(fabric, stream) as producer:
        for batch in read_file(source.path, stream.schema, source.form):
            report.bad += batch.failed
            sent = producer.send(batch.columns, batch.count, _carried(run, batch) if run else None)
            for row, error in sent.failed:
                place = f"{source.path}, row {batch.numbers[row]}"
                report.bad.append(BadRow(place, CodecError(str(error))))
            if run:
                report.rows += batch.count - len(sent.failed)
                on_sent(report.rows)
        producer.flush()


def _carried(run: str, batch: FileBatch) -> list[list[Header]]:
    return [[(headers.RUN, f"{run}/{number}")] for number in batch.numbers]


def _run_of(carried: Iterable[tuple[str, bytes]] | None) -> tuple[str, str, int]:
    """Run, input and row that a record comes from; ("", "", 0) for a stranger's."""
    for name, value in carried or ():
        if name == headers.RUN:
            run, _, rest = value.decode("utf-8", "replace").partition("/")
            source, _, row = rest.rpartition("/")
            return run, source, int(row) if row.isdigit() else 0
    return "", "", 0


# ---------------------------------------------------------------- the end of it


def ends_of(fabric: Fabric, topics: Iterable[str]) -> dict[Position, int]:
    """Where the partitions of the topics that exist end now."""
    admin = fabric.admin()
    found = admin.describe(sorted(set(topics)))
    return admin.offsets([(n, p) for n, info in found.items() for p in range(info.partitions)], LATEST)


def await_end(fabric: Fabric, plan: Plan, worker: Worker, rows: int, on_progress: OnProgress) -> None:
    """Wait until every stage, upstream ones first, has committed what was there for it.

    `rows` is how many were fed, for `on_progress`. Raises DataflowError if a stage fails.
    """
    for group in _in_order(plan):
        # What a stage says to its own joins comes round, too.
        read = [e for stage in group for e in plan.fetched(stage) if e.loop or e is plan.control]
        loops = list(dict.fromkeys(t for e in read for t in e.topics))
        for drained in (None, *group):
            if drained is not None:
                _drain(worker.stages[plan.pipeline, drained.name], drained)
            if drained is not None and not loops:
                continue
            while True:
                before = ends_of(fabric, loops)
                for stage in group:
                    _await_stage(fabric, plan, stage, worker, rows, on_progress)
                # Nothing came round while all that was there was committed: nothing is on its way any more.
                if ends_of(fabric, loops) == before:
                    break


def _await_stage(
    fabric: Fabric, plan: Plan, stage: StagePlan, worker: Worker, rows: int, on_progress: OnProgress
) -> None:
    """Wait until a stage has committed all that is there for it now."""
    targets = ends_of(fabric, [t for e in plan.fetched(stage) for t in e.topics])
    first = fabric.admin().offsets(list(targets), EARLIEST)
    size = sum(targets.values()) - sum(first.values())
    fed = any(not plan.edges[e].node for e in stage.reads)
    last, since = -1, time.monotonic()
    while True:
        for thread in worker.stages.values():
            if thread.metrics.state in {"failed", "restarting"}:
                raise DataflowError(f"stage '{thread.metrics.stage}' failed: {thread.metrics.error}")
        committed = {**first, **fabric.admin().group_offsets(stage.group, list(targets))}
        left = {p: max(end - committed[p], 0) for p, end in targets.items()}
        done = size - sum(left.values())
        if fed:
            on_progress("processed", min(done, rows), rows)
        if not any(left.values()):
            return
        if done != last:
            last, since = done, time.monotonic()
        elif time.monotonic() - since > _STALL_S:
            if _nothing_left(fabric, {p: committed[p] for p, n in left.items() if n}, targets):
                return
            since = time.monotonic()
        time.sleep(_POLL_S)  # the broker has no "tell me when": committed offsets are asked for again


def _drain(thread: StageThread, stage: StagePlan) -> None:
    """What the nodes of a stage hold is due now: nothing comes any more."""
    if not stage.changelog:
        return
    thread.end_inputs()
    while not thread.drained:
        if thread.metrics.state in {"failed", "restarting"}:
            raise DataflowError(f"stage '{stage.name}' failed: {thread.metrics.error}")
        time.sleep(_POLL_S)


def _nothing_left(fabric: Fabric, committed: Mapping[Position, int], targets: Mapping[Position, int]) -> bool:
    """Whether no record is left between the committed offsets and the ends."""
    ends = {p: targets[p] for p in committed}
    return next(read_messages(fabric, committed, ends), None) is None


def _in_order(plan: Plan) -> list[list[StagePlan]]:
    """Stages that read, each after those that write what it reads; the stages that a loop leads through are together."""
    waiting = [s for s in plan.stages if s.reads]
    ordered: list[StagePlan] = []
    while waiting:
        unwritten = {e for s in waiting for n in s.nodes for e in plan.nodes[n].outputs.values()}
        ready = [
            s
            for s in waiting
            if not any(e in unwritten and not set(plan.edges[e].loop).intersection(s.nodes) for e in s.reads)
        ] or waiting[:1]
        ordered += ready
        waiting = [s for s in waiting if s not in ready]
    place = {node: index for index, stage in enumerate(ordered) for node in stage.nodes}
    inside = {
        index
        for edge in plan.edges.values()
        if edge.loop
        for index in range(min(place[n] for n in edge.loop) + 1, place[edge.node] + 1)
    }
    groups: list[list[StagePlan]] = []
    for index, stage in enumerate(ordered):
        if index in inside:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


# ---------------------------------------------------------------- answers


def _write_answers(
    shop: Workshop,
    plan: Plan,
    edges: Sequence[EdgePlan],
    starts: Mapping[Position, int],
    run: str,
    out: str,
    form: str | None,
    report: RunReport,
    *,
    row_numbers: bool,
) -> None:
    schema = union(plan.pipeline, edges)
    if row_numbers:
        schema = Schema((Field(ROW_FIELD, FieldType("int64")), *schema.without([ROW_FIELD])))
    found: list[tuple[int, str, int, int, Message]] = []
    made = any(stage.changelog for stage in plan.stages)
    ends = ends_of(shop.fabric, {t for t, _ in starts})
    number = {e.topics[0]: i for i, e in enumerate(edges)}
    for messages in read_messages(shop.fabric, starts, ends):
        for message in messages:
            whose, source, row = _run_of(message.headers())
            if whose == run:
                found.append((0, source, row, number[message.topic()], message))
            elif made and not whose:
                found.append((message.timestamp()[1], "", NO_ROW, number[message.topic()], message))
    found.sort(key=lambda entry: entry[:4])
    readers = [_reader(shop, plan, e) for e in edges]
    with FileWriter(out, schema, form) as writer:
        for at in range(0, len(found), _WRITE_RECORDS):
            part = found[at : at + _WRITE_RECORDS]
            values = list(_values(part, readers, report, row_numbers=row_numbers))
            writer.write(
                {f.name: column_of(f.type, [v.get(f.name) for v in values]) for f in schema}, len(values)
            )
        report.out = writer.rows


def _reader(shop: Workshop, plan: Plan, edge: EdgePlan) -> RecordReader:
    find = reader_codecs(shop.schemas, edge.codec, edge.schema)
    return RecordReader(Stream.of_edge(plan, edge), find, {}, show_private=True)


def _values(
    part: Sequence[tuple[int, str, int, int, Message]],
    readers: Sequence[RecordReader],
    report: RunReport,
    *,
    row_numbers: bool,
) -> Iterator[dict[str, object]]:
    """The values in order, with the row number; those that do not decode are noted."""
    read: dict[int, dict[str, object]] = {}
    for index, reader in enumerate(readers):
        places = [i for i, entry in enumerate(part) if entry[3] == index]
        for place, record in zip(places, reader.read([part[i][4] for i in places]), strict=True):
            if record.value is None:
                where = f"{record.topic}/{record.partition}/{record.offset}"
                report.unread.append(f"{where}: {record.error}")
            else:
                read[place] = {**record.value, **({ROW_FIELD: part[place][2]} if row_numbers else {})}
    for place in sorted(read):
        yield read[place]
