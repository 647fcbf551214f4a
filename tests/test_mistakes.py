"""Mistaken commands: each gets one message that says what is wrong and what to type, status 2, and no folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY, run_command

FILES = ("task.reviews.source=files",)

#: (what is typed, what the message must say); {tmp} is an empty folder, {data} holds the files made below.
MISTAKES = [
    # groups and options
    (["metod=pe"], r"no group or key 'metod'.*Nearest: 'method'.*Type: python -m cl_runner .*method=pe"),
    (["method=pee"], r"group 'method' has no option 'pee'.*Type: .*method=pe"),
    (["method=[ewc,lfw]"], r"no option 'lfw'.*Nearest: 'lwf'.*'method=\[ewc,lwf\]'"),
    (["backbone=tiny_brt"], r"no option 'tiny_brt'.*Type: .*backbone=tiny_bert"),
    (["task_order=reveiws"], r"no option 'reveiws'.*task_order=reviews"),
    (["task=revews"], r"no option 'revews'.*task=reviews"),
    (["hardware=cpus"], r"no option 'cpus'.*hardware=cpu"),
    (["wandb=offlin"], r"no option 'offlin'.*wandb=offline"),
    (["experiment=pe/table1"], r"no option 'pe/table1'.*experiment=pe/table_1"),
    (["bakbone=tiny_bert"], r"Nearest: 'backbone'.*backbone=tiny_bert"),
    # keys
    (["method.pe.fracton=0.1"], r"no group or key 'method.pe.fracton'.*method.pe.fraction=0.1"),
    (["method.ewc.lambda=1"], r"method.ewc has: decay, fisher_data, strength"),
    (["method.piece.fraction=0.1"], r"Its methods are ewc, lwf, pe"),
    (["sed=1"], r"Nearest: 'seed'.*seed=1"),
    (["+sed=1"], r"Nearest: 'seed'.*seed=1"),
    (["training.incremental.lr=1e-3"], r"training.incremental has: batch_size, epochs, learning_rate"),
    # types and ranges
    (["method.pe.fraction=abc"], r"method.pe.fraction must be a number, got 'abc'.*method.pe.fraction=0.005"),
    (["method.pe.fraction=0"], r"method.pe.fraction must be greater than 0, got 0"),
    (["method.pe.fraction=1.5"], r"less than or equal to 1, got 1.5"),
    (["method.pe.keep=smalest"], r"method.pe.keep must be 'smallest' or 'largest', got 'smalest'"),
    (["method.pe.include=query"], r"method.pe.include must be a list"),
    (["seed=one"], r"seed must be a whole number, got 'one'.*seed=0"),
    (["training.base.epochs=2.5"], r"training.base.epochs must be a whole number"),
    (["evaluation.split=dev"], r"evaluation.split must be 'test' or 'validation'"),
    (["hardware.deterministic=3"], r"hardware.deterministic must be true or false"),
    (["training.base=3"], r"training.base must be a mapping"),
    (["seed=99999999999999999999"], r"seed must be less than"),
    (["training.base.learning_rate=inf"], r"must be a finite number.*learning_rate=0.0001"),
    (["backbone.max_length=1"], r"backbone.max_length must be greater than or equal to 3"),
    (
        ["method=piece_s", "method.piece.compat=[missing_mask,count_exclude]"],
        r"method.piece.compat.1 must be .*got 'count_exclude'. Nearest: 'count_excluded'. "
        r"Type: python -m cl_runner.* 'method.piece.compat=.missing_mask,count_excluded.'",
    ),
    (["trackers=[xyz]"], r"trackers.0 must be 'tensorboard' or 'mlflow', got 'xyz'. It stands in: 'trackers="),
    (["task_order.tasks=[{{name: a/b, domains: [novels]}}]"], r"made of letters, digits.*It stands in: 'task_order"),
    (["task_order.tasks=[{{name: start, domains: [novels]}}]"], r"`start` is the row before the first task"),
    (["backbone.architecture.hidden_size=abc"], r"backbone.architecture makes no model.*hidden_size"),
    (["backbone.architecture.model_type=brt"], r"backbone.architecture makes no model"),
    # lists of options
    (["method=[]"], r"choose at least one option of group 'method'"),
    (["method=[pe,pe]"], r"lists 'pe' twice.*'method=\[pe\]'"),
    (["task_order=joint"], r"'task_order=\[reviews,joint\]'"),
    (["task_order=[joint,reviews]"], r"named after it.*'task_order=\[reviews,joint\]'"),
    # what does not fit
    (
        ["method=[pe_select,ewc,piece_rand_1]"],
        r"pe and piece both decide what trains; a chain has one that does. "
        r"Type: method=\[pe_select,ewc\] \(or method=\[ewc,piece_rand_1\]\)",
    ),
    (["method=[seq_ft,ewc,slm]"], r"seq_ft and slm both decide .* Type: method=\[seq_ft,ewc\] \(or method=slm\)"),
    (["method=[seq_ft,lwf,pe_select,frozen]"], r"seq_ft, pe and frozen all decide what trains.*, or method=frozen\)"),
    (
        ["method=[ewc,frozen,lwf]"],
        r"frozen leaves .* so that ewc and lwf would have nothing to do. Type: method=frozen",
    ),
    (
        ["method=[gem,ewc,migu]"],
        r"gem and migu each change where .* Type: method=\[gem,ewc\] \(or method=\[ewc,migu\]\)",
    ),
    (
        ["method=[bitfit,piece_s,ogd,agem]"],
        r"parts and piece both decide .* Type: method=\[bitfit,ogd\] \(or method=\[piece_s,ogd\]\)",
    ),
    (
        ["method=[replay,multi_task,gem]"],
        r"multi_task learns .* replay and gem would .* Type: method=multi_task",
    ),
    (["method=[slm,multi_task]"], r"slm leaves .* so that multi_task would have nothing to do. Type: method=slm"),
    (
        ["method=multi_task", "task_order=[reviews,joint]"],
        r"two upper bounds .* Type: method=seq_ft",
    ),
    (["method=[masked_kl,icl]", "backbone=tiny_llama"], r"icl trains nothing, so that masked_kl .* Type: method=icl"),
    (
        ["method=[ewc,bitfit,head_only]"],
        r"bitfit and head_only are settings of one method, parts, .* they differ in names. "
        r"Type: .*'method=\[ewc,bitfit\]'.* or: .*'method=\[ewc,head_only\]'.* method.parts.names=\[\]\)",
    ),
    (
        ["method=[ewc,osf,masked_kl]"],
        r"osf makes .* masked_kl finds no way .* Type: method=\[ewc,osf\] \(or method=\[ewc,masked_kl\]\)",
    ),
    (["method=[head_only,ewc,migu]"], r"migu acts on nothing that parts trains.* Type: method=\[head_only,ewc\]"),
    (
        ["method=[ewc_online,pe_main]"],
        r"one method, ewc, .* differ in fisher_data, decay. Type: .* method=ewc_online .* or: .* method=pe_main ",
    ),
    (
        ["method=piece_s", "method.piece.score=fishr"],
        r"Type: .*method=piece_s method.piece.score=fisher ",
    ),
    (["hardware.shard=alwys"], r"Nearest: 'always'. Type: .*hardware.shard=always "),
    (["importance.passes=0"], r"importance.passes must be greater than or equal to 1"),
    (["backbone.dtype=fp16"], r"backbone.dtype must be 'float32' or 'bfloat16'"),
    (["method=piece_s", "method.piece.exclude_modules=[Embeding]"], r"Embedding"),
    (["method=[frozen,pe_select]"], r"frozen and pe both decide .* Type: method=frozen \(or method=pe_select\)"),
    (["method=frozen", "task_order=[reviews,joint]"], r"frozen keeps .* Type: method=seq_ft for the upper bound"),
    (["backbone.family=causl"], r"backbone.family must be a family of models .*Nearest: 'causal'"),
    (["backbone.family=math.pi"], r"math.pi is nothing that can be called"),
    (["backbone.family=math.sin"], r"family math.sin: sin is no Family. Write: class sin\(Family\)"),
    (["task.reviews.metrics=[acuracy]"], r"must be a metric \(no metric is called 'acuracy'.*Nearest: 'accuracy'"),
    (["task.reviews.metrics=[nowhere.exact]"], r"there is no module 'nowhere', neither installed nor in "),
    (["task.reviews.metrics=[math.sine]"], r"math has no 'sine'. Nearest: 'sin'"),
    (["task.reviews.convert=squat"], r"must be a converter \(no converter is called 'squat'.*Nearest: 'squad'"),
    (["method.pe.fraction=1e-9"], r"selects not one.*Type: method.pe.fraction="),
    (["method.pe.include=['*.qery.weight']"], r"'\*\.qery\.weight'.*query"),
    (["hardware=gpu"], r"hardware.device=cuda, but torch sees no GPU.*hardware=cpu"),
    (["backbone.max_length=65"], r"longer than the 64 tokens.*Type: backbone.max_length=64"),
    (["backbone.checkpoint={tmp}/none"], r"no config.json in that folder"),
    # data
    (["task_order=fdu_mtl", "data_root={tmp}"], r"fdu_mtl/books.*data_root="),
    (
        ["task.reviews.source=files", "task.reviews.path={data}/good.csv", "task.reviews.label=star"],
        r"star.*stars",
    ),
    (
        [*FILES, "task.reviews.path={data}/good.csv", "task.reviews.text=[tekst]", "task.reviews.label=stars"],
        r"tekst.*text",
    ),
    (
        [*FILES, "task.reviews.path={data}/odd.csv", "task.reviews.text=[text]", "task.reviews.label=stars"],
        r"6 stars",
    ),
    (
        [*FILES, "task.reviews.path={data}/empty.csv", "task.reviews.text=[text]", "task.reviews.label=stars"],
        r"empty\.csv",
    ),
    (["task.reviews.source=hub"], r"task.reviews.dataset has no value. Type: .*task.reviews.dataset=VALUE"),
    (["hydra.searchpath=[file:///tmp]"], r"folders of configuration files are named by a flag. Type: --config-dir"),
    (["task_order.tasks=[]"], r"no tasks"),
    (["task_order.tasks=[{{name: kettlse}}]"], r"kettlse.*kettles"),
    (["task_order.incremental.test=0"], r"no test examples"),
    (["task_order.task=rewiews"], r"rewiews.*reviews"),
    # the command line itself
    (["pe"], r"cannot read 'pe'|no command 'pe'"),
    (["method=[ewc,lwf"], r"cannot read"),
    (["--config-dir", "{tmp}/nowhere"], r"nowhere: there is no such folder"),
    (["--sed", "1"], r"unrecognized arguments: --sed"),
    (["--cfg", "jobs"], r"invalid choice: 'jobs'"),
    (["-m", "--cfg", "job"], r"leave -m and the lists of values out"),
    (["-m", "seed=range(0,0)"], r"no jobs"),
    (["-m", "method=pe,ewcc"], r"no option 'ewcc'.*Nearest: 'ewc'"),
    (["-m", "seed=0,0"], r"the same run"),
    (["hardware=slurm"], r"is submitted. Type: python -m cl_runner submit hardware=slurm"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = "".join(f"a text number {i},{1 + i % 3} star{'s' if i % 3 else ''}\n" for i in range(400))
    (folder / "good.csv").write_text("text,stars\n" + rows)
    (folder / "odd.csv").write_text("text,stars\n" + rows + "a text,6 stars\n")
    (folder / "empty.csv").write_text("text,stars\n")
    return folder


@pytest.mark.parametrize(
    ("typed", "says"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_one_message_and_status_2(
    typed: list[str], says: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    root = tmp_path / "outputs"
    filled = [part.format(tmp=tmp_path, data=data) for part in typed]
    own = {part.partition("=")[0] for part in filled}
    base = [part for part in TINY if part.partition("=")[0] not in own]
    if any(part.startswith("task_order=") for part in filled):
        base = [part for part in base if not part.startswith("task_order")]
    base = [part for part in base if not any(part.startswith(f"{key}.") for key in own)]
    status = run_command([*filled, *base, f"root={root}"])
    shown = capsys.readouterr()
    assert status == 2
    assert re.search(says, shown.err, re.DOTALL), shown.err
    assert "Traceback" not in shown.err + shown.out
    assert shown.err.count("cl_runner: ") == 1, "one message"
    assert len(shown.err.strip().splitlines()) <= 3, shown.err
    assert not root.exists(), "a wrong request leaves nothing behind"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["repot", "outputs"]) == 2
    assert "Nearest: 'report'" in capsys.readouterr().err


def test_status_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-m", "cl_runner", "metod=pe"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("cl_runner: ") and done.stdout == ""


def test_family_that_a_method_does_not_support() -> None:
    from cl_runner.checks import check_chain

    with pytest.raises(
        ValueError, match="method slm supports the families classifier, causal, seq2seq, not image_text"
    ):
        check_chain({"slm": {}}, "image_text")
    with pytest.raises(ValueError, match=r"supports the families classifier, not causal\. Type: backbone=tiny_bert$"):
        check_chain({"idbr": {}}, "causal", backbone="tiny_llama")


def test_checkpoint_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    from cl_runner.compose import compose
    from cl_runner.families.classifier import Classifier

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    backbone = compose(["backbone=bert_base", "backbone.checkpoint=nobody/has-this-model"]).config.backbone
    with pytest.raises(ValueError, match=r"(?s)cannot load nobody/has-this-model.*backbone.checkpoint=DIR"):
        Classifier(backbone, ["a", "b"])


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run_command([*TINY, f"root={tmp_path}/file"]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_commands_in_messages_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quotes inside an override and folders with blanks survive the shell, and --config-dir is not lost."""
    import shlex

    folder = tmp_path / "my conf (1), x"
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "mine.yaml").write_text("# mine\ndefaults: [pe, _self_]\n")
    pattern = "method.pe.include=['*.query.weight']"
    assert run_command(["--config-dir", str(folder), "method=mine", pattern, "sed=1"]) == 2
    line = capsys.readouterr().err.strip().rpartition("Type: ")[2]
    typed = shlex.split(line)
    assert typed == ["python", "-m", "cl_runner", "--config-dir", str(folder), "method=mine", pattern, "seed=1"]


def test_broken_yaml_in_a_users_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# mine\npe: {fraction: [0.1\n")
    assert run_command(["--config-dir", str(tmp_path), "method=mine"]) == 2
    shown = capsys.readouterr().err
    assert "not valid YAML" in shown and "mine.yaml" in shown
