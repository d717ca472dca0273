"""Baseline of `onnx`: `dataflow worker` as it is, but every batch is one record.

python -m benchmarks.one_by_one PROJECT BOOTSTRAP PIPELINE
"""

from __future__ import annotations

import sys

from dataflow.cli.main import main as dataflow
from dataflow.core import limits


def main(project: str, bootstrap: str, pipeline: str) -> None:
    # A setting that users do not have: the engine itself always takes what has come.
    limits.MAX_BATCHES_IN_FLIGHT *= limits.MAX_BATCH_RECORDS  # type: ignore[misc]  # as many records in hand
    limits.MAX_BATCH_RECORDS = 1  # type: ignore[misc]
    dataflow(["worker", "--project", project, "--bootstrap", bootstrap, "--pipeline", pipeline])


if __name__ == "__main__":
    main(*sys.argv[1:])
