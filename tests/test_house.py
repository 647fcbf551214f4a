"""Rules of the house that no single module can keep."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cl_runner import __version__

TOP = Path(__file__).parents[1]
SOURCES = sorted((TOP / "cl_runner").rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Full names of all modules and members that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def attributes_of(path: Path) -> set[str]:
    """All dotted names that a file uses, such as torch.save."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def tracked_files() -> list[str]:
    try:
        done = subprocess.run(["git", "-C", str(TOP), "ls-files"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    if not done.stdout:
        pytest.skip("nothing is committed yet")
    return done.stdout.split("\n")[:-1]


def test_readme_has_a_line_for_every_file_and_no_line_for_another() -> None:
    tracked = [
        path
        for path in tracked_files()
        if not path.startswith("outputs/published/") and not (path.startswith("tests/") and not path.endswith(".py"))
    ]
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Files\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no section '## Files'"
    lines = [line for line in section[1].splitlines() if line.lstrip().startswith("- `")]
    mentioned = {name for line in lines for name in re.findall(r"`([^`\s]+)`", line.partition(": ")[0])}
    # A conf folder has one line that names its options, each of which must be there.
    for line in lines:
        folder = re.match(r"- `(conf/[\w/]*)/`: (.*)", line.strip())
        if folder:
            mentioned |= {f"{folder[1]}/{option}.yaml" for option in re.findall(r"`([\w./-]+)`", folder[2])}
    files = {path for path in tracked if not path.endswith("/__init__.py") or (TOP / path).stat().st_size}
    assert not sorted(files - mentioned), "files that README's section Files does not mention"
    gone = {name for name in mentioned if re.search(r"\.(py|yaml|sh|toml|md|txt)$", name)} - set(tracked)
    assert not sorted(gone), "lines of README's section Files without a file"


def test_only_distributed_imports_torch_distributed() -> None:
    users = [
        path.name
        for path in SOURCES
        if any(f"{name}.".startswith("torch.distributed.") for name in imports_of(path) | attributes_of(path))
    ]
    assert users in ([], ["distributed.py"])


def test_nothing_is_pickled() -> None:
    forbidden = {
        "pickle",
        "dill",
        "cloudpickle",
        "joblib",
        "torch.save",
        "torch.load",
        "numpy.load",
        "np.load",
    }
    found = {path.name: forbidden & (imports_of(path) | attributes_of(path)) for path in SOURCES}
    assert {name: uses for name, uses in found.items() if uses} == {}


@pytest.mark.parametrize("module", ["cl_runner.config", "cl_runner.compose", "cl_runner.data.task"])
def test_composing_does_not_import_torch(module: str) -> None:
    heavy = "torch", "transformers", "datasets", "wandb", "matplotlib"
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=TOP)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_version_is_printed() -> None:
    command = [sys.executable, "-m", "cl_runner", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOP)
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout
