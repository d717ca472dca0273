"""What the peers' programs share: the model as every side opens it, and the V2 answer of those that leave it to the user.

Runs in the peers' environments: numpy and onnxruntime are all that it may ask for.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime

DTYPES = {"FP32": np.float32, "UINT8": np.uint8}


def session() -> Any:
    """The model at $MODEL, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


def tensor(asked: dict[str, Any]) -> Any:
    """The one input of a V2 JSON request."""
    given = asked["inputs"][0]
    return np.array(given["data"], DTYPES[given["datatype"]]).reshape(given["shape"])


def answer(asked: dict[str, Any], y: Any) -> dict[str, Any]:
    """A V2 JSON answer with the one output."""
    output = {"name": "y", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel().tolist()}
    return {"model_name": os.environ["MODEL_NAME"], "id": asked.get("id", ""), "outputs": [output]}
