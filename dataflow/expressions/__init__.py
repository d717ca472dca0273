"""One small typed grammar for routes, filters, selections and taps; compiled to vectorised calls, never `eval`."""

from __future__ import annotations

from dataflow.expressions.compiled import Expression, parse_expression

__all__ = ["Expression", "parse_expression"]
