"""The one tree of errors: every failure a user can cause is a `DataflowError` with a message that helps.

A message says what was being done, the value, what is valid and, where one exists, a hint. Errors that a user
cannot cause (broken invariants) are assertions, not members of this tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from dataflow.core.limits import MAX_ERROR_BYTES


class DataflowError(Exception):
    """Base of all expected failures. `str(error)` is fit for a user; `hint` is an optional way out."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SpecError(DataflowError):
    """A declaration is wrong. Raised by the loader and by lint, with a place where one is known."""


class ContractError(DataflowError):
    """A contract cannot be met: a missing field, a dtype or shape that cannot fit.

    `path` is where in the node's own declaration the fault lies, e.g. ``("with", "by", "origin")``.
    """

    def __init__(self, message: str, *, path: tuple[str | int, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class NotKnownYetError(ContractError):
    """A contract that only a build will tell, e.g. that of a model not made yet: a warning to lint, no fault."""


class ExpressionError(DataflowError):
    """An expression does not parse or does not type-check. `column` is 1-based within the expression."""

    def __init__(self, message: str, *, column: int = 1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.column = column


class CodecError(DataflowError):
    """Bytes that do not decode, or values that do not encode.

    `row` is the index of the offending row in the batch, or None when the whole batch is meant.
    """

    def __init__(self, message: str, *, row: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.row = row


class PlanError(DataflowError):
    """Specs that are each right but make no runnable plan together."""


class ModelError(DataflowError):
    """A model artifact cannot be built, loaded or run as declared."""


class NodeError(DataflowError):
    """A node broke its contract, e.g. did not account for a row."""


class NodeBrokenError(NodeError):
    """A node cannot go on: no row is to blame. Its stage ends without a commit and begins anew."""


class StateError(DataflowError):
    """Keyed state cannot be read or kept: a record of a changelog that is none, a local file that failed."""


class TransportError(DataflowError):
    """The broker refused, is away, or a topic is not what it should be."""


class OffsetOutOfRangeError(TransportError):
    """The committed position is no longer in the log: records were deleted before they were processed."""


class TopicGoneError(TransportError):
    """A topic vanished or was created anew while it was read."""


class FencedError(TransportError):
    """Somebody else took this work over: whatever was not committed belongs to them now."""


class RecordTooLargeError(TransportError):
    """A record is larger than its topic or producer allows: the row fails, nothing else."""


class BrokerError(DataflowError):
    """The embedded broker cannot be installed, started or stopped."""


class GatewayError(DataflowError):
    """A request that gets an error answer. `status` is the HTTP status."""

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


def shortened(text: str) -> str:
    """A cause as headers, replies and records of failures hold it: no dump."""
    if len(text) <= MAX_ERROR_BYTES // 4:
        return text
    return text.encode()[:MAX_ERROR_BYTES].decode(errors="ignore")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ``did you mean 'threshold'?``, or the list of what is valid when nothing is near."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return "none is declared"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"valid: {shown}"
