"""An exported folder as a model that answers: by the run's own families, methods and evaluation."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from cl_runner.beginnings import tree_of
from cl_runner.build import build_family, build_method
from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.evaluate import evaluate
from cl_runner.families.base import Family, Prediction
from cl_runner.handover.manifest import BACKBONE, EXAMPLES, LEARNED, STATE, Manifest, encoders_of, read_manifest
from cl_runner.learner import Learner, Progress
from cl_runner.methods.base import Chain
from cl_runner.pretrained.places import digests
from cl_runner.tensor_files import read_tensors


class Loaded:
    """A model with its tokenizer and, of some, the method that answers with it: made by `load`.

    Attributes:
        manifest: what the folder says of itself.
        learner: the model as the run's evaluation sees it.
    """

    def __init__(self, manifest: Manifest, learner: Learner, adapted: Any = None):
        self.manifest, self.learner = manifest, learner
        self._adapted = adapted  # peft's model, whose adapters are chosen by a text's task

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks whose texts can be answered."""
        folders = self.manifest.folders
        return [task.name for task in self.manifest.tasks if not folders or task.name in folders]

    def answer(self, texts: Sequence[str], task: str | None = None) -> list[str]:
        """The answers to texts, written as the run's tasks write them.

        Args:
            task: whose texts they are, of a model that is told it, or whose tasks are answered in several ways.

        Raises:
            ValueError: there is no such task, or it has to be said.
        """
        return [prediction.text for prediction in self.predict(texts, task)]

    def predict(self, texts: Sequence[str], task: str | None = None) -> list[Prediction]:
        """The same with the probability of each answer, where it is computed, and what the answer was chosen by."""
        if self.learner.family.kind == "image_text":
            raise ValueError("this model reads pictures beside texts: ask it as the card says, by transformers")
        if isinstance(texts, str):
            raise ValueError("answers are asked for several texts at once. Type: model.answer([text])")
        whose = self._task(task)
        index = whose.index if task is not None else -1
        label = (whose.labels or tuple(self.manifest.labels) or ("",))[0]  # that a batch has, and no answer reads
        asked = tuple(Example(text, label, task=index, row=row) for row, text in enumerate(texts))
        return self.evaluate([dataclasses.replace(whose, test=asked)])[whose.name] if texts else []

    def evaluate(self, tasks: Sequence[Task], progress: Progress | None = None) -> dict[str, list[Prediction]]:
        """The answers to the test examples of tasks, as the run's evaluation has them."""
        options, after = self.manifest.evaluation, self.manifest.after
        if self.manifest.kind == "prompt":  # peft puts prompts before the padding
            options = options.model_copy(update={"batch_size": 1})
        found: dict[str, list[Prediction]] = {}
        for together in [[task] for task in tasks] if self.manifest.folders else [tasks]:
            if self.manifest.folders:
                self._adapted.set_adapter(self.manifest.folders[together[0].name])
            found |= evaluate(self.learner, self.learner.method, together, options, after, progress)
        return found

    def _task(self, name: str | None) -> Task:
        """The task whose way to answer counts."""
        known = self.tasks
        if name is not None and name not in known:
            raise ValueError(f"there is no task {name!r}; the model knows {', '.join(known)}")
        tasks = [task for task in self.learner.tasks if task.name in known]
        if name is not None:
            return next(task for task in tasks if task.name == name)
        ways = {self.learner.answering(task) for task in tasks}
        if len(known) > 1 and ("task" in self.manifest.told or self.manifest.folders or len(ways) > 1):
            why = "tasks are answered in several ways" if len(ways) > 1 else "it is told the task of each text"
            raise ValueError(f"say whose texts they are ({why}): task={known[0]!r}, one of {', '.join(known)}")
        return tasks[0]


