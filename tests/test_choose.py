"""The command `choose`: the best try by validation examples, refused where a choice would not be fair, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import make_run

from cl_runner import __main__
from cl_runner.choosing.choice import Criterion, choose, pick
from cl_runner.choosing.record import CHOSEN, chosen_tables, read_record
from cl_runner.digests import Damaged
from cl_runner.report.folder import Run, find_runs, read_run

VALIDATION = {"split": "validation"}
ABILITY = {"task_loss/base": [9.0, 3.0, 4.0, 5.0], "task_loss/b": [9.0, 8.0, 2.0, 3.0], "task_loss/c": [9, 8, 7, 1.0]}


def tries(root: Path, method: str = "pe", **scores: float) -> None:
    """A try of each fraction, or of each number of epochs: `f001=70.0`, `e3=60.0`."""
    for name, last in scores.items():
        number = int(name[1:])
        given = {"fraction": number / 1000} if name[0] == "f" else {"epochs": number}
        folder = make_run(root, method, last=last, evaluation=VALIDATION, **given)  # type: ignore[arg-type]
        key = f"method.pe.fraction={number / 1000:g}" if name[0] == "f" else f"training.incremental.epochs={number}"
        lines = [f"method={method}", "seed=0", key, "evaluation.split=validation", f"root={root}"]
        (folder / "overrides.txt").write_text("\n".join([*lines, ""]))


def found(root: Path) -> list[Run]:
    return find_runs([root])[0]


def test_the_best_try_of_each_method_and_the_line_of_its_test_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries(tmp_path / "try", "pe", f5=60.0, f10=70.0)
    tries(tmp_path / "try", "ewc", e3=50.0, e5=40.0)
    root = tmp_path / "test"
    assert __main__.main(["choose", str(tmp_path / "try"), "--root", str(root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    chosen = {each["method"]: each["chosen"] for each in told["methods"]}
    assert chosen["pe"]["method.pe.fraction"] == 0.01 and chosen["ewc"]["training.incremental.epochs"] == 3
    assert told["rule"] == "the highest mean score over all tasks, after the last one" and told["seeds"] == [0]
    assert f"python -m cl_runner -m method=pe method.pe.fraction=0.01 seed=1,2,3 root={root}" in told["lines"]
    assert read_record(root / CHOSEN)["methods"] == told["methods"]
    assert __main__.main(["choose", str(tmp_path / "try"), "--root", str(root), "--seeds", "4"]) == 0
    out = capsys.readouterr().out
    assert "method.pe.fraction=0.01" in out and "70.000" in out and "60.000" in out
    assert f"recorded in {root / CHOSEN}" in out


def test_a_report_of_the_test_runs_names_the_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tries(tmp_path / "try", f5=60.0, f10=70.0)
    tries(tmp_path / "try", "ewc", e3=50.0, e5=40.0)
    root = tmp_path / "test"
    assert __main__.main(["choose", str(tmp_path / "try"), "--root", str(root)]) == 0
    make_run(root, "pe", 1, fraction=0.01)
    make_run(root, "pe", 1, fraction=0.1)
    make_run(root, "seq_ft", 1)
    (table,) = chosen_tables(found(root))
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert rows["pe"]["used by"] == "1 of 2 runs" and rows["ewc"]["used by"] == "no runs"
    assert rows["pe"]["chosen"].startswith("method.pe.fraction=0.01") and rows["pe"]["validation"] == "70.00"
    assert "mean over orders fdu_mtl and seeds 0" in table.notes[0]
    assert "as many tries of every method" in table.notes and "nothing was chosen for seq_ft" in table.notes
    capsys.readouterr()
    assert __main__.main(["report", str(root), "--format", "markdown"]) == 0
    assert "Settings chosen on validation examples" in capsys.readouterr().out
    assert "Settings chosen on validation examples" in (root / "report.html").read_text(encoding="utf-8")
    text = (root / CHOSEN).read_text(encoding="utf-8")
    (root / CHOSEN).write_text(text.replace("0.01", "0.02"))
    with pytest.raises(Damaged, match="SHA-256"):
        chosen_tables(found(root))
    assert __main__.main(["report", str(root), "--format", "csv"]) == 0
    assert "what settings were chosen by is not shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("pe", {}, "scored on test examples, by which nothing may be chosen"),
        ("pe", {"evaluation": VALIDATION, "fraction": 0.1}, "numbers of tries differ: "),
        ("pe", {"evaluation": VALIDATION, "seed": 3}, "no completed run over fdu_mtl with seed 3"),
    ],
)
def test_what_is_not_fair_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, options: dict[str, object], said: str
) -> None:
    tries(tmp_path, f5=60.0, f10=70.0)
    tries(tmp_path, "ewc", e3=50.0, e5=40.0)
    make_run(tmp_path, method, **options)  # type: ignore[arg-type]
    assert __main__.main(["choose", str(tmp_path), "--root", str(tmp_path / "test")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "test").exists()
    if "fraction" in options:
        assert __main__.main(["choose", str(tmp_path), "--root", str(tmp_path / "test"), "--unequal"]) == 0
        assert "UNEQUAL" in capsys.readouterr().out
        assert "UNEQUAL" in " ".join(chosen_tables([read_run(make_run(tmp_path / "test", "pe", 1))])[0].notes)


def test_arguments_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tries(tmp_path, f5=60.0, f10=70.0)
    for wrong, said in (
        (["--seeds", "0,1"], "0 is a seed of the tries"),
        (["--seeds", "one"], "whole numbers by commas"),
        (["--first", "0"], "a number of tasks from 1 on"),
        (["--first", "9"], "has 3 tasks"),
        (["--by", "acuracy"], "has no number 'acuracy'"),
        (["--where", "method=ewc"], "no run has that value"),
    ):
        assert __main__.main(["choose", str(tmp_path), "--root", str(tmp_path / "test"), *wrong]) == 2
        assert said in capsys.readouterr().err
    assert __main__.main(["choose", str(tmp_path / "nowhere")]) == 2


def test_criteria(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "pe", last=40.0, ability=ABILITY, evaluation=VALIDATION)
    run = read_run(folder)
    assert Criterion().value(run) == 40.0
    assert Criterion(first=2).value(run) == 80.0  # after two of three tasks, of these two
    loss = Criterion("task_loss")
    assert loss.lower and loss.value(run) == 3.0 and loss(run) == -3.0 and "lowest task_loss" in loss.text
    assert Criterion("task_loss", first=2).value(run) == 3.0  # (4 + 2) / 2
    forgetting = Criterion("forgetting/chaudhry18")
    assert forgetting.lower and forgetting.value(run) == pytest.approx(40.0)
    assert pick({"a": 1.0, "b": 2.0, "c": 2.0}) == "b"


def test_probes_that_choose_are_measured_on_validation_examples(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "pe", ability=ABILITY, evaluation=VALIDATION)
    path = folder / "config.yaml"
    text = path.read_text()
    path.write_text(text + "probe:\n  task_loss:\n    split: test\n")
    with pytest.raises(ValueError, match=r"measured on test examples.*probe\.task_loss\.split=validation"):
        choose(found(tmp_path), Criterion("task_loss"))
    assert choose(found(tmp_path), Criterion())[0].best.value == 70.0


def test_of_equal_tries_the_order_decides(tmp_path: Path) -> None:
    tries(tmp_path, f5=60.0, f10=60.0)
    (choice,) = choose(found(tmp_path), Criterion())
    assert choice.best.values == {"method.pe.fraction": 0.005}
    (choice,) = choose(found(tmp_path), Criterion(), order=lambda values: -values["method.pe.fraction"])
    assert choice.best.values == {"method.pe.fraction": 0.01}


def test_a_choice_that_changes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tries(tmp_path / "a", f5=60.0, f10=70.0)
    tries(tmp_path / "b", f5=80.0, f10=70.0)
    for name in ("a", "b"):
        assert __main__.main(["choose", str(tmp_path / name), "--root", str(tmp_path / "test")]) == 0
    said = capsys.readouterr().err
    assert "said of pe on minilm: method.pe.fraction=0.01; now: method.pe.fraction=0.005" in said
