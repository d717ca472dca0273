"""What can be said of a fault by itself: where an error of a kind belongs, how a node's inputs fail to fit its kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from dataflow.core.errors import ContractError, DataflowError, ExpressionError, NotKnownYetError, nearest
from dataflow.sdk import NodeKind
from dataflow.spec import Declared, Fault, NodeSpec, PipelineSpec, Problem
from dataflow.spec.problems import Severity, YamlPath

_NAMED: Final = re.compile(r"(with|out|keep)((?:\.\w+)*): ")


class Faults:
    """The problems of one pipeline, as they are found."""

    def __init__(self, declared: Declared[PipelineSpec]) -> None:
        self._declared = declared
        self.problems: list[Problem] = []

    def add(self, fault: Fault) -> None:
        self.problems.append(self._declared.problem(fault))

    def raised(self, node: str, error: Exception) -> None:
        """An error out of a kind, at the place it names; one that is no error of ours is a fault of the kind."""
        if not isinstance(error, DataflowError):
            kind = self._declared.spec.nodes[node].use
            message = f"kind '{kind}' fails on this node: {type(error).__name__}: {error}"
            self.add(Fault(("nodes", node, "use"), message, "this is a fault of the kind"))
            return
        path = error.path if isinstance(error, ContractError) else path_named(error)
        severity: Severity = "warning" if isinstance(error, NotKnownYetError) else "error"
        place: YamlPath = ("nodes", node, *path)
        self.add(Fault(place, error.message, error.hint, severity, text_column=column_of(error)))


def column_of(error: BaseException | None) -> int:
    """Where in an expression an error or its cause is, 0 if none of them is about an expression."""
    while error is not None:
        if isinstance(error, ExpressionError):
            return error.column
        error = error.__cause__ or error.__context__
    return 0


def path_named(error: DataflowError) -> YamlPath:
    """The path that a message begins with, as ``with.when: ...``; `with` where it names none."""
    match = _NAMED.match(error.message)
    return tuple(match[0][:-2].split(".")) if match else ("with",)


def port_faults(name: str, spec: NodeSpec, kind: NodeKind) -> Iterator[Fault]:
    """How a node's `from` fails to fit the input ports of its kind."""
    feeds, ports = spec.feeds, () if kind.source else kind.inputs
    path: YamlPath = ("nodes", name, "from")
    if not ports:
        if feeds:
            yield Fault(path, f"'{kind.name}' makes its records itself: it has no input", "leave it out")
    elif not any(feeds.values()):
        yield Fault(
            path[:2], f"nothing reaches node '{name}': 'from' is missing", "from: an input or an edge"
        )
    elif kind.names_inputs and "in" in ports and ("" not in feeds or len(feeds) == 1):
        pass  # one input, or several with names
    elif kind.names_inputs:
        if "" in feeds or len(feeds) < 2:
            hint = "from: {left: EDGE, right: EDGE}, by names of your choice"
            yield Fault(path, f"'{kind.name}' needs at least two named sides", hint)
    elif "" in feeds and len(ports) > 1:
        hint = "from: {" + ", ".join(f"{port}: ..." for port in ports) + "}"
        yield Fault(path, f"'{kind.name}' has the input ports {', '.join(ports)}: say which", hint)
    elif "" not in feeds:
        for port in feeds:
            if port not in ports:
                yield Fault((*path, port), f"unknown input port '{port}'", nearest(port, ports), at_key=True)
        for port in ports:
            if not feeds.get(port):
                yield Fault(path, f"nothing feeds the input port '{port}'", f"from: {{{port}: ...}}")
