"""The page of one run, from folders that are made up here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from omegaconf import OmegaConf
from run_folders import MARK, MASKS, SAMPLED, Links, assert_self_contained, make_run, mask, table_rows, words

from cl_runner.report import command
from cl_runner.report.ability import change_text, changes, describe
from cl_runner.report.atlas import random_jaccard, read_atlas
from cl_runner.report.costs import bytes_text, certificate_text, cost_text, costs, time_table
from cl_runner.report.drawing import layer_names, layer_order
from cl_runner.report.folder import find_runs, read_run
from cl_runner.report.grouping import group_runs
from cl_runner.report.html import breakable, render
from cl_runner.report.page import write_run_report
from cl_runner.report.publish import published
from cl_runner.report.tables import (
    long_table,
    table_shape,
)

PLAN = {
    "phases": {"load": {"bytes": 100 * 2**20, "seconds": None}, "train": {"bytes": 256 * 2**20, "seconds": 4.0}},
    "disk_bytes": 2000,
    "trainable": [1000, 5, 10],
    "basis": "a past <run>",
}
CERTIFICATE = {"selected": 20, "changed": 18, "untouched": 12380, "untouched_sha256": "ab" * 32, "holds": True}


def test_a_finished_run_has_every_section_and_picture(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    page = write_run_report(folder)
    assert page == folder / "report.html"
    assert_self_contained(page)
    text = words(page)
    pictures = {"accuracy", "forgetting", "first_task", "learned_so_far", "fisher", "storage", "phases", "loss"}
    assert {path.stem for path in (folder / "plots").glob("*.png")} == pictures
    assert text.count("data:image/png") == len(pictures)
    for expected in ("union_accuracy", "70.00 %", "forgetting/chaudhry18", "+10.00 points", "0.5 %", "40 B"):
        assert expected in text
    assert "python -m cl_runner method=&lt;pe&gt;" in text
    for title in ("Where the trained weights lie", "selections share", "Certificates", "Predicted and measured"):
        assert title not in text, "a run without masks.json, certificates and plan.json"
    assert "95 % interval 60.50 to 75.25 (40 test items, bootstrap)" in text and "-1.00 to +2.00" in text
    before = page.read_bytes()
    assert write_run_report(folder).read_bytes() == before, "the same run folder gives the same page"


def test_masks_certificates_and_the_plan_have_their_sections(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "masks.json").write_text(json.dumps({"tasks": MASKS}))
    (folder / "plan.json").write_text(json.dumps(PLAN))
    summary = json.loads((folder / "summary.json").read_text())
    summary["phases"] = {"load": 0.5, "train": 5.0}
    for detail_of_task in summary["tasks_detail"][1:]:
        detail_of_task["certificate"] = CERTIFICATE
    (folder / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(folder / "predictions")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "00_base.safetensors").write_bytes(bytes(1000))
    page = write_run_report(folder)
    assert_self_contained(page)
    text = words(page)
    drawn = {path.stem for path in (folder / "plots").glob("[mo]*.png")}
    assert drawn == {"masks", "masks_tasks", "masks_shares", "overlap", "overlap_layers"}
    assert text.count("data:image/png") == len(list((folder / "plots").glob("*.png")))
    # Both select 20 of 400, f = 0.05: f / (2 - f) = 0.02564.
    assert "Its mean is 0.25;" in text and "f / (2 - f) = 0.026." in text
    assert text.count("18 of 20 selected weights changed; 12,380 others bitwise unchanged, SHA-256 abababab") == 2
    rows = [re.findall(r">([^<>]+)</td>", line) for line in re.findall("<tr>.*?</tr>", text)]
    assert ["b", "20", "400", "5"] in rows
    assert ["load", "100", "-", "-", "-", "0.5", "-"] in rows
    assert ["train", "256", "512", "2.00", "4.0", "5.0", "1.25"] in rows
    assert ["snapshots and predictions on disk", "1.95 KiB", "1000 B", "0.50"] in rows
    assert ["trained weights, base", "1,000", "1,000", "1.00"] in rows
    assert ["trained weights, c", "10", "5", "0.50"] in rows
    assert "a past &lt;run&gt;" in text


def test_one_task_with_a_selection_and_a_plan_without_a_summary(tmp_path: Path) -> None:
    folder = make_run(tmp_path, done=2, marker="")
    (folder / "masks.json").write_text(json.dumps({"tasks": [mask("b", [0, 100, 3, 1])]}))
    (folder / "plan.json").write_text(json.dumps(PLAN | {"trainable": 7}))
    text = words(write_run_report(folder))
    assert {path.stem for path in (folder / "plots").glob("[mo]*.png")} == {"masks", "masks_shares"}
    rows = [re.findall(r">([^<>]+)</td>", line) for line in re.findall("<tr>.*?</tr>", text)]
    assert ["train", "256", "-", "-", "4.0", "-", "-"] in rows
    assert ["trained weights, largest task", "7", "-", "-"] in rows


def test_many_tasks_have_no_picture_each(tmp_path: Path) -> None:
    names = [f"task{number}" for number in range(9)]
    masks = []
    for number, name in enumerate(names):
        pairs = {other: (0.0, {"h.0": 0.0}) for other in names[:number]}
        masks.append(mask(name, [1, 0, 0, 0], **pairs))
    folder = make_run(tmp_path, tasks=["base", "b", "c"])
    (folder / "masks.json").write_text(json.dumps({"tasks": masks}))
    text = words(write_run_report(folder))
    assert not (folder / "plots" / "masks_tasks.png").exists()
    assert "mean over 9 tasks" in text and "Its mean is 0;" in text


def test_masks_become_arrays_in_the_order_shown() -> None:
    atlas = read_atlas(MASKS)
    assert (atlas.layers, atlas.modules) == (["h.0", "h.1", "score"], ["query", "layer_norm", "classifier"])
    assert atlas.selected[1].tolist() == [[10, 0, 0], [5, 5, 0], [0, 0, 0]]
    np.testing.assert_array_equal(atlas.share[0], [[10, np.nan, np.nan], [0, 10, np.nan], [np.nan, np.nan, 0]])
    assert atlas.pairs == [(1, 0)]
    np.testing.assert_array_equal(atlas.overlap, [[np.nan, np.nan], [0.25, np.nan]])
    np.testing.assert_array_equal(atlas.overlap_by_layer[1, 0], [0.5, 0.0, np.nan])


def test_random_masks_overlap_as_drawn_ones_do() -> None:
    assert random_jaccard(0.1, 0.1) == pytest.approx(0.1 / 1.9)
    draw = np.random.default_rng(0)
    a, b = draw.random(200_000) < 0.3, draw.random(200_000) < 0.1
    assert random_jaccard(0.3, 0.1) == pytest.approx((a & b).sum() / (a | b).sum(), rel=0.03)


def test_a_broken_certificate_says_so() -> None:
    assert "did NOT" in certificate_text(CERTIFICATE | {"holds": False})


def test_layers_keep_their_stacks_apart() -> None:
    layers = ["decoder.final_layer_norm", "encoder.block.0", "encoder.block.10", "encoder.block.2", "decoder.block.0"]
    ordered = layer_order([*layers, "encoder.final_layer_norm", "shared", "decoder.block.0"])
    assert layer_names(ordered) == [
        *("shared", "encoder 0", "encoder 2", "encoder 10", "decoder 0"),
        *("decoder.final_layer_norm", "encoder.final_layer_norm"),
    ]
    bert = ["bert.encoder.layer.1", "bert.embeddings", "classifier", "bert.pooler", "bert.encoder.layer.0"]
    assert layer_names(layer_order(bert)) == ["embeddings", "block 0", "block 1", "pooler", "classifier"]
    llama = ["model.embed_tokens", "model.layers.0", "model.norm", "lm_head"]
    assert layer_names(layer_order(llama)) == ["embed_tokens", "block 0", "norm", "lm_head"]


@pytest.mark.parametrize("done", [0, 2])
def test_an_unfinished_run_shows_what_is_there(tmp_path: Path, done: int) -> None:
    folder = make_run(tmp_path, done=done, marker="")
    text = words(write_run_report(folder))
    assert f"not finished: {done} of 3 tasks" in text
    assert (folder / "plots" / "accuracy.png").exists()
    assert (folder / "plots" / "forgetting.png").exists() == (done > 1)
    assert (folder / "plots" / "loss.png").exists() == (done > 0)
    run = read_run(folder)
    assert run.status == "unfinished" and run.done == done
    assert run.metrics.get("union_accuracy") == pytest.approx(80.0) if done else not run.metrics
    if done:  # 16 of 20 and 8 of 10 right
        low, high = run.intervals["union_accuracy"]
        assert 62 < low < 72 and 88 < high < 97
        assert f"95 % interval {low:.2f} to {high:.2f} (30 test items" in text
    assert ("forgetting/chaudhry18" in run.metrics) == (done > 1)


def test_a_run_before_its_first_evaluation_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path, done=0, marker="")
    for name in ("accuracy.csv", "metrics.jsonl", "fisher.json", "environment.json", "overrides.txt"):
        (folder / name).unlink()
    assert "0 of 3 tasks" in words(write_run_report(folder))


def test_a_failed_run_says_why_and_escapes_it(tmp_path: Path) -> None:
    text = words(write_run_report(make_run(tmp_path, "ewc", done=0, marker="FAILED")))
    assert "failed after 0 of 3 tasks" in text
    assert "loss &lt;b&gt;nan&lt;/b&gt;" in text


def test_names_are_escaped_wherever_they_stand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = '<i>"a" & co'
    run = write_run_report(make_run(tmp_path, order=name, tasks=[name, "b", "c"]))
    assert command.main([str(tmp_path)]) == 0
    for page in (run, tmp_path / "report.html"):
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert "i" not in links.tags and "&lt;i&gt;&#34;a&#34; &amp; co" in words(page)
        assert_self_contained(page)
    capsys.readouterr()


def test_a_name_breaks_after_its_parts_and_stays_escaped() -> None:
    assert breakable("a/b.c_d<e") == "a/<wbr>b.<wbr>c_<wbr>d&lt;e"


def test_a_page_without_a_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'settings' is undefined"):
        render("joined.html.j2", runs=1)


def test_one_task_has_no_forgetting(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seq_ft", tasks=["base"])
    text = words(write_run_report(folder))
    assert "forgetting" not in text and "bwt" not in text and "later_tasks" not in text
    assert costs(read_run(folder)) == {}


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run folder: it has no config\.yaml"):
        write_run_report(tmp_path)


def test_costs_are_means_over_later_tasks(tmp_path: Path) -> None:
    assert costs(read_run(make_run(tmp_path))) == {
        "trainable_weights/later_tasks": 5,
        "trainable_share/later_tasks": 0.5,
        "stored_weights/later_tasks": 5,
        "stored_bytes/later_tasks": 40,
        "peak_memory/largest_phase": 512 * 2**20,
        "online_seconds/later_tasks": 3.5,  # (3 + 4) / 2
        "offline_seconds/later_tasks": 2.0,
    }


def test_what_an_answer_costs_stands_in_every_table(tmp_path: Path) -> None:
    """Of the evaluation after the last task, by one name in the file and in what is made of it."""
    for method, value in (("pe", 1.25), ("ewc", 340.0)):
        path = make_run(tmp_path, method=method) / "summary.json"
        summary = json.loads(path.read_text())
        for number, task in enumerate(summary["tasks_detail"], start=-2):
            task["milliseconds_per_example"] = value + number
        path.write_text(json.dumps(summary))
    runs = [read_run(path.parent) for path in sorted(tmp_path.rglob("summary.json"))]
    name = "milliseconds_per_example/at_test"
    assert [costs(run)[name] for run in runs] == [340.0, 1.25]
    table = long_table(group_runs(runs))
    assert [row[table.header.index(name)] for row in table.rows] == ["340.0", "1.2"]
    assert cost_text(name, 1.25) == "1.2 ms" and "milliseconds_per_example, test" in time_table(runs[0].details).header
    published(runs, tmp_path / "published", "a command")
    found = json.loads((tmp_path / "published" / "results.json").read_text())["runs"]
    assert [run["metrics"][name] for run in found] == [340.0, 1.25]


def test_bytes_are_read_in_their_largest_unit() -> None:
    assert [bytes_text(size) for size in (0, 1023, 1024, 1.25 * 2**20, 3 * 2**30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.25 MiB",
        "3 GiB",
    ]


LONG = (
    *("C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"),
    "a_task_with_a_very_long_name_indeed",
)
METRICS = ("first_letter", "first_letter", "rouge_l", "first_letter", "number", "number", "sari", "edit_similarity")


def test_scores_of_different_metrics_are_named_and_have_no_union(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, tasks=LONG, metrics=METRICS, seen=True)
    assert command.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "completed: score in %" in shown and "union_accuracy" not in shown and "nan" not in shown
    assert "average_accuracy 70.00 % (95 % interval 60.50 to 75.25)" in shown
    text = words(folder / "report.html")
    assert "<h2>Scores</h2>" in text and "union_accuracy" not in text and ">nan<" not in text
    assert "MeetingBank, rouge_l" in text and "Empty cells were not measured." in text
    assert "The metric first_letter on the test set of C-STANCE" in text
    rows = table_rows(text)
    assert ["start", *[""] * 8] in rows and ["after FOMC", "80.00", "80.00", *[""] * 6] in rows
    # All metrics of each task after the last one; the first one fills the matrix.
    assert ["MeetingBank", "rouge_l", "", "35.00", "70.00", "", "", ""] in rows
    assert ["after k tasks"] not in rows and any(row[:1] == ["forgetting/slm_after_8"] for row in rows)


def test_one_metric_that_is_no_accuracy_names_the_scores(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, metrics=["rouge_l"] * 3))
    assert run.measure == "rouge_l" and "union_accuracy" in run.metrics
    text = words(write_run_report(run.folder))
    assert "The metric rouge_l, in percent, on every test set" in text


def test_an_unfinished_run_knows_its_metrics_from_the_configuration(tmp_path: Path) -> None:
    folder = make_run(tmp_path, done=2, marker="", evaluation={"scoring": "piece"})
    config = OmegaConf.load(folder / "config.yaml")
    config.task.reviews.metrics = ["first_word", "f1"]
    config.task.other = {"metrics": ["f1"], "released_metrics": {"piece": ["piece_letter"]}}
    config.task_order.tasks[1].task = "other"
    OmegaConf.save(config, folder / "config.yaml")
    run = read_run(folder)
    assert run.scored_by == {"base": "first_word", "b": "piece_letter", "c": "first_word"}
    assert "union_accuracy" not in run.metrics and "average_accuracy" in run.metrics
    assert "union_accuracy" not in run.intervals and "average_accuracy" in run.intervals


def test_another_protocol_is_marked_on_the_page_and_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_run(make_run(tmp_path / "a", evaluation={"scoring": "standard", "sampling": None})).marks == []
    assert read_run(make_run(tmp_path / "b", evaluation={"labels": "likelihood"})).marks == [
        "labels chosen by likelihood"
    ]
    folder = make_run(tmp_path / "c", evaluation=SAMPLED)
    assert command.main([str(folder)]) == 0
    assert f"Not the standard protocol: {MARK}." in capsys.readouterr().out
    text = words(folder / "report.html")
    assert text.count(f"Not the standard protocol: {MARK}.") >= 3  # header, scores, derived numbers


LOSS, PERPLEXITY = "held_text/loss", "held_text/perplexity"


def test_general_ability_is_drawn_and_its_loss_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pe = make_run(tmp_path, "pe", ability={LOSS: [2.0, 2.25, 2.5, 3.0], PERPLEXITY: [7.4, 9.5, 12.2, 20.1]})
    make_run(tmp_path, "ewc", ability={LOSS: [2.0, 2.0, 2.25, 2.125]})
    run = read_run(pe)
    assert changes(run) == {
        "ability_change/held_text/loss": 1.0,
        "ability_change/held_text/perplexity": pytest.approx(12.7),
    }
    text = words(write_run_report(pe))
    assert (pe / "plots" / "ability.png").exists() and "<h2>General ability</h2>" in text
    assert ["after b", "2.5 (+0.5)", "12.2 (+4.80)"] in [["after " + r[0], *r[1:]] for r in table_rows(text) if r]
    assert command.main([str(pe)]) == 0
    assert "ability_change/held_text/loss +1.00" in capsys.readouterr().out
    groups = group_runs(find_runs([tmp_path])[0])
    table = long_table(groups)
    column = table.header.index("ability_change/held_text/loss")
    assert [row[column] for row in table.rows] == ["+0.125", "+1.00"]
    pivot = table_shape(groups, "task_order", "method", "ability_change/held_text/loss")
    assert pivot.rows == [["fdu_mtl", "+0.125", "+1.00"]]
    assert command.main([str(tmp_path)]) == 0
    assert (tmp_path / "plots" / "ability_fdu_mtl.png").exists()
    capsys.readouterr()


def test_units_and_directions_are_those_of_the_probes() -> None:
    assert describe("unknown/number") == "unknown/number"
    assert describe(PERPLEXITY).startswith(PERPLEXITY)
    assert (change_text("ability_change/unknown/x", 0.125), change_text("ability_change/unknown/x", -2)) == (
        "+0.125",
        "-2.00",
    )


def test_throughput_is_shown_where_it_is_known(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    summary["tasks_detail"][0] |= {"tokens": 12345, "tokens_per_second": 678.9, "padding_share": 0.125}
    (folder / "summary.json").write_text(json.dumps(summary))
    text = words(write_run_report(folder))
    rows = table_rows(text)
    assert ["base", "30", "10", "2.0", "2.0", "1.0", "12,345", "679", "12.5"] in rows
    assert ["b", "30", "10", "2.0", "3.0", "1.0", "-", "-", "-"] in rows
    assert "model FLOPs" not in text
