"""Items learned, lost and regained, how they were lost, and kept predictions scored by another metric."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from run_folders import assert_self_contained, make_run, words
from tiny import run_command, tiny_words, without_report

from cl_runner import __main__
from cl_runner.digests import write
from cl_runner.intervals import read_texts
from cl_runner.metrics.forms import has_form
from cl_runner.report.folder import Run, find_runs, read_run
from cl_runner.report.forgotten import NO_FORM, OTHER_TASK, WRONG, forgotten, forgotten_table, items_of, way_of
from cl_runner.report.grouping import group_runs
from cl_runner.report.page import write_run_report

#: Percent of the four items of a task after rows start, a, b, c.
ITEMS = {"a": [[0, 0, 0, 100], [100, 100, 100, 0], [100, 0, 0, 0], [100, 100, 0, 100]]}


def test_items_by_hand() -> None:
    scores = {row: {"a": np.array(values, dtype=float)} for row, values in enumerate(ITEMS["a"])}
    (items,) = items_of(scores, ["a", "b", "c"], 3)[:1]
    assert items.before is not None and items.before.tolist() == [False, False, False, True]
    assert items.own.tolist() == [True, True, True, False]
    assert items.lost.tolist() == [False, False, True, False]
    assert items.regained.tolist() == [False, True, False, False]
    assert items.gained.tolist() == [False, False, False, True]
    graded = {row: {"a": np.array([49.9, 50.0])} for row in range(3)}
    assert items_of(graded, ["a", "b"], 2)[0].own.tolist() == [False, True]
    assert items_of({**graded, 2: {}}, ["a", "b"], 2) == []  # nobody asked at the end


@pytest.mark.parametrize(
    ("prediction", "answer", "metric", "own", "others", "way"),
    [
        ("sport", "good", "accuracy", {"good", "bad"}, {"sport"}, OTHER_TASK),
        (" bad ", "good", "accuracy", {"good", "bad"}, {"sport"}, WRONG),
        ("the review is bad", "good", "accuracy", {"good", "bad"}, {"sport"}, NO_FORM),
        ("", "good", "accuracy", set(), set(), NO_FORM),
        ("no idea", "B", "first_letter", set(), set(), NO_FORM),
        ("C, as he says", "B", "first_letter", set(), set(), WRONG),
        ("eleven", "11", "number", set(), set(), NO_FORM),
        ("12 apples", "11", "number", set(), set(), WRONG),
        ("Monday", "Friday", "number", set(), set(), WRONG),  # the right answer is no number either
        ("any text", "a summary", "rouge_l", set(), set(), WRONG),
    ],
)
def test_how_an_answer_is_wrong(
    prediction: str, answer: str, metric: str, own: set[str], others: set[str], way: str
) -> None:
    assert way_of(prediction, answer, metric, own, others) == way
    assert has_form(metric, answer, answer)


def rewrite(folder: Path, row: int, task: str, predictions: list[str]) -> None:
    """Other predictions, all wrong, of the first items of a task."""
    (path,) = (folder / "predictions").glob(f"{row:02d}_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    of_task = [line for line in lines if line["task"] == task]
    for line, prediction in zip(of_task, predictions, strict=False):
        line |= {"prediction": prediction, "score": 0.0}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def labelled(root: Path, method: str = "pe", seed: int = 0, losses: bool = True) -> Path:
    """A run of two tasks; the first one's 20 items: 16 right once learned, 14 at the end, of which 0 to 2 are lost."""
    folder = make_run(root, method, seed, tasks=("base", "b"), last=70.0)
    config = OmegaConf.load(folder / "config.yaml")
    config.task = {"reviews": {"labels": {"0": "good", "1": "bad"}}, "topics": {"labels": {"0": "<b>sport</b>"}}}
    config.task_order.tasks[1].task = "topics"
    config.probe = {"task_loss": {"split": "test"}}
    OmegaConf.save(config, folder / "config.yaml")
    rewrite(folder, 2, "base", ["<b>sport</b>", "no <i>idea</i>\x1b[31m", "bad"])
    if losses:
        probes = folder / "probes" / "task_loss"
        probes.mkdir(parents=True)
        write(probes / "losses_base.json", json.dumps({"base": [0.1] * 20}))
        write(probes / "losses_b.json", json.dumps({"base": [0.7, 2.0, 0.9] + [3.0] * 17}))
    return folder


def test_a_page_says_what_was_forgotten_with_examples(tmp_path: Path) -> None:
    folder = labelled(tmp_path)
    found = forgotten(read_run(folder))
    assert found is not None
    (counts,) = (dict(zip(found["counts"].header, row, strict=True)) for row in found["counts"].rows)
    assert counts["n"] == "20" and counts["right then"] == "16" and counts["lost"] == "5" and counts["kept"] == "11"
    assert counts["right before"] == "10" and counts["learned"] == "6" and counts["gained later"] == "0"
    assert found["ways"].header[3:] == [OTHER_TASK, "still likely", NO_FORM, "still likely", WRONG, "still likely"]
    # The first loss rose by 0.6 nats, which is less than log 2, the second by 1.9, the third by 0.8.
    assert found["ways"].rows == [["base", "accuracy", "5", "1", "1", "1", "0", "3", "0"]]
    assert [row[1] for row in found["examples"].rows] == ["0", "1", "2", "14"]
    write_run_report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "What is forgotten" in text and "&lt;b&gt;sport&lt;/b&gt;" in text and "<b>sport</b>" not in text
    assert "no &lt;i&gt;idea&lt;/i&gt;" in text and "\x1b" not in text
    assert_self_contained(folder / "report.html")


