"""Methods with a memory: what is replayed, how a step is made of it, and that nothing of it depends on the passes."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import table_rows, words
from tiny import Losses, learn, run_command, tiny, tiny_config, tiny_learner
from torch.nn import functional

from cl_runner.batch import Part
from cl_runner.learn import learn_task
from cl_runner.methods.memory import own_examples, place_of, recall, reservoir_slots
from cl_runner.methods.recorded import record_logits
from cl_runner.methods.replay import Replay

FAMILIES = ("bert", "llama", "t5")


class Steps(Losses):
    """All steps of a chain, as they are handed to the loop."""

    def __init__(self, method: Any):
        super().__init__()
        self.steps: list[list[list[Part]]] = []
        real = method.steps

        def steps(*given: Any) -> Any:
            self.steps.append(real(*given))
            return self.steps[-1]

        method.steps = steps


def two_tasks(tmp_path: Path, *overrides: str) -> tuple[Any, Any, Any, Steps, Steps]:
    """The learner, the chain and the configuration after two tasks, and what their steps were."""
    config = tiny_config(tmp_path, *overrides)
    learner, method, tasks = tiny_learner(config)
    watches = []
    for task in tasks[:2]:
        real = method.steps
        watches.append(Steps(method))
        learn_task(learner, method, task, config.training, watches[-1])
        method.steps = real
    return learner, method, config, watches[0], watches[1]


def test_equal_texts_stay_apart(tmp_path: Path) -> None:
    """Two tasks of one domain, drawn from the same few reviews: every example knows which task's it is."""
    config = tiny_config(
        tmp_path, "task_order.tasks=[{name: one, domains: [kettles]}, {name: two, domains: [kettles]}]"
    )
    _, _, tasks = tiny_learner(config)
    first, second = tasks
    assert {e.prompt for e in first.train} & {e.prompt for e in second.train}, "the tasks share texts"
    assert not set(first.train) & set(second.train)
    assert [(e.task, e.row) for e in second.train] == [(1, row) for row in range(24)]
    assert recall(tasks, [place_of(e) for e in (*second.train, *first.train)]) == [*second.train, *first.train]


def test_a_joint_orders_examples_are_found_again(tmp_path: Path) -> None:
    from cl_runner.compose import compose
    from cl_runner.data.task import build_tasks
    from cl_runner.prepared import prepare

    config = compose(tiny(tmp_path, "task_order=[reviews,joint]", "method=seq_ft")).config
    own = build_tasks(config.task_order, config.task)
    tasks = prepare(config, own).tasks
    assert [tuple(own_examples(task)) for task in tasks] == [task.train for task in own]


def test_replayed_share_joins_every_epoch(tmp_path: Path) -> None:
    learner, _, _, base, later = two_tasks(tmp_path, "method=replay", "method.replay.share=0.25")
    seen = Counter(e for steps in later.steps for parts in steps for part in parts for e in part.examples)
    old = {e for e in seen if e.task == 0}
    assert len(old) == 12 and set(seen.values()) == {2}, "a quarter of 48, in both epochs"
    assert len(base.steps) == 12 and len(later.steps) == 2 * 5, "36 examples in batches of 8"
    chance = random.Random(learner.seed_of("replay", 0))
    assert sorted(e.row for e in old) == sorted(chance.sample(range(48), 12))


