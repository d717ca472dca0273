"""Contracts from type hints, by reading the syntax tree: user code is never imported here.

A *row type* is a TypedDict, dataclass or NamedTuple (in the same file or in another of the project's files); its
fields become a contract's fields:

==================================================  =================================================
hint                                                field type
==================================================  =================================================
int, float, str, bytes, bool                        int64, float64, string, bytes, bool
datetime, date                                      timestamp, date
np.float32, np.int8, ...                            that dtype
Literal["a", "b"], a StrEnum                        enum
X | None, Optional[X], NotRequired[X]               X, nullable
list[X], Sequence[X], tuple[X, ...]                 list of X
a row type                                          record
Tensor["float32", 12]                               float32, shape [12]
==================================================  =================================================
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from dataflow.core.errors import ContractError
from dataflow.core.schema import NUMBERS, TENSOR_KINDS, Field, FieldType, Schema

Definition: TypeAlias = ast.stmt

# CPython 3.11 counts the depth of a tree that it makes once for all threads (gh-106905): two at a time end in SystemError.
_ONE_AT_A_TIME: Final = threading.Lock()

_SCALARS: Final[Mapping[str, str]] = {
    "int": "int64", "float": "float64", "str": "string", "bytes": "bytes", "bool": "bool",
    "datetime": "timestamp", "date": "date", "bool_": "bool", "str_": "string", "datetime64": "timestamp",
    **{number: number for number in NUMBERS},
}  # fmt: skip
_LISTS: Final = frozenset({"list", "List", "Sequence", "tuple", "Tuple"})
_MANY: Final = _LISTS | {
    "Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator",
}  # fmt: skip
_OPEN: Final = frozenset({"dict", "Dict", "Mapping", "MutableMapping", "Any", "object"})
_TRANSPARENT: Final = frozenset({"Annotated", "Required", "ReadOnly", "Final"})
# Imports are followed this far: enough for re-exports, and a circle ends.
_MAX_HOPS: Final = 8
_KNOWN: Final = (
    "known: int, float, str, bytes, bool, datetime, date, np.float32 and its like, Literal, StrEnum, X | None, "
    'list[X], a TypedDict, dataclass or NamedTuple, Tensor["float32", 12]'
)


@dataclass(frozen=True)
class Imported:
    """A name that an import statement binds. `name` is "" where it binds the module itself."""

    module: str
    name: str
    level: int


@dataclass(frozen=True)
class Source:
    """One parsed file. `module` is its dotted name below the root it was found in; `roots` are looked in for imports."""

    file: Path
    module: str
    roots: tuple[Path, ...]
    names: Mapping[str, Definition | Imported]

    def place(self, node: ast.AST) -> str:
        return f"{self.file.name}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True)
class Returns:
    """What a return annotation says about the rows.

    schema   contract of one row; None if it cannot be read, and then `why` says why
    many     a list or iterator of rows: each row fans out into children
    nothing  annotated with None: rows are taken in with nothing to show
    """

    schema: Schema | None
    many: bool = False
    nothing: bool = False
    why: str = ""


def find_module(roots: Sequence[Path], module: str) -> Path | None:
    """The file of a dotted module name below one of `roots`, first match; none for the SDK, wherever its code lies."""
    for root in roots if module != "dataflow.sdk" else ():
        stem = root.joinpath(*module.split("."))
        for file in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
            if file.is_file():
                return file
    return None


def read_source(file: Path, module: str, roots: Sequence[Path]) -> Source:
    """Parse `file`. Raises ContractError with line and column if it is no valid Python."""
    try:
        with _ONE_AT_A_TIME:
            tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        raise ContractError(f"{file.name}:{line}: not valid Python: {getattr(error, 'msg', error)}") from None
    return Source(file, module, tuple(roots), dict(_bindings(tree.body)))


def _bindings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, Definition | Imported]]:
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name, statement
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.ImportFrom():
                for alias in statement.names:
                    yield (
                        alias.asname or alias.name,
                        Imported(statement.module or "", alias.name, statement.level),
                    )
            case ast.Import():
                for alias in statement.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    yield bound, Imported(alias.name if alias.asname else bound, "", 0)
            case ast.If() | ast.Try():  # TYPE_CHECKING, optional imports
                yield from _bindings([*statement.body, *statement.orelse])
                for handler in getattr(statement, "handlers", ()):
                    yield from _bindings(handler.body)
            case _:
                pass


def lookup(source: Source, name: str, hops: int = 0) -> tuple[Source, Definition] | str:
    """Where `name` is defined, imports between the project's files followed; else its name where it comes from."""
    found = source.names.get(name)
    if found is None or hops > _MAX_HOPS:
        return name
    if not isinstance(found, Imported):
        return source, found
    module = _absolute(source, found)
    file = find_module(source.roots, module) if found.name else None
    if file is None:
        return found.name or found.module
    return lookup(read_source(file, module, source.roots), found.name, hops + 1)


