"""How training's options enter a plan: stages of single tasks, optimizers, the best epoch, the work announced."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from plans import TASKS, meta, model_of, numbers_of, setting
from tiny import run_command, tiny, tiny_config

from cl_runner.compose import compose
from cl_runner.data.task import build_tasks
from cl_runner.needs import Needs
from cl_runner.optimizer import build_optimizer
from cl_runner.planning.imitation import Ledger
from cl_runner.planning.memory import advice
from cl_runner.planning.numbers import counts_of
from cl_runner.planning.optimizers import OptimizerNumbers
from cl_runner.planning.peaks import phases
from cl_runner.planning.planner import Planner
from cl_runner.planning.seconds import work
from cl_runner.planning.speed import Speed
from cl_runner.planning.work import units
from cl_runner.prepared import prepare

#: Two tasks with stages of their own: one with its own passes, one with other epochs alone.
OWN_STAGES = (
    "task_order.tasks=[{name: base, domains: [novels, films]}, "
    "{name: kettles, training: {batch_size: 12, micro_batch: 3}}, {name: software, training: {epochs: 5}}]"
)


# Stages of single tasks ---------------------------------------------------------------------------------------------


def test_a_task_with_a_stage_of_its_own() -> None:
    s = numbers_of("method=seq_ft", OWN_STAGES, "training.incremental.micro_batch=4")
    assert [task.stage for task in s.tasks] == ["base", "tasks.1", "incremental"]
    assert [task.steps for task in s.tasks] == [12, 4, 15]
    assert [task.passed for task in s.tasks] == [96, 48, 120]
    assert [s.pass_size(task) for task in s.tasks] == [8, 3, 4]
    assert [s.accumulates(task) for task in s.tasks] == [False, True, True]
    assert phases(s)[1:-1] == ["train base", "train tasks.1", "train incremental"]
    assert work(s)["train"][0] == 96 + 48 + 120
    limited = numbers_of("method=seq_ft", OWN_STAGES, "training.max_steps=5")
    assert [task.steps for task in limited.tasks] == [5, 4, 5]
    assert [task.passed for task in limited.tasks] == [40, 48, 40]


def test_of_an_epoch_that_is_cut_short_the_batches_count_that_there_are() -> None:
    batches = ["training.incremental.batch_size=10", "training.max_steps=4"]
    assert numbers_of("method=seq_ft", *batches).tasks[1].passed == 24 + 10  # 10, 10, 4, and 10


def test_advice_for_a_task_with_passes_of_its_own(tmp_path: Path) -> None:
    """The key belongs to the order, and the run's folder of options to the line to type."""
    order = tmp_path / "task_order"
    order.mkdir()
    kettles = "{name: kettles, training: {batch_size: 16, micro_batch: 16}}"
    (order / "own.yaml").write_text(
        f"# @package _global_\ndefaults: [reviews, _self_]\ntask_order: {{tasks: [{{name: films}}, {kettles}]}}\n"
    )
    given = ["backbone=tiny_bert", "method=seq_ft", "task_order=own"]
    request = compose(given, [tmp_path])
    key = "task_order.tasks.1.training.micro_batch"

    class Formula(Planner):
        def peak(self, s, phase):  # type: ignore[no-untyped-def]
            return s.micro_batch["tasks.1"] * 10**9 if phase == "train tasks.1" else 0

    planner = Formula(lambda: meta("bert"), 0)
    own = dataclasses.replace(TASKS[1], stage="tasks.1", largest_part=16)
    s = setting(device="cuda", tasks=(TASKS[0], own), micro_batch={"base": 8, "incremental": 8, "tasks.1": 16})
    text = advice(planner, s, 5 * 10**9, request.command_with)
    assert text.endswith(f"{key}=4")
    changed = compose([*given, f"{key}=4"], [tmp_path]).config.task_order.tasks[1].training
    assert changed is not None and (changed.batch_size, changed.micro_batch) == (16, 4)


