"""Shared machinery of `transform.python`, `logic.python` and `model.python`: call user code, account for every row."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

from dataflow.sdk import (
    Batch,
    CallContext,
    KeyedState,
    NodeContext,
    NodeError,
    Out,
    Timer,
    load_callable,
    signature_of,
)

from ._event_time import EventClock, time_field
from ._python_columns import settle_columns, settle_own
from ._python_contract import ASYNC_CALLS, PythonCall, PythonStateful, annotated
from ._python_keyed import KeyedCalls
from ._python_rows import Lost, Shape, lost_by, report, settle_rows
from ._python_timed import TimedCalls


class PythonNode:
    """A running Python node; see `transform.python` for what authors are told.

    An async function runs on an event loop of the node's own, open from `open` to `close`: `process` must not be
    called from within a running loop of the same thread.
    """

    appends: ClassVar[bool] = False
    pure: ClassVar[bool] = True

    def __init__(self, settings: PythonCall, context: NodeContext) -> None:
        self._settings = settings
        self._context = context
        self._folder = context.folder.resolve()
        self._user = signature_of(context.folder, settings.call)
        produced = context.out if context.out is not None else annotated(self._user)
        if produced is None:
            raise NodeError(f"{settings.call} has no contract", hint="declare its fields under out:")
        keep = context.keep if context.keep is not None else context.input.names if self.appends else ()
        self._shape = Shape(
            call=settings.call,
            produced=context.output.select(produced.names),
            kept=tuple(name for name in keep if name not in produced),
            silent=self._user.returns.nothing and not len(produced),
        )
        self._instance: Any = None
        self._call: Callable[..., Any] = _not_open
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._timed: TimedCalls | None = None
        self._concurrency = settings.concurrency or 1
        self._asynchronous = self._user.asynchronous
        self.keyed = self._user.keyed
        self._keyed: KeyedCalls | None = None

    def open(self) -> None:
        """Import the code, make the instance and call its `open`. Raises NodeError with the cause chained."""
        target = load_callable(self._folder, self._settings.call)
        arguments = dict(self._settings.arguments)
        model = getattr(self._settings, "model", None)
        if model:
            arguments["artifact"] = self._context.model(model).artifact
        function: Callable[..., Any] = target
        if isinstance(target, type):
            self._instance = self._guard("constructing", partial(target, **arguments))
            function = getattr(self._instance, "process", self._instance)
        self._asynchronous = asynchronous = self._user.asynchronous or _is_async(function)
        if asynchronous or any(_is_async(getattr(self._instance, name, None)) for name in ("open", "close")):
            self._loop = asyncio.new_event_loop()
        if self._instance is not None and hasattr(self._instance, "open"):
            self._guard("open", lambda: self._finish(self._instance.open()))
        self._call = function if isinstance(target, type) or not arguments else partial(function, **arguments)
        if asynchronous:
            self._concurrency = self._settings.concurrency or ASYNC_CALLS
        elif self._settings.timeout_ms is not None:
            name = f"{self._context.pipeline}/{self._context.node}"
            guarded = partial(_guarded, self._call, self._folder)
            limit_ms, calls = self._settings.timeout_ms, self._concurrency
            self._timed = TimedCalls(name, guarded, limit_ms, calls, self._folder)
        elif self._concurrency > 1:
            self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix=self._context.node)
        if self.keyed:
            self._keyed = self._keyed_calls()

    def close(self) -> None:
        """Call the instance's `close`, then release threads and loop. A call that was left behind goes on."""
        try:
            if self._instance is not None and hasattr(self._instance, "close"):
                self._finish(self._instance.close())
        finally:
            if self._timed is not None:
                self._timed.close()
            if self._threads is not None:
                self._threads.shutdown()
            if self._loop is not None:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.close()

    def _keyed_calls(self) -> KeyedCalls:
        settings, context = self._settings, self._context
        assert isinstance(settings, PythonStateful)
        on_timer = getattr(self._instance, "on_timer", None)
        if settings.on_timer is not None:
            on_timer = load_callable(self._folder, settings.on_timer)
        if _is_async(on_timer) and self._loop is None:
            self._loop = asyncio.new_event_loop()
        field = time_field(settings.time, context.input)
        return KeyedCalls(
            self._shape,
            context.output,
            f"{context.pipeline}/{context.node}",
            self._folder,
            clock=(EventClock({"in": field}, settings), field) if field else None,
            call=self._one(self._call),
            on_timer=self._one(on_timer) if on_timer is not None else None,
        )

    def _one(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of one row or timer and its context, whose exceptions come back as `Lost`."""
        if not _is_async(function):
            return partial(_guarded, function, self._folder)

        def call(given: Any, context: Any) -> Any:
            assert self._loop is not None
            return self._loop.run_until_complete(self._answer(partial(function, given, context=context)))

        return call

    def process(self, batch: Batch, out: Out, port: str = "in", state: KeyedState | None = None) -> None:
        """Call the function for every row, or once for the batch, and account for every row on `out`."""
        if self._keyed is not None:
            assert state is not None
            self._keyed.process(batch, out, port, state)
            return
        if self._user.array_wise:
            self._process_batch(batch, out)
            return
        rows: list[Any] = batch.to_dicts()
        settle_rows(self._shape, batch, self._results(batch, rows), out, self._folder)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        """Processing timers of keyed code are due."""
        if self._keyed is not None:
            self._keyed.fire(timers, out, state)

    def drain(self, out: Out, state: KeyedState) -> None:
        """The inputs of keyed code have ended: event timers fire."""
        if self._keyed is not None:
            self._keyed.drain(out, state)

    def _results(self, batch: Batch, rows: Sequence[Any]) -> list[Any]:
        contexts: Sequence[CallContext] | None = None
        if self._user.takes_context:
            contexts = [CallContext(row.id.decode(), row.key, row.attempt) for row in batch.rows]
        if self._asynchronous:
            assert self._loop is not None
            return self._loop.run_until_complete(self._gather(rows, contexts))
        if self._timed is not None:
            return self._timed.results(
                [(row,) for row in rows] if contexts is None else list(zip(rows, contexts, strict=True))
            )
        if self._threads is not None:
            guarded = partial(_guarded, self._call, self._folder)
            return list(
                self._threads.map(guarded, rows)
                if contexts is None
                else self._threads.map(guarded, rows, contexts)
            )
        if contexts is not None:
            return [_guarded(self._call, self._folder, *pair) for pair in zip(rows, contexts, strict=True)]
        call, results = self._call, []
        for row in rows:
            try:
                results.append(call(row))
            except Exception as error:  # noqa: BLE001  (user code: anything may come)
                results.append(lost_by(error, self._folder))
        return results

    async def _gather(self, rows: Sequence[Any], contexts: Sequence[CallContext] | None) -> list[Any]:
        """Results in the rows' order, never more than `concurrency` calls at once.

        Each of so many workers takes the next row when it is done with one: no task per row.
        """
        results: list[Any] = [None] * len(rows)
        waiting = iter(range(len(rows)))

        async def work(indices: Iterator[int]) -> None:
            for index in indices:
                keywords = {} if contexts is None else {"context": contexts[index]}
                results[index] = await self._answer(partial(self._call, rows[index], **keywords))

        await asyncio.gather(*(work(waiting) for _ in range(min(self._concurrency, len(rows)))))
        return results

    async def _answer(self, call: Callable[[], Any]) -> Any:
        limit_ms = self._settings.timeout_ms
        try:
            if limit_ms is None:
                return await _awaited(call())
            scope = asyncio.timeout(limit_ms / 1000)
            try:
                async with scope:
                    return await _awaited(call())
            except TimeoutError:
                if scope.expired():
                    return Lost(f"took longer than {limit_ms} ms", "TimeoutError", retryable=True)
                raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  (user code: anything may come)
            return lost_by(error, self._folder)

    def _process_batch(self, batch: Batch, out: Out) -> None:
        own = Out(batch, ("out",)) if self._user.takes_out else None
        try:
            result = self._finish(self._call(batch) if own is None else self._call(batch, own))
        except Exception as error:  # noqa: BLE001  (user code: anything may come)
            if self.pure and len(batch) > 1:
                # Pure code may run again: row by row, so that only the bad ones are lost.
                self._process_singly(batch, out)
            else:
                report(dict.fromkeys(range(len(batch)), lost_by(error, self._folder)), out)
            return
        if own is not None:
            settle_own(self._shape, batch, own, out)
        else:
            settle_columns(self._shape, batch, result, out)

    def _process_singly(self, batch: Batch, out: Out) -> None:
        for row in range(len(batch)):
            single = batch.take([row])
            part = Out(single, ("out",))
            self._process_batch(single, part)
            part.settle()
            for emission in part.emissions:
                out.emit(emission.columns, rows=[row] * len(emission.parents), children=emission.children)
            for loss in part.dropped:
                out.drop([row], loss.reason)
            for loss in part.failed:
                out.fail([row], loss.reason, error=loss.error, retryable=loss.retryable)
            if not (part.emissions or part.dropped or part.failed):
                out.consume([row])

    def _finish(self, result: Any) -> Any:
        """The value of what may be a coroutine."""
        if self._loop is not None and (inspect.isawaitable(result) or hasattr(result, "__aiter__")):
            return self._loop.run_until_complete(_awaited(result))
        return result

    def _guard(self, doing: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            loss = lost_by(error, self._folder)
            raise NodeError(
                f"{self._settings.call}: {doing} failed: {type(error).__name__}: {loss.reason}"
            ) from error


def _is_async(function: Any) -> bool:
    called = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)


def _not_open(*_: Any) -> Any:
    raise NodeError("the node is not open")


def _guarded(call: Callable[..., Any], folder: Any, row: Any, context: object = None) -> Any:
    try:
        return call(row) if context is None else call(row, context=context)
    except Exception as error:  # noqa: BLE001  (user code: anything may come)
        return lost_by(error, folder)


async def _awaited(result: Any) -> Any:
    """The value of a coroutine, the items of an async generator, or the value itself."""
    if isinstance(result, Awaitable):
        return await result
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    return result
