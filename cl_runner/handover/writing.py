"""A run's model after a task as a folder: in transformers' form, peft's, or ours where a method answers as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from cl_runner.access import access
from cl_runner.beginnings import tree_of, write_tree
from cl_runner.build import Rebuilt
from cl_runner.config import Backbone, Evaluation
from cl_runner.data.task import Task, build_tasks
from cl_runner.handover.manifest import (
    BACKBONE,
    EXAMPLES,
    LEARNED,
    STATE,
    ExportedTask,
    Kind,
    Manifest,
    encoders_of,
    found_at,
    hub_name,
    not_built_in,
)
from cl_runner.layers.heads import classifies
from cl_runner.methods.base import Method
from cl_runner.methods.parts import head_of
from cl_runner.parent import state_file
from cl_runner.pretrained.places import digests, is_folder
from cl_runner.sparse.bits import bits_of
from cl_runner.sparse.chain import apply_chain
from cl_runner.tensor_files import read_tensors


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        how: a line that loads it.
        inexact: why the folder does not answer as the run did; empty where it does.
    """

    manifest: Manifest
    how: str
    inexact: str = ""


class NoForm(Exception):
    """There is no form in which others could load this model; the text is the reason, as the end of a sentence."""


def write(
    rebuilt: Rebuilt, chain: Sequence[Path], index: int, run: Path, after: str, folder: Path, merge: bool
) -> Written:
    """Write the model at the end of a chain of snapshots.

    Args:
        rebuilt: the run's starting model with the parameters of the tasks until then; of no use afterwards.
        index: of the last task.
        folder: an empty one.
        merge: adapters join the weights that they adapt.

    Raises:
        NoForm: there is no form for it.
        ValueError: the data that answers go back to are not there; there is nothing to merge.
        OSError, SafetensorError: the folder cannot be written.
    """
    model, config = rebuilt.model, rebuilt.config
    added, answering = added_names(model), list(rebuilt.method.answering)
    start = {n: p.detach().clone() for n, p in model.named_parameters()} if added or answering else {}
    apply_chain(dict(model.named_parameters()), chain)
    how, inexact = _in_others_form(rebuilt, folder, bool(added), answering, merge), ""
    kind: Kind = "method" if how is None else _kind_of(folder)
    lengths = [0] * len(rebuilt.tasks)
    if how is None:
        inexact = _unexportable(rebuilt, run, chain[-1], index, folder)
        if inexact and added:
            raise NoForm(inexact)
        if inexact:
            model.save_pretrained(folder)
            kind, how = "model", f"from_pretrained({str(folder)!r})"
        else:
            _save_learned(model, start, added, folder / LEARNED)
            lengths = _save_examples(rebuilt, folder)
            how = f"cl_runner.load({str(folder)!r})"
    rebuilt.family.save_reader(folder)
    backbone = config.backbone
    if kind == "model":
        backbone = found_at(backbone, ".", **({"head": "checkpoint"} if classifies(model) else {}))
    elif hub_name(backbone) is None:
        rebuilt.family.build(config.seed)[0].save_pretrained(folder / BACKBONE)
        rebuilt.family.save_reader(folder / BACKBONE)
        backbone = found_at(backbone, BACKBONE)
    for path in sorted(folder.rglob("adapter_config.json")):
        _name_base(path, config.backbone)
    manifest = Manifest(
        format=1,
        kind=kind,
        after=after,
        index=index,
        seed=config.seed,
        precision=config.hardware.precision,
        backbone=backbone,
        labels=list(rebuilt.labels),
        tasks=[_task(task, length) for task, length in zip(rebuilt.tasks, lengths, strict=True)],
        task_order=config.task_order,
        evaluation=_evaluation(config.evaluation),
        method=dict(config.method) if kind == "method" else {},
        told=_told(rebuilt),
        folders=_folders(rebuilt.tasks, folder),
        encoders=_encoders(config.method) if kind == "method" else {},
    )
    manifest.write(folder)
    return Written(manifest, how, inexact)


def _in_others_form(rebuilt: Rebuilt, folder: Path, adds: bool, answering: Sequence[str], merge: bool) -> str | None:
    """Write what transformers or peft loads, and say how; None: there is no such form."""
    model, method = rebuilt.model, rebuilt.method
    if merge:
        how = None if answering else method.export_merged(model, folder)
        if how is None:
            who = " + ".join(method.methods)
            raise ValueError(
                f"--merge is for one low-rank adapter, or several that add up, which join the weights; {who} "
                f"{'takes part in every answer' if answering else 'has none that could'}. Leave --merge out"
            )
        return how
    if answering:
        return None
    if adds:
        base = hub_name(rebuilt.config.backbone) or str(folder / BACKBONE)
        how = method.export(model, rebuilt.tasks, folder, base)
        if how is None or _kind_of(folder) != "prompt" or rebuilt.config.evaluation.labels != "likelihood":
            return how
        for path in folder.iterdir():  # labels are chosen by going on from a cache, which peft's prompts do not
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return None
    model.save_pretrained(folder)
    return f"from_pretrained({str(folder)!r})"


