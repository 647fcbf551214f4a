"""Chats for tests: a template in the manner of ChatML, files of chats, a small decoder that has the template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from cl_runner.build import build_family
from cl_runner.compose import compose
from cl_runner.config import Backbone
from cl_runner.families.causal import Causal
from cl_runner.families.own_tokenizers import bytes_tokenizer

#: Turns end with </s> and a line break; tools stand in the system's turn, calls are tagged JSON.
TEMPLATE = (
    "{% if tools %}[tools {{ tools | tojson }}]{{ '\\n' }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}</s>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
#: The same, which says itself what the assistant says.
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
#: Writes thoughts before the last answer alone, as reasoning models' do.
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def said(*turns: str) -> list[dict[str, Any]]:
    """Turns written as `s: ...`, `u: ...`, `a: ...`, `t: ...`."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]


def tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes, with a chat template."""
    made = bytes_tokenizer("causal")
    made.chat_template = template
    return made


def family(template: str = TEMPLATE, **values: object) -> Causal:
    """The tiny LLaMA with a chat template."""
    given = {"chat_template": False, **values}
    asked: Backbone = compose(["backbone=tiny_llama"]).config.backbone.model_copy(update=given)
    made = build_family(asked, ())
    assert isinstance(made, Causal)
    made.backbone = asked.model_copy(update={"chat_template": True})
    made.tokenizer.chat_template = template
    return made


def checkpoint(folder: Path, template: str = TEMPLATE) -> Path:
    """A folder with the tiny LLaMA, whose tokenizer has the template."""
    model, made = family().build(0)
    made.chat_template = template
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def written(path: Path, chats: Sequence[Any]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    return path