# Optimizers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "bytes_of_an_entry"),
    [
        ("adamw", [], 8),
        ("adamw", ["bias_correction=false"], 8),
        ("sgd", ["momentum=0.9"], 4),
        ("sgd", [], 0),
        ("adafactor", [], None),
    ],
)
def test_an_optimizer_holds_what_the_plan_says(
    name: str, options: list[str], bytes_of_an_entry: int | None, tmp_path: Path
) -> None:
    chosen = [f"training.{option}" for option in (f"optimizer={name}", *options)]
    training = tiny_config(tmp_path, *chosen).training
    parameters = dict(model_of("bert").named_parameters())
    optimizer = build_optimizer(parameters, training, 1e-3)
    trained, largest = sum(p.numel() for p in parameters.values()), max(p.numel() for p in parameters.values())

    def update() -> int:
        """The most that lives beside what was there."""
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        with Ledger() as ledger:
            optimizer.step()
        return ledger.peak_bytes

    update()
    numbers = numbers_of("method=seq_ft", *chosen).optimizer
    held = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    real = sum(t.numel() * t.element_size() for t in held)
    planned = numbers.state_bytes([tuple(p.shape) for p in parameters.values()])
    assert planned == real
    if bytes_of_an_entry is not None:
        assert planned == bytes_of_an_entry * trained
    else:  # a matrix of 300 x 64 has 300 + 64 sums
        assert planned < 0.2 * 4 * trained
    room = numbers.room(trained, largest, on_gpu=False)
    least = room if name != "adafactor" else room * 2 / 3  # the tensor before the largest one is smaller
    assert least <= update() <= room + 5000


def test_optimizers_change_memory_disk_and_time() -> None:
    planner = Planner(lambda: meta("bert"), 0)
    weights = sum(p.numel() for p in meta("bert").parameters())
    adamw = setting(device="cuda", tasks=TASKS[:1], needs=Needs("all", "all"))
    step = planner.prices.train(adamw, TASKS[0]).peak_bytes
    speed = Speed(1e9, 1e9, 1e-5)
    load = planner.peak(adamw, "load")
    for numbers, state in (
        (OptimizerNumbers("sgd", momentum=True, decay=False), 4 * weights),
        (OptimizerNumbers("sgd", decay=False), 0),
    ):
        s = dataclasses.replace(adamw, optimizer=numbers)
        # Values before the task, what the optimizer holds, and a pass; or a checkpoint.
        assert planner.peak(s, "train base") == load + 4 * weights + state + max(step, 4 * weights + state)
        assert planner.disk(s)["state while running"] == 2 * (4 * weights + state)
        assert planner.seconds(s, speed)["train"] < planner.seconds(adamw, speed)["train"]
    factored = dataclasses.replace(adamw, optimizer=OptimizerNumbers("adafactor"))
    assert load + 4 * weights + step < planner.peak(factored, "train base") < planner.peak(adamw, "train base")
    half = dataclasses.replace(adamw, optimizer=OptimizerNumbers("sgd"), micro_batch={"base": 1}, max_length=4)
    # On a GPU the gradients with their decay lie beside the gradients.
    assert planner.peak(half, "train base") == load + 4 * weights + 8 * weights


def test_a_method_may_bring_its_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from cl_runner.methods.seq_ft import SeqFT

    monkeypatch.setattr(SeqFT, "needs", lambda *_: Needs("all", "all", optimizer="adafactor"))
    assert numbers_of("method=seq_ft").optimizer.name == "adafactor"
    assert numbers_of("method=ewc", "training.optimizer=sgd").optimizer.name == "sgd"


# The best epoch -----------------------------------------------------------------------------------------------------

SELECTS = (
    "training.select=best_validation",
    "task_order.base.validation=10",
    "task_order.incremental.validation=6",
)


def test_selecting_an_epoch_costs_a_copy_and_evaluations() -> None:
    plain, s = numbers_of("method=seq_ft"), numbers_of("method=seq_ft", *SELECTS)
    assert [task.validated for task in s.tasks] == [2 * 10, 2 * 6, 2 * 6]
    cut = numbers_of("method=seq_ft", *SELECTS, "training.max_steps=4")  # an epoch and a part of one; the base's part
    assert [task.validated for task in cut.tasks] == [10, 2 * 6, 2 * 6]
    assert [task.validated for task in numbers_of("method=frozen", *SELECTS).tasks] == [20, 0, 0]
    assert work(s)["select"] == (44, 44 * s.mean_length)
    assert work(s)["evaluate"] == work(plain)["evaluate"]
    assert "select" not in phases(plain) and "select" in phases(s)
    planner = Planner(lambda: meta("bert"), 0)
    weights = sum(p.numel() for p in meta("bert").parameters())
    assert planner.disk(s)["state while running"] - planner.disk(plain)["state while running"] == 2 * 4 * weights
    assert planner.disk(s)["predictions"] == planner.disk(plain)["predictions"]
    # While it is selected, all that training holds is there.
    gpu = dataclasses.replace(s, device="cuda")
    passes = planner.prices.evaluate(gpu)["forward"][0].peak_bytes
    assert planner.peak(gpu, "select") == planner.peak(gpu, "load") + (4 + 8 + 4) * weights + passes
    small = dataclasses.replace(gpu, micro_batch={"base": 1, "incremental": 1}, max_length=4)
    without = dataclasses.replace(small, selects_epoch=False)
    # The best values so far are held beside it; a checkpoint, written one tensor after the other, adds nothing.
    assert planner.peak(small, "train base") - planner.peak(without, "train base") == 4 * weights
    speed = Speed(1e9, 1e9, 1e-5)
    found = planner.seconds(s, speed)
    assert found["select"] == pytest.approx(found["evaluate"] * 44 / s.evaluated)
    assert planner.seconds(plain, speed)["select"] == 0