def _absolute(source: Source, imported: Imported) -> str:
    if not imported.level:
        return imported.module
    parts = source.module.split(".")
    drop = imported.level - (source.file.name == "__init__.py")
    base = parts[: len(parts) - drop] if drop else parts
    return ".".join([*base, *([imported.module] if imported.module else [])])


def unquoted(node: ast.expr) -> ast.expr:
    """An annotation written as a string, parsed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            with _ONE_AT_A_TIME:
                return ast.copy_location(ast.parse(node.value, mode="eval").body, node)
        except SyntaxError:
            return node
    return node


def resolve(node: ast.expr, source: Source) -> tuple[Source, Definition] | str:
    """What a name or ``module.name`` in an annotation stands for: a definition, or the name at its origin."""
    if isinstance(node, ast.Name):
        return lookup(source, node.id)
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name):
            module = source.names.get(node.value.id)
            if isinstance(module, Imported):
                name = ".".join(filter(None, (_absolute(source, module), module.name)))
                file = find_module(source.roots, name)
                if file is not None:
                    return lookup(read_source(file, name, source.roots), node.attr)
        return node.attr
    return ast.unparse(node)


def is_named(node: ast.expr | None, source: Source, name: str) -> bool:
    """Whether an annotation is `name` (imported under any alias, quoted or not)."""
    return node is not None and resolve(unquoted(node), source) == name


def returns_of(annotation: ast.expr | None, source: Source, where: str) -> Returns:
    """Read a return annotation. Never raises: what cannot be read is said in `why`."""
    if annotation is None:
        return Returns(None, why=f"{where} has no return annotation")
    try:
        return _returns(unquoted(annotation), source, where)
    except ContractError as error:
        return Returns(None, why=str(error))


def _returns(node: ast.expr, source: Source, where: str) -> Returns:
    members = [m for m in _members(node, source) if not _is_none(m)]
    if not members:
        return Returns(Schema(()), nothing=True)
    if len(members) > 1:
        raise ContractError(f"{where} returns one of several types, '{ast.unparse(node)}'")
    node = members[0]
    if isinstance(node, ast.Subscript):
        head, items = _head(node, source), _items(node)
        if head in _MANY and items:
            return replace(_returns(items[0], source, where), many=True)
        if head in _OPEN:
            return Returns(None, why=f"{where} returns '{ast.unparse(node)}', whose fields are not known")
    found = resolve(node, source)
    if isinstance(found, str):
        known = "fields are not known" if found in _OPEN else "row type is not found"
        if found in _SCALARS:
            known = "type is no row: return a dict"
        return Returns(None, why=f"{where} returns '{ast.unparse(node)}', whose {known}")
    if isinstance(found[1], ast.Assign):
        return _returns(found[1].value, found[0], where)
    return Returns(_row_schema(found, ()))


def field_type(node: ast.expr, source: Source, above: tuple[str, ...] = ()) -> FieldType:
    """The field type of an annotation. `above` names the row types it is nested in. Raises ContractError."""
    node = unquoted(node)
    members = _members(node, source)
    present = [m for m in members if not _is_none(m)]
    if len(members) > 1:
        kinds = {field_type(m, source, above) for m in present}
        if kinds == {FieldType("int64"), FieldType("float64")}:
            kinds = {FieldType("float64")}
        if len(kinds) != 1:
            raise ContractError(f"{source.place(node)}: '{ast.unparse(node)}' is one of several types")
        return replace(kinds.pop(), nullable=len(present) < len(members))
    if isinstance(node, ast.Subscript):
        return _generic(node, source, above)
    found = resolve(node, source)
    if isinstance(found, str):
        if found in _SCALARS:
            return FieldType(_SCALARS[found])
        if found == "Decimal":
            raise ContractError(
                f"{source.place(node)}: 'Decimal' has no precision",
                hint="declare the field under out: {type: decimal, precision: 12, scale: 2}",
            )
        raise ContractError(f"{source.place(node)}: no field type for '{ast.unparse(node)}'", hint=_KNOWN)
    owner, definition = found
    if isinstance(definition, ast.Assign):
        return field_type(_alias(definition.value, owner), owner, above)
    if isinstance(definition, ast.ClassDef) and any(
        is_named(base, owner, "StrEnum") for base in definition.bases
    ):
        return _enum(definition, owner)
    schema = _row_schema(found, above)
    return FieldType("record", fields=schema.fields)


def _alias(value: ast.expr, source: Source) -> ast.expr:
    """The aliased annotation; ``NewType("Metre", float)`` stands for its second argument."""
    if isinstance(value, ast.Call) and len(value.args) == 2 and is_named(value.func, source, "NewType"):
        return value.args[1]
    return value


def _generic(node: ast.Subscript, source: Source, above: tuple[str, ...]) -> FieldType:
    head, items = _head(node, source), _items(node)
    if head in _LISTS:
        return FieldType("list", item=field_type(items[0], source, above))
    if head in _TRANSPARENT:
        return field_type(items[0], source, above)
    if head in {"Optional", "NotRequired"}:
        return replace(field_type(items[0], source, above), nullable=True)
    if head == "Literal":
        return _literal(node, items, source)
    if head == "Tensor":
        return _tensor(node, items, source)
    raise ContractError(f"{source.place(node)}: no field type for '{ast.unparse(node)}'", hint=_KNOWN)


def _literal(node: ast.expr, items: Sequence[ast.expr], source: Source) -> FieldType:
    values = [item.value if isinstance(item, ast.Constant) else item for item in items]
    present = [v for v in values if v is not None]
    nullable = len(present) < len(values)
    if present and all(isinstance(v, str) for v in present):
        return FieldType("enum", symbols=tuple(str(v) for v in present), nullable=nullable)
    for kind, name in ((bool, "bool"), (int, "int64")):
        if present and all(type(v) is kind for v in present):
            return FieldType(name, nullable=nullable)
    raise ContractError(
        f"{source.place(node)}: '{ast.unparse(node)}' mixes types",
        hint="use texts, whole numbers or booleans",
    )


def _tensor(node: ast.expr, items: Sequence[ast.expr], source: Source) -> FieldType:
    dtype, *sizes = items
    kind = dtype.value if isinstance(dtype, ast.Constant) else ast.unparse(dtype).rpartition(".")[2]
    shape = tuple(_size(size, source) for size in sizes)
    if kind not in TENSOR_KINDS or not shape or None in shape:
        raise ContractError(
            f"{source.place(node)}: '{ast.unparse(node)}' is no tensor type",
            hint='write Tensor["float32", 12] or Tensor["uint8", -1, 64]',
        )
    return FieldType(str(kind), shape=tuple(size for size in shape if size is not None))


def _size(node: ast.expr, source: Source) -> int | None:
    if isinstance(node, ast.Name):
        found = resolve(node, source)
        if not isinstance(found, str) and isinstance(found[1], ast.Assign | ast.AnnAssign) and found[1].value:
            node = found[1].value
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return value if type(value) is int else None


def _enum(definition: ast.ClassDef, source: Source) -> FieldType:
    values = [
        s.value.value if isinstance(s.value, ast.Constant) else s.targets[0].id.lower()
        for s in definition.body
        if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)
    ]
    if not values or not all(isinstance(v, str) for v in values):
        raise ContractError(f"{source.place(definition)}: '{definition.name}' has no texts as values")
    return FieldType("enum", symbols=tuple(str(v) for v in values))


def _row_schema(found: tuple[Source, Definition], above: tuple[str, ...]) -> Schema:
    source, definition = found
    if not isinstance(definition, ast.ClassDef):
        raise ContractError(f"{source.place(definition)}: '{ast.unparse(definition)[:60]}' is no row type")
    name = definition.name
    if name in above:
        raise ContractError(f"{source.place(definition)}: '{name}' contains itself")
    bases = [resolve(base, source) for base in definition.bases]
    inherited = [_row_schema(base, (*above, name)) for base in bases if not isinstance(base, str)]
    decorators = {
        resolve(d.func if isinstance(d, ast.Call) else d, source) for d in definition.decorator_list
    }
    if not inherited and not ({"TypedDict", "NamedTuple"} & set(bases) or "dataclass" in decorators):
        raise ContractError(
            f"{source.place(definition)}: class '{name}' is no row type",
            hint="make it a TypedDict, a dataclass or a NamedTuple",
        )
    optional = any(k.arg == "total" and ast.unparse(k.value) == "False" for k in definition.keywords)
    schema = Schema(())
    for base_schema in inherited:
        schema = schema.merged(base_schema)
    own = tuple(
        Field(field.target.id, _member(field, source, (*above, name), optional))
        for field in definition.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if not ast.unparse(field.annotation).startswith(("ClassVar", "typing.ClassVar"))
    )
    return schema.merged(Schema(own))


def _member(field: ast.AnnAssign, source: Source, above: tuple[str, ...], optional: bool) -> FieldType:
    try:
        found = field_type(field.annotation, source, above)
    except ContractError as error:
        raise ContractError(
            f"{error.message} (field '{ast.unparse(field.target)}' of {above[-1]})", hint=error.hint
        ) from None
    return replace(found, nullable=True) if optional else found


def _members(node: ast.expr, source: Source) -> list[ast.expr]:
    """The members of a union, however it is spelled; the node itself if it is none."""
    node = unquoted(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_members(node.left, source), *_members(node.right, source)]
    if isinstance(node, ast.Subscript):
        head = _head(node, source)
        if head == "Union":
            return [m for item in _items(node) for m in _members(item, source)]
        if head == "Optional":
            return [*_members(_items(node)[0], source), ast.Constant(None)]
    return [node]


def _head(node: ast.Subscript, source: Source) -> str:
    found = resolve(node.value, source)
    return found if isinstance(found, str) else ""


def _items(node: ast.Subscript) -> list[ast.expr]:
    inner = node.slice
    return list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
