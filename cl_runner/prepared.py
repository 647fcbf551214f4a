"""The parts of a run, made and checked against each other before any weights are loaded."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cl_runner.build import build_family, build_method, build_probes, prepare_hardware
from cl_runner.checks import choice
from cl_runner.config import Backbone, Config, Training
from cl_runner.data.task import Task, label_union
from cl_runner.evaluate import evaluation_examples
from cl_runner.families.base import Family, Unanswerable
from cl_runner.methods.base import Chain, Method
from cl_runner.needs import Needs
from cl_runner.optimizer import unused_patterns
from cl_runner.parts import family_kind
from cl_runner.planning.tasks import ask
from cl_runner.pretrained.places import folder_of, is_folder, metrics_of
from cl_runner.probes.base import Probe
from cl_runner.sequences import Chained
from cl_runner.shard_checks import check_measured, check_sharded
from cl_runner.tracked import check_trackers
from cl_runner.tracking.environment import has_bf16


@dataclass(frozen=True)
class Prepared:
    """What a run is made of.

    Attributes:
        measuring: the family as importance reads texts.
        tasks: as they are trained; joint training is an order whose tasks hold all data so far.
        own_tasks: each with its own data.
        needs: what the methods say that they need.
        cache: a folder that runs share, or None.
        said: what the run should say of its checkpoint.
    """

    tasks: Sequence[Task]
    own_tasks: Sequence[Task]
    device: torch.device
    family: Family
    measuring: Family
    needs: Needs
    method: Chain
    probes: Mapping[str, Probe]
    cache: Path | None
    said: Sequence[str]


def prepare(config: Config, tasks: Sequence[Task]) -> Prepared:
    """Build and check everything that needs no weights.

    Raises:
        ValueError: methods, model and data do not fit; the text says what to type.
    """
    check_trackers(config)
    _check_data(config, tasks)
    _check_pictures(config.backbone, tasks)
    _check_chats(config, tasks)
    device = prepare_hardware(config.hardware)
    family = build_family(config.backbone, label_union(tasks))
    generated = max(config.evaluation.new_tokens(task.max_new_tokens) for task in tasks)
    family.check([task.labels for task in tasks], generated)
    _check_labels(config, family, tasks)
    _check_bertscore(config)
    probes = build_probes(config.probe)
    for probe in probes.values():
        probe.check()
    method = build_method(config.method)
    _check_reading(method, tasks)
    longest = config.backbone.max_length
    if family.kind == "causal":
        longest = max(config.backbone.longest_in_training, longest + generated)
    skeleton = family.skeleton()
    said = family.verify(skeleton)
    method.check(skeleton, longest)
    check_sharded(config, method, device)
    _check_offload(config, method)
    needs = ask(method, config, skeleton)  # says as well what does not fit the tasks
    check_measured(config, needs)
    if needs.later == "listed":
        _check_acting(config, method, skeleton, needs.listed)
    _check_training(config.training, [name for name, _ in skeleton.named_parameters()], method)
    joint = [
        dataclasses.replace(task, train=Chained([seen.train for seen in tasks[: i + 1]]))
        for i, task in enumerate(tasks)
    ]
    return Prepared(
        tasks=joint if config.task_order.joint else list(tasks),
        own_tasks=list(tasks),
        device=device,
        family=family,
        measuring=_measuring(config, family, label_union(tasks)),
        needs=needs,
        method=method,
        probes=probes,
        cache=Path(config.root) / "cache" if config.importance.cache_gb else None,
        said=[*said, *_slow(config, device)],
    )


def _slow(config: Config, device: torch.device) -> Sequence[str]:
    """What takes many times as long on this machine as it has to: bfloat16 on processors that do not know it.

    A training step of a small LLaMA took 3 times as long as in fp32 by AVX-512, 15 times by AVX2, half by AMX.
    """
    typed = ["backbone.dtype=float32"] if config.backbone.dtype == "bfloat16" else []
    typed += ["hardware.precision=fp32"] if config.hardware.precision == "bf16" else []
    if device.type != "cpu" or not typed or has_bf16() is not False:
        return []
    return [
        "this machine's processors have no instructions for bfloat16 (avx512_bf16, amx_bf16), in which this run "
        f"computes 3 to 15 times as slowly as in fp32. Type: {' '.join(typed)}"
    ]


def _check_offload(config: Config, method: Chain) -> None:
    """Where what the optimizer holds is to lie in main memory, every method looks for it there.

    Raises:
        ValueError: otherwise, with what to type.
    """
    refused = [name for name, each in method.methods.items() if not each.offloads]
    if config.hardware.offload != "none" and refused:
        raise ValueError(
            f"hardware.offload={config.hardware.offload}: {refused[0]} works on gradients where the weights are. "
            "Type: hardware.offload=none (or another method, such as method=seq_ft)"
        )


def _check_acting(config: Config, method: Chain, skeleton: nn.Module, trained: Collection[str]) -> None:
    """Every method has something to do with these parameters, or a ValueError says what to type."""
    for name, each in method.methods.items():
        if not each.acts_on(skeleton, trained):
            kept = choice([other for other in config.method if other != name], config.method)
            raise ValueError(
                f"{name} acts on nothing that {method.chooser} trains, so that it would have nothing to do. "
                f"Type: {kept}"
            )


def _measuring(config: Config, family: Family, labels: Sequence[str]) -> Family:
    """The family that reads texts for importance: the run's, or one that cuts them shorter.

    Raises:
        ValueError: it would read more than training does, or it cannot cut.
    """
    backbone, longest = config.backbone, config.importance.max_length
    if longest is None:
        return family
    if family.kind == "image_text":
        raise ValueError("importance.max_length: no prompt with a picture is cut. Type: importance.max_length=null")
    apart, answer = backbone.training_length == "apart", backbone.max_answer_length
    prompt = backbone.max_length + (0 if apart else answer or 0)
    if longest > prompt:
        raise ValueError(
            f"importance.max_length={longest} is more than the {prompt} tokens of a text that training reads. "
            f"Type: importance.max_length={prompt}"
        )
    lengths = {"max_length": longest, "max_answer_length": answer and min(answer if apart else prompt, longest)}
    return build_family(backbone.model_copy(update={**lengths, "training_length": "apart"}), labels)


def _check_data(config: Config, tasks: Sequence[Task]) -> None:
    """Every task has what is to be trained, scored and, where it is used, selected on."""
    empty = [task.name for task in tasks if not evaluation_examples(task, config.evaluation.split)]
    if empty:
        raise ValueError(
            f"task {empty[0]} has no {config.evaluation.split} examples to be scored on; raise "
            f"task_order.incremental.{config.evaluation.split} or choose another evaluation.split"
        )
    untrained = [task.name for task in tasks if not task.train]
    if untrained:
        raise ValueError(f"task {untrained[0]} has no training examples; raise task_order.incremental.train")
    blind = [task for task in tasks if not task.validation]
    if config.training.select == "best_validation" and blind:
        part = "incremental" if blind[0].index else "base"
        raise ValueError(
            f"training.select=best_validation chooses each task's best epoch on its validation split, and task "
            f"{blind[0].name} has none. Type: task_order.{part}.validation=100 (or training.select=last)"
        )


def _check_labels(config: Config, family: Family, tasks: Sequence[Task]) -> None:
    """Every label of a closed set can be answered: another one could only score 0."""
    chosen = config.evaluation.labels == "likelihood"
    for task, ordered in zip(tasks, config.task_order.tasks, strict=True):
        name = ordered.task or config.task_order.task
        limit = None if chosen else config.evaluation.new_tokens(task.max_new_tokens)
        try:
            family.check_labels(task.labels, limit)
        except Unanswerable as error:
            given = config.task[name].labels
            raw = given if isinstance(given, dict) else {}
            value = next((key for key, label in raw.items() if label == error.label), error.label)
            typed = f"'task.{name}.labels.{value}=NAME'"
            renamed = (
                typed if re.fullmatch(r"[\w-]+", value) else f"another name for {value!r} in the file of task.{name}"
            )
            remedy = f"Type: {typed}" if renamed == typed else f"Write {renamed}"
            if error.key == "max_new_tokens":
                of_all = config.evaluation.max_new_tokens is not None
                key = "evaluation.max_new_tokens" if of_all else f"task.{name}.max_new_tokens"
                remedy = f"Type: {key}={error.needed} (or give it a shorter name: {renamed})"
            elif error.key is not None:
                remedy = f"Type: {error.key}={error.needed} (or give it a shorter name: {renamed})"
            raise ValueError(f"task {task.name}: the label {error}, so that it could only score 0. {remedy}") from None


def _check_bertscore(config: Config) -> None:
    """The encoder of BERTScore is what it says, where a task is scored by it and it is on this machine."""
    options = config.evaluation.bertscore
    used = any(name.startswith("bertscore") for name in metrics_of(config))
    if used and (is_folder(options.checkpoint) or folder_of(options.checkpoint) is not None):
        from cl_runner.metrics import bertscore

        bertscore.check(options)


def _check_pictures(backbone: Backbone, tasks: Sequence[Task]) -> None:
    """A backbone that reads pictures has some in every example, and another one has none that it would not see.

    Raises:
        ValueError: otherwise, with what to type.
    """
    sees = family_kind(backbone.family) == "image_text"
    for task in tasks:
        for example in task.examples:
            if sees and example.picture is None:
                raise ValueError(
                    f"backbone {backbone.name} reads pictures, and task {task.name} has examples without one. "
                    "Type: task_order=vqa (or choose another backbone)"
                )
            if not sees and example.picture is not None:
                raise ValueError(
                    f"task {task.name} asks about pictures, and backbone {backbone.name} reads texts alone. "
                    "Type: backbone=llava_1_5_7b"
                )


def _check_chats(config: Config, tasks: Sequence[Task]) -> None:
    """Chats come to a decoder that writes them by its chat template, and not as text to one that has a template.

    Raises:
        ValueError: otherwise, with what to type.
    """
    backbone, kind = config.backbone, family_kind(config.backbone.family)
    for task, ordered in zip(tasks, config.task_order.tasks, strict=True):
        key = f"task.{ordered.task or config.task_order.task}.convert"
        as_text = f"{key}=messages (their turns as plain text)"
        if config.task[ordered.task or config.task_order.task].convert == "messages" and backbone.chat_template:
            raise ValueError(
                f"{key}=messages makes one text of the turns of a chat, which backbone.chat_template=true would put "
                f"into a single user's turn. Type: {key}=chats (or backbone.chat_template=false)"
            )
        if not any(example.chat is not None for example in task.examples):
            continue
        if kind != "causal":
            raise ValueError(
                f"task {task.name} has chats for a chat template, and backbone {backbone.name} ({kind}) has none. "
                f"Type: {as_text} (or choose a decoder: backbone=causal_folder)"
            )
        if not backbone.chat_template:
            raise ValueError(
                f"task {task.name} has chats, and backbone {backbone.name} is not asked by a chat template. "
                f"Type: backbone.chat_template=true (or, of a model without one, {as_text})"
            )


def _check_reading(method: Chain, tasks: Sequence[Task]) -> None:
    """No method makes texts of its own of examples that are chats, or a ValueError says what to type."""
    chats = [task.name for task in tasks if any(example.chat is not None for example in task.train)]
    unread = [name for name, each in method.methods.items() if not each.reads_chats]
    if chats and unread:
        raise ValueError(
            f"{unread[0]} puts texts of its own around a question, and task {chats[0]} has chats, whose turns the chat "
            f"template writes. Type: task.NAME.convert=messages backbone.chat_template=false (their turns as plain "
            "text), or another method, such as method=replay"
        )


def _check_training(training: Training, parameters: list[str], method: Chain) -> None:
    """What `training` says of parameters is about some that there are, and what it says of an optimizer is read."""
    adds = any(type(each).build is not Method.build for each in method.methods.values())
    unused = unused_patterns(training.rates or {}, parameters)
    if unused and not adds:  # names that a method brings along are not known before the model is built
        close = difflib.get_close_matches(unused[0], parameters, n=1, cutoff=0.3)
        raise ValueError(
            f"training.rates: no parameter's name fits {unused[0]!r}; such as {close[0] if close else parameters[-1]} "
            "do. Type: 'training.rates={*NAME*: RATE}'"
        )
    if not training.bias_correction and training.optimizer != "adamw":
        raise ValueError(
            f"training.bias_correction=false is AdamW's, and training.optimizer={training.optimizer}. "
            "Type: training.bias_correction=true (or training.optimizer=adamw)"
        )
    if training.momentum and training.optimizer != "sgd":
        raise ValueError(
            f"training.momentum={training.momentum:g} is SGD's, and training.optimizer={training.optimizer}. "
            "Type: training.momentum=0 (or training.optimizer=sgd)"
        )
