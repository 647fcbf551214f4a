"""Rules of the house that no single module can keep."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from cl_runner import __version__
from cl_runner.__main__ import COMMANDS
from cl_runner.compose import compose
from cl_runner.groups import options
from cl_runner.overrides import jobs_of

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


def folder_of(path: str) -> str:
    """Where a file lies, as the beginning of its path; empty at the top."""
    return path.rpartition("/")[0] + "/" if "/" in path else ""


def readme_of(path: str, readmes: Collection[str]) -> str:
    """The README that has a file's line: the nearest above it; a README's own line is in the one above."""
    folder = folder_of(folder_of(path)[:-1] if path in readmes else path)
    while f"{folder}README.md" not in readmes:
        folder = folder_of(folder[:-1])
    return f"{folder}README.md"


def lines_of(readme: str) -> list[str]:
    """The files, or patterns of files, that the section "Files" of a README has lines for.

    "- `name.py`, `other.py`: what they are", relative to its folder; "- `folder/`: ..." names the folder's options.
    """
    text = (TOP / readme).read_text(encoding="utf-8")
    section = re.search(r"^## Files\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{readme} has no section '## Files'"
    found = []
    for line in re.findall(r"^- \[?`.*", section[1], re.MULTILINE):
        place, _, what = line.partition(": ")
        for name in re.findall(r"`([^`]+)`", place):
            options = re.findall(r"`([\w./-]+)`", what) if name.endswith("/") else []
            found += [f"{name}{option}.yaml" for option in options] or [name]
    return [folder_of(readme) + name for name in found]


def test_every_file_has_a_line_in_the_readme_of_its_folder_and_no_line_is_without_a_file() -> None:
    tracked = tracked_files()
    readmes = [path for path in tracked if path.rpartition("/")[2] == "README.md"]
    lines = {readme: lines_of(readme) for readme in readmes}
    wrong = []
    for path in tracked:
        readme = readme_of(path, readmes)
        if path != "README.md" and not any(fnmatchcase(path, line) for line in lines[readme]):
            name = path.removeprefix(folder_of(readme))
            wrong.append(f"{readme} lacks a line in its section Files: - `{name}`: WHAT IT IS")
    for readme, names in lines.items():
        wrong += [f"{readme} has a line without a file: {name}" for name in names if not fnmatch.filter(tracked, name)]
    assert not wrong, "\n".join(wrong)


def test_the_readme_is_short() -> None:
    size = (TOP / "README.md").stat().st_size
    assert size <= 12_000, f"README.md has {size} bytes of 12,000: what is too much belongs into a folder's README"


def test_links_lead_somewhere() -> None:
    """Relative links of every page: to a tracked file or folder, and to a heading that is there."""
    tracked = tracked_files()
    dead = []
    for page in (path for path in tracked if path.endswith(".md")):
        for link in re.findall(r"\]\(([^)\s]+)\)", (TOP / page).read_text(encoding="utf-8")):
            path, _, heading = link.partition("#")
            if "://" in path:
                continue
            target = os.path.normpath(folder_of(page) + path) if path else page
            there = any(target == known or known.startswith(f"{target}/") for known in tracked)
            if not there or (heading and heading not in anchors(TOP / target)):
                dead.append(f"{page}: {link}")
    assert not dead, "links to nothing:\n" + "\n".join(dead)


def anchors(page: Path) -> list[str]:
    """What links call the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def commands() -> list[tuple[str, str]]:
    """README and line of every command in its blocks of code."""
    found = []
    places = [TOP / folder for folder in ("cl_runner", "conf", "scripts", "tests", "outputs/published")]
    for readme in [TOP / "README.md", *(path for place in places for path in sorted(place.rglob("README.md")))]:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        lines = [line for language, block in blocks if not language for line in block.replace("\\\n", " ").splitlines()]
        found += [(readme.relative_to(TOP).as_posix(), line) for line in lines if line.strip()]
    return found


@pytest.mark.parametrize(("readme", "command"), commands())
def test_commands_of_the_readmes_can_be_typed(readme: str, command: str) -> None:
    """Runs compose, with every value of a multirun; commands, scripts and tests exist."""
    words = shlex.split(command, comments=True)
    for word in words:
        assert not word.startswith(("scripts/", "tests/", ".ci/")) or (TOP / word).is_file(), f"there is no {word}"
    if words[:3] != ["python", "-m", "cl_runner"] or "--config-dir" in words:  # a folder of the reader's own
        return
    verb, *rest = words[3:]
    if verb in COMMANDS and verb != "plan":
        importlib.import_module(COMMANDS[verb][0])._parser().parse_args(rest)
    else:
        overrides = [word for word in (rest if verb in ("plan", "-m") else words[3:]) if not word.startswith("hydra/")]
        seen: set[str] = set()
        for job in jobs_of(overrides):
            if not seen.issuperset(job):  # a value that no job before had
                compose(job)
            seen.update(job)


def test_the_readme_has_every_method() -> None:
    text = (TOP / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text[text.index("\n## Methods\n") :], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert named == set(options("method")), "the table of methods and conf/method differ"


#: folder of the package -> what none of its files imports. cl_runner/README.md has it as a table.
NOT_IMPORTED = {
    "data": ("torch", "transformers", "cl_runner.families", "cl_runner.methods"),
    "families": ("cl_runner.methods", "cl_runner.learner"),
    "pretrained": ("cl_runner.methods", "cl_runner.learner", "cl_runner.families"),
    "layers": ("cl_runner.methods", "cl_runner.learner"),
    "sparse": ("cl_runner.methods", "cl_runner.learner"),
    "retrieval": ("cl_runner.methods",),
    "probes": ("cl_runner.methods",),
    "metrics": ("cl_runner.methods", "cl_runner.learner", "cl_runner.families"),
    "tracking": ("cl_runner.methods", "cl_runner.learner", "cl_runner.families", "cl_runner.data"),
    "catalogue": ("torch", "transformers", "cl_runner.methods", "cl_runner.learner", "cl_runner.families"),
    "choosing": ("torch", "transformers", "cl_runner.methods", "cl_runner.learner", "cl_runner.families"),
    "statistics": ("torch", "transformers", "cl_runner.methods", "cl_runner.learner", "cl_runner.families"),
    "report": ("torch", "transformers", "cl_runner.methods", "cl_runner.learner", "cl_runner.families"),
    "papers": ("torch", "transformers", "cl_runner.methods", "cl_runner.learner", "cl_runner.families"),
}


@pytest.mark.parametrize("folder", NOT_IMPORTED)
def test_a_folder_imports_what_its_rule_allows(folder: str) -> None:
    found = {
        f"{path.name}: {name}"
        for path in sorted((TOP / "cl_runner" / folder).glob("*.py"))
        for name in imports_of(path)
        if any(f"{name}.".startswith(f"{forbidden}.") for forbidden in NOT_IMPORTED[folder])
    }
    assert not found, f"cl_runner/{folder} imports what it should not know"


def test_torch_distributed_has_two_users() -> None:
    users = [
        path.name
        for path in SOURCES
        if any(f"{name}.".startswith("torch.distributed.") for name in imports_of(path) | attributes_of(path))
    ]
    assert users == ["distributed.py", "shards.py"]


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


@pytest.mark.parametrize(
    "module",
    [
        "cl_runner.config",
        "cl_runner.compose",
        "cl_runner.data.task",
        "cl_runner.catalogue.command",
        "cl_runner.papers.command",
        "cl_runner.papers.figure_command",
    ],
)
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
