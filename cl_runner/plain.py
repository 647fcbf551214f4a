"""Names and texts that others chose, as a terminal may print them: control characters are written out."""

from __future__ import annotations


def plain(text: object) -> str:
    r"""One line: what is not printable, such as an escape sequence or a line end, as \x1b or \n."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))


def plain_lines(text: object) -> str:
    """The same, with line ends as they are."""
    return "\n".join(map(plain, str(text).split("\n")))


def say(text: object) -> None:
    """Print a line that may hold others' names."""
    print(plain(text))
