"""The plan of a real run, and the command `plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import TINY, run_command, tiny

from cl_runner.compose import compose
from cl_runner.planning import memory as machine
from cl_runner.planning.numbers import counts_of, local_family, local_tasks, setting_of, skeleton
from cl_runner.planning.plan import plan_run


@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_t5"])
def test_plan_of_a_run_is_in_its_folder(backbone: str, tmp_path: Path) -> None:
    few = ["task_order.base.train=16", "task_order.incremental.train=8"]
    arguments = tiny(tmp_path, "method=pe", f"backbone={backbone}", *few)
    assert run_command(arguments) == 0
    (folder,) = {path.parent for path in tmp_path.rglob("summary.json")}
    plan = json.loads((folder / "plan.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    named = {"phases", "disk_bytes", "trainable", "flops_per_token", "flops_per_second", "basis", "unsaid", "fitted"}
    assert set(plan) == named and plan["fitted"] == {}, "it fits as it was asked"
    assert set(plan["phases"]) == {"load", "importance", "train", "evaluate"}
    assert len(plan["flops_per_token"]) == 3 and plan["flops_per_second"] > 1e6
    assert plan["flops_per_token"][0] == pytest.approx(1.5 * plan["flops_per_token"][1])
    trained = [task["trainable"] for task in summary["tasks_detail"]]
    # Every layer's share is rounded by itself.
    assert plan["trainable"] == [pytest.approx(n, abs=5) for n in trained]
    for phase, planned in plan["phases"].items():
        assert planned["bytes"] / 2**20 == pytest.approx(summary["peak_memory_mib"][phase], rel=0.3)


def test_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plan", *TINY, "method=pe"]) == 0
    text = capsys.readouterr().out
    for part in ("load", "importance", "train", "evaluate", "Disk:", "It fits", "a short calibration"):
        assert part in text
    assert run_command(["plan", "--json", *TINY, "method=pe"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["optimizer_steps"] == 12 + 6 + 6
    assert content["phases"]["train"]["examples"] == 2 * (48 + 24 + 24)
    assert content["phases"]["train"]["seconds"] > 0
    assert content["advice"] is None


def test_command_explains_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plan", "metod=pe"]) == 2
    assert "Nearest: 'method'" in capsys.readouterr().err
    assert run_command(["plan", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err


def test_llama_without_network(capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of its layers is planned, whose passes take a quarter of the time."""
    whole = skeleton(compose(["method=piece_s", "backbone=llama2_7b"]).config.backbone, 0)
    assert sum(p.numel() for p in whole.parameters()) == 6_738_415_616
    layers, parameters = 8, 1_881_214_976
    overrides = ["method=piece_s", "backbone=llama2_7b", "hardware=gpu", "hardware.gradient_checkpointing=true"]
    overrides += [f"training.{stage}.micro_batch=2" for stage in ("base", "incremental")]
    assert run_command(["plan", "--json", *overrides, f"backbone.architecture.num_hidden_layers={layers}"]) == 0
    plan = json.loads(capsys.readouterr().out)
    # A layer: 4 x 4096^2 + 3 x 4096 x 11008 and two norms; embeddings, the last norm, and the output layer.
    linear = layers * (4 * 4096**2 + 3 * 4096 * 11008)
    assert parameters == linear + layers * 2 * 4096 + 4096 + 2 * 32000 * 4096
    assert plan["parameters"] == parameters
    assert plan["phases"]["load"]["bytes"] == 2 * parameters
    # 0.1 % of all but the embeddings, in bf16: weights, 28 bytes an entry, and less than 2 GB of activations.
    assert 0 < plan["phases"]["train"]["bytes"] - 2 * parameters < 2e9
    assert (plan["longest_text"], plan["longest_answer"], plan["longest_generated"]) == (1024, 512, 16)
    # Of 1536 tokens 513 reach the output layer; attention: two products with all positions. Selected entries train, so
    # that backward costs one more forward pass.
    forward = 2 * linear + 2 * 32000 * 4096 * 513 / 1536 + layers * 4 * 4096 * 1536
    assert plan["flops_per_token"] == [pytest.approx(2 * forward)] * 5
    assert plan["flops_per_second"] is None


def test_seventy_billion_weights_from_the_configuration_alone() -> None:
    """LLaMA-2-70B: grouped queries, so that keys and values are an eighth as wide."""
    whole = skeleton(compose(["method=piece_s", "backbone=llama2_70b"]).config.backbone, 0)
    layer = 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert sum(p.numel() for p in whole.parameters()) == 80 * layer + 8192 + 2 * 32000 * 8192 == 68_976_648_192


def test_a_run_that_does_not_fit_gets_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "device_bytes", lambda device: 1_000_000)
    assert run_command(["plan", *TINY, "method=seq_ft"]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text and "No change of options" in text


def test_a_run_that_holds_more_than_there_is_is_refused_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what its methods keep, with the bytes and the line to type, which fits; typed again it is refused again."""
    typed = [*tiny(tmp_path, "method=ogd", "task_order.base.train=200", "task_order.incremental.train=200")]
    typed += ["method.ogd.examples=100"]
    request = compose(typed)
    tasks = local_tasks(request.config)
    planner, s, _ = plan_run(request, tasks, local_family(request.config.backbone, tasks), calibrates=False)
    entries = planner.architecture.parameters(s)
    held, own = planner.held(s)
    assert own == 4 * 2 * 100 * entries  # two tasks before the third
    assert held == planner.base_bytes + own + 4 * entries * 4  # weights, weights before, both moments
    monkeypatch.setattr(machine, "device_bytes", lambda device: held - own // 2)
    monkeypatch.setattr("cl_runner.planning.memory.resident_bytes", lambda: planner.base_bytes)
    monkeypatch.setattr("cl_runner.families.classifier.Classifier.build", None)  # nothing is loaded
    for _ in range(2):
        assert run_command(typed) == 2
        said = capsys.readouterr().err
        assert "ogd on tiny_bert holds" in said and "for what ogd keeps" in said and "changes the results" in said
    assert not list(tmp_path.rglob("plan.json")) and not list(tmp_path.rglob("FAILED"))
    (few,) = [word for word in said.split() if word.startswith("method.ogd.examples=")]
    request = compose([*typed[:-1], few])
    fewer = setting_of(
        request.config, counts_of(request.config, tasks), skeleton(request.config.backbone, 3), "cpu", None
    )
    assert few != "method.ogd.examples=100" and planner.held(fewer)[0] <= held - own // 2
    assert run_command(["plan", *typed]) == 0
    assert "A run is refused: ogd on tiny_bert holds" in capsys.readouterr().out


def test_a_memory_that_is_never_full_counts_what_comes_by() -> None:
    full, empty = (compose([*TINY, "method=der", f"method.der.size={size}"]).config for size in (40, 10**9))
    bytes_of = []
    for config in (full, empty):
        model = skeleton(config.backbone, 3)
        s = setting_of(config, counts_of(config, local_tasks(config)), model, "cpu", None)
        bytes_of.append((s.memory_bytes, s.needs.memory_bytes, sum(task.passed for task in s.tasks)))
    assert bytes_of[0][0] == bytes_of[0][1] == 40 * 12
    assert bytes_of[1][0] == 12 * bytes_of[1][2] < bytes_of[1][1]
