"""Memory of a process that keeps running: in a process of its own, for it cannot be undone."""

from __future__ import annotations

import subprocess
import sys


def test_the_collector_leaves_alone_what_is_loaded() -> None:
    program = (
        "import gc; from dataflow.cli.process import calm_collector, few_arenas; few_arenas(); calm_collector(); "
        "print(gc.isenabled(), gc.get_threshold()[0], gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "20000", "True"]
