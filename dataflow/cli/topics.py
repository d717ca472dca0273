"""`dataflow topics`: the contracts of declared topics and of every edge, listed and exported for other tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflow.cli.context import count, project_option, tell_build
from dataflow.core.errors import SpecError, nearest

if TYPE_CHECKING:
    from dataflow.control.assemble import Assembled
    from dataflow.core.schema import Schema

_SUFFIXES = {"avsc": ".avsc", "jsonschema": ".schema.json"}


@dataclass(frozen=True)
class Contract:
    """What a topic holds. `pipeline` and `edge` are "" for a declared topic."""

    topic: str
    schema: Schema
    codec: str
    key: tuple[str, ...]
    partitions: int
    doc: str = ""
    pipeline: str = ""
    edge: str = ""


@click.group()
def topics() -> None:
    """List and export the contracts of topics and edges."""


@topics.command(name="list")
@project_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_topics(project: Path, form: str) -> None:
    """List declared topics and the topics of all edges, with their contracts."""
    contracts = contracts_of(_assembled(project))
    if form == "json":
        click.echo(json.dumps({"topics": [_as_dict(c) for c in contracts]}, indent=2))
        return
    from dataflow.planner.report import columns

    rows = [("topic", "edge", "codec", "key", "partitions", "fields")]
    for c in contracts:
        edge = f"{c.pipeline}.{c.edge}" if c.edge else "declared"
        rows.append((c.topic, edge, c.codec, ", ".join(c.key), str(c.partitions), c.schema.describe()))
    click.echo("\n".join(columns(rows, indent="")))


@topics.command()
@click.argument("names", nargs=-1)
@project_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["avsc", "jsonschema", "asyncapi"]),
    default="avsc",
    show_default=True,
    help="Avro schema, JSON Schema, or one AsyncAPI document for all.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write files into this folder.")
def export(names: tuple[str, ...], project: Path, form: str, out: Path | None) -> None:
    """Export the contracts of the topics NAMES (all if none is named), for tools in any language.

    Without --out they are printed; several as one JSON object by topic.
    """
    contracts = contracts_of(_assembled(project))
    known = {c.topic: c for c in contracts}
    for name in names:
        if name not in known:
            raise SpecError(f"no topic '{name}'", hint=nearest(name, known))
    chosen = [known[name] for name in names] if names else contracts
    if form == "asyncapi":
        documents: dict[str, Any] = {"asyncapi.json": asyncapi(project.name, chosen)}
    else:
        documents = {c.topic + _SUFFIXES[form]: exported(c, form) for c in chosen}
    if out is None:
        whole = (
            next(iter(documents.values()))
            if len(documents) == 1
            else {c.topic: exported(c, form) for c in chosen}
        )
        click.echo(json.dumps(whole, indent=2))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (out / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    click.echo(f"{count(len(documents), 'file')} in {out}")


def _assembled(project: Path) -> Assembled:
    from dataflow.control.assemble import assemble

    return assemble(project, environ=os.environ, on_build=tell_build)


def contracts_of(made: Assembled) -> list[Contract]:
    """Every topic with a contract: the declared ones, those that requests go to, those of edges."""
    found = {
        name: Contract(name, d.spec.schema(), d.spec.codec, tuple(d.spec.key), d.spec.partitions, d.spec.doc)
        for name, d in made.project.topics.items()
    }
    for plan in made.plans:
        for edge in plan.edges.values():
            for topic in edge.topics:
                partitions = plan.topics[topic].partitions
                found.setdefault(
                    topic,
                    Contract(
                        topic, edge.schema, edge.codec, edge.key, partitions, "", plan.pipeline, edge.name
                    ),
                )
    return list(found.values())


def _as_dict(contract: Contract) -> dict[str, Any]:
    from dataflow.codecs.export import schema_to_dict

    return {
        "topic": contract.topic,
        "pipeline": contract.pipeline or None,
        "edge": contract.edge or None,
        "codec": contract.codec,
        "key": list(contract.key),
        "partitions": contract.partitions,
        "doc": contract.doc,
        **schema_to_dict(contract.schema),
    }


def exported(contract: Contract, form: str) -> dict[str, Any]:
    """One contract in the given form. The Avro record has the name that every writer of the engine gives it."""
    from dataflow.codecs.export import to_avsc, to_json_schema

    if form == "avsc":
        return to_avsc(contract.schema, "Record", contract.doc)
    return to_json_schema(contract.schema, contract.topic, contract.doc)


def asyncapi(title: str, contracts: Iterable[Contract]) -> Mapping[str, Any]:
    """An AsyncAPI 3.0 document: a channel for each topic, Avro payloads where the codec is avro, else JSON Schema."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for contract in contracts:
        name = contract.topic
        messages[name] = {"name": contract.topic, **_payload(contract)}
        channels[name] = {
            "address": contract.topic,
            **({"description": contract.doc} if contract.doc else {}),
            "messages": {"record": {"$ref": f"#/components/messages/{name}"}},
            "bindings": {"kafka": {"topic": contract.topic, "partitions": contract.partitions}},
        }
        operations[f"read_{name}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": "1.0.0"},
        "defaultContentType": "application/octet-stream",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def _payload(contract: Contract) -> dict[str, Any]:
    if contract.codec == "avro":
        return {
            "contentType": "application/vnd.apache.avro",
            "payload": {
                "schemaFormat": "application/vnd.apache.avro+json;version=1.9.0",
                "schema": exported(contract, "avsc"),
            },
        }
    content = {"json": "application/json", "arrow": "application/vnd.apache.arrow.stream"}
    made = {"contentType": content.get(contract.codec, "application/octet-stream")}
    return {**made, "payload": exported(contract, "jsonschema")} if contract.codec != "raw" else made
