"""Metrics that read an answer as calls of tools: {"name": ..., "arguments": ...}, however a template writes it.

Read are the JSON in <tool_call> tags (Qwen, Hermes), JSON alone with `arguments` or `parameters` (Llama 3.1), lists of
it (Mistral), and {"function": {...}} around it (OpenAI), with words before or behind. Several calls are compared
whatever their order; of an answer that calls nothing all is right where nothing is called.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cl_runner.data.example import Example
from cl_runner.metrics.base import per_example

#: Begins a call in the templates that mark calls.
TAG = "<tool_call>"
_DECODER = json.JSONDecoder()


def calls_in(text: str) -> list[tuple[str, str]] | None:
    """Name and arguments of each call in a text, the arguments as JSON in one form; None: one cannot be read."""
    try:
        found = [call for value in _values(text) for call in _calls(value)]
    except RecursionError:  # nested deeper than Python reads
        return None
    return found if len(found) >= text.count(TAG) else None


def _values(text: str) -> Iterator[Any]:
    """Each outermost object and list in a text that holds a call or is one."""
    place = 0
    while place < len(text):
        if text[place] in "{[":
            try:
                value, end = _DECODER.raw_decode(text, place)
            except ValueError:
                pass
            else:
                if _calls(value):
                    yield value
                    place = end
                    continue
        place += 1


def _calls(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list):
        return [call for each in value if isinstance(each, Mapping) for call in _calls(each)]
    if isinstance(value.get("function"), Mapping):
        value = value["function"]
    key = next((key for key in ("arguments", "parameters") if key in value), None)
    if key is None or not isinstance(value.get("name"), str):
        return []
    return [(value["name"], _one_form(value[key]))]


def _one_form(arguments: Any) -> str:
    """JSON in which keys are sorted and a whole number has no fraction; arguments as text are read as JSON."""
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    return json.dumps(_whole(arguments), sort_keys=True)


def _whole(value: Any) -> Any:
    """1.0 is 1, as JSON has one kind of numbers; true is no number."""
    if isinstance(value, Mapping):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _agree(prediction: str, example: Example, of: Callable[[tuple[str, str]], Any]) -> bool:
    """Whether both have the same of their calls, in any order."""
    found, wanted = calls_in(prediction), calls_in(example.answer)
    return found is not None and wanted is not None and sorted(map(of, found)) == sorted(map(of, wanted))


@per_example
def tool_call(prediction: str, example: Example) -> float:
    """100 where the same functions are called with equal arguments."""
    return _agree(prediction, example, lambda call: call)


@per_example
def tool_call_parsed(prediction: str, example: Example) -> float:
    """100 where calls can be read, or none is there where none is asked."""
    found = calls_in(prediction)
    return found is not None and bool(found) == bool(calls_in(example.answer))


@per_example
def tool_call_name(prediction: str, example: Example) -> float:
    """100 where functions of the same names are called."""
    return _agree(prediction, example, lambda call: call[0])


@per_example
def tool_call_arguments(prediction: str, example: Example) -> float:
    """100 where the arguments are equal as JSON, whatever is called."""
    return _agree(prediction, example, lambda call: call[1])
