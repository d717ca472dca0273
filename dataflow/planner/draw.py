"""A pipeline as a picture: boxes in the terminal, Mermaid, or plain data. Stages are visible in all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from dataflow.planner.layout import Box, Line, draw
from dataflow.planner.plan import NodePlan, Plan
from dataflow.planner.report import edges_in_order, nodes_in_order

LEGEND: Final = "solid lines stay in a stage's memory, dashed ones are read from Kafka; every edge is a topic"


def graph_as_text(plan: Plan) -> str:
    """Boxes from top to bottom, then what each stage is for."""
    stages = {name: stage for stage in plan.stages for name in stage.nodes}
    number = {stage.name: index for index, stage in enumerate(plan.stages, 1)}
    boxes = [
        Box(f"input {n}", (n, f"topic {t}") if n != t else (f"topic {t}",), round=True)
        for n, t in sorted(plan.inputs.items())
    ]
    for node in nodes_in_order(plan):
        text = [node.name, node.kind, f"stage {number[stages[node.name].name]}", *_notes(plan, node)]
        boxes.append(Box(f"node {node.name}", tuple(text)))
    lines = [
        Line(_box_of(plan, edge), f"node {node.name}", _port(plan, edge), dashed=_is_cut(plan, edge, node))
        for node in nodes_in_order(plan)
        for edge in _feeds(node)
        if node.name not in plan.edges[edge].loop
    ]
    said = [f"{number[s.name]}  {s.name}: {s.reason}" for s in plan.stages]
    picture = draw(boxes, lines)
    return (
        f"{plan.pipeline}\n\n{picture}\n\nstages\n" + "".join(f"  {line}\n" for line in said) + LEGEND + "\n"
    )


def _notes(plan: Plan, node: NodePlan) -> Iterator[str]:
    """Where the node's edges go besides other nodes, and what it looks things up in."""
    for name in node.tables:
        yield f"table {name}"
    for port, name in sorted(node.outputs.items()):
        edge = plan.edges[name]
        label = f"{port} " if len(node.outputs) > 1 else ""
        if plan.answer is not None and name in plan.answer.edges:
            yield f"{label}→ answer"
        for copy in edge.publish:
            yield f"{label}→ {copy.topic}"
        if edge.loop:
            yield f"{label}↺ {', '.join(edge.loop)}"
        idle = not edge.publish and not any(name in _feeds(n) for n in nodes_in_order(plan))
        if idle and label and (plan.answer is None or name not in plan.answer.edges):
            yield label.strip()


def _feeds(node: NodePlan) -> list[str]:
    return list(dict.fromkeys(edge for edges in node.inputs.values() for edge in edges))


def _box_of(plan: Plan, edge: str) -> str:
    producer = plan.edges[edge].node
    return f"node {producer}" if producer else f"input {edge}"


def _port(plan: Plan, edge: str) -> str:
    """The name of an output port, where the node has several."""
    producer = plan.edges[edge].node
    ports = plan.nodes[producer].outputs if producer else {}
    return next((port for port, name in ports.items() if name == edge), "") if len(ports) > 1 else ""


def _is_cut(plan: Plan, edge: str, reader: NodePlan) -> bool:
    """Whether records reach the reader through Kafka rather than in its stage's memory."""
    return any(edge in stage.reads for stage in plan.stages if reader.name in stage.nodes)


def graph_as_mermaid(plan: Plan) -> str:
    """A Mermaid flowchart: a subgraph for each stage, dotted lines where records are read from Kafka."""
    names = _identifiers(plan)
    lines = ["flowchart TD"]
    for name, topic in sorted(plan.inputs.items()):
        label = f"{name}<br/>topic {topic}" if name != topic else f"topic {topic}"
        lines.append(f"  {names[f'input {name}']}([{_quoted(label)}])")
    for stage in plan.stages:
        lines.append(f"  subgraph {names[f'stage {stage.name}']}[{_quoted(f'stage {stage.name}')}]")
        for member in stage.nodes:
            node = plan.nodes[member]
            label = f"{node.name}<br/><i>{node.kind}</i>"
            lines.append(f"    {names[f'node {member}']}[{_quoted(label)}]")
        lines.append("  end")
    for node in nodes_in_order(plan):
        target = names[f"node {node.name}"]
        for edge in _feeds(node):
            arrow = "-.->" if _is_cut(plan, edge, node) else "-->"
            lines.append(_arrow(names[_box_of(plan, edge)], arrow, _port(plan, edge), target))
        for table in node.tables:
            lines.append(f"  {names[f'table {table}']}[({_quoted(table)})] -.-> {target}")
    lines += _mermaid_ends(plan, names)
    return "\n".join(lines) + "\n"


def _mermaid_ends(plan: Plan, names: dict[str, str]) -> Iterator[str]:
    if plan.answer is not None:
        yield "  answer{{answer}}"
        for edge in plan.answer.edges:
            yield _arrow(names[_box_of(plan, edge)], "-->", _port(plan, edge), "answer")
    for edge_plan in edges_in_order(plan):
        for copy in edge_plan.publish:
            target = f"{names[f'topic {copy.topic}']}([{_quoted(f'topic {copy.topic}')}])"
            yield _arrow(names[_box_of(plan, edge_plan.name)], "-->", _port(plan, edge_plan.name), target)


def _arrow(source: str, arrow: str, label: str, target: str) -> str:
    return f"  {source} {arrow}|{_quoted(label)}| {target}" if label else f"  {source} {arrow} {target}"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "#quot;") + '"'


def _identifiers(plan: Plan) -> dict[str, str]:
    """Names that Mermaid takes: letters, digits and _, all different."""
    wanted = [
        *(f"input {n}" for n in plan.inputs),
        *(f"stage {s.name}" for s in plan.stages),
        *(f"node {n}" for n in plan.nodes),
        *(f"table {t}" for n in nodes_in_order(plan) for t in n.tables),
        *(f"topic {p.topic}" for e in edges_in_order(plan) for p in e.publish),
    ]
    found: dict[str, str] = {}
    for name in wanted:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        taken = sum(1 for n, p in found.items() if n != name and re.fullmatch(rf"{plain}(_\d+)?", p))
        found.setdefault(name, f"{plain}_{taken}" if taken else plain)
    return found


def graph_as_dict(plan: Plan) -> dict[str, Any]:
    """Nodes, edges and stages for programs."""
    stages = {name: stage.name for stage in plan.stages for name in stage.nodes}
    return {
        "pipeline": plan.pipeline,
        "version": plan.version,
        "inputs": dict(plan.inputs),
        "nodes": [
            {
                "name": n.name,
                "kind": n.kind,
                "stage": stages[n.name],
                "inputs": {port: list(edges) for port, edges in n.inputs.items()},
                "outputs": dict(n.outputs),
                "tables": list(n.tables),
            }
            for n in nodes_in_order(plan)
        ],
        "edges": [
            {
                "name": e.name,
                "from": e.node or None,
                "to": [n.name for n in nodes_in_order(plan) if e.name in _feeds(n)],
                "topics": list(e.topics),
                "published": [p.topic for p in e.publish],
                "answers": plan.answer is not None and e.name in plan.answer.edges,
            }
            for e in edges_in_order(plan)
        ],
        "stages": [
            {
                "name": s.name,
                "group": s.group,
                "reason": s.reason,
                "nodes": list(s.nodes),
                "reads": list(s.reads),
            }
            for s in plan.stages
        ],
    }
