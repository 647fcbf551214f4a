"""Every file of every group composes and fits the schema; every experiment preset runs two steps."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from tiny import EVERY_FAMILY, TINY, run_command, some, tiny_encoder

from cl_runner.compose import compose
from cl_runner.groups import CONF, GROUPS, nodes_of, options

#: A tiny backbone of the same family stands for a preset's own.
TWINS = {"classifier": "bert", "causal": "llama", "seq2seq": "t5"}
#: Runs of presets that were done, and the families and methods of them.
SEEN: set[str] = set()
KINDS: set[tuple[str, ...]] = set()
OPTIONS = [(group, option) for group in GROUPS if group != "task" for option in options(group)]

STAGES = ("base", "incremental")


def test_the_table_sees_every_file() -> None:
    files = {p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.rglob("*.yaml")}
    grouped = {f"{group}/{option}" for group, option in OPTIONS} | {f"task/{o}" for o in options("task")}
    assert files == grouped | {"config", "task_defaults"}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_composes(group: str, option: str) -> None:
    chosen = f"[reviews,{option}]" if option in ("joint", "single_task") else option
    # Most probes are for language models, and only some tasks have a release's scores.
    beside = {"probe": ["backbone=tiny_llama"], "protocol": ["task_order=trace", "backbone=tiny_llama"]}
    if option.startswith("captioning"):
        beside["probe"] = ["backbone=tiny_llava"]
    told = ["method=slm"] if option == "oracle" else []  # of a text's task, of which others make nothing
    written = ["backbone=tiny_llama"] if option.startswith(("icl", "sdft", "lamol", "lfpt5")) else []
    request = compose([f"{group}={chosen}", *beside.get(group, []), *told, *written])
    assert request.config.task_order.tasks
    assert request.config.method
    if group == "method":
        assert nodes_of(option) == request.resolved["method"], "options are read without Hydra as it merges them"


@pytest.mark.parametrize("option", options("task"))
def test_every_task_definition_composes(option: str) -> None:
    """It adds at least one definition; what it leaves to the user (???) is given."""
    nodes = yaml.safe_load((CONF / "task" / f"{option}.yaml").read_text())
    asked = [f"task.{node}.{key}=given" for node, values in nodes.items() for key in values if values[key] == "???"]
    both = "reviews" if option == "reviews" else f"[reviews,{option}]"
    assert nodes and set(nodes) <= set(compose([f"task={both}", *asked]).config.task)


def write_texts(probes: dict[str, Any]) -> None:
    """The files of a data root that probes read: tables of few texts, under the columns that they name."""
    for values in probes.values():
        path = values.get("path")
        if path is not None:
            columns = [values.get(key) for key in ("column", "good", "bad", "phenomenon")]
            texts = {column: [f"a {column} boils"] * 4 for column in columns if column}
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            pandas.DataFrame(texts).to_parquet(path)


@pytest.mark.parametrize("option", some(options("experiment"), 2))
def test_every_experiment_runs_two_steps(option: str, tmp_path: Path) -> None:
    """Its own method, strengths and schedule, on a tiny backbone and generated reviews."""
    config = compose([f"experiment={option}"]).config
    if config.backbone.family == "image_text":
        pytest.skip("reviews have no pictures: tests/test_image_text.py runs it")
    kind = (config.backbone.family, *config.method)
    if kind in KINDS and not EVERY_FAMILY:  # one of the same methods and family stands for the others
        return
    KINDS.add(kind)
    small = [o for o in TINY if not o.startswith(("training", "backbone"))]
    arguments = [f"experiment={option}", "task_order=reviews", "hardware=cpu", *small, f"root={tmp_path}"]
    arguments += [f"data_root={tmp_path}/data"]
    arguments += [f"backbone=tiny_{TWINS[config.backbone.family]}", "training.max_steps=2"]
    # One epoch is one step here.
    arguments += [f"training.{stage}.epochs=2" for stage in STAGES if getattr(config.training, stage).epochs]
    arguments += [f"method.{node}.fraction=0.01" for node in config.method if node in ("pe", "piece")]
    arguments += [
        f"probe.{node}.{few}" for node in config.probe if node == "held_text" for few in ("texts=3", "tokens=8")
    ]
    classifies = config.backbone.family == "classifier"
    positions = 63 if "idbr" in config.method else 64  # one is its separator's
    if config.backbone.max_length > (64 if classifies else 1024):
        arguments.append(f"backbone.max_length={positions}" if classifies else "backbone.max_length=512")
    if "prog_prompt" in config.method:  # a tiny backbone has 64 positions, or 1,024 with those of answers
        arguments = [o for o in arguments if not o.startswith("backbone.max_length")]
        arguments += ["backbone.max_length=40", *(["method.prog_prompt.length=3"] if classifies else [])]
    if config.training.select == "best_validation":
        arguments += [f"task_order.{stage}.validation=6" for stage in STAGES]
    arguments += ["backbone.head=new"] if config.backbone.head != "new" else []  # a tiny backbone has none
    arguments += ["backbone.frozen=[]"] if config.backbone.frozen else []  # layers of its own backbone, by name
    arguments += tiny_encoder() if "slm" in config.method else []
    arguments += [f"method.{node}.max_new_tokens=8" for node in config.method if node in ("lamol", "lfpt5")]
    arguments += ["method.lfpt5.tries=2", "method.lfpt5.length=8"] if "lfpt5" in config.method else []
    arguments += ["method.mbpa.local_steps=1", "method.mbpa.neighbours=4"] if "mbpa" in config.method else []
    arguments += ["probe=none"] if "lm_eval" in config.probe else []  # it fetches its questions
    arguments += ["protocol=standard"] if config.evaluation.scoring != "standard" else []  # reviews have no release
    request = compose(arguments)
    if request.hash in SEEN:  # presets that differ in their backbone or order alone
        return
    SEEN.add(request.hash)
    write_texts(request.resolved["probe"])
    assert run_command(arguments) == 0
    (summary,) = tmp_path.rglob("summary.json")
    detail = json.loads(summary.read_text())["tasks_detail"]
    base, later = (
        2 if getattr(config.training, stage).epochs and "icl" not in config.method else 0 for stage in STAGES
    )
    assert [d["steps"] for d in detail] == [base, later, later]


def test_every_file_says_what_it_is() -> None:
    for path in CONF.rglob("*.yaml"):
        first = next(line for line in path.read_text().splitlines() if "@package" not in line)
        assert first.startswith("# "), f"{path}: the first line is shown by --help"
        assert ".yml" not in path.suffix


def test_composing_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from cl_runner.compose import compose; compose(['method=pe']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    shown = subprocess.run(
        [sys.executable, "-m", "cl_runner", "--cfg", "job", "method=[ewc,pe_select]"],
        capture_output=True,
        text=True,
        check=True,
    )
    # CPU seconds, which other work on the machine makes twice as many at most.
    assert sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - began < 5, "about 0.9"
    assert "fraction: 0.005" in shown.stdout and "strength: 0.35" in shown.stdout


def test_method_lists_keep_their_order_and_share_nodes() -> None:
    assert list(compose(["method=[lwf,ewc,pe_select]"]).config.method) == ["lwf", "ewc", "pe"]
    pe, chain = compose(["method=pe"]).config, compose(["method=[ewc,lwf,pe_select]"]).config
    assert pe.method == chain.method, "pe is the chain with the paper's strengths"
    assert compose(["method=pe", "method.pe.fraction=0.01"]).config.method["pe"]["fraction"] == 0.01


def test_folder_is_made_of_choices() -> None:
    request = compose(["method=[ewc,pe_select]", "task_order=[reviews,joint]", "backbone=tiny_bert", "seed=7"])
    assert request.folder.parent == Path("outputs/reviews+joint/tiny_bert/ewc+pe_select")
    assert request.folder.name == f"seed7-{request.hash}"
    assert compose(["experiment=pe/table_2"]).folder.parent == Path("outputs/amazon_1/bert_base/pe_main")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    for _, option in OPTIONS:
        assert option in shown


def test_user_configuration_folder(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# mine\ndefaults: [pe, _self_]\npe: {fraction: 0.25}\n")
    assert compose(["method=mine"], [tmp_path]).config.method["pe"]["fraction"] == 0.25
