"""Loops: the only cycles that a graph may have. A kind that bounds the rounds says which of its ports closes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dataflow.planner.graph import led_back
from dataflow.spec import Fault

Wired = Mapping[str, tuple[str, ...]]  # edges by input port


class Loops:
    """The loops of one graph.

    closing   edges that may close a loop, each with the node that makes it
    made_by   the node that makes each edge; inputs are not there
    wiring    by node, what feeds it
    `back`    by closing edge, the earlier nodes that it leads back to; other nodes that read it are after it
    """

    def __init__(
        self, closing: Mapping[str, str], made_by: Mapping[str, str], wiring: Mapping[str, Wired]
    ) -> None:
        self._closing = closing
        self._made_by = made_by
        self._wiring = wiring
        read = {name: {e for edges in ports.values() for e in edges} for name, ports in wiring.items()}
        self.back = led_back(read, made_by, closing)

    def ahead(self, node: str) -> dict[str, tuple[str, ...]]:
        """The edges that feed a node, without those that come back to it."""
        ports = self._wiring[node].items()
        return {port: tuple(e for e in edges if node not in self.back.get(e, ())) for port, edges in ports}

    def feeders(self) -> dict[str, list[str]]:
        """By node, the nodes before it."""
        made_by = self._made_by
        return {
            node: [made_by[e] for edges in self.ahead(node).values() for e in edges if e in made_by]
            for node in self._wiring
        }

    def faults(self) -> Iterator[tuple[str, Fault]]:
        """Loops that nothing enters, and those that close nowhere; each with the node at fault."""
        for node, ports in self._wiring.items():
            for port, edges in self.ahead(node).items():
                if ports[port] and not edges:
                    alone = ", ".join(ports[port])
                    message = f"nothing enters the loop at node '{node}': '{alone}' only comes back to it"
                    yield (
                        node,
                        Fault(
                            ("nodes", node, "from"), message, "add the edge that a first round begins with"
                        ),
                    )
        for edge, back in self.back.items():
            if not back:
                node = self._closing[edge]
                message = f"'{edge}' leads back to no node before '{node}': nothing goes round"
                hint = f"add '{edge}' to the 'from' of the node where a round begins"
                yield node, Fault(("nodes", node, "use"), message, hint)
