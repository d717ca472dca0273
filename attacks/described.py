"""What schemathesis makes of the gateway's own description: requests that fit it, and requests that do not.

Answers must be as described: a status that is named there, its content type, headers and schema.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from attacks.verdict import HUNG, Tally
from attacks.wire import BOUND_S

FAMILY: Final = "described"
_CHECKS: Final = (
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
)
# Names that are there, so that more is reached than "no such pipeline".
_KNOWN: Final = {"name": "sums", "pipeline": "sums", "node": "sum", "edge": "sum"}


def attack(port: int, cases: int, number: int, tally: Tally) -> None:
    """About so many cases, spread over all operations, or some of them where there are few; blocks."""
    base = f"http://127.0.0.1:{port}"
    document = requests.get(f"{base}/openapi.json", timeout=BOUND_S).json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    wanted = [operation for operation in operations if not _streams(operation)]
    wanted = Random(number).sample(wanted, min(len(wanted), max(1, cases // 4)))
    each = max(2, cases // len(wanted) // 2)
    with requests.Session() as session:
        for operation in wanted:
            for mode in GenerationMode:
                _attack_one(operation, mode, each, number, session, base, tally)


def _streams(operation: Any) -> bool:
    """Whether its answer has no end: the list has attacks of its own on those."""
    return "text/event-stream" in str(operation.definition.raw.get("responses", {}).get("200"))


def _otherwise(case: Case[Any], answer: Any) -> str:
    """How an answer differs from what the description says of it; "" if it does not."""
    try:
        case.validate_response(answer, checks=list(_CHECKS))
    except (Failure, FailureGroup) as failure:
        return str(failure)
    return ""


def _attack_one(
    operation: Any,
    mode: GenerationMode,
    cases: int,
    number: int,
    session: requests.Session,
    base: str,
    tally: Tally,
) -> None:
    label = operation.label

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE:
            for name in case.path_parameters or {}:
                case.path_parameters[name] = _KNOWN.get(name, case.path_parameters[name])
        try:
            answer = case.call(base_url=base, session=session, timeout=BOUND_S)
        except requests.Timeout:
            tally.note(FAMILY, HUNG, label)
        except requests.RequestException as error:
            tally.note(FAMILY, "not sent", label, error)
        else:
            said = _otherwise(case, answer)
            if said and answer.status_code < 500:
                tally.wrong(FAMILY, answer.status_code, (label, case.body), f"not as described: {said}")
            else:
                tally.note(FAMILY, answer.status_code, (label, case.body), answer.text)

    try:
        run()
    except Exception as error:
        if "Unsatisfiable" not in type(error).__name__:
            raise
