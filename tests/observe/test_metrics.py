from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from dataflow.observe.metrics import MAX_REASONS, SECONDS_BUCKETS, Histogram, Metrics, Reasons


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[str]], float]:
    """Every sample of the exposition, read as Prometheus reads it: by name and the set of label values."""
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.prometheus().decode())
        for sample in family.samples
    }


def test_what_is_counted_is_scraped() -> None:
    metrics = Metrics()
    node = metrics.node("p", "n", "model.onnx")
    node.records += 3
    node.dropped.add("too high", 2)
    node.failed.add("ValueError")
    node.seconds.observe(0.003)
    stage = metrics.stage("p", "s")
    stage.state, stage.lag = "running", 7
    metrics.edge("p", "e").bytes += 100
    metrics.gateway("p").by_status.add("200")
    found = samples(metrics)
    assert found["dataflow_node_records_total", frozenset({"p", "n", "model.onnx"})] == 3
    assert found["dataflow_node_dropped_total", frozenset({"p", "n", "model.onnx", "too high"})] == 2
    assert found["dataflow_node_failed_total", frozenset({"p", "n", "model.onnx", "ValueError"})] == 1
    assert found["dataflow_stage_up", frozenset({"p", "s"})] == 1
    assert found["dataflow_stage_lag_records", frozenset({"p", "s"})] == 7
    assert found["dataflow_edge_bytes_total", frozenset({"p", "e"})] == 100
    assert found["dataflow_gateway_requests_total", frozenset({"p", "200"})] == 1
    assert found["dataflow_node_seconds_count", frozenset({"p", "n", "model.onnx"})] == 1


def test_unknown_lag_is_not_zero() -> None:
    metrics = Metrics()
    metrics.stage("p", "s")
    assert ("dataflow_stage_lag_records", frozenset({"p", "s"})) not in samples(metrics)


def test_get_or_create() -> None:
    metrics = Metrics()
    assert metrics.node("p", "n", "k") is metrics.node("p", "n", "k")
    assert metrics.node("p", "n", "k") is not metrics.node("q", "n", "k")


def test_histogram_counts_at_and_below_its_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.total == 104.0
    assert list(SECONDS_BUCKETS) == sorted(SECONDS_BUCKETS)


def test_reasons_are_bounded() -> None:
    reasons = Reasons()
    for number in range(MAX_REASONS * 2):
        reasons.add(f"reason {number}")
    assert len(reasons.counts) == MAX_REASONS + 1
    assert reasons.counts["other"] == MAX_REASONS
    assert reasons.total == MAX_REASONS * 2
