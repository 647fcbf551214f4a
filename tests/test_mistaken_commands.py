"""Three hundred mistaken commands by kind: each has one answer, status 2, the mistake's name and what to type."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import run_command

from cl_runner import compose
from cl_runner.groups import GROUPS, options

#: What is typed, and a piece of the answer; {own} is a folder of configuration files, {tmp} an empty one.
Case = tuple[str, str]


def misspelled_groups() -> Iterator[Case]:
    for group in GROUPS:
        option = options(group)[0]
        for wrong in (group[:-2] + group[-1] + group[-2], group + "s"):
            yield f"{wrong}={option}", rf"no group or key '{wrong}'.*Nearest: '{group}'.*Type: .*{group}={option}"


def misspelled_options() -> Iterator[Case]:
    for group in GROUPS:
        for option in options(group)[:2]:
            for wrong in (f"{option}x", option.upper()):
                yield f"{group}={wrong}", rf"group '{group}' has no option '{wrong}'.*Type: .*{group}={option}$"


KEYS = """
seed root data_root training.base.epochs training.base.batch_size training.incremental.learning_rate
training.incremental.micro_batch training.optimizer training.weight_decay training.betas training.epsilon
training.bias_correction training.momentum training.rates training.select training.schedule training.warmup
training.clip training.max_steps training.group_by_length importance.micro_batch importance.max_examples
importance.labels importance.passes importance.cache_gb evaluation.batch_size evaluation.split evaluation.tasks
evaluation.labels evaluation.scoring evaluation.bertscore.layer checkpoint.every_seconds snapshots.save
hardware.device hardware.precision hardware.threads hardware.deterministic wandb.mode wandb.project wandb.tags
task_order.base.train task_order.data_seed task_order.joint task.reviews.balance task.reviews.metrics
task.reviews.source backbone.checkpoint backbone.max_length backbone.truncation backbone.dropout
method.pe.fraction method.pe.score method.ewc.strength method.lwf.outputs
"""


def misspelled_keys() -> Iterator[Case]:
    for key in KEYS.split():
        wrong = key[:-2] + key[-1]
        yield f"{wrong}=1", rf"no group or key '{re.escape(wrong)}'.*(Nearest: '{re.escape(key)}'.*Type: | has: )"


WHOLE = """
seed training.base.epochs training.base.batch_size importance.passes evaluation.batch_size
importance.max_examples backbone.max_length hardware.threads task_order.base.train task_order.data_seed
"""
ONE_OF = """
training.optimizer training.select training.schedule evaluation.split evaluation.tasks evaluation.labels
hardware.device hardware.precision snapshots.save wandb.mode task.reviews.source backbone.truncation
backbone.dtype backbone.attention method.pe.score method.pe.keep method.pe.scope method.lwf.outputs
importance.labels
"""
NUMBERS = """
training.weight_decay training.clip importance.cache_gb checkpoint.every_seconds method.pe.fraction
method.ewc.strength training.base.learning_rate
"""
SWITCHES = """
training.group_by_length hardware.deterministic task_order.joint task.reviews.balance
"""
LISTS = """
training.betas wandb.tags backbone.frozen method.pe.include task.reviews.metrics task.reviews.text
"""


def wrong_values() -> Iterator[Case]:
    for key in WHOLE.split():
        yield f"{key}=some", rf"{key} must be a whole number, got 'some'\. Its default is .* Type: .*{key}="
        yield f"{key}=-1", rf"{key} must be greater than or equal to \d, got -1\. .*Type: .*{key}="
    for key in ONE_OF.split():
        yield f"{key}=nothing", rf"{key} must be '.* or '.*', got 'nothing'\. Its default is .* Type: .*{key}="
    for key in NUMBERS.split():
        yield f"{key}=-0.5", rf"{key} must be greater than .*, got -0.5"
        yield f"{key}=much", rf"{key} must be a number, got 'much'"
    for key in SWITCHES.split():
        yield f"{key}=yes", rf"{key} must be true or false, got 'yes'\. Type: .*{key}=true"
    for key in LISTS.split():
        yield f"{key}=one", rf"{key} must be a list, got 'one'\. Its default is \["


TABLE: dict[str, list[Case]] = {
    "values": [
        ("seed=1.0", r"a whole number, got 1.0\. Type: .* seed=1$"),
        ("seed=010", r"got '010'\. Type: .* seed=10$"),
        ("training.betas=[0.9]", r"a list of at least 2, got \[0.9\].*'training.betas=\[0.9,0.999\]'"),
        ("training.betas.0=0.8", r"is a list and is given as a whole. Type: .*'training.betas=\[0.9,0.999\]'"),
        ("training.warmup=1.5", r"training.warmup must be less than or equal to 1 or a whole number"),
        ("training.base=null", r"training.base must be a mapping.*Type its parts"),
        ("evaluation.sampling.temperature=1", r"is null, .*'evaluation.sampling=\{temperature: 1, top_k: null, top_p"),
        ("hardware.slurm.minutes=5", r"comes with hardware=slurm. Type: .* -m .*hardware=slurm$"),
        ("task.reviews.labels=[a,b]", r"task.reviews.labels cannot be \[a,b\]"),
        ("'task.reviews.labels={a: b}'", r"new names need `\+\+`. Type: .*'\+\+task.reviews.labels=\{a: b\}'"),
        ("'++task.reviews.labels={0: a}'", r"the key 0 must be text .*'0': "),
        ("+task.reviews.labels.x=1", r"in quotes it is text\), got 1\. Type: .*'\+task.reviews.labels.x=\"1\"'"),
        ("task_order.variant=1.5", r"Type: .*'task_order.variant=\"1.5\"'"),
        ("'task_order.tasks=[{name: 1}]'", r"tasks.0.name must be text \(YAML reads digits.*It stands in"),
        ("'task_order.tasks=[{name: kettles, count: 1}]'", r"unknown key .*Nearest: 'task_order.tasks.0.counts'"),
        ("'task_order.tasks=[{domains: [kettles]}]'", r"tasks.0.name has no value. It stands in"),
        ("task_order.tasks.9.name=x", r"has the entries 0 to 4"),
        ("backbone.architecture.vocab_size=9 backbone=tiny_bert", r"Type: .*\+backbone.architecture.vocab_size=9"),
    ],
    "quotes": [
        *(
            (shlex.quote(f"data_root={value}"), rf"cannot read .* Type: .*{re.escape(right)}$")
            for value, right in (
                ("epoch=3", "'data_root=\"epoch=3\"'"),
                ("a/epoch=3-step=1", "'data_root=\"a/epoch=3-step=1\"'"),
                ("a(b)", "'data_root=\"a(b)\"'"),
                ("a[b]", "'data_root=\"a[b]\"'"),
                ("a{b}", "'data_root=\"a{b}\"'"),
                ("a#b", "'data_root=\"a#b\"'"),
                ("a;b", "'data_root=\"a;b\"'"),
                ("a&b", "'data_root=\"a&b\"'"),
                ("a!b", "'data_root=\"a!b\"'"),
                ('a"b', '\'data_root="a\\"b"\''),
                ("é", "'data_root=\"é\"'"),
                ("a,", "data_root=a"),
            )
        ),
        ("data_root=my data", r"If it belongs to 'data_root=my', blanks need quotes. Type: .*'data_root=my data'$"),
        ("data_root=a,b", r"takes a multirun.*'data_root=\"a,b\"'"),
        ("data_root=~/data", r"`~` is not expanded there. Type: .*data_root=/"),
        ("'data_root=$HOME/x'", r"between single quotes \$HOME stays as it is. Type: .*data_root=/"),
        ("'data_root=${HOME}/x'", r"Interpolation key 'HOME' not found.*\$\{oc.env:HOME\}"),
        ("method=[ewc, lwf]", r"Blanks need quotes around the whole. Type: .*'method=\[ewc, lwf\]'$"),
        ("method=[ewc,lwf", r"A bracket is opened and never closed"),
        ("task_order.tasks=[{name: kettles}]", r"Blanks need quotes .*'task_order.tasks=\[\{name: kettles\}\]'$"),
        ("method={ewc}", r"Options of group 'method': .* Type: .*method=ewc$"),
        ("method=ewc=1", r"Options of group 'method'"),
    ],
    "words": [
        ("pe", r"An option is chosen with its group. Type: .*method=pe$"),
        ("tiny_bert", r"Type: .*backbone=tiny_bert$"),
        ("pe.yaml", r"Type: .*method=pe$"),
        ("conf/method/pe.yaml", r"Type: .*method=pe$"),
        ("method/pe", r"Type: .*method=pe$"),
        ("method", r"Group 'method' has: .*Type method=OPTION"),
        ("seed", r"Type NAME=VALUE"),
        ("seed = 1", r"NAME=VALUE has no blanks. Type: .* seed=1$"),
        ("seed =1", r"Type: .* seed=1$"),
        ("seed= 1", r"Type: .* seed=1$"),
        ("seed:1", r"A value follows `=`. Type: .* seed=1$"),
        ("seed==1", r"NAME=VALUE has one `=`. Type: .* seed=1$"),
        ("repot outputs", r"Nearest: 'report'. Type: .*cl_runner report outputs$"),
        ("snapshots list outputs", r"Nearest: 'snapshot'. Type: .*cl_runner snapshot list outputs$"),
        ("-seed=1", r"unrecognized arguments: -seed=1"),
        ("--seed 1", r"unrecognized arguments: --seed"),
        ("--cfg jobs", r"invalid choice: 'jobs'"),
        ("--config-dir {tmp}/none", r"there is no such folder"),
        ("hydra.run.dir=x", r"read by Hydra's multiruns alone; where a run writes is root=DIR"),
        ("hydra.verbose=true", r"multiruns alone"),
        ("-m hydra.sweep.dir=x seed=0,1", r"where runs write is root=DIR. Type: .* -m seed=0,1$"),
        ("--resolve seed=1", r"Type: .*--cfg job --resolve"),
        ("-p backbone", r"Type: .*--cfg job --package"),
        ("hydra.searchpath=[x]", r"Type: --config-dir FOLDER"),
    ],
    "several": [
        ("seed=1 seed=2", r"seed=1 and seed=2 both say seed; only one counts. Type: .*cl_runner seed=2$"),
        ("method=pe method=ewc", r"both say method"),
        ("seed=1 ++seed=2", r"both say seed"),
        ("'training.base={epochs: 1}' training.base.epochs=2", r"both say training.base.epochs"),
        ("training.base.epochs=1 'training.base={epochs: 2}'", r"both say training.base.epochs"),
        ("backbone=[tiny_bert,tiny_llama]", r"a run has one option of group 'backbone'.*backbone=tiny_bert"),
        ("hardware=[cpu,gpu]", r"one option of group 'hardware'"),
        ("wandb=[offline,disabled]", r"one option of group 'wandb'"),
        ("protocol=[piece,trace]", r"one option of group 'protocol'"),
        ("experiment=[pe/table_1,pe/table_2]", r"one option of group 'experiment'"),
        ("task_order=[reviews,joint,single_task]", r"are two runs. Type: .*reviews,joint.* or: .*reviews,single_task"),
        ("task_order=[reviews,fdu_mtl]", r"of two orders the later one's tasks replace"),
        ("method=[ewc,ewc]", r"lists 'ewc' twice. Type: .*'method=\[ewc\]'"),
        ("method=[]", r"choose at least one option"),
        ("method=null", r"choose at least one option"),
        ("method=", r"choose at least one option"),
        ("experiment=null", r"no experiment is the default. Leave it out"),
        ("seed=1,2", r"takes a multirun. Type: .* -m seed=1,2 "),
        ("method=pe,ewc", r"-m method=pe,ewc \(a run of each\), or: .*'method=\[pe,ewc\]' \(one run"),
        ("'seed=range(3)'", r"Type: .* -m 'seed=range\(3\)'"),
        ("'seed=glob(*)'", r"glob\(...\) chooses among options of a group"),
        ("-m 'seed=glob(*)'", r"Type the values: seed=A,B"),
        ("-m 'method=glob(pee_*)'", r"chooses none of: agem, "),
        ("-m 'seed=interval(0,1)'", r"cannot be read"),
        ("-m 'seed=range(0,0)'", r"no jobs"),
        ("-m seed=0,1 seed=2", r"both say seed"),
        ("-m seed=0,0", r"the same run"),
        ("-m method=pe,ewcc", r"in the job method=ewcc: .*Nearest: 'ewc'"),
        ("-m --cfg job", r"leave -m"),
        ("hardware=slurm", r"is submitted. Type: python -m cl_runner submit hardware=slurm$"),
    ],
    "signs": [
        ("+seed=1", r"`\+` is for keys without one. Type: .* seed=1$"),
        ("+method=ewc", r"chosen without a `\+`. Type: .*method=ewc$"),
        ("++method=ewc", r"chosen without a `\+`"),
        ("+experiment=pe/table_1", r"chosen without a `\+`"),
        ("~method", r"a run has every group"),
        ("~method=pe", r"a run has every group"),
        ("~seed", r"a run needs a value of seed"),
        ("~training", r"a run needs a value of training"),
        ("method@here=pe", r"an option always stands in its group's place. Type: .*method=pe$"),
        ("+nothing=1", r"no group or key 'nothing'"),
        ("+training.nothing=1", r"training has: "),
        ("++training.nothing=1", r"training has: "),
    ],
    "unread": [
        ("evaluation.labels=likelihood", r"nothing reads evaluation.labels here: .* of the family classifier"),
        ("backbone.chat_template=true", r"nothing reads backbone.chat_template"),
        ("backbone.max_answer_length=9", r"families other than classifier read it"),
        ("backbone=tiny_bert backbone.revision=main", r"has random weights"),
        ("backbone=classifier_folder backbone.checkpoint=./x backbone.revision=main", r"is of names on the hub"),
        ("importance.answer_tokens=sum", r"nothing reads"),
        ("task.reviews.max_new_tokens=3", r"nothing reads"),
        ("task_order.variant=7", r"no path of its tasks holds .variant., and no number follows it"),
        ("training.incremental.learning_rate=1", r"method.pe.learning_rate=0.002 takes .*method.pe.learning_rate=1 "),
        ("method=slm training.base.learning_rate=1", r"method.slm.learning_rate=0.0002 takes its place"),
        ("method=slm method.slm.cross_attention=true", r"nothing reads method.slm.cross_attention"),
        ("method=slm backbone=tiny_llama method.slm.head=per_task", r"nothing reads method.slm.head"),
        ("method=slm method.slm.prompt_length=4", r"Type: .*method.slm.value=prompt "),
        ("method=slm_prompt method.slm.rank=4", r"Type: .*method.slm.value=jare "),
        ("method.pe.damping=2", r"Type: .*method.pe.damping=2 method.pe.score=second_order "),
        ("method=pe_rand method.pe.keep=largest", r"not read with method.pe.score=random"),
        ("method=ewc method.ewc.decay=0.5", r"Type: .*method.ewc.fisher_data=last_task"),
        ("method=replay method.replay.every=3", r"Type: .*method.replay.way=periodic"),
        ("method=replay importance.passes=2", r"replay measures no importance"),
        ("method=piece_rand importance.passes=2", r"nothing reads importance.passes"),
        ("importance.micro_batch=4 importance.batch_size=9", r"Type: .*importance.micro_batch=1 "),
        ("training.optimizer=sgd training.epsilon=1e-5", r"Type: .*training.optimizer=adamw"),
        ("evaluation.bertscore.layer=3", r"no task is scored by bertscore"),
        ("wandb=disabled wandb.project=x", r"wandb.mode=offline or online"),
        ("task.reviews.path=x", r"task.reviews.source=files"),
        ("task.reviews.revision=x", r"task.reviews.source=hub"),
        ("task.reviews.max_rows=4", r"says something of source=files and hub alone.*Type: task.reviews.max_rows=null"),
        ("'task=[reviews,fdu_mtl]' task.fdu_mtl.template=x", r"the order uses reviews"),
        ("-m method=seq_ft,replay importance.passes=2", r"nothing reads importance.passes"),
    ],
    "names": [
        ("root=" + "a" * 300, r"of 300 bytes, and names have at most 255"),
        ("root=" + "/".join(["b" * 200] * 22), r"has a path of \d+ bytes"),
        ("task_order.tasks.0.name=" + "a" * 300, r"a name of at most 200 bytes"),
        ("task_order.tasks.0.name=a/b", r"made of letters, digits"),
        ("task_order.tasks.0.name=..", r"another name: files are called by it"),
        ("'task_order.tasks.0.name=\"a\tb\"'", r"made of letters, digits"),
        ("'root=\"a\tb\"'", r"holds the character '\\t'"),
        ("'root=\"~/x\"'", r"`~` is not expanded there. Type: .*root=/"),
        ("root=", r"root must be some text"),
        ("hardware.threads=100000", r"this machine has \d+ CPUs, .*Type: hardware.threads=\d+$"),
        ("hardware.threads=0", r"greater than or equal to 1, got 0"),
    ],
    "own files": [
        ("--config-dir {own} task_order=digits", r"the key 0 must be text .*YAML reads digits.*Write: '0': "),
        ("--config-dir {own} task_order=words", r"the key False must be text .*YAML reads no, off.*Write: 'no': "),
        ("--config-dir {own} task_order=names", r"labels.bad must be text .*YAML reads no.*got False"),
        ("--config-dir {own} task_order=numbered", r"tasks.0.name must be text .*got 1\."),
        ("--config-dir {own} task_order=timed", r"1:30 too.*got 90\."),
        ("--config-dir {own} method=broken", r"not valid YAML.*broken.yaml"),
        ("--config-dir {own} method=circle", r"circle.yaml starts from itself"),
        ("--config-dir {own} method=strange", r"no method is called 'strange'"),
        ("--config-dir {own} task_order=unknown", r"unknown key 'task.tickets.lables'. Nearest: 'task.tickets.labels'"),
    ],
    "commands": [
        ("plan seed=x", r"seed must be a whole number"),
        ("plan method=pee", r"Nearest: 'pe'"),
        ("plan seed=1 seed=2", r"both say seed"),
        ("plan --jsn", r"unrecognized arguments"),
        ("plan evaluation.labels=likelihood", r"nothing reads"),
        ("report", r"required: RUN_OR_FOLDER"),
        ("report {tmp}/none", r"none"),
        ("report {tmp}", r"no "),
        ("report {tmp} --format pdf", r"invalid choice: 'pdf'"),
        ("report {tmp} --were seed=1", r"unrecognized arguments"),
        ("snapshot", r"."),
        ("snapshot lst {tmp}", r"invalid choice: 'lst'|no command"),
        ("snapshot list", r"required"),
        ("snapshot list {tmp}/none", r"none"),
        ("snapshot verify {tmp}/none", r"none"),
        ("snapshot restore {tmp}/none:kettles", r"."),
    ],
}
CASES = [
    *(("group", *case) for case in misspelled_groups()),
    *(("option", *case) for case in misspelled_options()),
    *(("key", *case) for case in misspelled_keys()),
    *(("value", *case) for case in wrong_values()),
    *((kind, *case) for kind, cases in TABLE.items() for case in cases),
]

OWN = {
    "task_order/digits": "task: {tickets: {path: x, labels: {0: bad, 1: good}}}\n",
    "task_order/words": "task: {tickets: {path: x, labels: {no: bad, yes: good}}}\n",
    "task_order/names": "task: {tickets: {path: x, labels: {bad: no, good: yes}}}\n",
    "task_order/unknown": "task: {tickets: {path: x, lables: null}}\n",
    "task_order/numbered": "task_order: {task: reviews, tasks: [{name: 1}]}\n",
    "task_order/timed": "task_order: {task: reviews, tasks: [{name: 1:30}]}\n",
    "method/broken": "pe: {fraction: [0.1\n",
    "method/circle": "defaults: [circle]\n",
    "method/strange": "strange: {}\n",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in ("own", "tmp")}
    for name, text in OWN.items():
        path = found["own"] / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        order = "tasks: [{name: kettles}]" if name.startswith("task_order") and "tasks" not in text else ""
        head = "# @package _global_\n" if name.startswith("task_order") else ""
        path.write_text(
            head + "# of the test\n" + text + (f"task_order: {{task: tickets, {order}}}\n" if order else "")
        )
    return found


def _filled(typed: str, folders: dict[str, Path]) -> str:
    return typed.replace("{own}", str(folders["own"])).replace("{tmp}", str(folders["tmp"]))


def test_there_are_three_hundred() -> None:
    assert len(CASES) >= 300 and len({typed for _, typed, _ in CASES}) == len(CASES)


def test_each_has_one_answer(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All in one process, in which what groups' choices make is composed once."""
    monkeypatch.chdir(tmp_path)
    made = functools.cache(lambda overrides, folders: composed(list(overrides), list(folders)))
    composed = compose._compose
    monkeypatch.setattr(compose, "_compose", lambda overrides, folders: made(tuple(overrides), tuple(folders)))
    run = types.ModuleType("cl_runner.run")
    run.__dict__["execute"] = lambda request, tasks: 0  # nothing trains: the command was no mistake
    monkeypatch.setitem(sys.modules, "cl_runner.run", run)
    wrong = []
    for kind, typed, piece in CASES:
        words = shlex.split(_filled(typed, folders))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status: object = run_command(words)
            except (Exception, SystemExit) as error:
                status = repr(error)
        said = err.getvalue().rstrip("\n")
        circle = re.search(rf"Type: python -m cl_runner {re.escape(shlex.join(words))}$", said)
        if (
            status != 2
            or said.count("cl_runner: ") != 1
            or len(said.splitlines()) > 3
            or "Traceback" in said
            or circle
            or not re.search(piece, said, re.DOTALL)
        ):
            wrong.append(f"[{kind}] {typed}\n    status {status}: {said}\n    expected {piece}")
    assert not wrong, f"{len(wrong)} of {len(CASES)}:\n" + "\n".join(wrong)
    assert not [path for path in tmp_path.iterdir() if path.name != "own"], "a wrong request leaves nothing behind"
