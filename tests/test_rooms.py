"""The rooms of the package: files that a reader finds his way in, and imports that never lead back."""

from __future__ import annotations

import ast
from pathlib import Path

TOP = Path(__file__).parents[1]
FILES = sorted((TOP / "cl_runner").rglob("*.py"))


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(TOP).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, wherever it does, for types alone as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        found |= names & known
    return found - {module_of(path)}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some modules, each of which imports the next one, and the last the first; empty if there are none."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack = [(start, iter(sorted(graph[start])))] if start not in done else []
        while stack:
            module, ahead = stack[-1]
            path = [name for name, _ in stack]
            following = next((name for name in ahead if name not in done), None)
            if following is None:
                done.add(module)
                stack.pop()
            elif following in path:
                return path[path.index(following) :]
            else:
                stack.append((following, iter(sorted(graph[following]))))
    return []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_imports_never_lead_back() -> None:
    known = {module_of(path) for path in FILES}
    assert circle({module_of(path): imports_of(path, known) for path in FILES}) == []


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(TOP)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_methods_and_layers_know_nothing_above_them() -> None:
    """A method sees the learner, and not the run around it; layers see no method."""
    known = {module_of(path) for path in FILES}
    above = {"run", "journal", "ends", "learn", "train", "change", "prepared", "record", "evaluate"}
    for path in FILES:
        folder = path.parent.name
        seen = {name.removeprefix("cl_runner.") for name in imports_of(path, known)}
        if folder == "methods":
            assert not seen & above, f"{path.name} imports {sorted(seen & above)}"
        if folder == "layers":
            assert not {name for name in seen if name.startswith(("methods", "retrieval"))}, path.name
