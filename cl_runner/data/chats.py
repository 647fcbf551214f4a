"""Chats as rows: a prompt and the assistant's answer for every turn of the assistant (`convert: messages`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_runner.data.converters import Unfit
from cl_runner.data.reader import Record

#: What the roles of chats are called, here and in a prompt of several turns.
_ROLES = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "human": "User",
    "assistant": "Assistant",
    "gpt": "Assistant",
}


def messages(record: Record) -> Iterator[Record]:
    """A row for every turn of the assistant: `answer` is what it says, `text` the chat before it.

    The chat is a list of {role, content} in the column `messages`, or of {from, value} in `conversations` (ShareGPT).
    Where one user's turn is all there is before an answer, `text` is that turn as it stands, and
    `backbone.chat_template=true` makes a user's turn of it again. Otherwise the turns are written one below the other:

        System: ...

        User: ...

        Assistant:

    A chat without a turn of the assistant is a row with the answer None. A turn with `weight: 0` is read, not answered.
    """
    turns = [_turn(turn, number) for number, turn in enumerate(_chat(record), start=1)]
    answered = False
    for place, (role, content, trained) in enumerate(turns):
        if role == "Assistant" and trained:
            answered = True
            yield {**record, "text": _before(turns[:place]), "answer": content}
    if not answered:
        yield {**record, "text": _before(turns), "answer": None}


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


def _turn(turn: Any, number: int) -> tuple[str, str | None, bool]:
    """Who speaks, what is said, and whether it is an answer to learn."""
    if not isinstance(turn, Mapping):
        raise Unfit(f"has a turn {number} that is no object with role and content: {turn!r}")
    if "role" in turn or "content" in turn:
        role, content = turn.get("role"), turn.get("content")
    else:
        role, content = turn.get("from"), turn.get("value")
    if role not in _ROLES:
        raise Unfit(f"has a turn {number} of {role!r}; known are {', '.join(_ROLES)}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Unfit(f"has a turn {number} that calls a tool, which is no text")
    if isinstance(content, list):  # parts, as those that see pictures are given them
        kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in content]
        if set(kinds) - {"text"}:
            raise Unfit(f"has a turn {number} with parts that are no text: {', '.join(map(str, kinds))}")
        content = "".join(str(part.get("text") or "") for part in content)
    if content is not None and not isinstance(content, str):
        raise Unfit(f"has a turn {number} whose content is no text: {content!r}")
    return _ROLES[role], content, turn.get("weight") != 0


def _before(turns: Sequence[tuple[str, str | None, bool]]) -> str:
    said = [(role, content.strip()) for role, content, _ in turns if content and content.strip()]
    if [role for role, _ in said] == ["User"]:
        return said[0][1]
    if not any(role == "User" for role, _ in said):
        return ""
    return "\n\n".join([*(f"{role}: {content}" for role, content in said), "Assistant:"])
