"""Several runs compared: intervals, letters, pairs and ranks in every table, and what too few runs cannot tell."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import SAMPLED, make_run

from cl_runner import __main__
from cl_runner.compose import compose
from cl_runner.identity import config_hash
from cl_runner.report.comparison import compare
from cl_runner.report.design import Numbers, designs_of
from cl_runner.report.differences import difference_tables
from cl_runner.report.equal_learning import common_range, equal_learning_tables, read_at
from cl_runner.report.folder import find_runs
from cl_runner.report.grouping import Group, group_runs
from cl_runner.report.tables import all_tables, exact_csv, forgetting_table, long_table, table_shape
from cl_runner.report.text_table import Table


def groups_in(root: Path) -> list[Group]:
    return group_runs(find_runs([root])[0])


def cells(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def study(root: Path, seeds: int = 4, orders: tuple[str, ...] = ("x", "y")) -> list[Group]:
    """pe 10 points above ewc on every order and seed, seq_ft 2 points above or below it."""
    for place, order in enumerate(orders):
        for seed in range(seeds):
            base = 40.0 + 10 * place + 2 * seed
            make_run(root, "pe", seed, order=order, last=base + 10)
            make_run(root, "ewc", seed, order=order, last=base)
            make_run(root, "seq_ft", seed, order=order, last=base + (2 if seed % 2 else -2))
    return groups_in(root)


def test_settings_pairs_and_ranks_over_orders(tmp_path: Path) -> None:
    tables = difference_tables(study(tmp_path), "average_accuracy", Numbers())
    settings, pairs, ranks, forgetting, learned = tables
    assert settings.title == "average_accuracy over x, y: intervals and differences"
    rows = cells(settings)
    assert [(row["method"], row["n"], row["mean"]) for row in rows] == [
        ("pe", "8", "58.00"),
        ("ewc", "8", "48.00"),
        ("seq_ft", "8", "48.00"),
    ]
    # 8 shared runs: the smallest p is 2 / 256, times 3 pairs 0.0234.
    assert [row["alike"] for row in rows] == ["a", "b", "b"]
    assert [row["rank"] for row in rows] == ["1.00", "2.50", "2.50"]
    assert rows[0]["runs for ± 1"] == "135"  # sample deviation 5.86 over runs: 1.98 * 5.86 / sqrt(135) = 1
    found = {(row["first"], row["second"]): row for row in cells(pairs)}
    assert found["pe", "ewc"]["difference"] == "+10.00" and found["pe", "ewc"]["apart"] == "yes"
    assert found["pe", "ewc"]["p"] == "0.00781" and found["pe", "ewc"]["p, Holm"] == "0.0234"
    assert found["ewc", "seq_ft"]["difference"] == "+0.00" and found["ewc", "seq_ft"]["apart"] == "no"
    assert cells(ranks)[0] == {"method": "pe", "x": "1", "y": "1", "mean": "1.00", "times first": "2"}
    assert cells(forgetting)[0]["method"] == "pe" and cells(forgetting)[0]["mean"] == "22.00"  # less is better
    assert learned.title.startswith("plasticity/diagonal")
    assert "2 orders, not balanced over places" in settings.notes


def test_examples_widen_the_interval_and_more_runs_do_not_narrow_that(tmp_path: Path) -> None:
    """Every run of a seed is the same: what is left are the 40 test examples, the same ones in every run."""
    for seed in range(3):
        make_run(tmp_path, "pe", seed, last=70.0)
        make_run(tmp_path, "ewc", seed, last=60.0)
    (design,) = designs_of(groups_in(tmp_path))
    found = compare(design, "union_accuracy", Numbers())
    assert found is not None
    pe = found.settings[0]
    assert pe.by_runs == 0.0 and pe.by_examples is not None and pe.bounds is not None
    # A share of 0.7 (28 of 40): 1.96 * sqrt(0.7 * 0.3 / 40) = 14.2 points, were each example drawn from all tasks.
    assert pe.by_examples == pytest.approx(14.2, abs=2.0)  # in steps of 2.5
    assert pe.bounds[1] - pe.bounds[0] == pytest.approx(2 * pe.by_examples)
    (pair,) = found.pairs
    assert pair.difference == pytest.approx(10.0) and pair.bounds is not None
    # The same examples in both: those that both answer alike do not widen the difference.
    assert pair.bounds[1] - pair.bounds[0] < 0.8 * 2 * pe.by_examples


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    make_run(tmp_path, "pe")
    make_run(tmp_path, "ewc")
    groups = groups_in(tmp_path)
    assert difference_tables(groups, "average_accuracy", Numbers()) == []
    table = long_table(groups)
    assert "95 % interval" not in table.header
    assert any(note.startswith("one run each: no interval") for note in table.notes)
    shape = table_shape(groups, "task_order", "method", "average_accuracy")
    assert any(note.startswith("one run each: no interval") for note in shape.notes)
    (first, _) = csv.DictReader(exact_csv(groups).splitlines())
    assert first["average_accuracy low"] == "" and first["average_accuracy mean"]


def test_every_table_of_several_runs_has_intervals_and_letters(tmp_path: Path) -> None:
    groups = study(tmp_path, seeds=2)
    table, forgetting = long_table(groups), forgetting_table(groups)
    assert forgetting is not None
    for each, behind in ((table, "union_accuracy"), (forgetting, "after 3")):
        place = each.header.index(behind)
        assert each.header[place + 1 : place + 3] == ["95 % interval", "alike"]
        assert all(" to " in row[place + 1] and row[place + 2] == "a" for row in each.rows)
        assert any("no such difference can be told, however large" in note for note in each.notes)
    down = table_shape(groups, "task_order", "method", "union_accuracy")
    assert [row[0] for row in down.below] == ["old data", "task told", "95 % interval", "alike"]
    across = table_shape(groups, "method", "task_order", "union_accuracy")
    assert across.header[-2:] == ["95 % interval", "alike"] and " to " in across.rows[0][-2]
    for line in csv.DictReader(exact_csv(groups).splitlines()):
        low, mean, high = (float(line[f"union_accuracy {name}"]) for name in ("low", "mean", "high"))
        assert low < mean < high
    values = [row[table.header.index("union_accuracy")] for row in table.rows]
    assert values[0] == "41.00 ± 1.41"  # as it was


def test_runs_with_and_without_shared_seeds(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", 0, last=60)
    make_run(tmp_path, "pe", 1, last=62)
    make_run(tmp_path, "ewc", 2, last=50)
    (settings,) = (t for t in all_tables(groups_in(tmp_path)) if t.title.startswith("union_accuracy over"))
    assert [row["alike"] for row in cells(settings)] == ["-", "-"]
    assert any("no two settings share two runs" in note for note in settings.notes)
    assert "pe lacks fdu_mtl seed 2" in settings.notes
    assert cells(settings)[1]["95 % interval"] == "-"


def test_settings_without_some_order_are_not_ranked(tmp_path: Path) -> None:
    groups = study(tmp_path, seeds=2)
    make_run(tmp_path, "piece_s", 0, order="x", last=99.0)
    tables = difference_tables(groups_in(tmp_path), "average_accuracy", Numbers(), alone=True)
    settings, ranks = tables[0], tables[-1]
    assert len(groups) == 6 and cells(settings)[0]["method"] == "piece_s" and cells(settings)[0]["rank"] == "-"
    assert [row["method"] for row in cells(ranks)] == ["pe", "ewc", "seq_ft"]
    assert "not over all of these orders, and not ranked: piece_s" in ranks.notes


def test_other_protocols_splits_and_tasks_are_other_designs(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, "pe", seed)
        make_run(tmp_path, "ewc", seed, evaluation=SAMPLED)
        make_run(tmp_path, "seq_ft", seed, evaluation={"split": "validation"})
        make_run(tmp_path, "piece_s", seed, order="other", tasks=("a", "b"))
    designs = designs_of(groups_in(tmp_path))
    assert sorted(len(design.settings) for design in designs) == [1, 1, 1, 1]
    tables = [t for t in all_tables(groups_in(tmp_path)) if t.title.startswith("union_accuracy over")]
    assert len(tables) == 4
    assert all("no two settings share two runs" in " ".join(table.notes) for table in tables)


def test_settings_of_one_method_are_told_apart_by_their_options(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, "pe", seed, fraction=0.01)
        make_run(tmp_path, "pe", seed, fraction=0.1)
        make_run(tmp_path, "ewc", seed)
    (design,) = designs_of(groups_in(tmp_path))
    assert {s.label for s in design.settings} == {"ewc", "pe, fraction 0.01", "pe, fraction 0.1"}


def test_damaged_predictions_are_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "pe", 0, last=60)
    make_run(tmp_path, "pe", 1, last=64)
    path = next((folder / "predictions").glob("03_*"))
    path.write_text('{"task": 3}\n')
    (settings,) = (t for t in all_tables(groups_in(tmp_path)) if t.title.startswith("union_accuracy over"))
    assert cells(settings)[0]["mean"] == "62.00"
    assert any(str(path) in note and "not drawn" in note for note in settings.notes)


def test_many_pairs_are_listed_for_neighbours_alone(tmp_path: Path) -> None:
    for fraction in range(1, 12):
        for seed in (0, 1):
            make_run(tmp_path, "pe", seed, fraction=fraction / 100, last=30.0 + 2 * fraction + seed)
    tables = difference_tables(groups_in(tmp_path), "average_accuracy", Numbers(), alone=True)
    pairs = next(table for table in tables if table.title.endswith("differences of pairs"))
    assert len(pairs.rows) == 10 and "of 55 pairs those of neighbours; letters tell of all" in pairs.notes


# Balanced orders ------------------------------------------------------------------------------------------


def test_a_balanced_order_is_another_order_of_the_same_tasks() -> None:
    whole = compose(["task_order=cl_text_4"])
    names = [task.name for task in whole.config.task_order.tasks]
    orders = []
    for number in range(4):
        request = compose(["task_order=cl_text_4", f"task_order.balanced={number}"])
        assert request.task_order == f"cl_text_4+order{number}" and request.hash != whole.hash
        orders.append([task.name for task in request.config.task_order.tasks])
        assert request.resolved["task_order"]["tasks"][0]["name"] == orders[-1][0]
    assert orders[0] == names and all(sorted(order) == sorted(names) for order in orders)
    assert [len(set(place)) for place in zip(*orders, strict=True)] == [4, 4, 4, 4]
    joint = compose(["task_order=[cl_text_4,joint]", "task_order.balanced=1"])
    assert joint.task_order == "cl_text_4+joint+order1"
    base = compose(["task_order=fdu_mtl", "task_order.balanced=3", "task_order.fixed=1"]).config.task_order.tasks
    assert base[0].name == "base"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task_order=cl_text_4", "task_order.balanced=4"], "there are 4 balanced orders, 0 to 3. Type: "),
        (["task_order.balanced=1", "task_order.fixed=4"], "leaves none to change places. Type: task_order.fixed=3"),
        (["task_order.fixed=1"], "nothing reads task_order.fixed here"),
        (["task_order.balanced=-1"], "task_order.balanced"),
    ],
)
def test_balanced_orders_that_are_not_there(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        compose(overrides)


def test_runs_that_ask_for_no_balanced_order_are_those_that_they_were() -> None:
    """The option came later; a run's identity does not hold it where nothing is asked."""
    request = compose([])
    assert request.config.task_order.balanced is None

    older: dict[str, Any] = json.loads(json.dumps(request.resolved))
    for key in ("balanced", "fixed"):
        del older["task_order"][key]
    assert config_hash(older) == config_hash(request.resolved)


