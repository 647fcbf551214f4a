"""README.md of an exported folder: the hub's model card, filled from what the run's folder holds and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCard, ModelCardData

from cl_runner.config import Backbone, Config
from cl_runner.digests import read_json
from cl_runner.handover import use
from cl_runner.handover.comparing import Compared
from cl_runner.handover.manifest import Manifest, encoders_of, hub_name
from cl_runner.matrix import START, after, derived
from cl_runner.parts import family_kind
from cl_runner.pretrained.places import folder_of, locate
from cl_runner.report.folder import Run, read_run
from cl_runner.report.numbers import definition_of, interval_text, value_text
from cl_runner.report.text_table import Table, rows_as_markdown

NAME = "README.md"
LIBRARY = {"model": "transformers", "adapter": "peft", "prompt": "peft", "method": "cl_runner"}
PIPELINE = {
    "classifier": "text-classification",
    "causal": "text-generation",
    "seq2seq": "text-generation",
    "image_text": "image-text-to-text",
}
WHAT = {
    "model": "The whole model: transformers loads it.",
    "adapter": "Low-rank adapters: peft loads them onto the backbone.",
    "prompt": "Vectors before each text: peft loads them before the backbone.",
    "method": "The backbone with what a method added to it, and the method, which takes part in every answer: "
    "`cl_runner.load` loads both. Weights are safetensors, the rest is JSON; nothing of the folder is run.",
}
#: A path on the run's machine is nobody else's: its last part says what it is.
_PATH = re.compile(r"(?<![\w:/.~-])(?:~|\.{1,2})?/(?:[^\s/'\",\]}]+/)+(?=[^\s/'\",\]}])")


@dataclass(frozen=True)
class Facts:
    """What a card says beside the run's folder.

    Attributes:
        vllm: what vLLM would do, in a sentence.
        inexact: why the folder does not answer as the run did; empty where it does.
        pushed: its place on the hub, if it goes there.
    """

    manifest: Manifest
    config: Config
    compared: Compared
    vllm: str
    inexact: str = ""
    pushed: str | None = None


def write(folder: Path, run: Path, facts: Facts) -> None:
    """Write the card into an exported folder.

    Raises:
        Damaged: a file of the run is.
    """
    (folder / NAME).write_text(str(card(folder, read_run(run), facts)) + "\n", encoding="utf-8")


def card(folder: Path, run: Run, facts: Facts) -> ModelCard:
    """The hub's card of a run's export."""
    manifest, backbone = facts.manifest, facts.config.backbone
    licence = licence_of(backbone)
    named = hub_name(backbone)
    kind = family_kind(backbone.family)
    data = ModelCardData(
        base_model=named,
        datasets=_hub_datasets(facts.config) or None,
        library_name=LIBRARY[manifest.kind],
        license=licence,
        pipeline_tag=PIPELINE[kind],
        tags=["continual-learning", "cl_runner", *facts.config.method],
    )
    sections = [
        f"# {run.method} on {run.task_order}, after {manifest.after}",
        _what(run, facts, named, licence),
        "## How it is loaded",
        _loading(folder, facts),
        "## Whether it answers as the run did",
        _answers(facts),
        "## Accuracy",
        _matrix(run, manifest.index),
        "## Forgetting, and other numbers",
        _numbers(run, manifest.index),
        "## Method",
        _settings(facts.config),
        "## Data",
        _data(run, facts.config),
        "## How it was made",
        _made(run),
        "## Limits",
        _limits(run, facts, licence),
    ]
    return ModelCard("---\n" + data.to_yaml() + "\n---\n\n" + "\n\n".join(sections))


def licence_of(backbone: Backbone) -> str | None:
    """What the files of the base model on this machine say of its licence; None: nothing."""
    if backbone.pretrained is None or backbone.gguf is not None:
        return None
    try:
        place = folder_of(locate(backbone), backbone.revision)
        text = (place / "README.md").read_text(encoding="utf-8") if place is not None else ""
        found = ModelCard(text, ignore_metadata_errors=True).data.get("license") if text else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def shown(text: object) -> str:
    """What a run says, without the folders of its machine."""
    return _PATH.sub("", str(text))


def _what(run: Run, facts: Facts, named: str | None, licence: str | None) -> str:
    backbone, tasks = facts.config.backbone, ", ".join(run.tasks[: facts.manifest.index + 1])
    base = f"`{named}`" if named else f"`{backbone.name}`"
    if backbone.pretrained is None:
        base += ", whose weights are random"
    told = [f"a text's {word}" for word in facts.manifest.told]
    lines = [
        f"{WHAT[facts.manifest.kind]} It comes from {base}, which learned one task after the other ({tasks}) with "
        f"the method `{run.method}`.",
        _licence_said(backbone, licence),
    ]
    if named and backbone.revision:
        lines.append(f"Revision of the base model: `{backbone.revision}`.")
    elif named is None and facts.manifest.kind != "model":
        lines.append("The base model is in the folder `backbone`.")
    if told:
        lines.append(f"Answers are told {' and '.join(told)}.")
    return " ".join(lines)


def _licence_said(backbone: Backbone, licence: str | None) -> str:
    if licence is not None:
        return f"Licence of the base model: {licence}."
    if backbone.pretrained is None:
        return "Its weights began at random, so there is no licence of a base model."
    return "The files of the base model on the run's machine name no licence, so none is given here."


def _loading(folder: Path, facts: Facts) -> str:
    manifest = facts.manifest
    place, before = f'"{folder.name}"', ""
    if facts.pushed:
        place, before = (
            "folder",
            f'import huggingface_hub\n\nfolder = huggingface_hub.snapshot_download("{facts.pushed}")\n',
        )
    blocks = []
    plain = use.lines(manifest, facts.config.backbone, place)
    own = use.own_lines(manifest, place)
    if plain:
        blocks.append(f"```python\n{before}{plain.replace('folder = folder' + chr(10), '')}\n```")
    if plain and own:
        blocks.append("By cl_runner, which writes and cuts texts, asks and reads answers as the run did:")
    if own:
        blocks.append(f"```python\n{before}{own}\n```")
    for encoder in encoders_of(manifest.method).values():
        where = "a folder of the run's machine" if encoder.checkpoint.startswith((".", "/", "~")) else "its name"
        blocks.append(
            f"Texts are looked up by the sentence encoder `{shown(encoder.checkpoint)}`, which is not in the folder: "
            f"it is found by {where}, or by `cl_runner.load(folder, encoder=PATH)`, and has to have the SHA-256 of the "
            "run's."
        )
    blocks.append(f"{facts.vllm}. vLLM itself was not run.")
    return "\n\n".join(blocks)


def _answers(facts: Facts) -> str:
    said = facts.compared.said()
    lines = [f"{said[0].upper()}{said[1:]}."]
    if facts.inexact:
        lines.append(f"It is not exact: {facts.inexact}.")
    return "\n".join([" ".join(lines), *(f"- {line}" for line in facts.compared.listed())])


def _matrix(run: Run, index: int) -> str:
    names = [START, *run.tasks][: index + 2]
    rows = [
        [name, *("" if np.isnan(cell) else f"{cell:.1f}" for cell in row)]
        for name, row in zip(names, run.rows, strict=False)
    ]
    if not rows:
        return "The run kept no matrix."
    marks = f" Marks: {'; '.join(run.marks)}." if run.marks else ""
    metrics = ", ".join(sorted({*run.scored_by.values()}))
    sizes = run.test_examples
    counts = f" Examples: {', '.join(f'{n} {c}' for n, c in zip(run.tasks, sizes, strict=True))}." if sizes else ""
    return (
        f"Percent ({metrics}) on the {run.config.get('evaluation', {}).get('split', 'test')} set of each task, before "
        f"the first and after each task.{counts}{marks}\n\n" + rows_as_markdown(Table(["after", *run.tasks], rows))
    )


def _numbers(run: Run, index: int) -> str:
    last = index == len(run.tasks) - 1
    if run.done <= index:
        return "The run kept no matrix up to this task."
    found = run.metrics if last else derived(after(run.rows, index + 1))
    rows = [
        [f"`{name}`", value_text(name, value), interval_text(run, name) if last else "", definition_of(name)]
        for name, value in found.items()
    ]
    until = "" if last else f" Of the {index + 1} tasks up to here."
    return (
        f"Each number by its formula, with the 95 % interval over test examples where there is one.{until}\n\n"
        + rows_as_markdown(Table(["number", "value", "95 %", "formula"], rows))
    )


def _settings(config: Config) -> str:
    whole = config.model_dump(mode="json")
    told = {name: whole[name] for name in ("seed", "method", "training", "backbone")}
    return "```yaml\n" + shown(yaml.safe_dump(told, sort_keys=False, allow_unicode=True)).rstrip() + "\n```"


def _hub_datasets(config: Config) -> list[str]:
    used = {task.task or config.task_order.task for task in config.task_order.tasks}
    found = {str(config.task[name].path) for name in used if config.task[name].source == "hub"}
    return sorted(found)


def _data(run: Run, config: Config) -> str:
    content = read_json(run.folder / "data.json")
    accounts: Mapping[str, Any] = content.get("tasks", {})
    rows, cuts = [], []
    for task in config.task_order.tasks:
        definition = config.task[task.task or config.task_order.task]
        splits = accounts.get(task.name, {}).get("splits", {})
        counts = [splits.get(split, {}).get("used", 0) if splits else "?" for split in ("train", "validation", "test")]
        files = sorted({Path(name).name for split in splits.values() for name in split.get("files", ())})
        source = {"generated": "generated by cl_runner", "files": "files"}.get(definition.source, str(definition.path))
        domains = ", ".join(task.domains) or task.name
        rows.append([task.name, f"{source} ({domains}){': ' + ', '.join(files) if files else ''}", *map(str, counts)])
        cuts.append(f"- {task.name}: {json.dumps(definition.template or '{text}', ensure_ascii=False)}")
    fingerprints = content.get("fingerprints", {})
    marks = ", ".join(f"{name} `{digest[:12]}`" for name, digest in fingerprints.items())
    return "\n\n".join(
        [
            rows_as_markdown(Table(["task", "source", "train", "validation", "test"], rows, left=2)),
            f"Fingerprints (SHA-256, their beginnings): {marks}.",
            "How a text is written, by task (`{text}`, `{options}` and columns of the source are put in):",
            "\n".join(cuts),
        ]
    )


def _made(run: Run) -> str:
    environment = run.environment
    packages = environment.get("packages", {})
    git = environment.get("git") or {}
    lines = [
        "```",
        shown(environment.get("command", "not kept")),
        "```",
        "",
        f"- seed {run.seed}, run {run.hash or 'without a hash'}",
        f"- Python {environment.get('python', '?')}; {', '.join(f'{n} {v}' for n, v in packages.items())}",
    ]
    if git.get("commit"):
        lines.append(f"- commit `{git['commit']}`{', changed' if git.get('dirty') else ''}")
    hardware = environment.get("hardware", {})
    if hardware:
        lines.append(
            "- " + ", ".join(f"{name} {shown(value)}" for name, value in hardware.items() if value is not None)
        )
    if run.summary.get("wall_seconds"):
        lines.append(f"- {run.summary['wall_seconds']:.0f} seconds for the whole run")
    return "\n".join(lines)


def _limits(run: Run, facts: Facts, licence: str | None) -> str:
    probes = run.config.get("probe") or {}
    limits = [
        f"One run with the seed {run.seed}: no spread over seeds is known here.",
        "Measured on the test sets named above and on nothing else; no text outside their tasks was tried.",
        "General ability before and after: see the run's ability.csv."
        if probes
        else "General ability was not measured.",
        "Nothing was measured of bias, harm or what of the training texts the model gives away.",
        "The languages of the texts are not recorded, so the card names none.",
        "vLLM was not run; what stands above of it is read off its source.",
    ]
    if licence is None and facts.config.backbone.pretrained is not None:
        limits.append("The licence is not known here: ask whoever made the base model and the data.")
    if facts.config.evaluation.sampling is not None:
        limits.append("Answers are drawn by chance: the same question may be answered otherwise.")
    if run.status != "completed":
        limits.append("The run is not finished.")
    if facts.manifest.method and any(node.get("scope") == "batch" for node in facts.manifest.method.values()):
        limits.append("What a text is given depends on the texts that are asked together with it.")
    return "\n".join(f"- {limit}" for limit in limits)
