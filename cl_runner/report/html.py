"""The parts both pages are made of: one self-contained document, light and dark, wide and narrow."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1d2430; --soft: #5c6675; --line: #dfe3e8; --card: #f5f7f9;
  --warn: #fff3d6; --warn-ink: #6b4a00; --fail: #fde3e1; --fail-ink: #86190f; }
@media (prefers-color-scheme: dark) { :root { --back: #14181e; --ink: #e4e8ee; --soft: #98a3b3; --line: #303843;
  --card: #1d232b; --warn: #3d3210; --warn-ink: #ffdf94; --fail: #47201d; --fail-ink: #ffc1bb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
p, figcaption, .soft { color: var(--soft); max-width: 90ch; margin: 4px 0 10px; }
code, pre { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); padding: 12px; border-radius: 8px; overflow-x: auto; white-space: pre-wrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(185px, 1fr)); gap: 10px; margin: 18px 0; }
.tile { background: var(--card); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.banner { background: var(--warn); color: var(--warn-ink); padding: 12px 14px; border-radius: 8px; margin: 14px 0; }
.banner pre { background: none; padding: 6px 0 0; margin: 0; }
.failed { background: var(--fail); color: var(--fail-ink); }
.wide { overflow-x: auto; }
figure { margin: 10px 0; }
figure .wide { background: #ffffff; border-radius: 10px; padding: 8px; border: 1px solid var(--line); }
figure img { display: block; max-width: 100%; height: auto; }
@media (max-width: 700px) { figure img { max-width: 860px; } main { padding: 16px 12px 48px; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile b { font-size: 18px; } }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.left { text-align: left; }
td.long { white-space: normal; min-width: 260px; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--soft); }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(title: str, note: str, *parts: str) -> str:
    """A heading, a sentence that says what is shown, and what is shown."""
    return (
        f"<section><h2>{escape(title)}</h2>"
        + (f"<p>{escape(note)}</p>" if note else "")
        + "".join(parts)
        + "</section>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, long: int | None = None) -> str:
    """A table; the first `left` columns are aligned left, column `long` may wrap."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [("long " if place == long else "") + ("left" if place < left else "") for place in range(len(row))]
        return "".join(f'<{tag} class="{kind}">{escape(c)}</{tag}>' for kind, c in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells(header, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(path: Path, description: str) -> str:
    """A PNG inside the page, shown at half its pixels per inch so that it is sharp on dense screens."""
    data = path.read_bytes()
    # The width stands in the header of a PNG file: bytes 16 to 19.
    width = round(int.from_bytes(data[16:20], "big") / 1.5)
    source = base64.b64encode(data).decode("ascii")
    image = f'<img width="{width}" src="data:image/png;base64,{source}" alt="{escape(description)}">'
    return f'<figure><div class="wide">{image}</div></figure>'


def folded(title: str, content: str) -> str:
    """Content that is shown on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def write(path: Path, text: str) -> Path:
    """Write a file so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