def load(folder: Path | str, encoder: str | None = None, device: str | None = None) -> Loaded:
    """The model of a folder that `snapshot export` wrote, ready to answer.

    Weights are safetensors, the rest is JSON: nothing of the folder is run.

    Args:
        folder: on this machine.
        encoder: a folder with the sentence encoder of a model that retrieves, in the place of where the run had it.
        device: as torch names it; None = a GPU if there is one.

    Raises:
        ValueError: the folder is damaged, or what it names is not here, or is something else.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    family = build_family(_placed(manifest.backbone, place), manifest.labels)
    tasks = manifest.outlines(_examples(place))
    model, _ = family.build(manifest.seed)
    if manifest.kind == "method":
        return _with_method(manifest, family, model, tasks, place, _encoder(manifest, encoder), chosen)
    adapted = None
    if manifest.kind != "model":
        adapted = _adapted(manifest, model, place)
        model = adapted.base_model.model if manifest.kind == "adapter" else _prompted(adapted)
    return Loaded(manifest, _learner(manifest, family, model, tasks, Chain({}), chosen), adapted)


def _placed(backbone: Backbone, folder: Path) -> Backbone:
    """The backbone, of which the folder may hold the weights."""
    inside = {".": folder, BACKBONE: folder / BACKBONE}.get(str(backbone.checkpoint))
    return backbone if inside is None else backbone.model_copy(update={"checkpoint": str(inside.absolute())})


def _adapted(manifest: Manifest, model: PreTrainedModel, folder: Path) -> Any:
    """The backbone as peft loads adapters or prompts onto it."""
    names = list(dict.fromkeys(manifest.folders.values()))
    first, *others = names or [""]
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder / first), adapter_name=first or "default")
        for name in others:
            adapted.load_adapter(str(folder / name), adapter_name=name)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"peft cannot load {folder / first}: {' '.join(str(error).split())[:200]}") from None
    return adapted


def _prompted(adapted: Any) -> PreTrainedModel:
    """The backbone, whose `generate` is peft's: families ask transformers' own classes, and prompts surround these."""
    model = adapted.base_model
    own = model.generate

    def generate(*given: Any, **named: Any) -> Any:
        # Of what watches decoding peft would make copies.
        watching = {name: named.pop(name) for name in ("logits_processor", "stopping_criteria") if name in named}
        model.generate = functools.partial(own, **watching)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Position ids are not supported")  # one text has no padding to skip
                return adapted.generate(*given, **named)
        finally:
            model.generate = generate

    model.generate = generate
    assert isinstance(model, PreTrainedModel)
    return model


def _learner(
    manifest: Manifest,
    family: Family,
    model: PreTrainedModel,
    tasks: Sequence[Task],
    method: Chain,
    device: torch.device,
) -> Learner:
    return Learner(
        model,
        family,
        tasks,
        manifest.seed,
        device,
        method,
        precision=manifest.precision,
        order=manifest.task_order,
        evaluation=manifest.evaluation,
    )


def _with_method(
    manifest: Manifest,
    family: Family,
    model: PreTrainedModel,
    tasks: Sequence[Task],
    folder: Path,
    encoder: Mapping[str, Any],
    device: torch.device,
) -> Loaded:
    """The backbone with what the method added to it and learned."""
    method = build_method({name: dict(node) | encoder.get(name, {}) for name, node in manifest.method.items()})
    learner = _learner(manifest, family, model, tasks, method, device)
    for task in tasks[1 : manifest.index + 1]:
        learner.grow(task)
    parameters = learner.parameters()
    path = folder / LEARNED
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            names = set(file.keys())
            for name in sorted(names):
                values = file.get_tensor(name)
                if name not in parameters or values.shape != parameters[name].shape:
                    raise ValueError(f"{path} has {name}, for which this model has no place. Export the run anew")
                parameters[name].copy_(values)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Export the run anew") from None
    missing = sorted(learner.added - names)
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}. Export the run anew")
    states = {}
    if (folder / STATE).is_file():
        states = tree_of(*read_tensors(folder / STATE), device)
    for name, each in method.methods.items():
        if not each.restored(tasks[manifest.index]):
            each.load_state_dict(states[name])
    learner.finish()
    return Loaded(manifest, learner)


def _encoder(manifest: Manifest, given: str | None) -> dict[str, dict[str, Any]]:
    """What a method's node says of its sentence encoder where that lies elsewhere; its files are those of the run.

    Raises:
        ValueError: there is none, or it is another one.
    """
    if given is not None and not manifest.encoders:
        raise ValueError("encoder: this model retrieves by none. Leave it out")
    found = {}
    for key, options in encoders_of(manifest.method).items():
        if given is not None:
            elsewhere: dict[str, Any] = {"checkpoint": str(Path(given).expanduser().absolute())}
            elsewhere |= dict.fromkeys(("revision", "package", "weights_sha256"))  # the digests say more
            options = options.model_copy(update=elsewhere)
        here, wanted = digests(options, key), manifest.encoders[key]
        other = sorted(name for name in wanted.keys() | here.keys() if here.get(name) != wanted.get(name))
        if wanted and here and other:
            raise ValueError(
                f"the encoder {options.checkpoint} is another one than the run's: {other[0]} has another SHA-256. "
                "Give the run's: cl_runner.load(FOLDER, encoder=PATH)"
            )
        found[key.split(".")[1]] = {"encoder": options.model_dump()}
    return found


def _examples(folder: Path) -> list[Example]:
    """Training examples that the method goes back to.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / EXAMPLES
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Example(str(r["prompt"]), str(r["answer"]), task=int(r["task"]), row=int(r["row"])) for r in rows]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Export the run anew") from None
