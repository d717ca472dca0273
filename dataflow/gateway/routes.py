"""Every address of the gateway in one table: dispatch and the OpenAPI description read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dataflow.core.errors import GatewayError
from dataflow.gateway.http import RequestError

# Whose addresses are as many as there are keys and requests: they would fill what is kept.
_MANY: Final = ("state", "request")
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
_LIVE: Final = "Whether the gateway runs"
_READY: Final = "Whether the gateway can answer requests"
# A pipeline is a model with one version: each address of a model is there with and without it.
_MODEL: Final = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")


def _of_model(method: str, rest: str, handler: str, summary: str, tag: str = "inference") -> list[Route]:
    return [Route(method, f"{model}{rest}", handler, summary, tag) for model in _MODEL]


ROUTES: Final = (
    *_of_model("POST", "/infer", "infer", _INFER),
    Route("POST", "/v2/pipelines/{name}/infer", "infer", _INFER, "inference"),
    Route(
        "POST", "/pipelines/{name}", "plain", "Run a pipeline on one record or a list of them", "inference"
    ),
    *_of_model("POST", "/generate", "generate", "Run a pipeline on one record; all records that come of it"),
    *_of_model("POST", "/generate_stream", "generate_stream", "The same, each record as it comes"),
    Route("POST", "/v1/models/{name}:predict", "predict", "Run a pipeline on instances (V1)", "inference"),
    Route("GET", "/v1/models", "models", "Names of the pipelines that answer", "inference"),
    Route("GET", "/v1/models/{name}", "model_ready", "Whether a pipeline can answer", "health"),
    Route("GET", "/v2", "server", "Name, version and extensions of the server", "inference"),
    *(Route("GET", path, "live", _LIVE, "health", free=True) for path in ("/v2/health/live", "/livez")),
    # What probes made for other servers ask.
    *(Route("GET", path, "live", _LIVE, "health", free=True) for path in ("/healthz", "/-/healthz")),
    *(Route("GET", path, "ready", _READY, "health", free=True) for path in ("/v2/health/ready", "/readyz")),
    *(Route("GET", path, "ready", _READY, "health", free=True) for path in ("/health", "/ping")),
    Route("GET", "/v2/models", "models", "Names of the pipelines that answer", "inference"),
    *_of_model("GET", "", "model", "Inputs and outputs of a pipeline as tensors"),
    *_of_model("GET", "/ready", "model_ready", "Whether a pipeline can answer", "health"),
    *_of_model("GET", "/config", "config", "A pipeline as a model's configuration"),
    Route("GET", "/v2/models/stats", "all_stats", "Counts and times of all pipelines' requests", "inference"),
    *_of_model("GET", "/stats", "stats", "Counts and times of a pipeline's requests"),
    Route(
        "POST", "/v2/repository/index", "index", "The pipelines that answer, and which can now", "inference"
    ),
    Route("GET", "/v2/repository/index", "index", "The same, for people", "inference"),
    Route("GET", "/requests/{id}", "request", "What became of a request that was accepted", "inference"),
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
        if len(self._known) < _MAX_KNOWN and best[0].handler not in _MANY:
            self._known[method, path] = best
        return best


def _match(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    names: dict[str, str] = {}
    for wanted, part in zip(pattern, parts, strict=True):
        if wanted.startswith("{"):
            name, _, verb = wanted[1:].partition("}")  # a verb may follow: {name}:predict
            if len(part) <= len(verb) or not part.endswith(verb):
                return None
            names[name] = part.removesuffix(verb)
        elif wanted != part:
            return None
    return names