@pytest.mark.parametrize(
    ("choice", "tasks"), [("replay_trace", [1, 1, 1, 1, 1, 1, 0, 0]), ("replay_piece", [1, 1, 1, 0, 0, 1, 1, 1, 0, 0])]
)
def test_epochs_of_old_examples_as_released(choice: str, tasks: list[int], tmp_path: Path) -> None:
    """TRACE: one more epoch over the first ones ends a task; PIECE: one follows each of its epochs."""
    _, _, _, _, later = two_tasks(tmp_path, f"method={choice}", "method.replay.share=0.25")
    batches = [[(e.task, e.row) for e in steps[0][0].examples] for steps in later.steps]
    assert [{task for task, _ in batch} for batch in batches] == [{task} for task in tasks]
    old = [row for batch in batches for task, row in batch if task == 0]
    assert sorted(old) == sorted(list(range(12)) * (len(old) // 12)) and len(old) == 6 * tasks.count(0)


def test_periodic_replay_takes_steps_of_its_own(tmp_path: Path) -> None:
    options = ("method.replay.way=periodic", "method.replay.every=3", "method.replay.batch_size=5")
    _, _, _, _, later = two_tasks(tmp_path, "method=replay", "method.replay.share=0.5", *options)
    assert [len(steps) for steps in later.steps] == [1, 1, 2, 1, 1, 2]
    assert [numbers["optimizer_steps"] for numbers in later.numbers] == [1, 1, 2, 1, 1, 2]
    (part,) = later.steps[2][1]
    assert len(part.examples) == 5 and {e.task for e in part.examples} == {0}


def test_reservoir_is_uniform() -> None:
    """Of 40 newcomers in a reservoir of 8 each one stays with probability 1/5 (4 standard errors)."""
    stayed: Counter[int] = Counter()
    for trial in range(4000):
        chance, memory, seen = random.Random(trial), [-1] * 8, 0
        for size in (3, 7, 10, 20):
            for number, slot in enumerate(reservoir_slots(8, seen, size, chance), start=seen):
                if slot is not None:
                    memory[slot] = number
            seen += size
        stayed.update(memory)
    error = (4000 * 0.2 * 0.8) ** 0.5
    assert all(abs(stayed[number] - 800) < 4 * error for number in range(40)), stayed


@pytest.mark.parametrize("family", FAMILIES)
def test_online_replay_is_the_mean_over_both(family: str, tmp_path: Path) -> None:
    """The step's gradient is that of one batch of new and drawn examples."""
    options = ("method=replay_online", "method.replay_online.size=16", "backbone.dropout=0.0")
    learner, method, _, _, later = two_tasks(tmp_path, *options, f"backbone=tiny_{family}")
    new, old = later.steps[0][0]
    assert len(new.examples) == len(old.examples) == 8 and new.kind == "new" != old.kind
    learner.choose(learner.tasks[1], None)
    with learner.holding():
        wanted = learner.gradient([*new.examples, *old.examples], 16)
        parts = [learner.gradient(part.examples, 8) for part in (new, old)]
    for name, value in wanted.items():
        both = new.weight * parts[0][name] + old.weight * parts[1][name]
        torch.testing.assert_close(both, value, rtol=1e-4, atol=1e-7)
    memory = method.methods["replay_online"].memory
    assert len(memory) == 16 and method.methods["replay_online"].seen == 2 * (48 + 24)
    if family != "bert":  # an answer of more tokens weighs more
        longer = [dataclasses.replace(e, answer=f"{e.answer} and more") for e in new.examples]
        ((first, second),) = method.steps(learner, learner.tasks[1], 0, [[Part(longer)]])
        tokens = [sum(learner.family.targets(part.examples)) for part in (first, second)]
        assert tokens[0] > tokens[1]
        assert [first.weight, second.weight] == pytest.approx([count / sum(tokens) for count in tokens])


@pytest.mark.parametrize("family", FAMILIES)
def test_der_by_hand(family: str, tmp_path: Path) -> None:
    """Buzzega et al. 2020, eq. 6: the loss of a step from its three parts, and logits as they were at that time."""
    options = ("method.der.size=10", "method.der.alpha=0.25", "method.der.beta=0.75", "backbone.dropout=0.0")
    config = tiny_config(tmp_path, f"backbone=tiny_{family}", "method=der", *options, "training.base.epochs=1")
    learner, method, tasks = tiny_learner(config)
    der = method.methods["der"]
    seen: list[tuple[Any, torch.Tensor]] = []
    real = der.loss

    def loss(learner: Any, part: Part, batch: Any, output: Any) -> Any:
        if part.kind == "new":
            for row, example in enumerate(batch.examples):
                seen.append((example, output.logits[output.rows == row].detach().clone()))
        return real(learner, part, batch, output)

    der.loss = loss
    learn(learner, method, tasks[0], config)
    latest = dict(seen)
    for place, logits in zip(der.memory, der.logits, strict=True):
        (example,) = recall(tasks, [place])
        assert torch.equal(logits, latest[example]), "the logits of another example, or of another time"
    learner.choose(tasks[1], None)
    new = tasks[1].train[:8]
    (parts,) = method.steps(learner, tasks[1], 0, [[Part(new)]])
    assert [(part.kind, part.weight, part.labels, len(part.examples)) for part in parts] == [
        ("new", 1.0, True, 8),
        ("der_logits", 0.25, False, 8),
        ("der_labels", 0.75, True, 8),
    ]
    learner.model.eval()
    drawn = {example: list(logits) for example, logits in der._drawn.items()}
    kept = torch.cat([drawn[e].pop() for e in parts[1].examples])
    batch = learner.collate(parts[1].examples)
    output = learner.forward(batch)
    wanted = functional.mse_loss(output.logits.detach(), kept)
    found = torch.as_tensor(der.loss(learner, parts[1], batch, output))
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-6)
    assert float(wanted) > 0
    assert {e.task for part in parts[1:] for e in part.examples} == {0}


@pytest.mark.parametrize(
    ("method", "family"),
    [
        ("[replay,lwf]", "bert"),
        ("[replay,lwf]", "t5"),
        ("[replay_online,lwf,ewc]", "llama"),
        ("[der,lwf]", "bert"),
        ("[der,lwf]", "llama"),
        ("[replay,der,piece_s]", "t5"),
    ],
)
def test_passes_change_neither_draws_nor_step(method: str, family: str, tmp_path: Path) -> None:
    """The same memory, draws and losses however a step is cut into passes."""
    nodes = method.strip("[]").split(",")
    options = [f"method.{node}.size=12" for node in nodes if node in ("replay_online", "der")]
    options += ["method.replay.share=0.25"] * ("replay" in nodes) + ["method.lwf.strength=0.1"] * ("lwf" in nodes)
    options += [f"backbone=tiny_{family}", f"method={method}", "backbone.dropout=0.0", "training.base.epochs=1"]
    whole = two_tasks(tmp_path, *options)
    cut = two_tasks(tmp_path, *options, "training.base.micro_batch=3", "training.incremental.micro_batch=3")

    def drawn(watch: Steps) -> list[Any]:
        return [
            [(p.kind, [place_of(e) for e in p.examples]) for p in parts] for steps in watch.steps for parts in steps
        ]

    assert drawn(whole[4]) == drawn(cut[4])
    assert whole[4].losses == pytest.approx(cut[4].losses, rel=2e-3)
    for name, weight in whole[0].weights().items():
        torch.testing.assert_close(cut[0].weights()[name], weight, rtol=5e-3, atol=1e-4)


def test_lwf_distils_the_new_examples_alone(tmp_path: Path) -> None:
    """Rows that replay brings into a batch count as distance 0; every other row against its own recorded outputs."""
    config = tiny_config(tmp_path, "method=[replay,lwf]", "method.lwf.strength=2.0", "backbone.dropout=0.0")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    method.select(learner, tasks[1])
    learner.choose(tasks[1], None)
    method.before_task(learner, tasks[1])
    (epoch, _) = method.data(learner, tasks[1], [tasks[1].train, tasks[1].train])
    old = [e for e in epoch if e.task == 0]
    recorded = record_logits(learner, tasks[1].train)
    mixed = [tasks[1].train[5], old[0], tasks[1].train[2], old[1]]
    part = Part(mixed)
    batch = method.prepare(learner, part, learner.collate(mixed))
    output = learner.forward(batch)
    output.logits = output.logits.detach() + 1.0
    distances = [(output.logits[0] - recorded[5]), (output.logits[2] - recorded[2])]
    wanted = 2.0 * sum(float(d.square().sum()) for d in distances) / 4
    assert float(method.loss(learner, part, batch, output)) == pytest.approx(wanted, rel=1e-6)


def test_what_was_trained_on_is_counted(tmp_path: Path) -> None:
    options = ("method.replay.way=periodic", "method.replay.every=2", "method.replay.share=0.5")
    options += ("training.incremental.learning_rate=1e-9", "method.replay.batch_size=4")
    assert run_command(tiny(tmp_path, "method=replay", *options)) == 0
    (path,) = tmp_path.rglob("summary.json")
    base, second, third = json.loads(path.read_text())["tasks_detail"]
    assert [base[key] for key in ("train_examples", "steps", "optimizer_steps", "examples_seen")] == [48, 12, 12, 96]
    assert [second[key] for key in ("steps", "optimizer_steps", "examples_seen")] == [6, 9, 48 + 12]
    assert [third[key] for key in ("steps", "optimizer_steps", "examples_seen")] == [6, 12, 48 + 24]
    assert [one["replayed_examples"] for one in (base, second, third)] == [0, 12, 24]
    assert 0 <= second["padding_share"] < 1
    assert 9e-10 < second["steps_times_rate"] < 9e-9 < base["steps_times_rate"]
    # At such rates no loss moves, which the run says and keeps.
    assert [one["loss_went"] for one in (base, second, third)] == ["nowhere"] * 3
    assert "type training.base.learning_rate=0.0003" in base["loss_note"]
    assert "type training.incremental.learning_rate=3e-09" in second["loss_note"]
    assert second["loss_note"] in (path.parent / "log.txt").read_text()
    page = words(path.parent / "report.html")
    assert second["loss_note"] in page
    assert [row[-1] for row in table_rows(page) if row[:2] == [second["name"], "9"]] == ["did not move"]


def test_gradients_of_a_memory_are_replayed_examples(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=gem", "method.gem.size=5", "method.gem.batch_size=null")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    assert learner.replayed == 0
    losses = learn(learner, method, tasks[1], config)
    assert learner.replayed == 5 * len(losses)


@pytest.mark.parametrize("memory", ["replay_online", "der"])
def test_only_own_data_enter_a_reservoir(memory: str, tmp_path: Path) -> None:
    """Neither what another method replays, nor the model's own answers under an old prompt's number."""
    few = ("task_order.base.train=16", "backbone=tiny_llama", "backbone.max_length=24", "backbone.max_answer_length=8")
    options = ("method.opr.budget=8", "method.replay.share=0.5", "training.base.epochs=1")
    learner, method, _, _, _ = two_tasks(tmp_path, f"method=[opr,replay,{memory}]", *options, *few)
    kept = method.methods[memory]
    assert kept.seen == 16 + 2 * 24
    for example, logits in zip(recall(learner.tasks, kept.memory), getattr(kept, "logits", kept.memory), strict=True):
        assert memory == "replay_online" or len(logits) == learner.family.targets([example])[0]


@pytest.mark.parametrize("way", ["mix", "extra_epoch"])
def test_replay_keeps_one_example_at_least(way: str) -> None:
    replay = Replay(share=0.001, kept="random", way=way, every=1, batch_size=1)  # type: ignore[arg-type]
    assert replay._count(2) == 1
