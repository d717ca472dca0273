"""Fixtures that several tests of the runtime share."""

from __future__ import annotations

import pytest

from dataflow.core import limits


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits only when asked to."""
    monkeypatch.setattr(limits, "COMMIT_INTERVAL_MS", 10**12)
