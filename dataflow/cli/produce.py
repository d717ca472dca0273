"""`dataflow produce`: records of a file or a pipe onto a topic, by its contract."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dataflow.cli.context import bootstrap_option, count, project_option
from dataflow.cli.outside import cluster, tell

if TYPE_CHECKING:
    from dataflow.control.files import BadRow, FileBatch

_SHOWN_BAD_ROWS: Final = 20
# A paced file is sent in steps this long.
_STEP_S: Final = 0.05


@click.command()
@click.argument("topic")
@click.argument("file", default="-")
@project_option
@bootstrap_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet", "jsonl"]),
    help="Default: what the file's name says; jsonl.",
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Records a second. Default: as fast as it goes."
)
@click.option(
    "--key", multiple=True, metavar="FIELD", help="Make the key of these fields. Default: the contract's."
)
@click.option("--strict", is_flag=True, help="Send nothing unless every row fits.")
@click.option("--print-ids", is_flag=True, help="Print the id of every record sent, for `dataflow trace`.")
def produce(
    topic: str,
    file: str,
    project: Path,
    bootstrap: str,
    form: str | None,
    rate: float | None,
    key: tuple[str, ...],
    strict: bool,
    print_ids: bool,
) -> None:
    """Write the records of FILE (default: standard input) to TOPIC. Exits 1 if a row does not fit the contract.

    TOPIC is one whose contract is known: an input, a table, what a pipeline publishes, or an edge that is `open: true`.
    """
    from dataflow.control.files import Ignored, read_file
    from dataflow.control.produce import TopicProducer, create_topic
    from dataflow.control.streams import find_writable

    with cluster(project, bootstrap) as outside:
        stream = find_writable(topic, outside.plans, outside.project)
        ignored = Ignored()
        batches: Iterator[FileBatch] = read_file(file, stream.schema, form, ignored=ignored)
        if strict:
            batches = _all_or_nothing(list(batches))
        if create_topic(outside.fabric, outside.project, topic):
            tell(f"created topic {topic}")
        bad: list[BadRow] = []
        began = time.monotonic()
        with TopicProducer(outside.fabric, stream, key=key) as producer:
            said = _Progress()
            for batch in batches:
                bad += batch.failed
                _tell_bad(batch.failed, len(bad))
                for part in _paced(batch, rate, said.sent, began):
                    sent = producer.send(part.columns, part.count)
                    for row, error in sent.failed:
                        bad.append(_unsent(file, part.numbers[row], error))
                        _tell_bad(bad[-1:], len(bad))
                    said.add(part.count - len(sent.failed))
                    if print_ids:
                        failed = {row for row, _ in sent.failed}
                        for row, record_id in enumerate(sent.ids):
                            if row not in failed:
                                click.echo(record_id.decode())
            producer.flush()
        if ignored.names:
            tell(f"not in the contract, ignored: {', '.join(ignored.names)}")
        rate_text = (
            f", {said.sent / max(time.monotonic() - began, 1e-6):,.0f} a second" if said.sent > 1 else ""
        )
        tell(f"{topic}: {count(said.sent, 'record')} sent{rate_text}, {len(bad)} refused")
    if bad:
        raise SystemExit(1)


def _unsent(file: str, number: int, error: Exception) -> BadRow:
    from dataflow.control.files import BadRow
    from dataflow.core.errors import CodecError

    return BadRow(f"{file}, row {number}", CodecError(str(error)))


def _tell_bad(failed: Any, total: int) -> None:
    """The first bad rows by name, the others by number (in the summary)."""
    before = total - len(failed)
    for bad in failed[: max(_SHOWN_BAD_ROWS - before, 0)]:
        tell(str(bad))
    if before < _SHOWN_BAD_ROWS < total:
        tell("... further bad rows are only counted")


def _all_or_nothing(batches: list[FileBatch]) -> Iterator[FileBatch]:
    bad = [row for batch in batches for row in batch.failed]
    if bad:
        _tell_bad(bad, len(bad))
        tell(f"nothing sent: {count(len(bad), 'row')} do not fit (--strict)")
        raise SystemExit(1)
    return iter(batches)


def _paced(batch: FileBatch, rate: float | None, sent: int, began: float) -> Iterator[FileBatch]:
    """The batch in steps, each at its time."""
    from dataflow.control.files import FileBatch

    step = batch.count if rate is None else max(int(rate * _STEP_S), 1)
    for at in range(0, batch.count, max(step, 1)):
        if rate is not None:
            time.sleep(max(began + (sent + at) / rate - time.monotonic(), 0.0))
        if step >= batch.count:
            yield batch
            continue
        end = min(at + step, batch.count)
        columns: Mapping[str, Any] = {n: c[at:end] for n, c in batch.columns.items()}
        yield FileBatch(dict(columns), end - at, batch.numbers[at:end])


class _Progress:
    """How many were sent, on standard error where that is a terminal."""

    def __init__(self) -> None:
        self.sent = 0
        self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def add(self, records: int) -> None:
        self.sent += records
        if self._live and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            click.echo(f"\r{self.sent:,} records", err=True, nl=False)
            click.echo("\r", err=True, nl=False)
