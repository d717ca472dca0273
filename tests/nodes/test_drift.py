from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]  # it ships no types
from sklearn.datasets import load_breast_cancer

from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError, NodeError
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.testing.nodes import build_node, contract_of, run_node
from nodes._ks import (
    CORRECTIONS,
    Floats,
    benjamini_hochberg,
    bonferroni,
    compare,
    holm,
    kolmogorov_survival,
    reference_of,
)
from nodes.drift import RESULT, KsNode

SCALARS = Schema.of(id="string", a="float32", b=FieldType("float64", nullable=True), n="int32", flag="bool")
TENSOR = Schema.of(x=FieldType("float32", (3,)))


def windows(
    values: Floats, config: dict[str, Any], folder: Path = Path(), batch_records: int = 700
) -> list[dict[str, Any]]:
    """Results over rows of a tensor x, in batches that do not fit the windows."""
    schema = Schema.of(x=FieldType("float32", (values.shape[1],)))
    records = [{"x": row} for row in values.astype(np.float32)]
    result = run_node(KsNode, schema, records, config, folder=folder, batch_records=batch_records)
    assert not result.failed
    return result.out


def write_reference(path: Path, values: Floats, name: str = "x") -> None:
    pq.write_table(pa.table({name: values.tolist()}), path)


# --- the test itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [None, 1])  # without and with ties
@pytest.mark.parametrize(
    ("n", "m", "shift"), [(1000, 500, 0.0), (1000, 500, 0.1), (200, 3000, 0.3), (400, 300, 1.0)]
)
def test_statistic_p_value_and_effect_agree_with_scipy(
    n: int, m: int, shift: float, digits: int | None
) -> None:
    random = np.random.default_rng(n + m)
    first, second = random.normal(size=n), random.normal(shift, size=m)
    if digits is not None:
        first, second = first.round(digits), second.round(digits)
    ours = compare(reference_of(first), second)
    theirs = stats.ks_2samp(first, second, method="asymp")
    assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-12)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=0.08, abs=1e-12)
    assert ours.effect == pytest.approx(stats.wasserstein_distance(first, second) / first.std(), abs=1e-12)


def test_survival_function_agrees_with_scipy() -> None:
    for x in (0.01, 0.05, 0.3, 0.8, 1.17, 1.18, 1.19, 1.6, 2.5, 5.0):
        assert kolmogorov_survival(x) == pytest.approx(stats.kstwobign.sf(x), abs=1e-12)


finite = st.floats(-1e6, 1e6, width=32)
samples = st.lists(finite, min_size=20, max_size=60).map(np.array)


@given(samples, samples)
@settings(max_examples=60, deadline=None)
def test_statistic_and_effect_for_any_values(first: Floats, second: Floats) -> None:
    ours = compare(reference_of(first), second)
    assert ours.statistic == pytest.approx(stats.ks_2samp(first, second, method="asymp").statistic, abs=1e-12)
    assert 0.0 <= ours.p_value <= 1.0
    distance = stats.wasserstein_distance(first, second)
    if first.min() == first.max():
        assert ours.effect == (np.inf if distance else 0.0)
    else:
        assert ours.effect * first.std() == pytest.approx(distance, rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array))
@settings(deadline=None)
def test_corrections_agree_with_their_definitions(p: Floats) -> None:
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p, method="bh"))
    assert bonferroni(p) == pytest.approx(np.minimum(1, p * len(p)))
    order = np.argsort(p, kind="stable")
    step_down = [max((len(p) - k) * p[order[k]] for k in range(i + 1)) for i in range(len(p))]
    assert holm(p)[order] == pytest.approx(np.minimum(1, step_down))
    assert (holm(p) <= bonferroni(p) + 1e-12).all()
    assert (p <= holm(p) + 1e-12).all()
    assert set(CORRECTIONS) == {"holm", "bonferroni", "benjamini-hochberg", "none"}


