"""Names of published tables and figures, such as pe/1: what to say of one that is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cl_runner.overrides import COMMAND, nearest, quoted


def unknown(kind: Literal["table", "figure"], name: str, known: Mapping[str, str], rest: Sequence[str]) -> ValueError:
    """The error for a name that is not there: with the nearest one and the line to type.

    Args:
        kind: also the command's name.
        known: name -> title of all there are.
        rest: what was typed behind it.
    """
    return ValueError(_said(kind, name, known, rest))


def _said(kind: str, name: str, known: Mapping[str, str], rest: Sequence[str]) -> str:
    def line(right: str, words: Sequence[str] = rest) -> str:
        return " ".join([COMMAND, kind, right, *map(quoted, words)])

    first = next(each for each in known if each.startswith("pe/"))
    papers = list(dict.fromkeys(each.partition("/")[0] for each in known))
    bare = re.sub(rf"table|{kind}|fig\b|conf/experiment/|\.ya?ml", "", name.lower())
    parts = re.fullmatch(r"\W*([a-z][a-z_-]*?)?\W*_?(\d*)\W*", bare)
    word, number = parts.groups() if parts else (bare, "")
    spelt = {re.sub(r"\W|_", "", paper): paper for paper in papers}
    paper = spelt.get(re.sub(r"\W|_", "", word or ""))
    if paper is None:
        close = nearest(word or bare, papers)
        if name and Path(name).exists() and not close:
            return (
                f"a {kind}'s name comes before {name}. Type: {line(first, [name, *rest])}, or see all: {COMMAND} {kind}"
            )
        if close is None:
            return f"there is no {kind} {name!r}; papers: {', '.join(papers)}. See all: {COMMAND} {kind}"
        paper = close
    own = {int(each.partition("/")[2]): each for each in known if each.startswith(f"{paper}/")}
    if not number:
        listed = "; ".join(f"{each} {known[each]}" for each in own.values())
        said = f"{name!r} names a paper" if name == paper else f"there is no {kind} {name!r}; nearest: {paper!r}"
        return f"{said}, whose {kind}s are: {listed}.\nType: {line(own[min(own)])}"
    best = own[min(own, key=lambda each: abs(each - int(number)))]
    said = "" if best.endswith(f"/{number}") else f" of {paper}; there are {', '.join(own.values())}"
    return f"there is no {kind} {name!r}{said}.\nNearest: {best!r}. Type: {line(best)}"
