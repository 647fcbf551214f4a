"""The plan of a run with slm: against its real passes, a real run, and numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import learn, run_command, tiny, tiny_config, tiny_encoder, tiny_learner

from cl_runner.build import build_method
from cl_runner.compose import compose
from cl_runner.config import Config
from cl_runner.data.example import Example
from cl_runner.learner import Learner
from cl_runner.methods.base import Chain
from cl_runner.needs import Retrieves
from cl_runner.planning.imitation import Ledger
from cl_runner.planning.numbers import counts_of, setting_of, skeleton
from cl_runner.planning.planner import Planner
from cl_runner.planning.retrieval import EncoderNumbers, encoder_of
from cl_runner.planning.seconds import work
from cl_runner.planning.setting import Setting
from cl_runner.planning.speed import Speed
from cl_runner.planning.tasks import ask

LONGEST, ANSWER, GENERATED = 40, 20, 12


def learned(tmp_path: Path, *overrides: str) -> tuple[Learner, Chain, Config]:
    """A learner after the first of three tasks; each batch holds eight texts."""
    config = tiny_config(
        tmp_path,
        "method=slm",
        "training.max_steps=1",
        f"backbone.max_length={LONGEST}",
        *(() if "backbone=tiny_bert" in overrides else (f"task.reviews.max_new_tokens={GENERATED}",)),
        "evaluation.batch_size=8",
        *tiny_encoder(),
        *overrides,
    )
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    return learner, method, config


def planned(config: Config, learner: Learner, device: str = "cpu") -> tuple[Planner, Setting]:
    """The planner of its run, in which all texts are as long as may be."""
    labels = len({label for task in learner.tasks for label in task.labels})
    model = skeleton(config.backbone, labels)
    s = setting_of(config, counts_of(config, learner.tasks), model, device, None)  # type: ignore[arg-type]
    return Planner(lambda: skeleton(config.backbone, labels), 0), s


def texts(examples: Sequence[Example]) -> list[Example]:
    """Eight of the greatest length, which are cut, but for one: there is padding."""
    found = [dataclasses.replace(example, prompt="very good " * 40) for example in examples[:8]]
    return [*found[:7], dataclasses.replace(found[7], prompt="very good")]


@pytest.mark.parametrize(
    ("backbone", "value", "later"),
    [
        ("tiny_bert", "jare", False),
        ("tiny_bert", "jare", True),
        ("tiny_bert", "prompt", True),
        ("tiny_llama", "jare", True),
        ("tiny_llama", "prompt", False),
        ("tiny_llama", "adapter", True),
        ("tiny_t5", "prompt", True),
        ("tiny_t5", "adapter", False),
    ],
)
def test_retrieved_values_live_like_the_real_ones(backbone: str, value: str, later: bool, tmp_path: Path) -> None:
    answers = [] if backbone == "tiny_bert" else [f"backbone.max_answer_length={ANSWER}"]
    learner, method, config = learned(tmp_path, f"backbone={backbone}", f"method.slm.value={value}", *answers)
    if not later:  # the first one again
        learner, method, _ = tiny_learner(config)
    task = learner.tasks[int(later)]
    method.select(learner, task)
    learner.choose(task, method.trains(learner, task))
    learner.begin()
    planner, s = planned(config, learner)
    examples = texts(task.train)
    if answers:
        examples = [dataclasses.replace(e, answer="y" * (ANSWER - 1)) for e in examples]
    batch = learner.collate([examples[i] for i in range(8)])
    assert batch["input_ids"].shape[1] == LONGEST + (ANSWER if backbone == "tiny_llama" else 0)
    learner.model.train()
    with Ledger() as ledger:
        output = learner.forward(batch)
        output.loss.backward()
    real = ledger.cost()
    found = planner.prices.train(s, s.tasks[int(later)])
    assert found.peak_bytes == pytest.approx(real.peak_bytes, rel=0.1)
    assert found.flops == pytest.approx(real.flops, rel=0.05)


@pytest.mark.parametrize(
    ("backbone", "value"),
    [("tiny_bert", "adapter"), ("tiny_llama", "jare"), ("tiny_llama", "prompt"), ("tiny_t5", "jare")],
)
def test_answers_are_retrieved_for_as_imitated(backbone: str, value: str, tmp_path: Path) -> None:
    learner, _, config = learned(tmp_path, f"backbone={backbone}", f"method.slm.value={value}")
    examples = texts(learner.tasks[0].test)
    batch = learner.collate([examples[i] for i in range(8)], answers=False)
    learner.model.eval()
    with torch.no_grad(), Ledger() as ledger:
        learner.answer(batch, dataclasses.replace(learner.answering(learner.tasks[0]), max_new_tokens=GENERATED))
    real = ledger.cost()
    planner, s = planned(config, learner)
    stages = planner.prices.evaluate(s)["forward" if backbone == "tiny_bert" else "generate"]
    assert max(cost.peak_bytes for cost in stages) == pytest.approx(real.peak_bytes, rel=0.1)


def numbers_of(*overrides: str) -> tuple[Setting, Retrieves, EncoderNumbers]:
    """Of a run with hidden width 32 in two layers and an encoder of 48 numbers; no data are read."""
    config = compose([*tiny(Path("nowhere"), "method=slm", *tiny_encoder(), *overrides)]).config
    model = skeleton(config.backbone, 3)
    s = setting_of(config, counts_of(config, None), model, "cuda", None)
    assert s.needs.retrieves is not None and s.encoder is not None
    return s, s.needs.retrieves, s.encoder


def test_single_tasks_train_their_own_head_again() -> None:
    _, r, _ = numbers_of("method.slm.rank=5", "method.slm.slots=3", "task_order=[reviews,single_task]")
    assert list(r.trained.values()) == [3 * 2 * 5 * (32 + 32) + 3 * (32 + 1)] * 3
    assert not r.foreign


def test_numbers_by_hand() -> None:
    s, r, encoder = numbers_of("method.slm.rank=5", "method.slm.slots=3", "method.slm.key_batch_size=7")
    width = 2 * 5 * (32 + 32)  # layers, rank, in and out
    assert (r.width, r.slots, r.given, r.room, encoder.query, encoder.tokens) == (width, 3, 2, 0, 48, 256)
    head = 3 * (32 + 1)  # of all labels, which the first task has
    assert list(r.trained.values()) == [3 * width + head, 3 * width, 3 * width]
    assert s.stored == 3 * 3 * (width + 48)
    assert [task.trains for task in s.tasks] == ["retrieved"] * 3
    assert (s.encoded, s.encoder_length) == (48 + 20 + 2 * (24 + 10), 256)
    planner = Planner(lambda: skeleton(compose(tiny(Path("nowhere"), "method=slm")).config.backbone, 3), 0)
    prices = planner.prices
    weights = planner.architecture.parameters(s)
    step = prices.train(s, s.tasks[1]).peak_bytes
    resident = 4 * (weights + s.stored)
    assert planner.peak(s, "load") == resident + 4 * s.stored
    encoded = resident + 4 * encoder.entries
    assert planner.peak(s, "keys") == encoded
    assert planner.peak(s, "queries") == encoded + prices.encode(s, encoder).peak_bytes
    # Values before the task and moments beside them; gradients belong to the step.
    assert planner.peak(s, "train incremental") == encoded + 12 * 3 * width + max(step, 12 * 3 * width)
    assert planner.disk(s)["snapshots"] == 4 * sum(r.trained.values()) + 3 * 4 * 3 * 48
    assert work(s)["keys"][0] == 3 * 96
    speed = Speed(1e9, 1e9, 1e-5)
    steps = 3 * (7 + 4 + 4)  # epochs, batches of 7 of 48, 24 and 24
    assert planner.seconds(s, speed)["keys"] == pytest.approx(steps * speed.seconds(encoder.key_step))
    assert planner.seconds(s, speed)["queries"] == pytest.approx(
        speed.seconds(prices.encode(s, encoder), s.mean_length / 256) * s.encoded / 64
    )
    # Backward: the gradients of the inputs, and of the factors themselves.
    products = 2 * 2 * 2 * 5 * (32 + 32)  # layers, K, r, in and out; times 2
    plain = prices.forward_flops(s)
    assert prices.flops_per_token(s, s.tasks[1]) == pytest.approx(2 * plain + 3 * products)


@pytest.mark.parametrize(
    ("overrides", "given", "room", "foreign"),
    [
        ([], 2, 0, True),
        (["method.slm.top_k=4", "method.slm.aggregate=per_group"], 12, 0, True),
        (["method.slm.aggregate=per_group", "method.slm.task_identity=true"], 4, 0, False),
        (["method.slm.value=prompt", "method.slm.prompt_length=7", "method.slm.pool=current"], 2, 14, False),
    ],
)
def test_what_a_text_is_given(overrides: list[str], given: int, room: int, foreign: bool) -> None:
    s, r, _ = numbers_of(*overrides)
    assert (r.given, r.room, r.foreign) == (given, room, foreign)
    assert s.max_length == compose(list(tiny(Path("nowhere"), "method=slm"))).config.backbone.max_length + room


def test_an_encoder_that_is_not_here_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = ["method.slm.encoder.checkpoint=sentence-transformers/of-nowhere", "method.slm.encoder.package=null"]
    elsewhere += ["method.slm.encoder.revision=null", "method.slm.encoder.weights_sha256=null"]
    arguments = tiny(Path("nowhere"), "method=slm", *elsewhere)
    assert run_command(["plan", *arguments]) == 0
    assert "of-nowhere is not on this machine: assumed is an encoder of BERT-base's size" in capsys.readouterr().out
    config = compose(arguments).config
    needs = ask(build_method(config.method), config, skeleton(config.backbone, 3))
    assert needs.retrieves is not None
    assert encoder_of(needs.retrieves).entries == 109_482_240


def test_llama_without_network(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["method=slm", "method.slm.rank=8", "backbone=llama2_7b", "hardware=gpu", *tiny_encoder()]
    overrides += ["hardware.gradient_checkpointing=true", "backbone.architecture.num_hidden_layers=4"]
    overrides += [f"training.{stage}.micro_batch=2" for stage in ("base", "incremental")]
    assert run_command(["plan", "--json", *overrides]) == 0
    plan = json.loads(capsys.readouterr().out)
    values = 4 * 2 * 4096 * 8 * 4  # slots, in and out, width, rank, layers
    assert set(plan["trainable_by_task"].values()) == {values}
    weights = 4 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096 + 2 * 32000 * 4096
    assert plan["parameters"] == weights
    assert plan["phases"]["keys"]["bytes"] - 2 * weights < 4 * (5 * (values + 4 * 48) + 200_000)
    assert 0 < plan["phases"]["train"]["bytes"] - plan["phases"]["keys"]["bytes"] < 2e9
    assert plan["assumed"] == ""


def test_plan_of_a_run_is_what_it_takes(tmp_path: Path) -> None:
    assert run_command(tiny(tmp_path, "method=slm", *tiny_encoder())) == 0
    (folder,) = {path.parent for path in tmp_path.rglob("summary.json")}
    plan = json.loads((folder / "plan.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert set(plan["phases"]) == {"load", "queries", "keys", "train", "evaluate"}
    assert plan["trainable"] == [task["trainable"] for task in summary["tasks_detail"]]
    for phase, said in plan["phases"].items():
        assert said["bytes"] / 2**20 == pytest.approx(summary["peak_memory_mib"][phase], rel=0.3)
