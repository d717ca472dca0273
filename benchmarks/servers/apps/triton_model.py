"""Triton's python backend's model; what is waiting is one run. Triton imports it by the name `model`."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]

from benchmarks.servers.apps.session import session


class TritonPythonModel:
    def initialize(self, args: Any) -> None:
        del args
        self._session = session()

    def execute(self, requests: list[Any]) -> list[Any]:
        given = [triton.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        (y,) = self._session.run(None, {"x": np.concatenate(given) if len(given) > 1 else given[0]})
        answers, first = [], 0
        for x in given:
            rows = triton.Tensor("y", y[first : first + len(x)])
            answers.append(triton.InferenceResponse(output_tensors=[rows]))
            first += len(x)
        return answers
