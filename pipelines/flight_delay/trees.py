"""Gradient-boosted trees of scikit-learn as an ONNX graph.

Written out by hand: skl2onnx 1.20 fails on these trees with onnx 1.23 (it hands booleans to an attribute of
integers), and here a threshold in float32 is sure to part the rows as scikit-learn's float64 does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from sklearn.ensemble import HistGradientBoostingRegressor

Column = np.ndarray[Any, np.dtype[Any]]

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8


def floor_to_float32(values: Column) -> Column:
    """Largest float32 not above each float64 value: for float32 x, `x <= value` holds iff `x <= floor` does."""
    nearest = values.astype(np.float32)
    return np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def export(model: HistGradientBoostingRegressor, *, start: int, description: str) -> onnx.ModelProto:
    """Return a graph `x` float32 [-1, F] -> `delay` float32 [-1]: x[:, start] plus what the trees predict.

    NaN takes the branch that training chose for missing values, as in scikit-learn. The trees may have no
    categorical splits.
    """
    per_tree = [predictor.nodes for (predictor,) in model._predictors]
    sizes = [len(nodes) for nodes in per_tree]
    nodes = np.concatenate(per_tree)
    tree_ids = np.repeat(np.arange(len(sizes)), sizes)
    node_ids = np.concatenate([np.arange(size) for size in sizes])
    leaf = nodes["is_leaf"].astype(bool)
    inner = {name: np.where(leaf, 0, nodes[name]) for name in ("left", "right", "feature_idx")}
    trees = helper.make_node(
        "TreeEnsembleRegressor",
        inputs=["x"],
        outputs=["change"],
        domain="ai.onnx.ml",
        n_targets=1,
        post_transform="NONE",
        base_values=[float(np.ravel(model._baseline_prediction)[0])],
        nodes_treeids=tree_ids.tolist(),
        nodes_nodeids=node_ids.tolist(),
        nodes_featureids=inner["feature_idx"].tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_values=floor_to_float32(np.where(leaf, 0.0, nodes["num_threshold"])).tolist(),
        nodes_truenodeids=inner["left"].tolist(),
        nodes_falsenodeids=inner["right"].tolist(),
        nodes_missing_value_tracks_true=np.where(leaf, 0, nodes["missing_go_to_left"]).astype(int).tolist(),
        target_treeids=tree_ids[leaf].tolist(),
        target_nodeids=node_ids[leaf].tolist(),
        target_ids=[0] * int(leaf.sum()),
        target_weights=nodes["value"][leaf].astype(np.float32).tolist(),
    )
    pick = helper.make_node("Gather", ["x", "start"], ["known"], axis=1)
    add = helper.make_node("Add", ["known", "change"], ["column"])
    flatten = helper.make_node("Squeeze", ["column", "axes"], ["delay"])
    graph = helper.make_graph(
        [trees, pick, add, flatten],
        "flight_delay",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, model.n_features_in_])],
        [helper.make_tensor_value_info("delay", TensorProto.FLOAT, [None])],
        [
            helper.make_tensor(name, TensorProto.INT64, [1], [at])
            for name, at in (("start", start), ("axes", 1))
        ],
        doc_string=description,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    made = helper.make_model(graph, producer_name="flight_delay", opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(made)
    return made
