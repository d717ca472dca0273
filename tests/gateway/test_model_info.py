from __future__ import annotations

from dataclasses import replace

from dataflow.core.schema import FieldType, Schema
from dataflow.gateway.model_info import Statistics, config_of, repository_index, statistics_of
from tests.gateway.fixtures import ANSWER, REQUEST, plan_of


def test_configuration_leaves_the_rows_out_and_names_types_as_triton_does() -> None:
    said = config_of("sums", REQUEST, ANSWER)
    assert said["max_batch_size"] > 0
    assert said["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [3], "optional": False},
        {"name": "name", "data_type": "TYPE_STRING", "dims": [], "optional": False},
        {"name": "at", "data_type": "TYPE_INT64", "dims": [], "optional": True},
    ]
    free = Schema.of(signal=FieldType("float16", (-1, 2)))
    assert config_of("p", free, free)["output"] == [
        {"name": "signal", "data_type": "TYPE_FP16", "dims": [-1, 2]}
    ]


def test_statistics_count_good_and_failed_requests_apart() -> None:
    statistics = Statistics()
    statistics.count("p", "v1", 3, 200, 1_000, good=True)
    statistics.count("p", "v1", 2, 100, 2_000, good=True)
    statistics.count("p", "v1", 9, 50, 3_000, good=False)
    said = statistics_of("p", statistics.of("p", "v1"))
    assert (said["inference_count"], said["execution_count"], said["last_inference"]) == (5, 2, 2_000)
    assert said["inference_stats"]["success"] == {"count": 2, "ns": 300}
    assert said["inference_stats"]["fail"] == {"count": 1, "ns": 50}
    assert said["inference_stats"]["queue"] == {"count": 0, "ns": 0}


def test_statistics_begin_anew_with_a_version() -> None:
    statistics = Statistics()
    statistics.count("p", "v1", 3, 200, 1_000, good=True)
    assert statistics.of("p", "v2").requests == 0
    statistics.count("p", "v2", 1, 10, 2_000, good=True)
    assert statistics.of("p", "v2").rows == 1
    assert statistics.of("p", "v1").rows == 0


def test_the_index_lists_pipelines_that_answer() -> None:
    plan = plan_of()
    silent = replace(plan, pipeline="silent", answer=None)
    broken = replace(plan, pipeline="broken")
    plans = {p.pipeline: p for p in (plan, silent, broken)}
    index = repository_index(plans, lambda name: name != "broken")
    assert index == [
        {"name": "broken", "version": "v7", "state": "UNAVAILABLE", "reason": "not all of its stages run"},
        {"name": "sums", "version": "v7", "state": "READY", "reason": ""},
    ]
    ready = repository_index(plans, lambda name: name != "broken", ready_only=True)
    assert [entry["name"] for entry in ready] == ["sums"]
