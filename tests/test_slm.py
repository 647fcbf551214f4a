"""SLM as a method: what stays, what is visible, what runs leave, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import learn, run_command, seeded, tiny, tiny_config, tiny_encoder, tiny_learner, weights_of

from cl_runner.build import build_method
from cl_runner.families.base import Answering
from cl_runner.layers.values import Retrieved
from cl_runner.retrieval.encoder import Queries
from cl_runner.retrieval.keys import new_keys, own_weight, retrieve, similarities, train_keys, unit_keys

#: Texts of a task.
SIZES = {"train": 16, "test": 10}
ASKED = (
    "Read the following text, which a customer of our shop has written, and decide whether its author was content. "
    "Answer with one word. Text: "
)


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

    used.clear()
    learner.method = chain
    slm.task_identity = False
    with learner.telling(["task"]):  # what an oracle does
        learner.forward(learner.collate(mixed))
    assert bool((used[0].slots[:3] >= 4).all()) and bool((used[0].slots[3:] < 4).all())


def test_told_labels_are_the_only_answers(tmp_path: Path) -> None:
    learner, _, tasks = tiny_learner(tiny_config(tmp_path, "method=seq_ft"))
    batch = learner.collate(tasks[0].test[:6], answers=False)
    for label in tasks[0].labels:
        found = learner.answer(batch, Answering(8, labels=(label,)))
        assert {prediction.text for prediction in found} == {label} and found[0].confidence == 1


def test_texts_that_the_encoder_cuts_are_counted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=slm", "method.slm.encoder.max_length=16", *tiny_encoder())
    slm = build_method(config.method).methods["slm"]
    queries = Queries(slm.encoder, torch.device("cpu"), None, lambda *progress: None)
    assert queries.longer(["a", "a " * 14, "a " * 15]) == (1, 16), "two tokens are the text's ends"


def test_a_common_mean_taken_off_helps_keys_that_have_few_steps(tmp_path: Path) -> None:
    """Texts that share an instruction lie close together for MiniLM, as its keys do then."""
    parts = ("novels", "albums", "games", "toys")
    given = [f"task_order.tasks=[{','.join(f'{{name: {part}}}' for part in parts)}]"]
    given += [f"task_order.{which}.{split}={n}" for which in ("base", "incremental") for split, n in SIZES.items()]
    config = tiny_config(tmp_path, "method=slm", "method.slm.key_steps=60", *given)
    _, chain, tasks = tiny_learner(config)
    slm = chain.methods["slm"]
    queries = Queries(slm.encoder, torch.device("cpu"), None, lambda *progress: None)
    train, test = ([queries([ASKED + e.prompt for e in getattr(task, split)]) for task in tasks] for split in SIZES)

    def served(center: torch.Tensor) -> float:
        """Percent of the texts whose own task's slots hold more than half of the weight."""
        keys = []
        for number, queries in enumerate(train):
            epochs, decay_every = slm._schedule(len(queries))
            start = new_keys(slm.groups, slm.slots, 64, seeded(number))
            chosen = {"top_k": 2, "mask": 0.2, "batch_size": 4, "learning_rate": 1e-3, "clip": 0.1}
            chosen |= {"epochs": epochs, "decay_every": decay_every, "generator": seeded(number)}
            keys.append(train_keys(start, queries - center, **chosen))
        units, found = unit_keys(torch.cat(keys, 1)), []
        for number, queries in enumerate(test):
            retrieved = retrieve(similarities(queries - center, units), 2)
            first = torch.full((len(queries),), 4 * number)
            found.append(own_weight(retrieved, first, first + 4) > 0.5)
        return 100 * float(torch.cat(found).float().mean())

    assert served(train[0].mean(0)) > served(torch.zeros(384)) + 20


def test_a_run_leaves_the_papers_numbers_and_small_snapshots(tmp_path: Path) -> None:
    from cl_runner.sparse.snapshots import describe_snapshot, read_snapshot

    given = [*tiny(tmp_path, "method=slm", "probe=oracle", "method.slm.center=generic", *tiny_encoder())]
    assert run_command(given) == 0
    (path,) = tmp_path.rglob("summary.json")
    details = json.loads(path.read_text())["tasks_detail"]
    last = details[-1]["method"]["slm"]
    assert list(last["retrieval_accuracy"]) == ["base", "kettles", "software"]
    times = last["timing"]["base"]
    assert set(times) == {"encoder_ms", "retrieval_ms", "answer_ms", "encoder_share_percent", "retrieval_share_percent"}
    assert all(value > 0 for value in times.values()) and times["encoder_ms"] < times["retrieval_ms"]
    assert list(last["served"]) == ["base", "kettles", "software"]
    metrics = json.loads(path.read_text())["metrics"]
    named = ("served_retrieval/majority", "served_retrieval/own_weight", "retrieval_accuracy/slm")
    assert [name for name in metrics if "retrieval" in name] == list(named), "what is served comes first"
    assert metrics[named[0]] == pytest.approx(sum(each["served_percent"] for each in last["served"].values()) / 3)
    log = (path.parent / "log.txt").read_text()
    # The labels are the same in all tasks, and the encoder reads 64 tokens.
    assert [d["method"]["slm"]["head_rows"] for d in details] == [3, 0, 0] and log.count(
        "trains no row of the head"
    ) == 2
    assert f"retrieval after software: {named[0]} {metrics[named[0]]:.1f} %" in log
    assert last["keys"] == 24 and last["keys_unmoved"] == 0
    ability = [line.split(",") for line in (path.parent / "ability.csv").read_text().splitlines()]
    tasks = ("base", "kettles", "software", "mean")
    assert ability[0][1:] == [f"oracle/{way}/{task}" for way in ("task", "labels", "both") for task in tasks]
    # Every label is every task's, so that to be told of them changes nothing.
    for after, row in zip(ability[1:], (path.parent / "accuracy.csv").read_text().splitlines()[1:], strict=True):
        assert [float(cell) for cell in after[5:8]] == [float(cell) for cell in row.split(",")[1:]]
        assert after[9:] == after[1:5]
    assert all({"keys", "train"} <= set(detail["phases"]) for detail in details)
    assert all(detail["certificate"]["holds"] for detail in details)
    from safetensors.torch import load_file

    keys = load_file(path.parent / "keys.safetensors")
    for number, detail in enumerate(details):
        (file,) = (path.parent / "snapshots").glob(f"{number:02d}_*")
        changes = read_snapshot(file).changes
        names = {name for name in changes if not name.startswith("classifier")}
        center = set() if number else {"slm.center"}  # it is the first task's
        assert names == {f"slm.{kind}.{number:02d}" for kind in ("keys", "values")} | center
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
        (["method=seq_ft", "probe=oracle"], r"Type: probe.oracle.tell=\[labels\] \(or method=slm\)"),
        (["method=slm", "method.slm.center=first"], r"method.slm.center must be 'none', 'first_task' or 'generic'"),
        (["method=slm_prompt"], r"Type: backbone.max_length=N, with N smaller by"),
        (["method=slm", "backbone=tiny_llava"], r"slm supports the families classifier, causal, seq2seq"),
        (["method=slm", "method.slm.encoder.checkpoint=./nowhere"], r"method.slm.encoder.checkpoint=./nowhere: no"),
    ],
)
def test_mistakes(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = "[" in given[0] or "method=seq_ft" in given
    encoder = [] if other else [o for o in tiny_encoder() if o.partition("=")[0] not in given[-1]]
    assert run_command([*tiny(tmp_path, *given), *encoder]) == 2
    assert re.search(said, capsys.readouterr().err)