# --- the node --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", ["holm", "bonferroni"])
def test_false_alarms_stay_below_alpha(tmp_path: Path, correction: str) -> None:
    """Over 600 windows of the reference's own distribution, 5 features, at alpha = 0.05 and with no least effect."""
    random = np.random.default_rng(7)
    write_reference(tmp_path / "r.parquet", random.gamma(2.0, size=(20_000, 5)))
    config = {
        "reference": "r.parquet", "window": 200, "alpha": 0.05, "min_effect": 0.0, "correction": correction,
    }  # fmt: skip
    results = windows(random.gamma(2.0, size=(600 * 200, 5)), config, tmp_path, batch_records=20_000)
    assert len(results) == 600
    alarms = sum(r["drifted"] for r in results)
    # What a true rate of alpha would exceed once in a thousand runs; some alarms show that the test is not dead.
    assert 3 < alarms <= stats.binom.ppf(0.999, 600, 0.05)


def test_a_shift_of_one_feature_is_found_and_named(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    write_reference(tmp_path / "r.parquet", random.normal(size=(5000, 3)))
    calm, moved = random.normal(size=(1000, 3)), random.normal([0, 0, 0.4], size=(1000, 3))
    config = {"reference": "r.parquet", "names": {"x": ["delay", "wind", "rain"]}}
    before, after = windows(np.concatenate([calm, moved]), config, tmp_path)
    assert (before["window"], before["drifted"], before["drifted_features"]) == (0, False, [])
    assert (after["window"], after["drifted"], after["drifted_features"]) == (1, True, ["rain"])
    assert after["worst_feature"] == "rain"
    assert after["effect"] == pytest.approx(0.4, abs=0.08)
    assert after["p_value"] < 1e-6
    assert after["records"] == 1000
    assert after["reference"] == "r.parquet"
    assert [f["drifted"] for f in after["features"]] == [False, False, True]
    assert after["features_tested"] == 3


def test_a_large_window_with_a_tiny_shift_is_significant_and_yet_no_alarm(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    write_reference(tmp_path / "r.parquet", random.normal(size=(100_000, 1)))
    moved = random.normal(0.03, size=(100_000, 1))
    config = {"reference": "r.parquet", "window": 100_000}
    (quiet,) = windows(moved, config, tmp_path, batch_records=50_000)
    (loud,) = windows(moved, {**config, "min_effect": 0.0}, tmp_path, batch_records=50_000)
    assert quiet["p_value"] == loud["p_value"] < 1e-4
    assert quiet["effect"] == pytest.approx(0.03, abs=0.01)
    assert not quiet["drifted"]
    assert loud["drifted"]


def test_real_data_against_its_own_groups() -> None:
    """Breast cancer measurements: benign against benign is calm, malignant against benign is drift."""
    data, target = load_breast_cancer(return_X_y=True)
    benign = np.random.default_rng(0).permutation(data[target == 1])
    malignant = data[target == 0]
    config = {"reference": {"first": 150}, "window": 150, "min_effect": 0.2}
    calm, drift = windows(np.concatenate([benign[:300], malignant[:150]]), config)
    assert not calm["drifted"]
    assert drift["drifted"]
    assert len(drift["drifted_features"]) >= 20
    assert calm["reference"] == "first 150 records"


def test_every_row_is_accounted_for_and_results_are_children_of_the_last_row() -> None:
    node = build_node(KsNode, TENSOR, {"reference": {"first": 30}, "window": 20})
    random = np.random.default_rng(0)
    parents: list[int] = []
    for start, size in ((0, 45), (45, 60), (105, 5)):
        batch = Batch.of(TENSOR, [{"x": random.normal(size=3)} for _ in range(size)])
        out = Out(batch, ("out",))
        node.process(batch, out)
        out.settle()
        assert not out.failed
        for emission in out.emissions:
            assert emission.children
            assert tuple(emission.columns) == RESULT.names
            parents += (emission.parents + start).tolist()
    assert parents == [49, 69, 89, 109]


def test_default_fields_nulls_and_the_share_that_is_missing() -> None:
    random = np.random.default_rng(1)
    records: list[dict[str, Any]] = [
        {
            "id": str(i),
            "a": np.nan if i % 4 == 0 else random.normal(),
            "b": None if i % 10 else random.normal(),  # 5 values in 50: too few to test
            "n": int(random.integers(100)),
            "flag": True,
        }
        for i in range(100)
    ]
    (result,) = run_node(KsNode, SCALARS, records, {"reference": {"first": 50}, "window": 50}).out
    by_name = {f["feature"]: f for f in result["features"]}
    assert list(by_name) == ["a", "b", "n"]
    assert by_name["a"]["missing"] == pytest.approx(0.24, abs=0.03)
    assert by_name["b"]["missing"] == 0.9
    assert by_name["b"]["p_value"] == 1.0
    assert result["features_tested"] == 2
    assert not result["drifted"]


def test_reference_by_scalar_columns_and_by_component_columns(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    values = random.normal(size=(500, 3))
    pq.write_table(pa.table({f"x[{i}]": values[:, i].tolist() for i in range(3)}), tmp_path / "parts.parquet")
    write_reference(tmp_path / "whole.parquet", values)
    stream = random.normal(size=(200, 3))
    whole = windows(stream, {"reference": "whole.parquet", "window": 200}, tmp_path)
    parts = windows(stream, {"reference": "parts.parquet", "window": 200}, tmp_path)
    assert whole[0]["features"] == parts[0]["features"]
    pq.write_table(pa.table({"a": pa.array([None, *range(99)], pa.float32())}), tmp_path / "scalar.parquet")
    config = {"reference": "scalar.parquet", "fields": ["a"], "window": 99}
    records = [{"id": "", "a": i, "b": 0.0, "n": 0, "flag": False} for i in range(99)]
    (same,) = run_node(KsNode, SCALARS, records, config, folder=tmp_path).out
    assert same["statistic"] == 0.0
    assert same["effect"] == pytest.approx(0.0, abs=1e-12)


def test_a_constant_reference() -> None:
    values = np.concatenate([np.full((40, 1), 0.1), np.full((20, 1), 0.1), np.full((20, 1), 0.2)])
    calm, drift = windows(values, {"reference": {"first": 40}, "window": 20})
    assert (calm["effect"], calm["drifted"]) == (0.0, False)
    assert (drift["effect"], drift["drifted"]) == (float("inf"), True)


# --- contracts -------------------------------------------------------------------------------------------------


def test_the_contract_is_that_of_the_result() -> None:
    assert contract_of(KsNode, TENSOR, {"reference": {"first": 100}}) == {"out": RESULT}


@pytest.mark.parametrize(
    ("schema", "config", "message", "path"),
    [
        (SCALARS, {"fields": ["aa"]}, "no field 'aa'.*'a'", ("with", "fields", 0)),
        (SCALARS, {"fields": ["a", "id"]}, "field 'id' is string: not a number", ("with", "fields", 1)),
        (SCALARS, {"fields": []}, "no field is named", ("with", "fields")),
        (Schema.of(id="string"), {}, "no numeric scalar or float tensor", ("with",)),
        (TENSOR, {"names": {"x": ["a", "b"]}}, "2 names for the 3 components", ("with", "names", "x")),
        (TENSOR, {"names": {"y": ["a"]}}, "no watched tensor 'y'", ("with", "names", "y")),
        (TENSOR, {"reference": "r.parquet"}, "has no column 'x'", ("with", "reference")),
        (TENSOR, {"reference": "text.parquet"}, "is no Parquet file", ("with", "reference")),
    ],
)
def test_declarations_that_cannot_work(
    tmp_path: Path, schema: Schema, config: dict[str, Any], message: str, path: tuple[str | int, ...]
) -> None:
    write_reference(tmp_path / "r.parquet", np.zeros((30, 3)), name="other")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ContractError, match=message) as caught:
        contract_of(KsNode, schema, {"reference": {"first": 100}, **config}, folder=tmp_path)
    assert caught.value.path == path


def test_a_reference_that_is_not_there_or_of_another_width(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"no reference file .*gone.parquet"):
        build_node(KsNode, TENSOR, {"reference": "gone.parquet"}, folder=tmp_path)
    write_reference(tmp_path / "wide.parquet", np.zeros((30, 4)))
    with pytest.raises(ContractError, match="has 4 values a row"):
        build_node(KsNode, TENSOR, {"reference": "wide.parquet"}, folder=tmp_path)