def test_without_kept_losses_the_page_says_how_to_know(tmp_path: Path) -> None:
    folder = labelled(tmp_path, losses=False)
    found = forgotten(read_run(folder))
    assert found is not None and not found["likely"] and len(found["ways"].header) == 6
    write_run_report(folder)
    assert "probe=task_loss keeps its loss" in words(folder / "report.html")
    assert forgotten(read_run(make_run(tmp_path / "one", tasks=("base",)))) is None


def test_losses_of_other_examples_are_not_compared(tmp_path: Path) -> None:
    folder = labelled(tmp_path)
    config = OmegaConf.load(folder / "config.yaml")
    config.probe.task_loss.split = "validation"
    OmegaConf.save(config, folder / "config.yaml")
    found = forgotten(read_run(folder))
    assert found is not None and not found["likely"]


def test_several_runs_side_by_side(tmp_path: Path) -> None:
    labelled(tmp_path, "pe", 0)
    labelled(tmp_path, "pe", 1)
    damaged = labelled(tmp_path, "pe", 2)
    next((damaged / "predictions").glob("02_*")).write_text("{}\n")
    table = forgotten_table(group_runs(find_runs([tmp_path])[0]))
    assert table is not None
    (row,) = (dict(zip(table.header, cells, strict=True)) for cells in table.rows)
    assert (row["n"], row["right then"], row["kept, %"], row["lost, %"]) == ("2", "16.0", "68.8", "31.2")
    assert row[f"lost as {OTHER_TASK}, %"] == "20.0" and row["lost, still likely, %"] == "20.0"
    assert any("is not counted" in note for note in table.notes)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run of two tasks whose probe keeps losses."""
    root = tmp_path_factory.mktemp("ran")
    tasks = "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}]"
    options = [f"root={root}", "method=seq_ft", "probe=task_loss", tasks, "snapshots.save=none", "training.max_steps=2"]
    with without_report():
        assert run_command(tiny_words(*options)) == 0
    (run,) = find_runs([root])[0]
    return run


def test_the_probe_keeps_the_loss_of_each_example(ran: Run) -> None:
    """Their mean over answers' tokens is the probe's number; of a classifier each example has one."""
    names, values = ran.ability
    for row, after in enumerate(["start", *ran.tasks]):
        kept = json.loads((ran.folder / "probes" / "task_loss" / f"losses_{after}.json").read_text())
        for task in ran.tasks:
            assert len(kept[task]) == len(read_texts(ran.folder, row, task))
            assert np.mean(kept[task]) == pytest.approx(values[row, names.index(f"task_loss/{task}")], rel=1e-5)
    found = forgotten(ran)
    assert found is not None and [row[0] for row in found["counts"].rows] == ["base"]


def test_mean_losses_of_answers_of_several_tokens() -> None:
    from cl_runner.batch import Output
    from cl_runner.probes.task_loss import _of_each

    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    targets, rows = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 0, 0, 1, 1])
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = _of_each(Output(losses.mean(), logits, targets, rows), 2)
    assert found == pytest.approx([float(losses[:3].mean()), float(losses[3:].mean())])


# Scored again ---------------------------------------------------------------------------------------------


def test_kept_predictions_are_scored_by_another_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rewrite(folder, 2, "base", ["good it is", "the good", "bad"])
    before |= {path: path.read_bytes() for path in (folder / "predictions").iterdir()}
    output = tmp_path / "new.json"
    assert __main__.main(["rescore", str(folder), "--metric", "f1", "--json", "--output", str(output)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(output.read_text())
    # 11 of 20 are right as they stand, one has one word of three, one (without its article) the whole answer.
    assert told["accuracy"][2][0] == pytest.approx((11 * 100 + 100 * 2 / 4 + 100) / 20)
    assert told["scored_by"] == {"base": "f1", "b": "f1"} and told["before"] == {"base": "accuracy", "b": "accuracy"}
    low, high = told["intervals"]["average_accuracy"]
    assert low < told["metrics"]["average_accuracy"] < high and "union_accuracy" in told["metrics"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before  # the run stays
    assert __main__.main(["rescore", str(folder), "--metric", "base=exact_match"]) == 0
    out = capsys.readouterr().out
    assert "base exact_match" in out and "b accuracy" in out and "scored otherwise than by the run: base" in out
    assert "union_accuracy" not in out.partition("of the run")[0]  # two metrics have no union


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["acuracy"], "accuracy"),
        (["bse=f1"], "Type: --metric base=f1"),
        (["f1", "accuracy"], "all tasks have f1 before"),
        (["sari"], "cannot be drawn again"),
    ],
)
def test_wrong_requests(metrics: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled(tmp_path)
    assert __main__.main(["rescore", str(folder), *(word for name in metrics for word in ("--metric", name))]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("cl_runner: ") and "Traceback" not in err


def test_a_run_without_predictions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path)
    for path in (folder / "predictions").iterdir():
        path.unlink()
    assert __main__.main(["rescore", str(folder), "--metric", "f1"]) == 2
    assert "keeps no predictions" in capsys.readouterr().err


def test_metrics_that_read_prompts_get_them(ran: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["rescore", str(ran.folder), "--metric", "sari", "--json"]) == 0
    assert np.array(json.loads(capsys.readouterr().out)["accuracy"]).shape == ran.rows.shape
