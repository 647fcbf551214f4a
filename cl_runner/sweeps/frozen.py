"""What a sweep runs: the program and the configuration as they were when it was submitted, whatever is edited later."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from cl_runner.compose import Request
from cl_runner.digests import digest_of
from cl_runner.groups import CONF, HERE
from cl_runner.parts import TARGET
from cl_runner.registry import PartKind, Place, find
from cl_runner.tracking.environment import FROZEN, git_state

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".git")


def freeze(sweep: Path, requests: Sequence[Request], folders: Sequence[Path]) -> Path:
    """Copy program, configuration and the user's own modules into a sweep's folder, under a name that tells them.

    Returns:
        The copy; the user's folders of configuration files are `configuration_<number>` in it.
    """
    part = sweep / "code" / f"part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(HERE, part / "cl_runner", ignore=_LEFT_OUT)
    if HERE not in CONF.parents:
        shutil.copytree(CONF, part / "conf", ignore=_LEFT_OUT)
    for number, folder in enumerate(folders):
        shutil.copytree(folder, part / f"configuration_{number}", ignore=_LEFT_OUT)
    for module in own_modules(requests):
        if module.is_dir():
            shutil.copytree(module, part / module.name, ignore=_LEFT_OUT)
        else:
            shutil.copy2(module, part / module.name)
    digest = hashlib.sha256()
    for file in sorted(path for path in part.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(part)}\n{digest_of(file.read_bytes())}\n".encode())
    (part / FROZEN).write_text(json.dumps(git_state(HERE)) + "\n", encoding="utf-8")
    copy = sweep / "code" / digest.hexdigest()[:8]
    if copy.is_dir():
        shutil.rmtree(part)
    else:
        part.rename(copy)
    return copy


def configurations(code: Path) -> list[Path]:
    """The user's folders of configuration files in a copy, in the order in which they were typed."""
    return sorted(code.glob("configuration_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def running() -> Path | None:
    """The copy that this very program is, or None: it is no copy."""
    return HERE.parent if (HERE.parent / FROZEN).is_file() else None


def own_modules(requests: Iterable[Request]) -> list[Path]:
    """Files, or folders of packages, of what neither this package nor an installed one brings: the user's own parts."""
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
    found: dict[Path, None] = {}
    for module in dict.fromkeys(
        place.module for request in requests for place in _parts(request) if not place.built_in
    ):
        spec = importlib.util.find_spec(module.partition(".")[0])
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin).resolve()
        if not any(place in origin.parents for place in installed):
            found[origin.parent if origin.name == "__init__.py" else origin] = None
    return list(found)


def _parts(request: Request) -> Iterator[Place]:
    """Where the classes and functions are that a run names."""
    config = request.config
    for kind, nodes in (("methods", config.method), ("probes", config.probe)):
        for name, node in nodes.items():
            yield find(cast(PartKind, kind), name, node.get(TARGET))
    yield find("families", config.backbone.family)
    for definition in config.task.values():
        for metric in definition.metrics:
            yield find("metrics", metric)
        if definition.convert is not None:
            yield find("converters", definition.convert)
