"""User code: described by its syntax tree (lint and plan never run it), and the exceptions it may raise.

A reference is ``module.function`` or ``package.module.Class``; `core.loading` says where the module is looked for.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from dataflow.core.annotations import Returns, Source, is_named, lookup, read_source, returns_of
from dataflow.core.errors import ContractError, nearest
from dataflow.core.loading import CALL_PATH, code_digest, find_callable, load_callable, project_root

__all__ = [
    "CallContext", "Drop", "Fail", "Retry", "UserCallable", "code_digest", "load_callable", "project_root",
    "signature_of",
]  # fmt: skip


class Drop(Exception):
    """Raise it to end a row on purpose. `reason` is a short stable text: it labels a metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Fail(Exception):
    """Raise it to fail a row; with `retryable` it is tried again as the node's retry policy allows."""

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable


class Retry(Fail):
    """Raise it to have a row tried again: ``Fail(reason, retryable=True)``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, retryable=True)


class CallContext(NamedTuple):
    """What a row-wise function with a parameter `context` is given: the means of its own idempotency.

    `id` stays the same when a record is retried, replayed or redriven; `attempt` counts redrives from 0.
    """

    id: str
    key: bytes | None
    attempt: int


@dataclass(frozen=True)
class UserCallable:
    """A user function or class, as far as its source text tells.

    array_wise     takes a Batch and returns columns; else one dict per row
    takes_out      array-wise with a second parameter `out: Out`, on which it accounts for every row itself
    takes_context  has a parameter `context` (a `CallContext` per row, or a `KeyedContext`)
    keyed          that parameter is annotated `KeyedContext`: it has state and timers by record key
    methods        names of the methods of a class, () for a function
    parameters     names that `arguments` may set (of `__init__` for a class), and which of them have no default
    """

    ref: str
    file: Path
    line: int
    kind: Literal["function", "async function", "class"]
    asynchronous: bool
    array_wise: bool
    takes_out: bool
    takes_context: bool
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool
    returns: Returns
    keyed: bool = False
    methods: tuple[str, ...] = ()


def signature_of(folder: Path, ref: str, methods: Sequence[str] = ("process", "__call__")) -> UserCallable:
    """Describe the function or class `ref` without running anything of its module.

    `methods` are those that a class may have as its function, best first; the others are listed only. Raises ContractError at ("with", "call") for what does not exist, naming the nearest, and for invalid Python.
    """
    file, module, name = find_callable(folder, ref)
    roots = (folder.resolve(), project_root(folder))
    try:
        source = read_source(file, module, roots)
        found = lookup(source, name)
    except ContractError as error:
        raise ContractError(error.message, path=CALL_PATH, hint=error.hint) from None
    if isinstance(found, str):
        defined = [n for n, d in source.names.items() if isinstance(d, _Function | ast.ClassDef)]
        raise ContractError(
            f"'{ref}': no function or class '{name}' in {file.name}",
            path=CALL_PATH,
            hint=nearest(name, defined),
        )
    source, definition = found
    if isinstance(definition, ast.ClassDef):
        return _describe_class(ref, source, definition, methods)
    if not isinstance(definition, _Function):
        raise ContractError(
            f"'{ref}': {source.place(definition)} defines no function or class",
            path=CALL_PATH,
            hint="use def",
        )
    own = _parameters(definition)
    return _describe(ref, source, definition, definition, own[1:], skip=1)


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _describe_class(
    ref: str, source: Source, definition: ast.ClassDef, wanted: Sequence[str]
) -> UserCallable:
    methods = {m.name: m for m in definition.body if isinstance(m, _Function)}
    method = next((methods[name] for name in wanted if name in methods), None)
    if method is None:
        named = " or ".join(f"'{name}'" for name in wanted)
        raise ContractError(
            f"'{ref}': {source.place(definition)}: class {definition.name} has no method {named}",
            path=CALL_PATH,
            hint=nearest(wanted[0], methods),
        )
    init = methods.get("__init__")
    own = _parameters(init)[1:] if init is not None else _fields(source, definition)
    described = _describe(ref, source, definition, method, own, skip=2, init=init)
    return replace(described, methods=tuple(methods))


def _fields(source: Source, definition: ast.ClassDef) -> list[tuple[str, bool]]:
    """The parameters of a dataclass's own `__init__`."""
    if not any("dataclass" in ast.unparse(d) for d in definition.decorator_list):
        return []
    fields = [
        s
        for s in definition.body
        if isinstance(s, ast.AnnAssign) and not is_named(s.annotation, source, "ClassVar")
    ]
    return [(ast.unparse(f.target), f.value is None) for f in fields]


