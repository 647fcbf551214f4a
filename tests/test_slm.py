"""SLM as a method: what stays, what is visible, what runs leave, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import learn, run_command, tiny, tiny_config, tiny_encoder, tiny_learner, weights_of

from cl_runner.layers.values import Retrieved


@pytest.mark.parametrize("pool", ["prefix", "current", "all"])
def test_old_values_stay_bit_by_bit_and_what_is_visible(pool: str, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        "method=slm",
        *tiny_encoder(),
        f"method.slm.pool={pool}",
        "method.slm.learning_rate=0.05",
        "training.weight_decay=0.5",
    )
    learner, chain, tasks = tiny_learner(config)
    slm = chain.methods["slm"]
    learn(learner, chain, tasks[0], config)
    first = weights_of(learner)
    seen: list[tuple[int, int]] = []
    real = slm._visible
    slm._visible = lambda given: seen.append(real(given)) or seen[-1]
    learn(learner, chain, tasks[1], config)
    assert set(seen) >= {{"prefix": (0, 2), "current": (1, 2), "all": (0, 3)}[pool]}
    after = weights_of(learner)
    moved = {name for name in after if not torch.equal(after[name], first[name])}
    assert "slm.values.01" in moved
    assert not any(".00" in name or ".02" in name for name in moved)
    assert real(learner) == {"prefix": (0, 2), "current": (0, 2), "all": (0, 3)}[pool]


def test_task_identity_shows_each_text_its_own_slots(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=slm_ti", *tiny_encoder())
    learner, chain, tasks = tiny_learner(config)
    for task in tasks[:2]:
        learn(learner, chain, task, config)
    slm = chain.methods["slm"]
    used: list[Retrieved] = []
    real = slm.values.use
    slm.values.use = lambda rows, found, batch: used.append(found) or real(rows, found, batch)
    learner.model.eval()
    mixed = [*tasks[1].test[:3], *tasks[0].test[:3]]
    learner.forward(learner.collate([mixed[i] for i in range(6)]))
    assert bool((used[0].slots[:3] >= 4).all()) and bool((used[0].slots[3:] < 4).all())


def test_a_run_leaves_the_papers_numbers_and_small_snapshots(tmp_path: Path) -> None:
    from cl_runner.sparse.snapshots import describe_snapshot, read_snapshot

    given = [*tiny(tmp_path, "method=slm", *tiny_encoder())]
    assert run_command(given) == 0
    (path,) = tmp_path.rglob("summary.json")
    details = json.loads(path.read_text())["tasks_detail"]
    last = details[-1]["method"]["slm"]
    assert list(last["retrieval_accuracy"]) == ["base", "kettles", "software"]
    assert set(last["timing"]["base"]) == {"retrieval_ms", "answer_ms", "retrieval_share_percent"}
    assert all({"keys", "train"} <= set(detail["phases"]) for detail in details)
    assert all(detail["certificate"]["holds"] for detail in details)
    from safetensors.torch import load_file

    keys = load_file(path.parent / "keys.safetensors")
    for number, detail in enumerate(details):
        (file,) = (path.parent / "snapshots").glob(f"{number:02d}_*")
        changes = read_snapshot(file).changes
        names = {name for name in changes if not name.startswith("classifier")}
        assert names == {f"slm.{kind}.{number:02d}" for kind in ("keys", "values")}
        slots, width = changes[f"slm.values.{number:02d}"].bits.shape
        assert slots == 4 and width == 2 * 12 * (32 + 32)  # two layers, r = 12, width 32
        assert detail["stored"] == describe_snapshot(file).stored
        assert keys[detail["name"]].shape == (6, 4, 8)


@pytest.mark.parametrize("head", ["shared", "by_num_labels"])
def test_single_tasks_learn_all_of_their_own_again(head: str, tmp_path: Path) -> None:
    """The labels are the same in all tasks; each begins with a head that nobody has trained."""
    given = tiny(tmp_path, "method=slm", "task_order=[reviews,single_task]", f"method.slm.head={head}", *tiny_encoder())
    assert run_command(given) == 0
    (path,) = tmp_path.rglob("summary.json")
    details = json.loads(path.read_text())["tasks_detail"]
    assert len({detail["trainable"] for detail in details}) == 1
    assert all(detail["method"]["slm"]["retrieval_accuracy"] == {} for detail in details)
    assert "retrieval_accuracy/slm" not in json.loads(path.read_text())["metrics"]


def test_another_encoder_than_the_package_carries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tiny(tmp_path, "method=slm", "method.slm.encoder.checkpoint=sentence-transformers/nli-mpnet-base-v2")
    assert run_command(given) == 2
    assert "method.slm.encoder.package=null method.slm.encoder.revision=null" in capsys.readouterr().err


def test_answers_by_prefix_have_room_for_prompts(tmp_path: Path) -> None:
    given = tiny(
        tmp_path, "method=slm_prompt", "backbone=tiny_llama", "evaluation.answer_slice=prefix", *tiny_encoder()
    )
    assert run_command([*given, "training.max_steps=1", "method.slm.prompt_length=2"]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method=[ewc,slm]"], r"ewc would have nothing to do. Type: method=slm"),
        (["method=[slm,piece_s]"], r"slm and piece both decide what trains.*Type: method=slm \(or method=piece_s\)"),
        (["method=slm", "method.slm.groups=5"], r"48 numbers cannot be cut .* Type: method.slm.groups=4"),
        (["method=slm", "method.slm.top_k=5"], r"Type: method.slm.top_k=4"),
        (["method=slm", "method.slm.head=per_task"], r"Type: method=slm_ti"),
        (["method=slm", "method.slm.targets=[outpt]"], r"method.slm.targets.0 must be 'attention_output', 'query'"),
        (["method=slm", "backbone=tiny_gpt2", "method.slm.targets=[query]"], r"it has attention_output"),
        (["method=slm_adapter", "backbone=tiny_gpt2"], r"Type: method.slm.value=jare"),
        (["method=slm_adapter", "method.slm.aggregate=per_group"], r"Type: method.slm.aggregate=mean_sim"),
        (["method=slm", "task_order=[reviews,joint]"], r"Type: method=seq_ft for the upper bound"),
        (["method=slm", "method.slm.encoder.max_length=9999"], r"Type: method.slm.encoder.max_length=null"),
        (["method=slm_prompt"], r"Type: backbone.max_length=N, with N smaller by"),
        (["method=slm", "backbone=tiny_llava"], r"slm supports the families classifier, causal, seq2seq"),
        (["method=slm", "method.slm.encoder.checkpoint=./nowhere"], r"method.slm.encoder.checkpoint=./nowhere: no"),
    ],
)
def test_mistakes(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = [] if "[" in given[0] else [o for o in tiny_encoder() if o.partition("=")[0] not in given[-1]]
    assert run_command([*tiny(tmp_path, *given), *encoder]) == 2
    assert re.search(said, capsys.readouterr().err)
