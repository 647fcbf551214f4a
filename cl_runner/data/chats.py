"""Chats as rows: `convert: chats` keeps the turns for a chat template, `convert: messages` makes plain text of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_runner.config import TaskDefinition
from cl_runner.data.converters import Unfit
from cl_runner.data.example import Chat
from cl_runner.data.reader import Record

#: The column that holds the chat of a row.
COLUMN = "chat"
#: What the roles of chats are called in a prompt of several turns.
_SPOKEN = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
#: What roles are called by others -> by chat templates.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
#: Those of a chat with tools, which plain text has no place for.
_TOOLS = {"tool": "tool", "observation": "tool", "function_call": "assistant"}


def messages(record: Record) -> Iterator[Record]:
    """A row for every turn of the assistant: `answer` is what it says, `text` the chat before it, as plain text.

    The chat is a list of {role, content} in the column `messages`, or of {from, value} in `conversations` (ShareGPT).
    Where one user's turn is all there is before an answer, `text` is that turn as it stands. Otherwise the turns are
    written one below the other:

        System: ...

        User: ...

        Assistant:

    A chat without a turn of the assistant is a row with the answer None. A turn with `weight: 0` is read, not answered.
    """
    turns = [_plain(turn, number) for number, turn in enumerate(_chat(record), start=1)]
    answered = False
    for place, (role, content, trained) in enumerate(turns):
        if role == "assistant" and trained:
            answered = True
            yield {**record, "text": _before(turns[:place]), "answer": content}
    if not answered:
        yield {**record, "text": _before(turns), "answer": None}


def chats(record: Record, turns: str) -> Iterator[Record]:
    """A row for every chat, or with `each` for every turn of the assistant, which a chat template will write.

    `messages` (role, content) or `conversations` (from, value) hold the turns; roles are system, user, assistant and
    tool, or as ShareGPT and LLaMA-Factory call them human, gpt, observation and function_call. A turn may have
    `tool_calls`, and whatever else the template reads; the columns `tools` (a list, or JSON of one) and `system` are
    read where they are there. The row's `chat` is a `Chat`, `answer` its last learned turn, `text` what stands before
    it, in words. A chat without a turn to learn is a row with the answer None. A turn with `weight: 0` is not learned.

    Args:
        turns: which turns are learned: all, the last, or each in an example of its own.
    """
    said = [_turn(turn, number) for number, turn in enumerate(_chat(record), start=1)]
    system = record.get("system")
    if isinstance(system, str) and system.strip() and not (said and said[0][0]["role"] == "system"):
        said.insert(0, ({"role": "system", "content": system}, False))
    learned = [place for place, (turn, trained) in enumerate(said) if trained and turn["role"] == "assistant"]
    spoken = [(turn["role"], _words(turn), trained) for turn, trained in said]
    if not learned:
        yield {**record, "text": _before(spoken), "answer": None, COLUMN: None}
        return
    tools = _tools(record)
    for last in learned if turns == "each" else learned[-1:]:
        before = tuple(place for place in learned if place < last) if turns == "all" else ()
        answer = _words(said[last][0])
        chat = Chat(_json([turn for turn, _ in said[:last]]), _json(said[last][0]), answer, tools, before)
        yield {**record, "text": _before(spoken[:last]), "answer": answer, COLUMN: chat}


def are_asked(definition: TaskDefinition, name: str) -> bool:
    """Whether a definition reads chats with their turns.

    Args:
        name: of the definition, for messages.

    Raises:
        ValueError: it says something of their prompts or answers that the template and the chat say themselves.
    """
    if definition.convert != "chats":
        return False
    for key in ("template", "labels", "picture"):
        if getattr(definition, key) is not None:
            raise ValueError(
                f"task.{name}.{key} is set, and task.{name}.convert=chats leaves prompts to the chat template and "
                f"answers to the chat. Type: task.{name}.{key}=null (or task.{name}.convert=messages: plain text)"
            )
    if definition.balance:
        raise ValueError(f"task.{name}.balance is for labels, and a chat has none. Type: task.{name}.balance=false")
    return True


def looks_like_chat(cell: Any) -> bool:
    """Whether a cell is a list of turns."""
    first = cell[0] if isinstance(cell, Sequence) and not isinstance(cell, str) and cell else None
    return isinstance(first, Mapping) and ({"role", "content"} <= set(first) or {"from", "value"} <= set(first))


def _chat(record: Record) -> Sequence[Any]:
    for column in ("messages", "conversations"):
        if isinstance(record.get(column), list):
            chat: list[Any] = record[column]
            return chat
    raise Unfit(f"has no list 'messages' or 'conversations'; it holds: {', '.join(map(str, record))}")


def _read(turn: Any, number: int, known: Mapping[str, str]) -> tuple[str, str | None]:
    """The role as its file calls it, and what is said."""
    if not isinstance(turn, Mapping):
        raise Unfit(f"has a turn {number} that is no object with role and content: {turn!r}")
    if "role" in turn or "content" in turn:
        role, content = turn.get("role"), turn.get("content")
    else:
        role, content = turn.get("from"), turn.get("value")
    if role not in known:
        more = "" if role not in _TOOLS else ". Tools are read by convert: chats"
        raise Unfit(f"has a turn {number} of {role!r}; known are {', '.join(known)}{more}")
    if isinstance(content, list):  # parts, as those that see pictures are given them
        kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in content]
        if set(kinds) - {"text"}:
            raise Unfit(f"has a turn {number} with parts that are no text: {', '.join(map(str, kinds))}")
        content = "".join(str(part.get("text") or "") for part in content)
    if content is not None and not isinstance(content, str):
        raise Unfit(f"has a turn {number} whose content is no text: {content!r}")
    return str(role), content


def _plain(turn: Any, number: int) -> tuple[str, str | None, bool]:
    """Who speaks, what is said, and whether it is an answer to learn."""
    role, content = _read(turn, number, _ROLES)
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Unfit(f"has a turn {number} that calls a tool, which is no text. Tools are read by convert: chats")
    return _ROLES[role], content, turn.get("weight") != 0


def _turn(turn: Any, number: int) -> tuple[dict[str, Any], bool]:
    """A turn as templates read it, and whether it is learned if the assistant speaks."""
    role, content = _read(turn, number, _ROLES | _TOOLS)
    left = ("role", "content", "from", "value", "weight", "tool_calls")
    made = {key: value for key, value in turn.items() if key not in left and value is not None}
    calls = turn.get("tool_calls")
    if role == "function_call":  # LLaMA-Factory writes the calls as JSON
        try:
            calls = json.loads(content or "")
        except ValueError:
            raise Unfit(f"has a turn {number} of function_call that is no JSON: {content!r}") from None
        calls, content = calls if isinstance(calls, list) else [calls], ""
    elif not calls and not (content and content.strip()) and _ROLES.get(role) == "assistant":
        raise Unfit(f"has a turn {number} in which the assistant says nothing and calls no tool")
    made = {"role": (_ROLES | _TOOLS)[role], "content": content or "", **made}
    if calls:
        made["tool_calls"] = [_call(call, number) for call in calls]
    return made, turn.get("weight") != 0


def _call(call: Any, number: int) -> dict[str, Any]:
    """A call as templates read it: {type, function: {name, arguments}}, the arguments an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unfit(f"has a turn {number} with a tool call that has no name: {call!r}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise Unfit(f"has a turn {number} with a tool call whose arguments are no JSON: {arguments!r}") from None
    own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**own, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(record: Record) -> str:
    """The record's `tools` as JSON; empty without any."""
    given = tools = record.get("tools")
    if isinstance(given, str):
        try:
            tools = json.loads(given) if given.strip() else None
        except ValueError:
            raise Unfit(f"has 'tools' that are no JSON: {given[:80]!r}") from None
    if not tools:
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Unfit(f"has 'tools' that are no list of objects: {tools!r}")
    return _json(tools)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise Unfit(f"has a turn that is no JSON: {error}") from None


def _words(turn: Mapping[str, Any]) -> str:
    """What a turn says; each of its calls is a line of JSON, {"name": ..., "arguments": ...}."""
    calls = [_json(call["function"]) for call in turn.get("tool_calls", ())]
    return "\n".join([*([turn["content"].strip()] if turn["content"].strip() else []), *calls])


def _before(turns: Sequence[tuple[str, str | None, bool]]) -> str:
    said = [(role, content.strip()) for role, content, _ in turns if content and content.strip()]
    if [role for role, _ in said] == ["user"]:
        return said[0][1]
    if not any(role in ("user", "tool") for role, _ in said):
        return ""
    return "\n\n".join([*(f"{_SPOKEN[role]}: {content}" for role, content in said), "Assistant:"])
