"""Settings and contract of the Python kinds: what a declaration may say of user code, which is read and never run."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field as Setting

from dataflow.sdk import (
    MAX_ASYNC_CALLS,
    ContractContext,
    ContractError,
    Schema,
    Settings,
    UserCallable,
    nearest,
    signature_of,
)

from ._event_time import EventTimeSettings, time_field

ASYNC_CALLS: Final = 16


class PythonCall(Settings):
    """Which function or class to call, and how."""

    call: str = Setting(
        description="`module.function` or `module.Class`, looked for in the pipeline's folder, then in the project."
    )
    arguments: dict[str, Any] = Setting(
        default_factory=dict, description="Keyword arguments of the function, or of the class's constructor."
    )
    concurrency: int | None = Setting(
        default=None,
        ge=1,
        le=MAX_ASYNC_CALLS,
        description=(
            f"Rows of a batch in hand at once. Default: {ASYNC_CALLS} for an async function; 1 for others, more runs "
            "them in threads."
        ),
    )
    timeout_ms: int | None = Setting(
        default=None,
        ge=1,
        description=(
            "Longest time of one call; a row beyond it fails and may be retried. A call of an async function is ended; any other "
            "runs in a thread, goes on with what it does, and nobody waits for it."
        ),
    )


class PythonStateful(PythonCall, EventTimeSettings):
    """Which function or class to call, and how. What concerns time is for one with a `context: KeyedContext`."""

    on_timer: str | None = Setting(
        default=None,
        description=(
            "`module.function` to call with `(timer, context)` when a timer fires. Default: a class's own method `on_timer`."
        ),
    )


def contract_of(settings: PythonCall, context: ContractContext, *, appends: bool) -> dict[str, Schema]:
    """The contract of a Python node, from `out:` or the return annotation; the user's code is read, not run."""
    user = signature_of(context.folder, settings.call)
    _check_arguments(settings, user)
    _check_keyed(settings, user, context)
    produced = context.out if context.out is not None else annotated(user)
    if produced is None:
        why = f"{user.ref} accounts for its rows on `out`" if user.takes_out else user.returns.why
        raise ContractError(
            f"no contract: {why}",
            path=("with", "call"),
            hint="annotate it with a TypedDict, declare the fields under out:, "
            f"or see `dataflow infer {context.node} --sample FILE`",
        )
    if context.keep is None:
        return {"out": context.input.merged(produced) if appends else produced}
    for index, name in enumerate(context.keep):
        if name in produced:
            raise ContractError(
                f"keep: field '{name}' is also returned by {user.ref}",
                path=("keep", index),
                hint="remove one of them",
            )
    return {"out": produced.merged(context.kept())}


def annotated(user: UserCallable) -> Schema | None:
    return None if user.takes_out else user.returns.schema


def _check_arguments(settings: PythonCall, user: UserCallable) -> None:
    given = [*settings.arguments, *(("artifact",) if getattr(settings, "model", None) else ())]
    for name in given:
        if name not in user.parameters and not user.takes_any:
            path = ("with", "arguments", name) if name in settings.arguments else ("with", "model")
            raise ContractError(
                f"{user.ref} has no parameter '{name}'", path=path, hint=nearest(name, user.parameters)
            )
    absent = [name for name in user.required if name not in given]
    if absent:
        is_row_context = absent[0] == "context" and user.array_wise
        raise ContractError(
            f"{user.ref} needs an argument '{absent[0]}'",
            path=("with", "arguments"),
            hint="per row there are batch.ids, batch.keys and batch.attempts"
            if is_row_context
            else "give it under arguments:, or a default",
        )
    if settings.timeout_ms is not None and user.array_wise:
        raise ContractError(
            f"timeout_ms: {user.ref} takes a whole batch at once",
            path=("with", "timeout_ms"),
            hint="remove it, or write a function of one row",
        )
    if settings.timeout_ms is not None and user.keyed and not user.asynchronous:
        raise ContractError(
            f"timeout_ms: {user.ref} has state and is not async: a call that cannot be ended would go on changing it",
            path=("with", "timeout_ms"),
            hint="write `async def`, or use the timeouts of the client it calls",
        )
    if settings.concurrency is not None and user.array_wise:
        raise ContractError(
            f"concurrency: {user.ref} takes a whole batch at once",
            path=("with", "concurrency"),
            hint="remove it, or write a function of one row",
        )


def _check_keyed(settings: PythonCall, user: UserCallable, context: ContractContext) -> None:
    """What belongs to state and timers is used with them, and fits them."""
    if not isinstance(settings, PythonStateful):
        if user.keyed:
            raise ContractError(
                f"{user.ref} asks for state, which this kind does not have",
                path=("with", "call"),
                hint="transform.python and logic.python have it",
            )
        return
    if not user.keyed:
        given = [n for n in ("on_timer", *EventTimeSettings.model_fields) if n in settings.model_fields_set]
        if given:
            raise ContractError(
                f"{given[0]}: {user.ref} has no state or timers",
                path=("with", given[0]),
                hint="annotate its parameter: context: KeyedContext",
            )
        return
    if settings.concurrency is not None:
        raise ContractError(
            f"concurrency: {user.ref} has state, and its rows run one after another",
            path=("with", "concurrency"),
            hint="remove it",
        )
    field = time_field(settings.time, context.input)
    for name in ("delay", "idle_timeout"):
        if not field and name in settings.model_fields_set:
            raise ContractError(
                f"{name}: there is no event time", path=("with", name), hint="set time: FIELD"
            )
    if settings.on_timer is not None:
        if "on_timer" in user.methods:
            raise ContractError(
                f"on_timer: {user.ref} has a method of that name",
                path=("with", "on_timer"),
                hint="remove one",
            )
        try:
            signature_of(context.folder, settings.on_timer)
        except ContractError as error:
            raise ContractError(error.message, path=("with", "on_timer"), hint=error.hint) from None
