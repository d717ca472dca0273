"""Every address of the gateway in one table: dispatch and the OpenAPI description read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dataflow.core.errors import GatewayError
from dataflow.gateway.http import RequestError

# Paths already matched are kept, up to this many: a gateway serves few addresses, and strangers may try many.
_MAX_KNOWN: Final = 1_024


@dataclass(frozen=True, slots=True)
class Route:
    """One address. `path` holds `{names}`; `handler` names the function that answers; `free` needs no token."""

    method: str
    path: str
    handler: str
    summary: str
    tag: str
    free: bool = False


_INFER: Final = "Run a pipeline on rows given as tensors (Open Inference Protocol v2)"
_VERSION: Final = "/v2/models/{name}/versions/{version}"

ROUTES: Final = (
    Route("POST", "/v2/models/{name}/infer", "infer", _INFER, "inference"),
    Route("POST", f"{_VERSION}/infer", "infer", _INFER, "inference"),
    Route("POST", "/v2/pipelines/{name}/infer", "infer", _INFER, "inference"),
    Route(
        "POST", "/pipelines/{name}", "plain", "Run a pipeline on one record or a list of them", "inference"
    ),
    Route("GET", "/v2", "server", "Name, version and extensions of the server", "inference"),
    Route("GET", "/v2/health/live", "live", "Whether the gateway runs", "health", free=True),
    Route("GET", "/v2/health/ready", "ready", "Whether the gateway can answer requests", "health", free=True),
    Route("GET", "/livez", "live", "Whether the gateway runs", "health", free=True),
    Route("GET", "/readyz", "ready", "Whether the gateway can answer requests", "health", free=True),
    Route("GET", "/v2/models", "models", "Names of the pipelines that answer", "inference"),
    Route("GET", "/v2/models/{name}", "model", "Inputs and outputs of a pipeline as tensors", "inference"),
    Route("GET", _VERSION, "model", "Inputs and outputs of a pipeline as tensors", "inference"),
    Route("GET", "/v2/models/{name}/ready", "model_ready", "Whether a pipeline can answer", "health"),
    Route("GET", f"{_VERSION}/ready", "model_ready", "Whether a pipeline can answer", "health"),
    Route("GET", "/pipelines", "pipelines", "All pipelines with their contracts and edges", "pipelines"),
    Route("GET", "/taps/{pipeline}/{edge}", "tap", "Follow the records of any edge", "pipelines"),
    Route("GET", "/state/{pipeline}/{node}/{key}", "state", "What a node keeps for a key", "pipelines"),
    Route("GET", "/state/{pipeline}/{node}", "state", "The same, with the key in the query", "pipelines"),
    Route("GET", "/graph", "graph", "The running graph with rates and lag", "pipelines"),
    Route("GET", "/metrics", "metrics", "Metrics in the Prometheus text format", "pipelines"),
    Route("GET", "/openapi.json", "openapi", "This description", "pipelines"),
)


class Router:
    """Finds the route of a path. Literal parts win over named ones."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self._routes = [(route, route.path.strip("/").split("/")) for route in routes]
        self._known: dict[tuple[str, str], tuple[Route, Mapping[str, str]]] = {}

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route and the named parts of `path`. Raises GatewayError 404, or 405 naming the methods allowed."""
        known = self._known.get((method, path))
        if known is not None:
            return known
        parts = path.strip("/").split("/")
        found = [
            (route, names) for route, pattern in self._routes if (names := _match(pattern, parts)) is not None
        ]
        if not found:
            raise GatewayError(404, f"no such address: {path[:200]}", hint="GET /openapi.json lists them")
        wanted = "GET" if method == "HEAD" else method
        best = min((f for f in found if f[0].method == wanted), key=lambda f: len(f[1]), default=None)
        if best is None:
            allowed = ", ".join(sorted({route.method for route, _ in found}))
            raise RequestError(
                405,
                f"{method[:20]} is not allowed here",
                hint=f"valid: {allowed}",
                headers=((b"allow", allowed.encode()),),
            )
        if len(self._known) < _MAX_KNOWN and best[0].handler != "state":  # its keys would fill it
            self._known[method, path] = best
        return best


def _match(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    names: dict[str, str] = {}
    for wanted, part in zip(pattern, parts, strict=True):
        if wanted.startswith("{"):
            if not part:
                return None
            names[wanted[1:-1]] = part
        elif wanted != part:
            return None
    return names
