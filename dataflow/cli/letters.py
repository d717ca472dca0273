"""`dataflow dead-letters`: list, show and redrive records that could not be processed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflow.cli.context import bootstrap_option, count, project_option
from dataflow.cli.outside import cluster, pipe, tell

if TYPE_CHECKING:
    from dataflow.control.dead_letters import Letter, LetterFilter
    from dataflow.control.records import Stream

_HEX_BYTES = 512
_FILTERS = (
    click.option("--pipeline", default="", help="Only of this pipeline."),
    click.option("--node", default="", help="Only of this node."),
    click.option("--error", default="", help="Only with this error, e.g. ValueError."),
    click.option("--since", metavar="TIME", help="Only since this time, or so long ago (-1h)."),
)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    return reduce(lambda made, option: option(made), reversed(_FILTERS), command)


def _wanted(pipeline: str, node: str, error: str, since: str | None) -> LetterFilter:
    from dataflow.control.dead_letters import LetterFilter
    from dataflow.control.starts import parse_time_ms

    since_ms = -1 if since is None else parse_time_ms(since, int(time.time() * 1000))
    return LetterFilter(pipeline, node, error, since_ms)


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show and redrive records that could not be processed."""


@dead_letters.command("list")
@project_option
@bootstrap_option
@_filters
@click.option("--all", "everything", is_flag=True, help="Also those that were redriven.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_letters(
    project: Path,
    bootstrap: str,
    pipeline: str,
    node: str,
    error: str,
    since: str | None,
    everything: bool,
    form: str,
) -> None:
    """List dead letters, oldest first; those redriven are left out."""
    from dataflow.control.dead_letters import read_letters

    shown = redriven = 0
    with cluster(project, bootstrap) as outside, pipe():
        for letter in read_letters(outside.fabric, _wanted(pipeline, node, error, since)):
            if letter.redriven_ms and not everything:
                redriven += 1
                continue
            shown += 1
            if form == "json":
                import orjson

                click.echo(orjson.dumps(_summary(letter)))
            else:
                click.echo(_line(letter))
    hidden = f"; {redriven} redriven (--all shows them)" if redriven else ""
    tell(f"{count(shown, 'dead letter')}{hidden}")


@dead_letters.command()
@click.argument("letter", metavar="PARTITION/OFFSET|ID")
@project_option
@bootstrap_option
@click.option(
    "--show-private", is_flag=True, help="Show fields labelled private, and bytes that may hold them."
)
def show(letter: str, project: Path, bootstrap: str, show_private: bool) -> None:
    """Show one dead letter: cause, headers, and the value, decoded if the present contract reads it."""
    from dataflow.control.dead_letters import find_letter
    from dataflow.control.streams import known_topics

    with cluster(project, bootstrap) as outside, pipe():
        found = find_letter(outside.fabric, letter)
        streams = known_topics(outside.plans, outside.project)
        for name, value in _summary(found).items():
            click.echo(f"{name + ':':<12}{value}")
        click.echo("headers:")
        for header, content in found.headers:
            if not header.startswith("df-error"):
                click.echo(f"  {header}: {content.decode('utf-8', 'backslashreplace')}")
        for line in _value(outside.fabric, found, streams, show_private=show_private):
            click.echo(line)


def _value(fabric: Any, letter: Letter, streams: dict[str, Stream], *, show_private: bool) -> Iterator[str]:
    import orjson

    from dataflow.control.dead_letters import decode_letter
    from dataflow.control.records import jsonable_records, key_text

    decoded = decode_letter(fabric, letter, streams, show_private=show_private)
    private = decoded is None or decoded[1].is_private
    if decoded is not None:
        record, stream, schema = decoded
        yield f"{'key:':<12}{key_text(record.key, stream)}"
        if record.value is not None:
            (document,) = jsonable_records(schema, [record], stream)
            yield f"{'value:':<12}{orjson.dumps(document['value']).decode()}"
            return
        yield f"does not decode: {record.error}"
    else:
        yield f"no contract of topic '{letter.topic}' is known"
    if private and not show_private:
        yield "value:      hidden, it may hold private fields (--show-private)"
        return
    value = letter.message.value()
    yield f"value:      {'none (a tombstone)' if value is None else count(len(value), 'byte')}"
    yield from hexdump(value or b"")


def hexdump(value: bytes, limit: int = _HEX_BYTES) -> Iterator[str]:
    """Lines of 16 bytes: offset, hex, text."""
    for at in range(0, min(len(value), limit), 16):
        part = value[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        yield f"  {at:06x}  {part.hex(' '):<47}  {text}"
    if len(value) > limit:
        yield f"  ... {len(value) - limit} more bytes"


@dead_letters.command()
@click.argument("letters", nargs=-1, metavar="[PARTITION/OFFSET|ID]...")
@project_option
@bootstrap_option
@_filters
@click.option("--all", "everything", is_flag=True, help="Every dead letter that was not redriven yet.")
@click.option("--again", is_flag=True, help="Also those that were redriven before.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent back.")
def redrive(
    letters: tuple[str, ...],
    project: Path,
    bootstrap: str,
    pipeline: str,
    node: str,
    error: str,
    since: str | None,
    everything: bool,
    again: bool,
    dry_run: bool,
) -> None:
    """Send dead letters back to the topic they were read from, under the same id and with one more attempt."""
    from dataflow.control.dead_letters import find_letter, read_letters
    from dataflow.control.dead_letters import redrive as send_back

    filtered = any((pipeline, node, error, since))
    if not (letters or everything or filtered):
        raise click.UsageError("name dead letters, give a filter, or say --all")
    if letters and (everything or filtered):
        raise click.UsageError("either name dead letters or filter them")
    sent = skipped = 0
    with cluster(project, bootstrap) as outside:
        chosen: Any = (
            [find_letter(outside.fabric, x) for x in letters]
            if letters
            else read_letters(outside.fabric, _wanted(pipeline, node, error, since))
        )
        for told in send_back(outside.fabric, chosen, dry_run=dry_run, again=again):
            if told.skipped:
                skipped += 1
                if letters or told.skipped != "redriven before":
                    tell(f"{told.letter.position}: skipped: {told.skipped}")
                continue
            sent += 1
            source = f"{told.letter.topic}/{told.letter.source_partition}"
            click.echo(
                f"{told.letter.position}  {told.letter.id}  -> {source}, attempt {told.letter.attempt + 1}"
            )
    tell(f"{count(sent, 'dead letter')} {'would be ' if dry_run else ''}redriven, {skipped} skipped")
    if letters and skipped:
        raise SystemExit(1)


def _summary(letter: Letter) -> dict[str, Any]:
    return {
        "position": letter.position,
        "id": letter.id,
        "time": _time(letter.failed_ms),
        "pipeline": letter.pipeline,
        "node": letter.node,
        "version": letter.version,
        "error": letter.error,
        "reason": letter.reason,
        "read_at": f"{letter.topic}/{letter.source_partition}/{letter.source_offset}",
        "attempt": letter.attempt,
        "redriven": _time(letter.redriven_ms) if letter.redriven_ms else None,
    }


def _line(letter: Letter) -> str:
    place = f"{letter.pipeline}/{letter.node}" if letter.node else letter.pipeline
    redriven = "  (redriven)" if letter.redriven_ms else ""
    reason = letter.reason.splitlines()[0][:120] if letter.reason else ""
    return f"{letter.position:<8}  {_time(letter.failed_ms)}  {letter.id}  {place}  {letter.error}: {reason}{redriven}"


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
