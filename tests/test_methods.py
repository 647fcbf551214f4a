"""One table: every method through every invariant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, learn, tiny_config, tiny_encoder, tiny_learner, weights_of

from cl_runner.batch import Part
from cl_runner.built_in import METHODS
from cl_runner.compose import compose
from cl_runner.groups import options
from cl_runner.importance import fisher
from cl_runner.methods.base import Chain, Method
from cl_runner.methods.ewc import EWC
from cl_runner.methods.selector import Selector
from cl_runner.optimizer import build_optimizer, decays
from cl_runner.parts import method_spec
from cl_runner.prepared import prepare


@dataclass(frozen=True)
class Row:
    """What is known of a method before it runs."""

    choice: str  # method=<choice>
    trained: float  # share of the weights that learn a later task: 1 = all, 0 = none
    families: tuple[str, ...] = ("bert", "llama", "gpt2", "t5")


ROWS = (
    Row("seq_ft", 1.0),
    Row("frozen", 0.0, ("bert", "llama")),
    Row("ewc", 1.0),
    Row("lwf", 1.0),
    Row("ewc_lwf", 1.0, ("bert",)),
    Row("ewc_piece", 1.0, ("bert",)),
    Row("lwf_piece", 1.0, ("llama",)),
    Row("pe", 0.005),
    Row("pe_rand", 0.005, ("bert", "t5")),
    Row("pe_select", 0.005, ("bert", "llama")),
    # Presets of one class that differ in numbers: a family each.
    Row("pe_main", 0.005, ("bert",)),
    Row("pe_0.1", 0.001, ("llama",)),
    Row("pe_qkv", 0.005, ("bert",)),  # names of BERT's matrices
    Row("layer_norm", 0.06),
    Row("piece_f", 0.001),
    Row("piece_s", 0.001),
    Row("piece_f_1", 0.01, ("t5",)),
    Row("piece_s_1", 0.01, ("bert",)),
    Row("piece_rand", 0.001, ("bert", "llama")),
    Row("piece_rand_1", 0.01, ("llama",)),
    Row("[ewc,lwf,pe_select]", 0.005),
    Row("replay", 1.0),
    Row("replay_online", 1.0),
    # Presets of one class that differ in numbers: a family each.
    Row("replay_trace", 1.0, ("llama",)),
    Row("replay_piece", 1.0, ("bert",)),
    Row("replay_online_piece", 1.0, ("bert",)),
    Row("replay_migu", 1.0, ("t5",)),
    Row("replay_idbr", 1.0, ("bert",)),
    Row("der", 1.0),
    Row("[replay,lwf,piece_s]", 0.001, ("bert", "t5")),
    Row("[replay_online,ewc,lwf]", 1.0, ("bert", "llama")),
    Row("[der,ewc,piece_s]", 0.001, ("bert", "llama")),
    Row("gem", 1.0, ("bert",)),
    Row("agem", 1.0, ("llama",)),
    Row("[agem,piece_s]", 0.001, ("bert",)),
    Row("[ogd,bitfit]", 0.25, ("bert", "llama")),
    Row("ogd", 1.0, ("bert",)),
    Row("l2", 1.0, ("bert",)),
    Row("mas", 1.0, ("t5",)),
    Row("si", 1.0, ("bert",)),
    Row("[mas,si,piece_s]", 0.001, ("bert",)),
    Row("ewc_online", 1.0, ("bert",)),
    Row("bitfit", 0.24, ("bert", "llama")),
    Row("head_only", 0.24, ("llama",)),
    Row("first_layers", 0.42, ("t5",)),
    Row("last_layers", 0.3, ("bert",)),
    Row("magnitude_smallest", 0.005, ("bert",)),
    Row("magnitude_largest", 0.001, ("llama",)),
    Row("migu", 1.0, ("bert", "t5")),
    Row("migu_piece", 1.0, ("llama",)),
    Row("opr", 1.0, ("bert", "llama")),
    Row("opr_sc", 1.0, ("t5",)),
    Row("[opr,lwf,piece_s]", 0.001, ("bert",)),
    Row("multi_task", 1.0, ("bert",)),
    Row("masked_kl", 1.0, ("t5",)),
    Row("[masked_kl,piece_s]", 0.001, ("bert",)),
    Row("icl", 0.0, ("llama", "t5")),
    # What trains is beside the weights, or joins them at the end.
    Row("seq_lora", -1, ("bert", "gpt2")),
    Row("inc_lora", -1, ("bert", "llama")),
    Row("o_lora", -1, ("bert", "t5")),
    Row("lora", -1, ("bert", "llama")),
    Row("osf", -1, ("bert", "llama")),
    Row("slm", 0.0, ("bert", "llama", "t5", "gpt2")),
    Row("slm_ti", 0.0, ("bert", "llama")),
    Row("slm_prompt", 0.0, ("bert", "llama", "t5", "gpt2")),
    Row("slm_adapter", 0.0, ("bert", "llama", "t5")),
    Row("slm_release", 0.0, ("bert",)),
    Row("slm_bert", 0.0, ("bert",)),
    Row("slm_t5", 0.0, ("t5",)),
    Row("slm_llama", 0.0, ("llama",)),
    Row("slm_llama_release", 0.0, ("llama",)),
)
#: Of the tied GPT-2 some rows are enough: its layers are the other architectures' but for Conv1D and the tie.
TABLE = [
    (r, f)
    for r in ROWS
    for f in r.families
    if f != "gpt2" or r.choice in ("seq_ft", "pe", "piece_s", "replay", "der", "slm", "slm_prompt")
]
every = pytest.mark.parametrize(("row", "family"), TABLE, ids=[f"{row.choice}-{family}" for row, family in TABLE])


def options_of(row: Row, family: str, *more: str) -> list[str]:
    chosen = [f"method={row.choice}", f"backbone=tiny_{family}", *more]
    if row.trained == -1:
        chosen.append(f"method.{row.choice}.learning_rate=null")
    if row.choice.startswith("slm"):
        chosen += [*tiny_encoder(), "method.slm.learning_rate=null", "backbone.max_length=44"]
    return chosen


def test_the_table_has_every_method() -> None:
    assert {row.choice for row in ROWS if "[" not in row.choice} == set(options("method"))


@every
def test_learns_and_moves_only_what_it_may(row: Row, family: str, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, *options_of(row, family, "training.base.learning_rate=3e-3", "training.weight_decay=0.5")
    )
    learner, method, tasks = tiny_learner(config)
    losses = learn(learner, method, tasks[0], config)
    assert row.choice == "icl" or sum(losses[-6:]) < sum(losses[:6]), "the base task is not learned"
    before = weights_of(learner)
    losses = learn(learner, method, tasks[1], config)
    after = weights_of(learner)
    new = {name: torch.full_like(value, torch.nan) for name, value in after.items() if name not in before}
    before |= new
    moved = {name: (after[name] != before[name]).flatten() for name in before}
    total = sum(m.numel() for m in moved.values())
    count = sum(int(m.sum()) for m in moved.values())
    if row.trained == -1:
        (chooser,) = (m for m in method.methods.values() if m.chooses)
        may = chooser.trains(learner, tasks[1])
        own = {name for name, flags in moved.items() if bool(flags.any())}
        assert own and own <= {*may.of(learner.model), *may.merged}
    elif learner.added:
        own = {name for name, flags in moved.items() if bool(flags.any())}
        assert own <= learner.added and all(".01" in name for name in own), "something of another task moved"
        assert "slm.values.01" in own
        assert ("slm.keys.01" in own) == (row.choice != "slm_release"), "there from the first task on"
    elif row.trained == 0:
        assert count == 0 and losses == []
    elif row.trained == 1:
        assert count > 0.5 * total
    else:
        assert 0 < count <= 1.3 * row.trained * total
        (selector,) = (m for m in method.methods.values() if m.chooses)
        if not isinstance(selector, Selector):
            assert all(
                not bool(flags.any()) or name in selector.candidates(learner.model) for name, flags in moved.items()
            )
            return
        for name, flags in moved.items():
            allowed = torch.zeros_like(flags)
            if name in selector.indices:
                allowed[selector.indices[name]] = True
            assert not bool((flags & ~allowed).any()), f"{name}: a fixed weight moved"


@every
def test_state_round_trip_gives_the_same_second_task(row: Row, family: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *options_of(row, family))
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    learner.grow(tasks[1])
    method.select(learner, tasks[1])
    learner.choose(tasks[1], method.trains(learner, tasks[1]))
    method.before_task(learner, tasks[1])
    state = copied(method.state_dict())
    weights = weights_of(learner)
    first = learn(learner, method, tasks[1], config, fresh=False)
    again, fresh, _ = tiny_learner(config)
    again.put(weights)
    fresh.load_state_dict(state)
    second = learn(again, fresh, tasks[1], config, fresh=False)
    assert first == second
    left, right = weights_of(learner), weights_of(again)
    assert all(torch.equal(left[name], right[name]) for name in left)


def copied(tree: Any) -> Any:
    from cl_runner.checkpoint import pack, unpack

    tensors: dict[str, torch.Tensor] = {}
    return unpack(pack(tree, tensors), tensors)


@pytest.mark.parametrize("name", METHODS)
def test_schema_read_from_source_is_the_dataclass(name: str) -> None:
    import dataclasses
    import importlib

    module, _, class_name = METHODS[name].partition(":")
    cls = getattr(importlib.import_module(f"cl_runner.methods.{module}"), class_name)
    spec = method_spec(name)
    assert list(spec.schema.model_fields) == [field.name for field in dataclasses.fields(cls)]
    assert spec.families == cls.families and (spec.chooses, spec.isolates, spec.protects) == (
        cls.chooses,
        cls.isolates,
        cls.protects,
    )


def test_ewc_gradient_is_the_gradient_of_its_penalty_and_selected_entries_only(tmp_path: Path) -> None:
    """Against autograd of PE eq. 4 in fp64."""
    config = tiny_config(tmp_path, "method=pe", "method.ewc.strength=3.5", "method.pe.fraction=0.05")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    method.select(learner, tasks[1])
    learner.choose(tasks[1], method.trains(learner, tasks[1]))
    method.before_task(learner, tasks[1])
    learner.begin()
    with learner.holding():
        _check_penalty(learner, method.methods["ewc"])


def _check_penalty(learner: Any, ewc: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for values in learner.trained.values():
        values.data.add_(torch.randn(values.shape, generator=generator))
        values.grad = None
    ewc.grads(learner)
    assert all(ewc.fisher[n].shape == index.shape for n, index in learner.selected.items())  # no more is kept
    variables = {n: v.detach().double().requires_grad_() for n, v in learner.trained.items()}
    penalty = sum(
        3.5 * (ewc.fisher[n].double() * (v - learner.before[n].double()) ** 2).sum() for n, v in variables.items()
    )
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(learner.terms["ewc"], rel=1e-4)
    for name, variable in variables.items():
        assert torch.allclose(learner.trained[name].grad.double(), variable.grad, rtol=1e-4, atol=1e-12), name


def test_ewc_of_pieces_release_has_400_and_a_half(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=ewc_piece")
    learner, method, tasks = tiny_learner(config)
    ewc = method.methods["ewc"]
    learn(learner, method, tasks[0], config)
    assert isinstance(ewc, EWC) and (ewc.strength, ewc.with_half, ewc.fisher_data) == (400, True, "last_task")
    learner.choose(tasks[1], None)
    learner.begin()
    with learner.holding():
        name, values = next(iter(learner.trained.items()))
        values.data.add_(0.5)
        values.grad = None
        method.grads(learner)
        torch.testing.assert_close(values.grad, 400 * ewc.fisher[name] * (values.detach() - learner.before[name]))
        assert learner.terms["ewc"] == pytest.approx(float(200 * (0.25 * ewc.fisher[name]).sum()), rel=1e-3)


def test_online_ewc_adds_up_the_fisher_of_each_task(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=ewc", "method.ewc.fisher_data=last_task", "method.ewc.decay=0.5")
    learner, method, tasks = tiny_learner(config)
    ewc = method.methods["ewc"]
    learn(learner, method, tasks[0], config)
    first = {n: f.clone() for n, f in ewc.fisher.items()}
    learn(learner, method, tasks[1], config)
    second = fisher(learner, tasks[1].train)
    assert all(torch.allclose(ewc.fisher[n], second[n] + 0.5 * first[n]) for n in second)


def test_old_data_of_a_joint_order_count_once(tmp_path: Path) -> None:
    request = compose([*TINY, f"root={tmp_path}", "task_order=[reviews,joint]", "method=ewc"])
    from cl_runner.data.task import build_tasks

    tasks = prepare(request.config, build_tasks(request.config.task_order, request.config.task)).tasks
    assert [len(task.train) for task in tasks] == [48, 72, 96]
    learner, _, _ = tiny_learner(request.config)
    learner.tasks, learner.joint = tasks, True
    assert len(learner.old_examples(tasks[2])) == 72


def test_lwf_term_by_hand(tmp_path: Path) -> None:
    """PE eq. 5: squared distance of the outputs, summed over classes, mean over the batch."""
    config = tiny_config(tmp_path, "method=lwf", "method.lwf.strength=2.0")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    method.before_task(learner, tasks[1])
    method.data(learner, tasks[1], [tasks[1].train])
    recorded = learner.record_logits(tasks[1].train)
    part = Part(tasks[1].train)
    batch = method.prepare(learner, part, learner.collate([tasks[1].train[i] for i in [3, 1]]))
    assert torch.equal(batch["lwf"], recorded[[3, 1]])
    output = learner.forward(batch)
    shift = torch.zeros_like(recorded[:2])
    shift[0, 0], shift[1, 1] = 1.0, 2.0
    output.logits = recorded[[3, 1]] + shift
    assert float(method.loss(learner, part, batch, output)) == pytest.approx(2.0 * (1.0 + 4.0) / 2)


def test_lwf_pulls_towards_the_old_outputs(tmp_path: Path) -> None:
    def drift(choice: str) -> float:
        config = tiny_config(tmp_path, f"method={choice}", "training.incremental.learning_rate=3e-3")
        learner, method, tasks = tiny_learner(config)
        learn(learner, method, tasks[0], config)
        old = learner.record_logits(tasks[1].train)
        learn(learner, method, tasks[1], config)
        return float((learner.record_logits(tasks[1].train) - old).square().mean())

    assert drift("lwf") < 0.7 * drift("seq_ft")


def test_sparse_training_equals_dense_masked_adamw(tmp_path: Path) -> None:
    """Compact values against full tensors whose gradient is masked, step by step; decay on selected entries only."""
    config = tiny_config(tmp_path, "method=pe_select", "method.pe.fraction=0.02", "training.weight_decay=0.1")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    start = weights_of(learner)
    learn(learner, method, tasks[1], config)
    indices = method.methods["pe"].indices

    dense, _, _ = tiny_learner(config)
    dense.put(start)
    masked_adamw(dense, tasks[1], indices, config)
    left, right = weights_of(learner), weights_of(dense)
    for name in left:
        assert torch.allclose(left[name], right[name], rtol=0, atol=2e-7), name


def masked_adamw(learner: Any, task: Any, indices: dict[str, torch.Tensor], config: Any) -> None:
    """The reference: dense gradients times a mask, and fixed entries copied back after each step."""
    import math

    from cl_runner.train import derive_seed, epoch_order, learning_rate_factor

    parameters = learner.parameters()
    masks = {}
    for name, p in parameters.items():
        masks[name] = torch.zeros(p.numel(), dtype=torch.bool)
        if name in indices:
            masks[name][indices[name]] = True
        masks[name] = masks[name].view_as(p)
    optimizer = build_optimizer(parameters, config.training, 2e-3)
    stage = config.training.incremental
    per_epoch = math.ceil(len(task.train) / stage.batch_size)
    steps = per_epoch * stage.epochs
    learner.model.train()
    for step in range(steps):
        epoch, within = divmod(step, per_epoch)
        order = epoch_order(learner.seed, task.index, epoch, len(task.train))
        torch.manual_seed(derive_seed(learner.seed, "step", task.index, step))
        batch = learner.collate(
            [task.train[i] for i in order[within * stage.batch_size : (within + 1) * stage.batch_size]]
        )
        learner.forward(batch).loss.backward()
        for name, p in parameters.items():
            p.grad.mul_(masks[name])
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.training.clip)
        rate = 2e-3 * learning_rate_factor(step, steps, config.training.schedule, config.training.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(torch.where(masks[name], p, kept[name]))


def test_biases_and_norms_do_not_decay() -> None:
    assert decays("bert.encoder.layer.0.output.dense.weight")
    assert not decays("bert.encoder.layer.0.output.dense.bias")
    assert not decays("bert.encoder.layer.0.output.LayerNorm.weight")


def test_impossible_fraction_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=pe_select", "method.pe.fraction=1e-9")
    learner, method, _ = tiny_learner(config)
    with pytest.raises(ValueError, match=r"selects not one.*Type: method\.pe\.fraction="):
        method.check(learner.model, 64)


class Toy(Method):
    """Touches every hook that the shipped methods leave alone."""

    def __init__(self, mark: str):
        self.mark = mark

    def data(self, learner: Any, task: Any, epochs: Any) -> list[Any]:
        return [*epochs, self.mark]

    def loss(self, learner: Any, part: Any, batch: Any, output: Any) -> float:
        return float(len(self.mark))

    def predict(self, learner: Any, batch: Any, inner: Any) -> list[Any]:
        return [self.mark, *inner(batch), self.mark]


def test_a_chain_is_a_method() -> None:
    chain = Chain({"outer": Toy("a"), "inner": Toy("bb")})
    nested = Chain({"chain": chain, "more": Toy("c")})
    assert nested.data(None, None, ["x"]) == ["x", "a", "bb", "c"]  # type: ignore[arg-type]
    assert nested.loss(None, None, {}, None) == 4.0  # type: ignore[arg-type]
    assert nested.predict(None, {}, lambda batch: ["p"]) == ["a", "bb", "c", "p", "c", "bb", "a"]  # type: ignore