def _describe(
    ref: str,
    source: Source,
    definition: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    function: ast.FunctionDef | ast.AsyncFunctionDef,
    settable: Sequence[tuple[str, bool]],
    *,
    skip: int,
    init: ast.FunctionDef | ast.AsyncFunctionDef | None = None,
) -> UserCallable:
    """`settable` are (name, has no default) of what `arguments` may set; `skip` counts self and the row."""
    positional = [*function.args.posonlyargs, *function.args.args]
    if len(positional) < skip:
        raise ContractError(
            f"'{ref}': {source.place(function)}: {function.name} takes no row",
            path=CALL_PATH,
            hint="give it a first parameter: a dict per row, or batch: Batch",
        )
    array_wise = is_named(positional[skip - 1].annotation, source, "Batch")
    second = positional[skip] if len(positional) > skip else None
    takes_out = array_wise and second is not None and is_named(second.annotation, source, "Out")
    context = not array_wise and any(name == "context" for name, _ in _parameters(function))
    keyed = _keyed_parameter(ref, source, function, array_wise)
    reserved = {"context"} if context else set()
    if takes_out and second is not None:
        reserved.add(second.arg)
    is_class = isinstance(definition, ast.ClassDef)
    settable = [p for p in settable if is_class or p[0] not in reserved]
    asynchronous = isinstance(function, ast.AsyncFunctionDef)
    catcher = init if is_class else function
    return UserCallable(
        ref=ref,
        file=source.file,
        line=definition.lineno,
        kind="class" if is_class else "async function" if asynchronous else "function",
        asynchronous=asynchronous,
        array_wise=array_wise,
        takes_out=takes_out,
        takes_context=context,
        parameters=tuple(name for name, _ in settable),
        required=tuple(name for name, needed in settable if needed),
        takes_any=catcher is not None and catcher.args.kwarg is not None,
        returns=returns_of(function.returns, source, f"{source.place(function)}: {function.name}"),
        keyed=keyed,
    )


def _keyed_parameter(
    ref: str, source: Source, function: ast.FunctionDef | ast.AsyncFunctionDef, array_wise: bool
) -> bool:
    """Whether a function asks for state: by a parameter `context` annotated `KeyedContext`."""
    arguments = function.args
    asking = [
        p.arg
        for p in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        if is_named(p.annotation, source, "KeyedContext")
    ]
    if not asking:
        return False
    where = f"'{ref}': {source.place(function)}: {function.name}"
    if array_wise:
        raise ContractError(
            f"{where} takes a batch, and state is of one key",
            path=CALL_PATH,
            hint="write a function of one row: its first parameter a dict",
        )
    if asking != ["context"]:
        raise ContractError(
            f"{where}: the parameter '{asking[0]}' is a KeyedContext",
            path=CALL_PATH,
            hint="call it 'context'",
        )
    return True


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, bool]]:
    """(name, has no default) of each parameter, in order."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    bare = len(positional) - len(arguments.defaults)
    return [
        *((p.arg, index < bare) for index, p in enumerate(positional)),
        *(
            (p.arg, default is None)
            for p, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        ),
    ]
