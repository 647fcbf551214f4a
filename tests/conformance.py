"""The table of methods: what is known of each before it runs, and cells of it, a method on a family, as they learn.

A cell learns two small tasks. What tests ask of it is found out once: the second task is learned again from its middle,
and again in smaller passes, from what a run would have saved.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pictures
import torch
from omegaconf import OmegaConf
from tiny import Losses, tiny_config, tiny_encoder, tiny_learner
from torch import Tensor

from cl_runner.batch import Part
from cl_runner.build import build_family, build_method
from cl_runner.change import Changes
from cl_runner.checkpoint import pack, unpack
from cl_runner.config import Config
from cl_runner.data.task import Task, build_tasks, label_union
from cl_runner.groups import nodes_of
from cl_runner.learn import learn_task
from cl_runner.learner import Learner
from cl_runner.methods.base import Chain
from cl_runner.parts import method_spec
from cl_runner.passes import Passes, backward
from cl_runner.train import Progress

#: Tiny backbones by the kind of family that a method claims.
BACKBONES = {"classifier": ("bert",), "causal": ("llama", "gpt2"), "seq2seq": ("t5",), "image_text": ("llava",)}


@dataclass(frozen=True)
class Row:
    """What is known of a method before it runs.

    Attributes:
        choice: method=<choice>.
        trained: share of the backbone's weights that learn a later task: 1 = all, 0 = none.
        families: of which every run of the tests tries one; `claimed` has all.
        only: names of the tensors of which something may move in a later task, whole names by a pattern.
        ends_on_old: the last epoch of a task goes over old examples alone, so that its own loss may rise again.
        by_pass: why what is learned depends on the passes that a batch is cut into, if it does; else it does not.
        refuses: what is said to families that the method cannot serve although its class claims them.
    """

    choice: str
    trained: float
    families: tuple[str, ...] = ("bert",)
    only: str = ".*"
    by_pass: str = ""
    ends_on_old: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def choices(self) -> list[str]:
        """The options of the chain."""
        return self.choice.strip("[]").split(",")

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """The methods of the chain with their options."""
        return {node: values for name in self.choices for node, values in nodes_of(name).items()}

    @property
    def claimed(self) -> tuple[str, ...]:
        """Backbones of all families that all methods of the chain claim."""
        specs = [method_spec(node) for node in self.nodes]
        return tuple(
            name for kind, names in BACKBONES.items() for name in names if all(kind in spec.families for spec in specs)
        )


HEAD = r"classifier\.\w+|lm_head\.weight"
NORMS = r".*(norm|LayerNorm|ln_|layer_norm|layrnorm).*"
TIED = "tied to the word embeddings"
#: An adapter, and of a classifier the head, or its rows of a task's own.
LORA = r".*\.lora_\w+\.{0}(\.weight)?|classifier\.\w+(\.{0})?"
#: What retrieval adds for the second task.
BERT_ALONE = dict.fromkeys(("llama", "gpt2", "t5", "llava"), "matches no parameter")
ONE_RETRIEVAL = "one retrieval for all texts of a micro-batch, as released (method.slm.scope=batch)"
PROMPT = r"prompts\.\w+\.01.*|classifier\.\w+\.01"
OWN = r"slm\.\w+\.01|classifier\.\w+\.01"

ROWS = (
    Row("seq_ft", 1.0, ("bert", "gpt2")),
    Row("frozen", 0.0, ("llama",)),
    Row("ewc", 1.0, ("bert", "t5")),
    Row("ewc_online", 1.0, ("llama",)),
    Row("ewc_piece", 1.0),
    Row("lwf", 1.0, ("bert", "llama")),
    Row("lwf_piece", 1.0, ("bert", "t5")),
    Row("ewc_lwf", 1.0),
    Row("mas", 1.0, ("bert", "t5")),
    Row("si", 1.0, ("bert", "llama")),
    Row("l2", 1.0),
    Row("masked_kl", 1.0, ("bert", "llama")),
    Row("sdft", 1.0, ("llama",)),
    Row("gem", 1.0, ("bert", "llama")),
    Row("agem", 1.0, ("bert", "t5")),
    Row("ogd", 1.0),
    Row("replay", 1.0, ("bert", "t5")),
    Row("replay_trace", 1.0, ends_on_old=True),
    Row("replay_piece", 1.0, ends_on_old=True),
    Row("replay_migu", 1.0),
    Row("replay_idbr", 1.0),
    Row("replay_online", 1.0, ("bert", "llama")),
    Row("replay_online_piece", 1.0),
    Row("der", 1.0, ("bert", "gpt2")),
    Row("mbpa", 1.0, ("bert", "llama")),
    Row("mbpa_1", 1.0),
    Row("idbr", 1.0),
    Row("mbpa_adam", 1.0, ("t5",)),
    Row("opr", 1.0, ("bert", "llama")),
    Row("opr_sc", 1.0, ("t5",)),
    Row("lamol", 1.0, ("gpt2",)),
    Row("lamol_0.2", 1.0, ("t5",)),
    Row("lamol_gen", 1.0, ()),
    Row("multi_task", 1.0, ("bert", "llama")),
    Row("icl", 0.0, ("t5",)),
    Row("migu", 1.0, ("bert", "gpt2", "t5")),
    Row("migu_piece", 1.0, ("llama",)),
    Row("bitfit", 0.24, ("bert",), rf".*bias|{HEAD}", refuses={"t5": TIED}),
    Row("layer_norm", 0.06, ("bert", "llama"), NORMS),
    Row("head_only", 0.24, ("llama",), HEAD, refuses={"gpt2": TIED, "t5": TIED}),
    Row("first_layers", 0.42, ("t5",), r".*\.(layers?|h|block)\.0\..*"),
    Row("last_layers", 0.5, ("bert",), rf".*\.(layers?|h|block)\.1\..*|{HEAD}"),
    Row("magnitude_smallest", 0.005),
    Row("magnitude_largest", 0.001, ("llama",)),
    Row("pe", 0.005, ("bert", "t5")),
    Row("pe_main", 0.005),
    Row("pe_rand", 0.005, ("t5",)),
    Row("pe_select", 0.005, ("llama",)),
    Row("pe_0.1", 0.001, ("llama",)),
    Row(
        "pe_qkv",
        0.005,
        ("bert",),
        r".*\.(query|key|value)\.weight",
        refuses=BERT_ALONE,
    ),
    Row("piece_f", 0.001, ("bert", "t5")),
    Row("piece_s", 0.001, ("llama", "gpt2")),
    Row("piece_f_1", 0.01, ("t5",)),
    Row("piece_s_1", 0.01),
    Row("piece_rand", 0.001),
    Row("piece_rand_1", 0.01, ("llama",)),
    Row("seq_lora", 0.01, ("bert", "gpt2"), LORA.format("00")),
    Row("seq_lora_trace", 0.01, ("llama",), LORA.format("00")),
    Row("seq_lora_piece", 0.01, ("llama",), LORA.format("00")),
    Row("inc_lora", 0.01, ("bert", "llama"), LORA.format("01")),
    Row("o_lora", 0.01, ("bert", "t5"), LORA.format("01")),
    Row("o_lora_piece", 0.01, ("llama",), LORA.format("01")),
    Row("lora", 0.0, ("bert", "llama"), LORA.format("01")),
    Row("osf", 0.9, ("bert", "llama"), rf".*\.base_layer\.weight|{HEAD}", refuses={"gpt2": "Conv1D"}),
    Row("prompt_tuning", 0.01, ("bert", "llama"), rf"prompts\..*|{HEAD}"),
    Row("prog_prompt", 0.0, ("bert", "t5", "gpt2"), PROMPT),
    Row("prog_prompt_bert", 0.0, ("bert",), PROMPT),
    Row("prog_prompt_trace", 0.0, ("llama",), PROMPT),
    Row("prompt_per_task", 0.0, ("bert",), PROMPT),
    Row("l2p", 0.01, ("bert", "llama"), rf"prompts\..*|{HEAD}"),
    Row("l2p_trace", 0.01, ("t5",), rf"prompts\..*|{HEAD}"),
    Row("lfpt5", 0.0, ("t5",), r"prompts\..*"),
    Row("slm", 0.0, ("bert", "t5", "gpt2"), OWN),
    Row("slm_ti", 0.0, ("llama",), OWN),
    Row("slm_prompt", 0.0, ("gpt2",), OWN),
    Row("slm_adapter", 0.0, ("t5",), OWN, refuses={"gpt2": "separate query, key and value projections"}),
    Row("slm_release", 0.0, ("bert",), OWN, ONE_RETRIEVAL),
    Row("slm_bert", 0.0, ("bert",), OWN),
    Row("slm_t5", 0.0, ("t5",), OWN),
    Row("slm_llama", 0.0, ("llama",), OWN),
    Row("slm_llama_release", 0.0, ("llama",), OWN, ONE_RETRIEVAL),
    # Several at once.
    Row("[replay,lwf,piece_s]", 0.001, ("t5",)),
    Row("[replay_online,ewc,lwf]", 1.0, ("llama",)),
    Row("[der,ewc,piece_s]", 0.001),
    Row("[ogd,bitfit]", 0.25, ("bert", "llama"), rf".*bias|{HEAD}", refuses={"t5": TIED}),
    Row("[agem,mas,si,piece_s]", 0.001),
    Row("[opr,lwf,piece_s]", 0.001),
    Row("[sdft,ewc,piece_s]", 0.001, ("gpt2",)),
    Row("[sdft,seq_lora]", 0.01, (), LORA.format("00")),
    Row("[sdft,prompt_tuning]", 0.01, (), rf"prompts\..*|{HEAD}"),
)

#: Methods that set what trains when the first task begins, so that the loss before it tells nothing.
SETS = {"lfpt5"}

SMALL = (
    "task_order.base.train=24",
    "task_order.incremental.train=16",
    "training.base.epochs=4",
    "training.incremental.epochs=4",
    "training.base.batch_size=24",
    "training.incremental.batch_size=16",
    "training.base.learning_rate=2e-3",
    "training.incremental.learning_rate=1e-3",
    "training.weight_decay=0.1",
    "training.epsilon=1e-5",  # steps are smooth in the gradients: rounding stays small
    "backbone.dropout=0.0",
)
#: Memories that do not outweigh a task of 16 examples, prompts that tiny backbones have room for; no dropout, of which
#: smaller passes draw another.
FEW = {
    "replay_online": ("method.replay_online.size=24",),
    "der": ("method.der.size=9",),
    "gem": ("method.gem.size=12", "method.gem.batch_size=5"),
    "agem": ("method.agem.size=12", "method.agem.batch_size=5"),
    "ogd": ("method.ogd.examples=5",),
    "idbr": ("method.idbr.every=2", "method.idbr.batch_size=5", "method.idbr.share=0.25", "method.idbr.kept=random"),
    "mbpa": (
        "method.mbpa.every=2",
        "method.mbpa.batch_size=5",
        "method.mbpa.neighbours=3",
        "method.mbpa.local_steps=2",
    ),
    "sdft": ("method.sdft.max_new_tokens=6",),
    "lamol": ("method.lamol.max_new_tokens=12",),
    "lfpt5": ("method.lfpt5.length=6", "method.lfpt5.tries=2", "method.lfpt5.max_new_tokens=12"),
    "opr": ("method.opr.budget=4", "method.opr.candidates=8"),
    "prog_prompt": ("method.prog_prompt.length=3",),
    **{node: (f"method.{node}.dropout=0.0",) for node in ("seq_lora", "inc_lora", "o_lora", "lora")},
}
REVIEWS = (
    "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}]",
    "task_order.base.test=8",
    "task_order.incremental.test=4",
)


#: Random models whose texts differ in their middle: with the default 0.02 nothing but biases learns in a few steps.
SPREAD = "++backbone.architecture={initializer_range: 0.2}"


@functools.cache
def two_tasks(family: str, root: Path, spread: bool = False) -> Config:
    """Two small tasks on a family's tiny backbone; a method's nodes are still to be put in.

    Args:
        spread: the weights of a language model that sees, too, so that what it reads matters.
    """
    options = ["method=seq_ft", *SMALL]
    if family == "llava":
        wide = [SPREAD.replace("architecture=", "architecture.text_config=")] if spread else []
        return pictures.config(_pictures(root), f"root={root}", *wide, *(o for o in options if "dropout" not in o))
    wide = [SPREAD] if family in ("bert", "llama", "gpt2") else []
    return tiny_config(root, f"backbone=tiny_{family}", "backbone.max_length=44", *REVIEWS, *wide, *options)


def nodes_for(row: Row) -> dict[str, Any]:
    """What `method` holds of a configuration: the option need not be composed anew; test_conf.py composes all."""
    options = [option for node in row.nodes for option in FEW.get(node, ())]
    own = [node for node, values in row.nodes.items() if values.get("learning_rate")]
    options += [f"method.{node}.learning_rate=null" for node in own]
    if "slm" in row.nodes:
        options += tiny_encoder()
    found = OmegaConf.to_container(OmegaConf.merge({"method": row.nodes}, OmegaConf.from_dotlist(options)))
    assert isinstance(found, dict)
    return found["method"]


def configured(row: Row, family: str, root: Path) -> Config:
    """Two small tasks for a method."""
    writes = any(method_spec(node).writes for node in row.nodes)
    return two_tasks(family, root, writes).model_copy(update={"method": nodes_for(row)})


def _pictures(root: Path) -> Path:
    folder = root / "pictures"
    return folder if folder.is_dir() else pictures.data(folder)


def saved(tree: Any) -> Any:
    """As a checkpoint holds it and gives it back."""
    tensors: dict[str, Tensor] = {}
    packed = pack(tree, tensors)
    return unpack(packed, {name: tensor.clone() for name, tensor in tensors.items()})


def check(row: Row, family: str, root: Path) -> None:
    """As a run does before weights are loaded."""
    config = configured(row, family, root)
    tasks = build_tasks(config.task_order, config.task)
    skeleton = build_family(config.backbone, label_union(tasks)).skeleton()
    build_method(config.method).check(skeleton, config.backbone.max_length)


class Recorded(Losses):
    """A task as the run sees it: what it changes and certifies, and what a checkpoint in its middle would hold."""

    def __init__(self, learner: Learner, method: Chain, folder: Path, middle: int):
        super().__init__()
        self._learner, self._method, self._middle = learner, method, middle
        self._changes = Changes(learner, folder, "none", {})
        self.prepared: Any = None
        self.inside: Any = None
        self.training: Any = None
        self.entries = 0
        self.allowed: dict[str, Tensor | None] = {}
        self.apart: list[float] = []  # from the teacher of what it writes itself, before and after

    def on_prepared(self, task: Task) -> None:
        self.prepared = saved(self._method.state_dict())

    def on_begin(self, task: Task) -> None:
        learner = self._learner
        self._changes.begins()
        self.before = learner.weights() | {name: learner.before[name].clone() for name in learner.what.written}
        self.added = set(learner.added)
        names = [*learner.params(), *learner.what.written, *learner.what.merged]
        self.allowed = {name: learner.selected.get(name) for name in names}
        self._look(task)

    def on_step(self, task: Task, progress: Progress, numbers: dict[str, float]) -> None:
        super().on_step(task, progress, numbers)
        if progress.step == self._middle:
            self.inside, self.training = saved(self._method.state_dict()), saved(progress.state_dict())

    def on_trained(self, task: Task, entries: int, best: object) -> None:
        self._look(task)
        self.entries = entries
        self.after = self._learner.weights()
        self.detail = self._changes.keep(task, entries)

    def _look(self, task: Task) -> None:
        """How far a student is from its teacher on answers that it draws by the same numbers every time."""
        if not any(method_spec(node).writes for node in self._method.methods):
            return
        kept = {name: (p, p.grad) for name, p in self._learner.params().items()}
        parts = self._method.steps(self._learner, task, 0, [[Part(task.train)]])[0]
        self.apart.append(backward(self._learner, self._method, parts, None, Passes((), False)).terms["sdft"])
        for parameter, gradient in kept.values():
            parameter.grad = gradient


class Cell:
    """A method on a family that has learned two tasks.

    Attributes:
        first, second: the two tasks, as they were learned.
        losses: of each task's training examples, before and after it was learned.
        state: of the method in the end.
    """

    def __init__(self, row: Row, family: str, root: Path):
        check(row, family, root)
        self.row = row
        self.config = configured(row, family, root)
        self.learner, self.method, self.tasks = tiny_learner(self.config)
        self.losses: list[tuple[float, float]] = []
        self.first = self._learn(0, root)
        self.between = self.learner.weights()
        self.second = self._learn(1, root)
        self.state = saved(self.method.state_dict())

    def _learn(self, index: int, root: Path) -> Recorded:
        task = self.tasks[index]
        watch = Recorded(self.learner, self.method, root, middle=2)
        before = loss_of(self.learner, task)
        learn_task(self.learner, self.method, task, self.config.training, watch)
        after = loss_of(self.learner, task)
        # What retrieval gives a text, and prompts of tasks, is another thing while its own task trains; who learns what
        # it writes itself comes nearer to its teacher, not to the answers.
        specs = [method_spec(node) for node in self.row.nodes]
        others = any(spec.routes or (spec.renews and spec.isolates) for spec in specs)
        others |= bool(SETS & self.row.nodes.keys())
        seen = (watch.losses[0], watch.losses[-1]) if others else (before, after)
        self.losses.append((watch.apart[0], watch.apart[1]) if watch.apart else seen)
        return watch

    def beside(self, *companions: str) -> Learner:
        """Both tasks learned anew, in a chain with others that are given no weight."""
        config = self.config.model_copy(update={"method": {**self.config.method, **idle_nodes(*companions)}})
        learner, method, tasks = tiny_learner(config)
        for task in tasks[:2]:
            learn_task(learner, method, task, config.training, Losses())
        return learner

    def again(self, state: Any, resume: Any, *more: str) -> tuple[Learner, Chain, list[float]]:
        """The second task from a saved state, in another process as it were."""
        config = self.config
        if more:
            training = config.training.model_dump()
            for override in more:
                key, _, value = override.partition("=")
                *path, last = key.split(".")
                functools.reduce(dict.__getitem__, path, training)[last] = int(value)
            config = config.model_copy(update={"training": type(config.training).model_validate(training)})
        learner, method, tasks = tiny_learner(config)
        learner.put(self.between)
        method.load_state_dict(saved(state))
        watch = Losses()
        learn_task(learner, method, tasks[1], config.training, watch, resume=saved(resume), fresh=False)
        return learner, method, watch.losses


def idle_nodes(*choices: str) -> dict[str, dict[str, Any]]:
    """Penalties and distillations whose term is 0."""
    return {node: {**values, "strength": 0.0} for choice in choices for node, values in nodes_of(choice).items()}


@torch.no_grad()
def loss_of(learner: Learner, task: Task) -> float:
    """The mean loss of a task's training examples, without dropout."""
    learner.model.eval()
    return float(learner.forward(learner.collate(task.train)).loss)


def moved(cell: Cell) -> dict[str, Tensor]:
    """Which entries the second task moved, by name, flattened."""
    before, after = cell.second.before, cell.second.after
    return {name: (after[name] != before[name]).flatten() for name in before if name in after}


def fits(pattern: str, name: str) -> bool:
    """Whether a whole name is of a pattern."""
    return re.fullmatch(pattern, name) is not None