def test_the_command_orders(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["orders", "task_order=cl_text_4", "method=pe,ewc", "--seeds", "1,2"]) == 0
    out = capsys.readouterr().out
    assert "task_order.balanced=3: amazon, ag, db, yelp" in out
    assert "4 orders x 2 seeds = 8 runs of a method" in out
    line = "python -m cl_runner -m task_order=cl_text_4 method=pe,ewc task_order.balanced=0,1,2,3 seed=1,2"
    assert f"Type: {line}" in out
    assert __main__.main(["orders", "task_order=bert_4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["orders"]) == 10
    for wrong in (["seed=1"], ["task_order.balanced=1"], ["--seeds", "1,1"], ["task_order.fixed=9"], ["task_ordr=x"]):
        assert __main__.main(["orders", *wrong]) == 2
        assert capsys.readouterr().err.startswith("cl_runner: ")


def test_reports_know_a_balanced_design(tmp_path: Path) -> None:
    for number, tasks in enumerate((["a", "b"], ["b", "a"])):
        for seed in (0, 1):
            make_run(tmp_path, "pe", seed, order=f"two+order{number}", tasks=tasks)
    tables = all_tables(groups_in(tmp_path))
    settings = next(table for table in tables if table.title.startswith("union_accuracy over two+order0, two+order1"))
    assert (
        "2 orders, balanced: every task is as often at every place and follows every other as often" in settings.notes
    )


# Kept at equal learning -----------------------------------------------------------------------------------


def test_curves_are_read_where_most_of_them_are() -> None:
    assert read_at([(20.0, 4.0), (10.0, 1.0)], 12.5) == 1.75
    assert read_at([(10.0, 1.0), (20.0, 4.0)], 9.0) is None and read_at([(10.0, 1.0)], 10.0) is None
    assert common_range([[(0, 0), (10, 0)], [(5, 0), (20, 0)], [(6, 0), (8, 0)]]) == (6, 8)
    assert common_range([[(0, 0), (10, 0)], [(11, 0), (20, 0)], [(5, 0)]]) is None


def test_methods_are_compared_at_equal_learning(tmp_path: Path) -> None:
    """The diagonal of these runs is (80 + 80 + last) / 3, and forgetting 80 - last."""
    for seed in (0, 1):
        for epochs, last in ((1, 50.0), (3, 70.0)):
            make_run(tmp_path, "ewc", seed, epochs=epochs, last=last + seed)
            make_run(tmp_path, "seq_ft", seed, epochs=epochs, last=last + 3 * seed)
    make_run(tmp_path, "pe")
    (table,) = equal_learning_tables(groups_in(tmp_path), Numbers())
    assert table.title == "Kept at equal learning, fdu_mtl: forgetting/chaudhry18"
    assert [row[:3] for row in table.rows] == [["ewc", "2", "2"], ["seq_ft", "2", "2"]]
    # Learned 71.19 is a last row of 53.6 to 61 for whatever method and seed, so that all keep the same.
    for row in table.rows:
        for head, cell in zip(table.header[3:], row[3:], strict=True):
            level = float(head.removeprefix("at "))
            assert float(cell.split(" ± ")[0]) == pytest.approx(80 - (3 * level - 160), abs=0.02)
            assert cell.endswith("± 0.00")
    assert table in all_tables(groups_in(tmp_path))
