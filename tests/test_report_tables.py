"""Runs joined into groups and tables."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import yaml
from run_folders import MARK, SAMPLED, make_run, words

from cl_runner.digests import write
from cl_runner.report import command
from cl_runner.report.folder import find_runs, read_run
from cl_runner.report.grouping import group_runs, identity, label_of, varying_keys
from cl_runner.report.tables import (
    all_tables,
    cell_of,
    exact_csv,
    forgetting_table,
    headline_of,
    long_table,
    paper_tables,
    table_shape,
)
from cl_runner.report.text_table import as_markdown


def test_two_seeds_are_one_group_with_the_sample_deviation(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, last=70.0)
    make_run(tmp_path, seed=1, last=74.0)
    (group,) = group_runs(find_runs([tmp_path])[0])
    assert group.seeds == [0, 1]
    cell = cell_of(group.values("union_accuracy"))
    assert cell is not None
    assert (cell.mean, cell.count) == (72.0, 2)
    assert cell.spread == pytest.approx(8**0.5)  # sqrt((2^2 + 2^2) / (2 - 1)) = 2.83
    table = long_table([group])
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["method"] == "pe" and row["n"] == "2"
    assert row["union_accuracy"] == "72.00 ± 2.83"
    assert row["forgetting/chaudhry18"] == "8.00 ± 2.83"
    assert row["stored_bytes/later_tasks"] == "40 B"
    (line,) = csv.DictReader(exact_csv([group]).splitlines())
    assert float(line["union_accuracy std"]) == cell.spread and line["seeds"] == "0 1"


def test_one_seed_has_no_spread() -> None:
    cell = cell_of([70.0])
    assert cell is not None and cell.spread is None
    assert cell_of([]) is None


def test_a_key_is_a_column_only_where_names_do_not_tell(tmp_path: Path) -> None:
    make_run(tmp_path, "pe")
    make_run(tmp_path, "ewc")
    runs = find_runs([tmp_path])[0]
    assert varying_keys(runs) == []  # method.pe.fraction is there or not, which the method's name says
    make_run(tmp_path, "pe", fraction=0.01)
    make_run(tmp_path, "ewc", epochs=5)
    runs = find_runs([tmp_path])[0]
    assert varying_keys(runs) == ["training.incremental.epochs", "method.pe.fraction"]
    groups = group_runs(runs)
    assert [group.axes["method.pe.fraction"] for group in groups] == [None, None, 0.005, 0.01]
    labels = {label_of(group, groups) for group in groups}
    assert labels == {"pe, epochs 3, fraction 0.005", "pe, epochs 3, fraction 0.01", "ewc, epochs 3", "ewc, epochs 5"}


def test_a_copied_run_does_not_count_twice(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b" / folder.name)
    with pytest.raises(ValueError, match="the same run"):
        group_runs(find_runs([tmp_path])[0])


def test_table_1_has_orders_down_methods_across_and_the_bound_as_a_column(tmp_path: Path) -> None:
    for order, base in (("amazon_1", 50.0), ("amazon_2", 60.0)):
        make_run(tmp_path, "pe", order=order, last=base, seed=0)
        make_run(tmp_path, "pe", order=order, last=base + 2, seed=1)
        make_run(tmp_path, "ewc", order=order, last=base - 4)
        make_run(tmp_path, "seq_ft", order=order, last=base + 10, joint=True, epochs=1)
    (table,) = paper_tables(group_runs(find_runs([tmp_path])[0]), "union_accuracy")
    assert table.title.startswith("PE table 1")
    cells = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    assert cells == {
        "amazon_1": {"ewc": "46.00", "pe": "51.00 ± 1.41", "joint": "60.00"},
        "amazon_2": {"ewc": "56.00", "pe": "61.00 ± 1.41", "joint": "70.00"},
        "mean": {"ewc": "51.00", "pe": "56.00", "joint": "65.00"},
    }
    assert any("training.incremental.epochs" in note and "1 for joint" in note for note in table.notes)


def test_table_2_sorts_the_fractions_as_numbers(tmp_path: Path) -> None:
    for fraction in (0.1, 0.005, 0.05):
        make_run(tmp_path, fraction=fraction, last=60 - 100 * fraction)
    (table,) = paper_tables(group_runs(find_runs([tmp_path])[0]), "union_accuracy")
    assert table.header == ["task_order", "0.005", "0.05", "0.1"]
    assert table.rows == [["fdu_mtl", "59.50", "55.00", "50.00"]]
    assert "| fdu_mtl | 59.50 | 55.00 | 50.00 |" in as_markdown(table)


def test_a_hole_in_a_column_leaves_its_mean_out(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", order="x", last=50)
    make_run(tmp_path, "pe", order="y", last=60)
    make_run(tmp_path, "ewc", order="y", last=40)
    table = table_shape(group_runs(find_runs([tmp_path])[0]), "task_order", "method", "average_accuracy")
    assert table.rows == [["x", "50.00", "-"], ["y", "60.00", "40.00"], ["mean", "55.00", "-"]]


def test_columns_of_yes_and_no_are_in_order(tmp_path: Path) -> None:
    make_run(tmp_path, "seq_ft", last=70, joint=True)
    make_run(tmp_path, "seq_ft", last=50)
    table = table_shape(group_runs(find_runs([tmp_path])[0]), "backbone", "task_order.joint", "average_accuracy")
    assert (table.header, table.rows) == (["backbone", "False", "True"], [["minilm", "50.00", "70.00"]])


def test_a_cell_never_mixes_settings(tmp_path: Path) -> None:
    make_run(tmp_path, fraction=0.1)
    make_run(tmp_path, fraction=0.2)
    groups = group_runs(find_runs([tmp_path])[0])
    with pytest.raises(ValueError, match=r"differ in method\.pe\.fraction\. Type --columns method\.pe\.fraction"):
        table_shape(groups, "task_order", "method", "union_accuracy")


def test_joined_tables_keep_protocols_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pe", order="x", last=50, evaluation=SAMPLED)
    make_run(tmp_path, "pe", order="y", last=60)
    make_run(tmp_path, "ewc", order="x", last=40)
    make_run(tmp_path, "ewc", order="y", last=42)
    groups = group_runs(find_runs([tmp_path])[0])
    assert varying_keys(find_runs([tmp_path])[0]) == [], "the protocol's name tells its keys"
    table = table_shape(groups, "task_order", "method", "average_accuracy")
    assert table.rows == [["x", "40.00", "50.00 †"], ["y", "42.00", "60.00"], ["mean", "41.00", "-"]]
    assert f"† not the standard protocol: {MARK}" in table.notes
    shown = [row[:2] for row in long_table(groups).rows]
    assert shown == [["x", "ewc"], ["x", "pe †"], ["y", "ewc"], ["y", "pe"]] and MARK in long_table(groups).notes[-1]
    same = [group for group in groups if group.axes["task_order"] == "x"]
    assert {label_of(group, same) for group in same} == {"pe †", "ewc"}
    assert exact_csv(groups).count(MARK) == 1
    make_run(tmp_path, "pe", order="x", last=51)
    with pytest.raises(ValueError, match="differ in protocol. Type --columns protocol"):
        table_shape(group_runs(find_runs([tmp_path])[0]), "task_order", "method", "average_accuracy")
    assert command.main([str(tmp_path)]) == 0
    page = words(tmp_path / "report.html")
    assert f"† not the standard protocol: {MARK}." in page
    capsys.readouterr()


def test_behaviours_of_a_release_are_told_in_every_table(tmp_path: Path) -> None:
    said = "not the standard protocol: piece computed as released (missing_mask, count_excluded)"
    make_run(tmp_path, "released")
    groups = group_runs(find_runs([tmp_path])[0])
    pivot = ("task_order", "method", "average_accuracy")
    for table in (long_table(groups), table_shape(groups, *pivot)):
        assert said in table.notes
    make_run(tmp_path, "piece_s")
    groups = group_runs(find_runs([tmp_path])[0])
    assert varying_keys(find_runs([tmp_path])[0]) == []
    for table in (long_table(groups), table_shape(groups, *pivot), forgetting_table(groups)):
        assert table is not None and f"† {said}" in table.notes and as_markdown(table).count(" †") == 1
    assert exact_csv(groups).count("computed as released") == 1


def test_runs_that_all_share_another_protocol_say_so(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", evaluation=SAMPLED)
    make_run(tmp_path, "ewc", evaluation=SAMPLED)
    groups = group_runs(find_runs([tmp_path])[0])
    assert f"not the standard protocol: {MARK}" in long_table(groups).notes
    table = table_shape(groups, "task_order", "method", "average_accuracy")
    assert f"not the standard protocol: {MARK}" in table.notes and "†" not in as_markdown(table)


def test_runs_with_and_without_a_union_are_compared_by_the_average(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", last=50)
    make_run(tmp_path, "ewc", last=40, metrics=["first_letter", "rouge_l", "number"])
    groups = group_runs(find_runs([tmp_path])[0])
    assert headline_of(groups) == "average_accuracy" and headline_of(groups[:1]) != headline_of(groups[1:])
    assert "average_accuracy" in all_tables(groups)[0].header


def test_forgetting_after_k_tasks_has_a_row_per_method(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", last=70)
    make_run(tmp_path, "ewc", last=75)
    table = forgetting_table(group_runs(find_runs([tmp_path])[0]))
    assert table is not None
    assert table.header == ["method", "old data", "task told", "after 2", "after 3"]
    assert table.rows == [["ewc", "(✓)", "", "0.00", "5.00"], ["pe", "(✓)", "", "0.00", "10.00"]]
    make_run(tmp_path / "short", tasks=["base", "b"])
    assert forgetting_table(group_runs(find_runs([tmp_path / "short"])[0])) is None


def test_bases_of_their_own_seeds_are_one_setting(tmp_path: Path) -> None:
    """A checkpoint whose name tells the run's seed; another seed's, or a longer number, is another setting."""
    found = []
    for seed, place in ((1, "bases/seed1"), (2, "bases/seed2"), (1, "bases/seed2"), (1, "bases/seed12")):
        folder = make_run(tmp_path / str(len(found)), seed=seed)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["backbone"]["checkpoint"] = f"./{place}"
        write(folder / "config.yaml", yaml.safe_dump(config))
        found.append(identity(read_run(folder))["backbone.checkpoint"])
    assert found[0] == found[1] and len(set(found)) == 3
