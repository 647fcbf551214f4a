"""The command `prefetch`: bring what a run or a multirun reads, so that it needs no network afterwards."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_runner.arguments import Parser
from cl_runner.compose import Request, compose
from cl_runner.overrides import COMMAND, check_once
from cl_runner.plain import plain_lines
from cl_runner.sequences import Chained

if TYPE_CHECKING:
    from cl_runner.data.task import Task

MANIFEST = "manifest.json"
#: Of a checkpoint on the hub: what decides what it computes and reads; no pickled weights, no other formats.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
#: Probes that fetch by themselves what nobody can name before they run.
FETCHING = {"lm_eval": "the lm-evaluation-harness fetches its questions: run it once where there is a network"}


def _parser() -> Parser:
    parser = Parser(
        prog=f"{COMMAND} prefetch",
        description="Models, data and tokens of a run or a multirun (-m), into a folder with a manifest; the line that "
        "runs without network is printed.",
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="GROUP=OPTION | KEY=VALUE", help="as of the run")
    parser.add_argument("-m", "--multirun", action="store_true", help="the line is one of many runs")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path, metavar="DIR")
    parser.add_argument("--to", type=Path, default=Path("prefetched"), metavar="FOLDER", help="(prefetched)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 all is there, 2 after one message for a wrong request or what cannot be fetched."""
    try:
        asked = _parser().parse_intermixed_args(list(arguments))
        # Read once, when the hub's libraries are imported.
        os.environ.update(variables(asked.to))
        _fetch(asked)
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return 0


def variables(folder: Path) -> dict[str, str]:
    """Of the environment, by which the hub's libraries find what was brought."""
    return {"HF_HOME": str(folder.absolute())}


def _fetch(asked: argparse.Namespace) -> None:
    check_once(asked.overrides, asked.config_dir, asked.multirun)
    requests = _requests(asked)
    asked.to.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"checkpoints": {}, "data": {}, "files": [], "tokens": [], "left out": {}}
    for request in requests:
        _fetch_run(request, content)
    content["files"] = sorted(set(content["files"]))
    manifest = asked.to / MANIFEST
    manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for place, files in content["checkpoints"].items():
        print(f"checkpoint {place}: {len(files)} files")
    for name, reason in content["left out"].items():
        print(f"left out: {name}: {reason}")
    print(f"{len(content['data'])} tasks, {len(content['files'])} local files, which stay where they are; {manifest}")
    words = [f"{name}={shlex.quote(value)}" for name, value in variables(asked.to).items()]
    offline = [*words, "HF_HUB_OFFLINE=1", "HF_DATASETS_OFFLINE=1", "WANDB_MODE=offline"]
    line = requests[0].command if len(requests) == 1 else _line(asked)
    print(f"Without network: {' '.join(offline)} {line}")


def _requests(asked: argparse.Namespace) -> list[Request]:
    if not asked.multirun:
        return [compose(asked.overrides, asked.config_dir)]
    from cl_runner.sweeps.jobs import requests_of

    return requests_of(asked.overrides, asked.config_dir)


def _line(asked: argparse.Namespace) -> str:
    from cl_runner.overrides import command_line

    return command_line(asked.overrides, asked.config_dir, multirun=True)


def _fetch_run(request: Request, content: dict[str, Any]) -> None:
    """Everything that one run reads; what another run of the line has brought is there already."""
    from cl_runner.data.task import build_tasks, fingerprint, source_files
    from cl_runner.pretrained import places

    config = request.config
    for key, options in places.asked(config):
        place = places.locate(options, key)
        if place in content["checkpoints"]:
            continue
        if not places.is_folder(place):
            _download(place, getattr(options, "revision", None), key)
        content["checkpoints"][place] = places.digests(options, key)
    tasks = build_tasks(config.task_order, config.task)
    content["data"] |= {f"{request.task_order}: {task.name}": fingerprint(task) for task in tasks}
    content["files"] += [str(path) for path in source_files(config.task_order, config.task)]
    content["left out"] |= {f"probe.{name}": FETCHING[name] for name in config.probe if name in FETCHING}
    _tokens(request, tasks, content)


def _download(name: str, revision: str | None, key: str) -> None:
    """A checkpoint of the hub.

    Raises:
        ValueError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS))
    except Exception as error:  # the hub client's, the HTTP client's, the system's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{key}={name} cannot be fetched from the hub: {reason}") from None


def _tokens(request: Request, tasks: Sequence[Task], content: Mapping[str, Any]) -> None:
    """The tokens of all texts, below the run's root, where runs share them; the run's own checks come before."""
    import transformers

    from cl_runner.prepared import prepare

    transformers.logging.set_verbosity_error()
    prepared = prepare(request.config, tasks)
    if prepared.cache is None:
        return
    everything = Chained([task.examples for task in prepared.own_tasks])
    prepared.family.tokenize(everything, prepared.cache / "tokens")
    place = str(prepared.cache / "tokens")
    if place not in content["tokens"]:
        content["tokens"].append(place)
