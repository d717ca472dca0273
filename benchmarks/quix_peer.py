"""The peer of `state`: the same two jobs as a Quix Streams application. Runs in an environment of its own.

python -m benchmarks.quix_peer JOB BOOTSTRAP SOURCE SINK GROUP STATE_FOLDER COMMIT_S [WINDOW_MS]   # JOB: counts | windows

Quix's own defaults (at least once, changelog topics), less its logs; but what it commits each COMMIT_S, five seconds by
default, is all that reaches the changelog: a key changed often meanwhile is written once.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from quixstreams import Application, State  # type: ignore[import-not-found]
from quixstreams.dataframe.windows import aggregations  # type: ignore[import-not-found]


def count(row: dict[str, Any], state: State) -> dict[str, Any]:
    """Records and their sum so far, of the record's key."""
    counted = state.get("counted")
    readings, total = (1, row["value"]) if counted is None else (counted[0] + 1, counted[1] + row["value"])
    state.set("counted", [readings, total])
    return {"sensor": row["sensor"], "readings": readings, "total": total}


def main(
    job: str,
    bootstrap: str,
    source: str,
    sink: str,
    group: str,
    folder: str,
    commit_s: str,
    window_ms: str = "0",
) -> None:
    app = Application(
        broker_address=bootstrap, consumer_group=group, auto_offset_reset="earliest", state_dir=folder,
        loglevel="ERROR", commit_interval=float(commit_s),
    )  # fmt: skip
    frame = app.dataframe(app.topic(source))
    if job == "counts":
        frame = frame.apply(count, stateful=True)
    else:
        window = frame.tumbling_window(timedelta(milliseconds=int(window_ms))).agg(
            readings=aggregations.Count(), total=aggregations.Sum("value")
        )
        # As ours: whoever's record moves event time closes the windows of all keys of the partition.
        frame = window.final(closing_strategy="partition")
    frame.to_topic(app.topic(sink))
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
