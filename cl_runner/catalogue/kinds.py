"""What an option may be, in words, from its type."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cl_runner.overrides import written
from cl_runner.read_if import ReadIf

_PLAIN = {float: "a number", int: "a whole number", str: "text", bool: "true | false", type(None): "null"}
_LIMITS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def kind_of(field: FieldInfo) -> str:
    """What the value of an option may be."""
    return _kind(field.annotation, field.metadata)


def conditions(node: str, field: FieldInfo) -> list[str]:
    """With which values of others an option is read; empty if always."""
    found = [condition for condition in field.metadata if isinstance(condition, ReadIf)]
    return [_condition(node, condition) for condition in found]


def _condition(node: str, condition: ReadIf) -> str:
    key = condition.key if "." in condition.key else f"{node}.{condition.key}"
    values = " or ".join(map(written, condition.values))
    return f"{'not read' if condition.unless else 'read'} with {key}={values}"


def _kind(annotation: Any, limits: Sequence[Any]) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        inner = [one for limit in parts[1:] for one in (limit.metadata if isinstance(limit, FieldInfo) else [limit])]
        return _kind(parts[0], [*inner, *limits])
    if origin is Literal:
        return " | ".join(map(written, parts))
    if origin in (Union, types.UnionType):
        return " | ".join(_kind(part, limits) for part in parts)
    if origin is list:
        least = next((limit.min_length for limit in limits if hasattr(limit, "min_length")), None)
        return f"a list of {_kind(parts[0], ())}" + (f", {least} at least" if least else "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping of {', '.join(annotation.model_fields)}"
    if annotation in (float, int):
        bounds = [(sign, getattr(limit, name)) for name, sign in _LIMITS for limit in limits if hasattr(limit, name)]
        return _PLAIN[annotation] + ",".join(f" {sign} {bound:g}" for sign, bound in bounds if bound < 2**63)
    return _PLAIN.get(annotation) or str(getattr(annotation, "__name__", annotation))
