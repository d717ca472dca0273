"""Expressions in the settings of a node: their errors at their place in the declaration."""

from __future__ import annotations

from dataflow.sdk import ContractContext, ContractError, DataflowError, Expression, Schema, parse_expression

Path = tuple[str | int, ...]


def refuse_declarations(context: ContractContext) -> None:
    """These kinds have a contract that follows from their settings: an `out:` or `keep:` would say it twice."""
    for name, declared in (("out", context.out), ("keep", context.keep)):
        if declared is not None:
            message = f"{name}: the fields of this kind follow from its input and settings"
            raise ContractError(
                message, path=(name,), hint="leave it out; transform.select changes fields under with"
            )


def text_of(value: str | float | bool) -> str:
    """A setting as an expression: YAML reads ``true`` and ``3`` as values, which are expressions too."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def expression(value: str | float | bool, schema: Schema, path: Path) -> Expression:
    """The expression at `path`; its error as a ContractError there, with the ExpressionError as its cause."""
    try:
        return parse_expression(text_of(value), schema)
    except DataflowError as error:
        raise ContractError(f"{path[-1]}: {error.message}", path=path, hint=error.hint) from error


def condition(value: str | bool, schema: Schema, path: Path) -> Expression:
    """As `expression`, for one that must be true or false."""
    made = expression(value, schema, path)
    if made.type.kind != "bool" or made.type.shape:
        message = f"{path[-1]}: '{made.text}' gives {made.type.describe()} where true or false is needed"
        raise ContractError(message, path=path, hint="compare it with something, e.g. delay > 30")
    return made