def test_a_run_that_selects_evaluates_as_often_as_planned(tmp_path: Path) -> None:
    few = ["task_order.base.test=3", "task_order.incremental.test=3", "training.max_steps=4"]
    assert run_command(tiny(tmp_path, "method=seq_ft", *SELECTS, *few)) == 0
    (path,) = tmp_path.rglob("summary.json")
    summary = json.loads(path.read_text())
    plan = json.loads((path.parent / "plan.json").read_text())
    planned = numbers_of("method=seq_ft", *SELECTS, *few).tasks
    evaluations = [task["selected_epoch"]["evaluations"] for task in summary["tasks_detail"]]
    assert [n * size for n, size in zip(evaluations, (10, 6, 6), strict=True)] == [task.validated for task in planned]
    assert set(plan["phases"]) == {"load", "train", "select", "evaluate"}
    assert plan["phases"]["select"]["bytes"] >= plan["phases"]["train"]["bytes"]
    for phase, said in plan["phases"].items():
        assert said["bytes"] / 2**20 == pytest.approx(summary["peak_memory_mib"][phase], rel=0.3)


def test_an_order_on_a_hub_says_how_many_examples_select() -> None:
    config = compose(tiny(Path("nowhere"), "method=seq_ft", *SELECTS, "task_order.incremental.validation=null")).config
    with pytest.raises(ValueError, match=r"task_order\.incremental\.validation=1000"):
        counts_of(config, None)


# The work announced -------------------------------------------------------------------------------------------------


def test_a_run_announces_what_its_methods_will_do(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=[replay,pe]", *SELECTS, "importance.passes=2")
    found = units(config, prepare(config, build_tasks(config.task_order, config.task)))
    union = (20 + 10 + 10) / 3
    assert found == {
        "evaluate": pytest.approx(union),
        "base/train": pytest.approx(96 + 20 / 3),
        "base/evaluate": pytest.approx(union),
        "kettles/importance": pytest.approx(2 * 1.2 * 48),
        "kettles/train": pytest.approx(48 + 2 * 5 + 12 / 3),
        "kettles/evaluate": pytest.approx(union),
        "software/importance": pytest.approx(2 * 1.2 * 72),
        "software/train": pytest.approx(48 + 2 * 7 + 12 / 3),
        "software/evaluate": pytest.approx(union),
    }
    piece = tiny_config(
        tmp_path, "backbone=tiny_llama", "method=piece_f", "probe=[held_text,task_loss]", "probe.task_loss.examples=12"
    )
    found = units(piece, prepare(piece, build_tasks(piece.task_order, piece.task)))
    assert list(found)[:4] == ["evaluate", "write text", "held text", "task loss"]
    assert (found["base/importance"], found["kettles/importance"]) == (pytest.approx(1.2 * 48), pytest.approx(1.2 * 24))
    assert found["kettles/held text"] == pytest.approx(64 / 3)
    assert found["kettles/task loss"] == pytest.approx((12 + 10 + 10) / 3)
    assert "base/write text" not in found
    frozen = tiny_config(tmp_path, "method=frozen", "evaluation.tasks=seen")
    found = units(frozen, prepare(frozen, build_tasks(frozen.task_order, frozen.task)))
    assert "kettles/train" not in found
    assert (found["evaluate"], found["base/evaluate"]) == (0, pytest.approx(20 / 3))
