"""All functions of the language, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from dataflow.expressions import (
    cast_functions,
    numeric_functions,
    tensor_functions,
    text_functions,
    time_functions,
)
from dataflow.expressions.call import Function

FUNCTIONS: Final[Mapping[str, Function]] = MappingProxyType(
    {
        function.name: function
        for module in (
            numeric_functions,
            cast_functions,
            text_functions,
            time_functions,
            tensor_functions,
        )
        for function in module.FUNCTIONS
    }
)