def added_names(model: PreTrainedModel) -> list[str]:
    """Names of parameters that from_pretrained would not create."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    own = {name for name, _ in plain.named_parameters()}
    return [name for name, _ in model.named_parameters() if name not in own]


def _encoders(method: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    return {key: digests(encoder, key) for key, encoder in encoders_of(method).items()}


def _kind_of(folder: Path) -> Kind:
    """What a method's own export has written."""
    found = sorted(folder.glob("adapter_config.json")) + sorted(folder.glob("*/adapter_config.json"))
    if not found:
        return "model"
    return "adapter" if json.loads(found[0].read_text(encoding="utf-8"))["peft_type"] == "LORA" else "prompt"


def _folders(tasks: Sequence[Task], folder: Path) -> dict[str, str]:
    return {task.name: task.name for task in tasks if (folder / task.name / "adapter_config.json").is_file()}


def _name_base(path: Path, backbone: Backbone) -> None:
    """peft's configuration names the revision of the base model, too, and no folder of this machine."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if hub_name(backbone) is None:
        content["base_model_name_or_path"] = BACKBONE
    content["revision"] = None if hub_name(backbone) is None else backbone.revision
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _unexportable(rebuilt: Rebuilt, run: Path, snapshot: Path, index: int, folder: Path) -> str:
    """Why a method's answers cannot be had from a folder, or nothing; then what they need to know lies in it."""
    foreign = not_built_in(rebuilt.config.method, rebuilt.config.backbone.family)
    if foreign:
        return f"it has {foreign}, and a folder holds no code"
    task, method = rebuilt.tasks[index], rebuilt.method
    needed = [name for name, each in method.methods.items() if not each.restored(task)]
    if not needed:
        return ""
    kept = state_file(run, snapshot.stem)
    if not kept.is_file():
        return (
            f"the answers are {needed[0]}'s, and what it knew after {task.name} is not in {run}: a run keeps it with "
            "checkpoint.after_tasks=true"
        )
    state = tree_of(*read_tensors(kept), torch.device("cpu"))
    method.load_state_dict(state)
    write_tree(folder / STATE, {name: state[name] for name in needed}, {})
    return ""


def _save_learned(model: PreTrainedModel, start: Mapping[str, Tensor], added: Sequence[str], path: Path) -> None:
    """All that the backbone alone does not have: what is new, what learned, and a classifier's head."""
    head = head_of(model) if classifies(model) else ()
    always = {*added, *head}
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    chosen = {
        name: p for name, p in found.items() if name in always or not torch.equal(bits_of(p), bits_of(start[name]))
    }
    save_file({name: p.cpu().contiguous().clone() for name, p in chosen.items()}, path, {"format": "pt"})


def _save_examples(rebuilt: Rebuilt, folder: Path) -> list[int]:
    """Write the training examples that answers go back to, if they do; how many each task had.

    Raises:
        NoForm: they cannot be written.
    """
    if all(type(each).goes_back_to is Method.goes_back_to for each in rebuilt.method.methods.values()):
        return [0] * len(rebuilt.tasks)
    tasks = build_tasks(rebuilt.config.task_order, rebuilt.config.task)
    found = dict.fromkeys(rebuilt.method.goes_back_to(tasks, rebuilt.config.seed))
    if any(one.picture is not None or one.chat is not None for one in found):
        raise NoForm("its answers go back to examples with pictures or as chats, which are not put into a folder")
    rows = [{"task": one.task, "row": one.row, "prompt": one.prompt, "answer": one.answer} for one in found]
    lines = [f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows]
    (folder / EXAMPLES).write_text("".join(lines), encoding="utf-8")
    return [len(task.train) for task in tasks]


def _task(task: Task, train: int) -> ExportedTask:
    metrics = {name: list(metrics) for name, metrics in task.metrics.items()}
    return ExportedTask(
        name=task.name, labels=list(task.labels), metrics=metrics, max_new_tokens=task.max_new_tokens, train=train
    )


def _told(rebuilt: Rebuilt) -> list[str]:
    """What methods are told of a question in a test."""
    config = rebuilt.config.model_dump(mode="json")
    config["task_order"]["restart"] = False  # a folder has one of its models
    return list(access(config, rebuilt.family.kind).told)


def _evaluation(options: Evaluation) -> Evaluation:
    """As the run evaluated; no answer depends on what BERTScore is computed with, which may be a folder here."""
    scorer = options.bertscore
    if is_folder(scorer.checkpoint):
        scorer = scorer.model_copy(update={"checkpoint": f"./{Path(scorer.checkpoint).name}"})
    return options.model_copy(update={"split": "test", "bertscore": scorer})
