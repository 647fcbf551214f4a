"""The command `table`: published numbers against the papers' texts, runs beside them, commands for empty cells."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import run_folders
import yaml
from run_folders import as_published, make_run
from tiny import run_command

from cl_runner.groups import GROUPS, nodes_of, options
from cl_runner.overrides import key_of
from cl_runner.papers import protocol
from cl_runner.papers.latex import escaped
from cl_runner.papers.measured import fill, number_of, over_runs
from cl_runner.papers.missing import commands
from cl_runner.papers.published import GRADES, Cell, Published, overrides, papers, table, tables
from cl_runner.papers.settings import configuration
from cl_runner.papers.shapes import FIELDS
from cl_runner.report.folder import read_run

TOP = Path(__file__).parents[1]
#: All settings are composed only where every family of models is tried as well.
EVERY = bool(os.environ.get("CL_RUNNER_EVERY_FAMILY"))

#: table, row, column, number: read again by hand in what the papers, and the releases, say.
BY_HAND = [
    ("pe/1", "PE-rand", "I", "50.60"),
    ("pe/1", "Upper", "IV", "54.78"),
    ("pe/1", "EWC&LwF", "mean", "43.30!"),
    ("pe/2", "10 %", "III", "34.38"),
    ("pe/3", "PE-*", "saved size", "1.2MB"),
    ("slm/1", "SLM", "5", "78.8"),
    ("slm/2", "LFPT5", "3", "57.9"),
    ("slm/3", "Replay", "9 mmlu", "23.3"),
    ("slm/12", "groups", "yahoo", "82.6"),
    ("slm/16", "mmlu, SLM", "Arc-e (Arc-c)", "49.4!"),
    ("piece/1", "SeqLoRA", "BWT", "-4.39"),
    ("piece/2", "S 1 %", "Py150", "0.1341"),
    ("piece/3", "Llama3-8B S, own", "NumGLUE-ds", "1.128"),
    ("trace/1", "Vicuna-13B, LoraSeqFT", "BWT", "-28.4"),
    ("trace/2", "O-LoRA", "FOMC", "0.336"),
    ("o_lora/1", "EWC", "3", "54.5?"),
    ("migu/8", "LoRA + MIGU", "2", "71.6"),
    ("idbr/1", "LAMOL", "6", "77.2?!"),
    ("osf/1", "full fine-tuning", "BWT", "-6.00"),
    ("opr/1", "OPR 10 %", "BWT", "-0.65"),
]


@pytest.mark.parametrize(("name", "row", "column", "shown"), BY_HAND)
def test_cells_are_as_they_were_read_by_hand(name: str, row: str, column: str, shown: str) -> None:
    found = table(name)
    assert found.text(found.cells[row, column]) == shown


def makeable() -> Iterator[tuple[Published, Cell]]:
    for each in tables():
        yield from ((each, cell) for cell in each.cells.values() if cell.overrides is not None)


def test_every_paper_and_every_table_says_its_protocol() -> None:
    assert set(papers()) == {"pe", "slm", "piece", "trace", "o_lora", "migu", "idbr", "osf", "opr"}
    for each in tables():
        for (row, column), cell in each.cells.items():
            silent = [key for key in FIELDS if key != "seeds" and not getattr(cell.protocol, key)]
            assert not silent, f"{each.name} {row} / {column} does not say {silent}"
    memory = {each.name for each in tables() for cell in each.cells.values() if cell.grade == "memory"}
    assert memory == {"o_lora/1", "idbr/1"} and "verify" in GRADES["memory"]


def test_every_row_has_a_command_or_says_that_there_is_none() -> None:
    """Names of the command are options of their groups, keys of its methods are theirs."""
    for each in tables():
        for (row, column), cell in each.cells.items():
            if cell.overrides is None:
                assert cell.none or cell.column.mean_of, f"{each.name} {row} / {column}"
                continue
            assert cell.measure and cell.overrides, f"{each.name} {row} / {column}"
            nodes: dict[str, dict[str, object]] = {}
            for text in cell.overrides:
                key, _, value = text.partition("=")
                names = value.strip("[]").split(",")
                if key in GROUPS:
                    assert set(names) <= set(options(key)), f"{each.name}: {text}"
                    assert not value.startswith("[") or key in ("method", "task_order"), text
                if key == "method":
                    nodes = {node: values for name in names for node, values in nodes_of(name).items()}
            for text in cell.overrides:
                parts = key_of(text).split(".")
                if parts[0] == "method" and len(parts) > 1 and nodes:
                    assert parts[2] in nodes[parts[1]], f"{each.name} {row}: {text}"


def test_settings_compose_as_published() -> None:
    """Epochs, examples, selection and metric of the commands are those that the papers say, where they say them."""
    seen = set()
    for each, cell in makeable():
        key = cell.overrides if EVERY else each.paper
        if key in seen:
            continue
        seen.add(key)
        assert cell.overrides is not None
        config, said, place = configuration(cell.overrides), cell.protocol, f"{each.name} {cell.row.name}"
        assert isinstance(said.epochs, str) or {*protocol._by_task(config)} == {said.epochs}, place
        assert said.selection not in ("last", "best_validation") or config["training"]["select"] == said.selection, (
            place
        )
        metrics = set(protocol.scored_by(config).values())
        assert said.metric not in ("accuracy", "first_word", "olora_exact_match") or metrics == {said.metric}, place
        tasks = protocol.names(config)
        for split, published in (("train", said.train), ("test", said.test)):
            asked = protocol._counts(config, split, None, tasks)
            wanted = protocol._counts(config, split, published, tasks)
            assert {task for task in tasks if asked[task] is not None and asked[task] != wanted[task]} == set(), place


def test_printed_means_are_means_or_known_errors() -> None:
    """Up to what rounding of the cells and of the mean may do: a unit of the last digit."""
    checked = 0
    for each in tables():
        for (row, column), cell in each.cells.items():
            parts = [each.cells[row, name].value for name in cell.column.mean_of]
            if isinstance(cell.value, float) and parts and all(isinstance(part, float) for part in parts):
                mean = sum(part for part in parts if isinstance(part, float)) / len(parts)
                off = abs(mean - cell.value) > 10**-each.data.decimals + 1e-9
                assert not off or cell.errors, (
                    f"{each.name} {row} / {column}: {cell.value}, and {mean:.3f} of its cells"
                )
                checked += 1
    assert checked > 60


def test_the_permuted_columns_of_mbpa_are_marked() -> None:
    for name in ("slm/1", "idbr/1"):
        cells = table(name).cells
        assert "order 7" in cells["Finetune", "4"].errors[0] and "60.3" in cells["Replay", "mean"].errors[0]
        assert not cells["Finetune", "mean"].errors and not cells["IDBR", "4"].errors


def test_files_are_data_of_the_package() -> None:
    text = (TOP / "pyproject.toml").read_text(encoding="utf-8")
    assert 'include = ["/cl_runner", "/conf"]' in text and "exclude" not in text.split("[tool.ruff]")[0]
    assert {path.stem for path in (TOP / "cl_runner" / "papers").glob("*.yaml")} == set(papers())


def test_overrides_of_parts() -> None:
    found = overrides("experiment=a method=x", "task_order=o", "method=y method.y.k=[a,b]", bound="joint")
    assert found == ("experiment=a", "method=y", "task_order=[o,joint]", "method.y.k=[a,b]")


def test_all_tables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["table"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {each.name} " in shown for each in tables()) and "numbered here" in shown and "EWC&LwF" in shown
    assert "could not be read" in shown, "what is missing of a paper"
    assert run_command(["table", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("table,in the paper,title,rows,columns\n")


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("pe/9", "pe/3"),
        ("slm", "slm/1"),
        ("PE/1", "pe/1"),
        ("pe/table_1", "pe/1"),
        ("slmm/2", "slm/2"),
        ("olora/2", "o_lora/2"),
        ("slm/10", "slm/11"),
    ],
)
def test_a_wrong_name_gets_the_nearest_and_the_line(capsys: pytest.CaptureFixture[str], typed: str, right: str) -> None:
    assert run_command(["table", typed, "some folder"]) == 2
    error = capsys.readouterr().err
    assert f"Type: python -m cl_runner table {right} 'some folder'" in error and error.startswith("cl_runner: ")


def test_other_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for typed, said in (
        ([str(tmp_path)], f"Type: python -m cl_runner table pe/1 {tmp_path}"),
        (["--missing"], "table pe/1 --missing"),
        (["pe/1", str(tmp_path)], "no completed run"),
        (["pe/1", "nowhere"], "there is no folder nowhere"),
        (["pe/1", "--output", "x"], "needs --format markdown"),
        (["pe/1", "--data-root", "x"], "--missing"),
        (["nonsense"], "See all: python -m cl_runner table"),
        (["pe/1", "--frmat", "csv"], "See: python -m cl_runner table --help"),
    ):
        assert run_command(["table", *typed]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("cl_runner: ") == 1, error


TASKS = ["base", "Pet_Supplies", "Gift_Cards", "Electronics", "Prime_Pantry", "Office_Products", "Digital_Music"]
TASKS += ["Magazine_Subscriptions", "Home_and_Kitchen", "CDs_and_Vinyl", "Grocery_and_Gourmet_Food"]
ENDINGS = {"markdown": "md", "csv": "csv", "latex": "tex", "html": "html"}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folders, "SIZES", [20] + [10] * 16)


def test_runs_beside_pe_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], sizes: None) -> None:
    """An exact run has no letter; others say what differs; other orders have columns of their own."""
    for seed, last in ((0, 60.0), (1, 70.0)):
        make_run(tmp_path, "ewc", seed, order="amazon_2", tasks=TASKS, last=last)
    joint = make_run(tmp_path, "seq_ft", 0, order="amazon_2", tasks=TASKS, joint=True)
    exact = as_published(
        make_run(tmp_path, "seq_ft", 0, order="amazon_2", tasks=TASKS, last=50.0), "pe/1", "Lower", "II"
    )
    other = make_run(tmp_path, "ewc", 3, order="fdu_mtl", epochs=5)
    alien = make_run(tmp_path, "piece_s", 0, order="amazon_2", tasks=TASKS)
    assert run_command(["table", "pe/1", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in reversed(shown.splitlines()) if line.split()}
    low, high = over_runs([60.0, 70.0])
    assert f"48.54   65.00 [{low:.2f}, {high:.2f}] n=2 a" in lines["EWC"]
    assert "45.81" in lines["Lower"] and "50.00  " in lines["Lower"], "no letter"
    assert "53.18" in lines["Upper"] and "70.00 " in lines["Upper"]
    assert "fdu_mtl (not in the table), measured" in shown
    (apart,) = [line for line in shown.splitlines() if line.startswith("a differs: ")]
    for text in (
        "backbone minilm, not bert_base",
        "backbone.max_length 64, not 128",
        'path "${data_root}/{domain}.csv", not "${data_root}/amazon_2018/{domain}.json.gz"',
        "cut: training examples 30 a task, not 6,000 and then 300 a task",
        "cut: test examples 20 and then 10 a task, not 2,000 and then 100 a task",
        "epochs 3, not 5",
    ):
        assert text in apart
    assert "order base b c, none of the table's" in shown
    assert f"fills no cell: {alien}: no row of pe/1 has the method piece_s" in shown
    found = fill(table("pe/1"), [read_run(path) for path in (joint, exact, other)])
    assert set(found.cells) == {("Upper", "II"), ("Lower", "II")} and set(found.beside) == {"fdu_mtl"}
    assert found.cells["Lower", "II"][0].differs == () and found.cells["Upper", "II"][0].differs
    lines_of = {command.rows: command for command in commands(table("pe/1"), found.exact, "DATA")}
    assert lines_of["Lower",].columns == ("I", "III", "IV") and lines_of["Upper",].columns == ("I", "II", "III", "IV")
    assert lines_of["Lower",].line == (
        "python -m cl_runner -m experiment=pe/table_1 method=seq_ft task_order=amazon_1,amazon_3,amazon_4 "
        "data_root=DATA seed=0,1,2"
    )
    assert len(lines_of["Upper",].jobs) == 12 and "'task_order=[amazon_1,joint],[amazon_2" in lines_of["Upper",].line


def test_a_part_that_is_off_tells_rows_apart(tmp_path: Path, sizes: None) -> None:
    """Five local steps are as far from twenty as from none by their number of options; replay alone makes none."""
    for seed, (steps, row) in enumerate(((5, "MBPA++"), (0, "Replay"))):
        folder = make_run(tmp_path, "seq_ft", seed, order="cl_text_4")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        chosen = nodes_of("mbpa")["mbpa"] | {"local_steps": steps, "neighbours": 8, "every": 4}
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"method": {"mbpa": chosen}}))
        found = fill(table("slm/1"), [read_run(folder)])
        assert [list(rows) for rows in found.beside.values()] == [[row]]


def test_what_differs_one_by_one(tmp_path: Path, sizes: None) -> None:
    """Each difference from an otherwise exact run is named, and nothing else."""
    folder = as_published(make_run(tmp_path, "seq_ft", 0, order="amazon_2", tasks=TASKS), "pe/1", "Lower", "II")
    exact = yaml.safe_load((folder / "config.yaml").read_text())
    cell = table("pe/1").cells["Lower", "II"]
    assert cell.overrides is not None
    setting = configuration(cell.overrides)

    def apart(**changes: object) -> tuple[str, ...]:
        config = json.loads(json.dumps(exact))
        for key, value in changes.items():
            *path, leaf = key.split("__")
            node = config
            for part in path:
                node = node[part]
            node[leaf] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return protocol.differences([read_run(folder)], setting, cell.protocol, cell.measure)

    assert (
        apart() == apart(hardware__threads=1) == apart(root="elsewhere") == apart(training__base__micro_batch=4) == ()
    )
    assert apart(training__incremental__learning_rate=1e-3) == ("training.incremental.learning_rate 0.001, not 2e-05",)
    assert apart(training__select="best_validation") == ("selection best_validation, not last",)
    assert apart(training__incremental__epochs=1) == ("epochs 5 1 1 1 1 1 1 1 1 1 1, not 5",)
    assert apart(evaluation__labels="likelihood") == ("evaluation.labels likelihood, not generate",)
    assert apart(task_order__restart=True) == ("each task alone",)
    assert apart(task__amazon_reviews__balance=False)[0].endswith("balance false, not true")
    assert apart(training__max_steps=3) == ("training.max_steps 3, not null",)
    assert apart(hardware__precision="bf16") == ("hardware.precision bf16, not fp32",)
    seeds = cell.protocol.model_copy(update={"seeds": 3})
    apart()
    assert protocol.differences([read_run(folder)], setting, seeds, cell.measure) == ("1 run, not 3",)


def test_numbers_that_probes_and_single_tasks_have(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "seq_ft", tasks=("a", "b"), ability={"task_loss/b": [3.0, 2.0, 1.0]}))
    assert number_of(run, "last/a") == 70 and number_of(run, "own/a") == 80 and number_of(run, "last/x") is None
    steps = {"": 1.0, "start": 3.0, "a": 2.0, "own": 1.0, "before": 2.0, "x": None}
    assert {after: number_of(run, "ability/task_loss/b", after) for after in steps} == steps
    asked = read_run(
        make_run(tmp_path / "h", "seq_ft", tasks=("a", "b"), ability={"humaneval/pass@1": [3.0, 2.0, 1.0]})
    )
    for measure, value in (("pass@1", 1.0), ("pass@1@a", 2.0), ("pass@1@b", 1.0), ("pass@1@c", None), ("pass", None)):
        assert number_of(asked, f"ability/humaneval/{measure}") == value
    assert number_of(run, "ability/task_loss/b@a") == 2 and number_of(run, "ability/none/b") is None
    assert number_of(run, "bwt/gem") == -10 and number_of(run, "retrieval/a") is None


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "html"])
def test_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert run_command(["table", "pe/3", "--format", form]) == 0
    shown = capsys.readouterr().out
    mark = {"markdown": "| EWC&LwF | 48.65! |", "csv": "pe/3,EWC&LwF,accuracy,48.65,", "latex": r"EWC\&LwF & 48.65! &"}
    assert mark.get(form, "<td>48.65!</td>") in shown.replace(' class="left"', "")
    path = tmp_path / f"x.{ENDINGS[form]}"
    assert run_command(["table", "pe/3", "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n" and path.read_text(encoding="utf-8") == shown


def test_latex_signs() -> None:
    assert escaped("a_b & 5 % {x} -4.39 [-1.5, 2]") == r"a\_b \& 5 \% \{x\} $-$4.39 [$-$1.5, 2]"


def test_missing_commands_say_what_is_not_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["table", "o_lora/2", "--missing", "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "# O-LoRA: ag, amazon, db, yahoo; 3 runs; not planned: " in shown and str(tmp_path) in shown
    assert f"method=o_lora task_order=standard_1 data_root={tmp_path} seed=0,1,2" in shown
    assert run_command(["table", "opr/1", "--missing"]) == 0
    shown = capsys.readouterr().out
    assert "# none" in shown and "no command for all rows: no preset of this backbone" in shown
