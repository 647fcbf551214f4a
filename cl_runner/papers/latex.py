"""A table of texts as LaTeX, with booktabs."""

from __future__ import annotations

import re

from cl_runner.plain import plain
from cl_runner.report.text_table import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "×": r"$\times$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """A text as LaTeX prints it; a number's sign is a minus."""
    shown = "".join(_SPECIAL.get(sign, sign) for sign in plain(text))
    return re.sub(r"(?<![\w.)}-])-(?=\d)", "$-$", shown)


def as_latex(table: Table) -> str:
    """A table environment; the notes stand below it. Needs \\usepackage{booktabs}."""
    places = "".join("l" if place < table.left else "r" for place in range(len(table.header)))
    rows = [" & ".join(map(escaped, row)) + r" \\" for row in [*table.rows, *table.below]]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(table.title)}}}",
            rf"\begin{{tabular}}{{{places}}}",
            r"\toprule",
            " & ".join(map(escaped, table.header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {escaped(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )
