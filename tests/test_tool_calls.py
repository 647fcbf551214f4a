"""Calls of tools read out of answers as templates and models write them, malformed ones too."""

from __future__ import annotations

import json

import pytest

from cl_runner.data.example import Example
from cl_runner.metrics.base import score
from cl_runner.metrics.forms import has_form
from cl_runner.metrics.tool_calls import calls_in

GOLD = '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "units": ["C", "m/s"]}}'
ARGUMENTS = '{"units": ["C", "m/s"], "days": 2.0, "city": "Z\\u00fcrich"}'
NAMES = ("tool_call_parsed", "tool_call_name", "tool_call_arguments", "tool_call")


def marks(prediction: str, answer: str = GOLD) -> str:
    """Which of the four are right, as a row of 1 and 0."""
    values = [score(name, [prediction], [Example("p", answer)], None)[0] for name in NAMES]
    assert set(values) <= {0.0, 100.0}
    return "".join("1" if value else "0" for value in values)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        (GOLD, "1111"),
        (f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>', "1111"),  # Qwen, Hermes
        (f'I look it up.\n<tool_call>\n{{"arguments": {ARGUMENTS}, "name": "get_weather"}}\n</tool_call>', "1111"),
        (f'<tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}', "1111"),  # its end is a special token
        (f'<|python_tag|>{{"name": "get_weather", "parameters": {ARGUMENTS}}}<|eom_id|>', "1111"),  # Llama 3.1
        (f'{{"type": "function", "function": {{"name": "get_weather", "parameters": {ARGUMENTS}}}}}', "1111"),
        (f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {ARGUMENTS}, "id": "a1"}}]', "1111"),  # Mistral
        (json.dumps({"name": "get_weather", "arguments": ARGUMENTS}), "1111"),  # arguments as text, OpenAI
        (f'```json\n{{"tool_calls": [{{"name": "get_weather", "arguments": {ARGUMENTS}}}]}}\n```', "1111"),
        (f'{{"name": "get_wether", "arguments": {ARGUMENTS}}}', "1010"),
        ('{"name": "get_weather", "arguments": {"city": "Zürich", "days": "2", "units": ["C", "m/s"]}}', "1100"),
        ('{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "units": ["m/s", "C"]}}', "1100"),
        ('{"name": "get_weather", "arguments": {}}', "1100"),
        ('{"name": "get_weather", "arguments": null}', "1100"),
        (f"{GOLD}; {GOLD}", "1000"),  # twice is not once
        # Nothing to read
        ("It is sunny in Zürich.", "0000"),
        ("", "0000"),
        ('{"name": "get_weather"}', "0000"),
        ('{"name": 3, "arguments": {}}', "0000"),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zür', "0000"),  # cut
        ("<tool_call>{'name': 'get_weather', 'arguments': {}}</tool_call>", "0000"),  # Python, no JSON
        (f"<tool_call>{GOLD}</tool_call><tool_call>{{</tool_call>", "0000"),
        ("<tool_call></tool_call>", "0000"),
        ("get_weather(city='Zürich')", "0000"),
        ("[" * 100_000, "0000"),
        ('{"a":' * 50_000 + "1", "0000"),
        ('{"name": "f", "arguments": ' + "9" * 10_000 + "}", "0000"),
        ('{"name": "f", "arguments": {"x": NaN, "y": 1e999, "z": "\\ud800"}}', "1000"),
        ('{"name": "f", "arguments": ' + '{"a":' * 600 + "1" + "}" * 600 + "}", "0000"),
        ("\x00{]}[", "0000"),
    ],
)
def test_what_is_right_of_a_call(prediction: str, right: str) -> None:
    assert marks(prediction) == right


def test_true_is_no_number_and_a_whole_number_has_no_fraction() -> None:
    assert marks('{"name": "f", "arguments": {"x": 1.0}}', '{"name": "f", "arguments": {"x": 1}}') == "1111"
    assert marks('{"name": "f", "arguments": {"x": true}}', '{"name": "f", "arguments": {"x": 1}}') == "1100"
    assert marks('{"name": "f", "arguments": {"x": 0.1}}', '{"name": "f", "arguments": {"x": 1e-1}}') == "1111"


def test_several_calls_have_no_order() -> None:
    first, second = '{"name": "a", "arguments": {"n": 1}}', '{"name": "b", "arguments": {"n": 2}}'
    answer = f"Both.\n{first}\n{second}"  # as data/chats.py writes what a turn says
    assert marks(f"<tool_call>{second}</tool_call>\n<tool_call>{first}</tool_call>", answer) == "1111"
    assert marks(f"{first}; {second}", answer) == "1111"
    assert marks(f"[{second}, {first}]", answer) == "1111"
    assert marks(first, answer) == "1000"
    swapped = first.replace("1", "2"), second.replace("2", "1")
    assert marks("\n".join(swapped), answer) == "1110", "each call is compared as a whole"
    assert calls_in(f"{first}{second}") == [("a", '{"n": 1}'), ("b", '{"n": 2}')]


def test_an_answer_in_words_calls_nothing() -> None:
    assert marks("It rains.", "It is sunny.") == "1111"
    assert marks(GOLD, "It is sunny.") == "0000"
    assert marks('See [1] and {"name": "Bob"}.', "It is sunny.") == "1111"


def test_the_form_of_a_call() -> None:
    assert has_form("tool_call", GOLD, GOLD) and not has_form("tool_call", "words", GOLD)
    assert has_form("tool_call", "words", "words")
