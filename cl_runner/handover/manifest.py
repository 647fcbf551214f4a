"""cl_runner.json of an exported folder: what is in it, and how its run asked for answers.

It may be a stranger's: it is data that is checked, and no class of anybody's own is imported for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cl_runner.built_in import DEFINITIONS, FAMILIES, METHODS
from cl_runner.config import Backbone, Count, Encoder, Evaluation, Schema, TaskOrder, Whole
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.parts import TARGET
from cl_runner.pretrained.places import is_folder

NAME = "cl_runner.json"
#: A folder below the exported one with the model that the run began with, where others could not fetch that by name.
BACKBONE = "backbone"
#: Of a method: what was learned beside the backbone, what the method knows, and examples that it goes back to.
LEARNED, STATE, EXAMPLES = "learned.safetensors", "state.safetensors", "examples.jsonl"

#: model: transformers loads it. adapter, prompt: peft does. method: `cl_runner.load` alone does.
Kind = Literal["model", "adapter", "prompt", "method"]


class ExportedTask(Schema):
    """A task as far as its answers depend on it."""

    name: str
    labels: list[str]
    metrics: dict[str, list[str]]
    max_new_tokens: Count
    train: Whole  # examples it had, of which a memory counts the rows


class Manifest(Schema):
    """What a folder holds.

    Attributes:
        after: the task whose end it is, or the snapshot that was exported; `index` is that task's.
        backbone: as the run had it, with the place where the weights are found now: a name of the hub, `.` or
            `backbone` in the folder.
        labels: of all tasks, in the order of a classifier's rows.
        task_order: of the run.
        method: the methods that answer with their options; empty where the model alone does.
        told: what answers are told of a question: words of cl_runner/said.py.
        folders: task -> its folder, where each task has an adapter or prompt of its own.
        encoders: SHA-256 of the files of each sentence encoder, which is named and not in the folder, by its key.
    """

    format: Literal[1]
    kind: Kind
    after: str
    index: Whole
    seed: Whole
    precision: Literal["fp32", "bf16"]
    backbone: Backbone
    labels: list[str]
    tasks: list[ExportedTask]
    task_order: TaskOrder
    evaluation: Evaluation
    method: dict[str, dict[str, Any]]
    told: list[str]
    folders: dict[str, str]
    encoders: dict[str, dict[str, str]]

    def outlines(self, examples: Sequence[Example] = ()) -> list[Task]:
        """The tasks without their data.

        Args:
            examples: of training, that a method goes back to: each stands in its own row, and others are empty.
        """
        known = {(example.task, example.row): example for example in examples}
        return [
            Task(
                index,
                task.name,
                tuple(known.get((index, row), Example("", "", task=index, row=row)) for row in range(task.train)),
                (),
                (),
                tuple(task.labels),
                {name: tuple(metrics) for name, metrics in task.metrics.items()},
                task.max_new_tokens,
            )
            for index, task in enumerate(self.tasks)
        ]

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        (folder / NAME).write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """What a folder says of itself.

    Raises:
        ValueError: it is no exported folder, or asks for something that is not of this package.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {NAME}, so it is no exported folder. Type: python -m cl_runner snapshot export RUN "
            "--after TASK --output FOLDER"
        )
    try:
        found = Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, ValidationError, json.JSONDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        said = str(error) if first is None else f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(
            f"{path} is damaged, or of another version of cl_runner ({said}). Export the run anew"
        ) from None
    foreign = not_built_in(found.method, found.backbone.family)
    if found.task_order.answers_until == "read":
        metrics = {name for task in found.tasks for names in task.metrics.values() for name in names}
        foreign = foreign or next((f"a metric of your own, {name}" for name in sorted(metrics - {*DEFINITIONS})), "")
    if foreign:
        raise ValueError(f"{path} asks for {foreign}, and no code is loaded for a folder")
    outside = [name for name in found.folders.values() if Path(name).name != name]
    if outside:
        raise ValueError(f"{path} names {outside[0]!r}, which is no folder in it. Export the run anew")
    return found


def not_built_in(method: Mapping[str, Mapping[str, Any]], family: str) -> str:
    """The first part that is the user's own, by which no folder can be answered; empty where all are this package's."""
    own = [name for name, node in method.items() if TARGET in node or name not in METHODS]
    if own:
        return f"a method of your own, {own[0]}"
    return "" if family in FAMILIES else f"a family of your own, {family}"


def hub_name(backbone: Backbone) -> str | None:
    """The name by which anybody can fetch a backbone as the run had it; None = it has to be written out."""
    named = backbone.gguf is None and backbone.checkpoint is not None and not is_folder(backbone.checkpoint)
    return backbone.checkpoint if named and not backbone.key_prefixes else None


def found_at(backbone: Backbone, place: str, **more: Any) -> Backbone:
    """The same backbone, read from another place, with the tokenizer that lies there."""
    elsewhere = {"checkpoint": place, "gguf": None, "revision": None, "package": None, "weights_sha256": None}
    return backbone.model_copy(
        update={**elsewhere, "architecture": None, "tokenizer": None, "key_prefixes": [], "dropout": None, **more}
    )


def encoders_of(method: Mapping[str, Mapping[str, Any]]) -> dict[str, Encoder]:
    """The sentence encoder of each method that has one, by the key of its name in the configuration."""
    return {
        f"method.{name}.encoder.checkpoint": Encoder.model_validate(node["encoder"])
        for name, node in method.items()
        if isinstance(node.get("encoder"), Mapping)
    }
