"""docker-compose.yml and what it mounts: checked by structure, and our services' own commands run as processes.

There is no container engine where these tests run. What stands for the containers' network is a table of addresses.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML
from tritonclient.utils import InferenceServerException

from dataflow.broker import Broker, BrokerSettings
from dataflow.broker.settings import Address, server_properties
from tests.conftest import wait_for

ROOT: Final = Path(__file__).parent.parent
OURS: Final = ("deploy", "gateway", "worker")
TOKEN: Final = "token-of-the-test"


def load_yaml(path: str) -> Any:
    return YAML(typ="safe").load((ROOT / path).read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = load_yaml("docker-compose.yml")
    return loaded


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """What Compose makes of ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"], match["rest"]
        if environ.get(name):
            return environ[name]
        assert operator != ":?", rest
        return rest or ""

    return re.sub(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}", value, text)


# ---------------------------------------------------------------- structure


def test_services_are_those_of_the_manual(compose: dict[str, Any]) -> None:
    expected = {"kafka", *OURS, "otel-collector", "jaeger", "prometheus", "grafana"}
    assert set(compose["services"]) == expected
    for name, service in compose["services"].items():
        assert re.fullmatch(r"kafka-dataflow|[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_what_is_depended_on_is_there_and_can_tell_its_state(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        wanted = service.get("depends_on", {})
        for name in wanted:
            assert name in services
            condition = wanted[name]["condition"] if isinstance(wanted, dict) else ""
            if condition == "service_healthy":
                assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    mounted = []
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = interpolated(volume, {}).split(":")[0]
            if source.startswith("."):
                mounted.append(source)
                assert (ROOT / source).exists(), source
            else:
                assert source in compose["volumes"]
    assert len(mounted) >= 8


def test_doors_are_on_loopback_only(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_kafka_is_set_as_the_embedded_broker_is(compose: dict[str, Any]) -> None:
    ours = server_properties(BrokerSettings(Path()), Address(1, 9092, 9093), [Address(1, 9092, 9093)])
    addresses = {
        "controller.quorum.voters", "listeners", "advertised.listeners", "listener.security.protocol.map",
        "inter.broker.listener.name", "log.dirs",
    }  # fmt: skip
    said = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
        for name, value in compose["services"]["kafka"]["environment"].items()
    }
    assert set(said) <= set(ours)
    assert {k: v for k, v in said.items() if k not in addresses} == {
        k: v for k, v in ours.items() if k in said and k not in addresses
    }
    assert compose["services"]["kafka"]["image"].endswith(":4.3.0")


def test_the_image_is_built_from_what_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert names
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert set(names) == kept
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_image_is_not_run_by_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.rindex("USER dataflow") > text.rindex("pip install")
    assert "HEALTHCHECK" in text


def test_the_collector_passes_on_what_it_takes(compose: dict[str, Any]) -> None:
    collector = load_yaml("deploy/otel-collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    told = compose["x-environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert told == f"http://otel-collector:{port}"


def test_grafana_finds_the_dashboard(compose: dict[str, Any]) -> None:
    (provider,) = load_yaml("deploy/grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    mounts = dict(v.removesuffix(":ro").split(":") for v in compose["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    sources = load_yaml("deploy/grafana/provisioning/datasources/datasources.yaml")["datasources"]
    known = {source["uid"] for source in sources}
    assert {panel["datasource"]["uid"] for panel in dashboard()["panels"]} <= known
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/dataflow.json"


def test_panels_do_not_cover_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/dataflow.json").read_text())
    return loaded


# ---------------------------------------------------------------- as processes


@dataclass
class Network:
    """What stands for the containers' network: addresses as the files say them, and where they are here."""

    project: Path
    bootstrap: str
    traces: Traces
    ports: dict[str, int] = field(default_factory=dict)  # "gateway:8080" -> port here

    def here(self, text: str, service: str) -> str:
        text = text.replace("kafka:9092", self.bootstrap)
        text = text.replace("http://otel-collector:4318", f"http://127.0.0.1:{self.traces.port}")
        for address, port in self.ports.items():
            name, _, declared = address.partition(":")
            if name == service:
                text = re.sub(rf"\b{declared}\b", str(port), text)
        return text

    def url(self, service: str, declared: int, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[f'{service}:{declared}']}{path}"


class Traces:
    """An OTLP receiver that remembers where it was posted to."""

    def __init__(self) -> None:
        posted = self.posted = set[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                posted.add(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment_of(compose: dict[str, Any], service: str, network: Network) -> dict[str, str]:
    """The service's own variables, as Compose would give them, with the addresses of here."""
    said = compose["services"][service]["environment"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DATAFLOW_", "OTEL_"))}
    given = {
        k: network.here(interpolated(str(v), {"DATAFLOW_TOKEN": TOKEN}), service) for k, v in said.items()
    }
    return {**inherited, **given, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def command_of(compose: dict[str, Any], service: str, network: Network) -> list[str]:
    entrypoint = re.search(r"^ENTRYPOINT (\[.+\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert entrypoint is not None
    return [
        *json.loads(entrypoint[1]),
        *(network.here(w, service) for w in compose["services"][service]["command"]),
    ]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("compose")
    dataflow = str(Path(sys.executable).parent / "dataflow")
    subprocess.run([dataflow, "new", "shop"], cwd=folder, check=True, capture_output=True)
    traces = Traces()
    with Broker(BrokerSettings(data=folder / "broker", ephemeral=True)) as broker:
        ports = {name: free_port() for name in ("gateway:8080", "gateway:8081", "worker:9000")}
        yield Network(folder / "shop", broker.bootstrap, traces, ports)
    traces.server.shutdown()
    traces.server.server_close()


@pytest.fixture(scope="module")
def running(compose: dict[str, Any], network: Network) -> Iterator[Network]:
    """deploy has ended well; gateway and worker run, and end well."""
    done = subprocess.run(
        command_of(compose, "deploy", network), cwd=network.project, capture_output=True, text=True,
        check=False, env=environment_of(compose, "deploy", network), timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with ExitStack() as stack:
        for service in ("worker", "gateway"):
            process = subprocess.Popen(
                command_of(compose, service, network), cwd=network.project,
                env=environment_of(compose, service, network), stdout=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(end, process)
        for service in ("worker", "gateway"):
            wait_for(partial(is_healthy, compose, service, network), f"{service} to be healthy")
        yield network


def end(process: subprocess.Popen[bytes]) -> None:
    """As `docker compose stop` does; the grace is what the file says."""
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def is_healthy(compose: dict[str, Any], service: str, network: Network) -> bool:
    """What the image's own HEALTHCHECK says, with the service's environment."""
    text = (ROOT / "Dockerfile").read_text()
    check = re.search(r"HEALTHCHECK .*?CMD (\[.+?\])\n", text, re.DOTALL)
    default = re.search(r"^ENV DATAFLOW_HEALTH=(\S+)$", text, re.MULTILINE)
    assert check is not None
    assert default is not None
    environment = {
        "DATAFLOW_HEALTH": network.here(default[1], service),
        **environment_of(compose, service, network),
    }
    return (
        subprocess.run(json.loads(check[1]), env=environment, capture_output=True, check=False).returncode
        == 0
    )


def fetch(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


@pytest.mark.broker
@pytest.mark.slow
def test_gateway_and_worker_answer_a_request(running: Network) -> None:
    ready = json.loads(fetch(running.url("gateway", 8080, "/v2/health/ready")))
    assert ready == {"ready": True}
    reading = b'{"sensor": "s1", "celsius": 40, "at": "2024-05-01T12:30:00Z"}'
    answer = json.loads(fetch(running.url("gateway", 8080, "/pipelines/shop"), reading))
    assert answer["fahrenheit"] == 104


@pytest.mark.broker
@pytest.mark.slow
def test_the_grpc_door_answers_who_has_the_token(running: Network) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{running.ports['gateway:8081']}") as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="a token is needed"):
            client.get_model_metadata("shop")
        found = client.get_model_metadata("shop", headers={"authorization": f"Bearer {TOKEN}"})
        assert found.name == "shop"


@pytest.mark.broker
@pytest.mark.slow
def test_prometheus_finds_metrics_where_it_looks(compose: dict[str, Any], running: Network) -> None:
    shown: dict[str, set[str]] = {}
    for job in load_yaml("deploy/prometheus.yml")["scrape_configs"]:
        (discovery,) = job["dns_sd_configs"]
        (service,) = discovery["names"]
        assert (
            job["authorization"]["credentials_file"]
            == f"/run/secrets/{compose['services']['prometheus']['secrets'][0]}"
        )
        url = running.url(service, discovery["port"], job["metrics_path"])
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=10)
        families = list(text_string_to_metric_families(fetch(url).decode()))
        shown[service] = {s.name for f in families for s in f.samples} | {f.name for f in families}
    assert "dataflow_stage_up" in shown["worker"]
    assert "dataflow_gateway_requests_total" in shown["gateway"]


@pytest.mark.broker
@pytest.mark.slow
def test_the_dashboard_asks_for_metrics_that_there_are(running: Network) -> None:
    text = "\n".join(
        fetch(running.url(service, port, "/metrics")).decode()
        for service, port in (("gateway", 8080), ("worker", 9000))
    )
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    known = set(kinds) | {
        f"{name}{suffix}"
        for name, kind in kinds.items()
        if kind == "histogram"
        for suffix in ("_bucket", "_sum", "_count")
    }
    asked = {
        name
        for panel in dashboard()["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bdataflow_\w+", target["expr"])
    }
    assert len(asked) > 10
    assert asked <= known
    labels = {label for line in text.splitlines() for label in re.findall(r'(\w+)="', line)}
    grouped = re.findall(r"by \(([^)]+)\)", json.dumps(dashboard()))
    assert {label.strip() for group in grouped for label in group.split(",")} <= labels | {"reason", "error"}


@pytest.mark.broker
@pytest.mark.slow
def test_traces_arrive_at_the_collector(running: Network) -> None:
    reading = b'{"sensor": "s1", "celsius": 41, "at": "2024-05-01T12:30:00Z"}'
    fetch(running.url("gateway", 8080, "/pipelines/shop"), reading)
    wait_for(lambda: "/v1/traces" in running.traces.posted, "spans at /v1/traces")
