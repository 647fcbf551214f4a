"""What is the user's own: conf/README.md's examples exactly as printed, installed packages, files that replace ours."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError
from tiny import TINY, run_command

from cl_runner import checkpoint
from cl_runner import parts as parts_module
from cl_runner.built_in import PROBES
from cl_runner.compose import compose
from cl_runner.groups import CONF
from cl_runner.parts import part_class, probe_spec
from cl_runner.registry import find

README = (CONF / "README.md").read_text(encoding="utf-8")
SMALL = [o for o in TINY if not o.startswith("task_order")]
DOMAINS = ("phones", "routers", "watches")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a tiny run's time; tested elsewhere."""
    monkeypatch.setattr("cl_runner.report.page.write_run_report", lambda folder: folder / "report.html")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"conf/README.md has no section {title!r}"
    return found[1]


def write_blocks(title: str, folder: Path) -> dict[str, str]:
    """The files that a section prints, written as they stand there."""
    found = dict(re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL))
    for name, text in found.items():
        write(folder / name, text)
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def commands(title: str) -> list[list[str]]:
    """The arguments of the lines that a section says to type."""
    lines = re.findall(r"^python -m cl_runner (.*)$", section(title), re.MULTILINE)
    assert lines
    return [shlex.split(line) for line in lines]


def write_tickets(folder: Path) -> None:
    for domain in DOMAINS:
        for split, count in (("train", 12), ("test", 8)):
            rows = [f"the {domain} of ticket {i} {'broke' if i % 2 else 'works'},{i % 2}" for i in range(count)]
            write(folder / "tickets" / domain / f"{split}.csv", "\n".join(["text,label", *rows, ""]))


def summary_of(arguments: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, Any]:
    folder = compose(arguments, folders).folder
    assert (folder / "COMPLETED").is_file()
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


# The printed examples ---------------------------------------------------------------------------------------


def test_the_printed_benchmark(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_blocks("A benchmark of your own", here)
    assert [len(text.splitlines()) <= 10 for text in files.values()] == [True]
    write_tickets(here / "data")
    (typed,) = commands("A benchmark of your own")
    assert run_command([*typed, *SMALL]) == 0
    summary = summary_of([*typed[2:], *SMALL], [here / "mine"])
    assert [detail["name"] for detail in summary["tasks_detail"]] == list(DOMAINS)
    assert (here / "outputs" / "tickets" / "tiny_bert" / "pe").is_dir()
    capsys.readouterr()
    assert run_command([*typed, "--cfg", "job", "task.tickets.max_rows=10"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "task_defaults.yaml"))
    assert {**shown.task.tickets, "path": None, "labels": None} == {**defaults, "max_rows": 10}
    assert run_command([*typed, "--help"]) == 0
    assert re.search(r"^    tickets +Tickets of three products", capsys.readouterr().out, re.MULTILINE)
    assert run_command(["plan", *typed, *SMALL]) == 0
    rows = "task.tickets.max_rows=8,10"
    assert run_command(["-m", *typed, *SMALL, rows, "training.max_steps=1", "method=seq_ft"]) == 0
    assert len(list((here / "outputs" / "tickets" / "tiny_bert" / "seq_ft").iterdir())) == 2


def test_the_printed_method(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_blocks("A method of your own", here)
    assert len(files["l2_pull.py"].splitlines()) <= 25
    for typed in commands("A method of your own"):
        assert run_command([*typed, *TINY]) == 0
        assert run_command(["plan", *typed, *TINY]) == 0
        summary = summary_of([*typed[2:], *TINY], [here / "mine"])
        assert summary["run"]["method"] in ("l2_pull", "l2_pull+pe_select")
        assert len(summary["tasks_detail"]) == 3
        folder = compose([*typed[2:], *TINY], [here / "mine"]).folder
        assert run_command(["snapshot", "verify", str(folder)]) == 0
    capsys.readouterr()
    first = commands("A method of your own")[0]
    assert run_command([*first, "--help"]) == 0
    assert "L2 to the weights before the task" in capsys.readouterr().out
    assert run_command([*first, "--cfg", "job", "-p", "method"]) == 0
    assert "strength: 0.01" in capsys.readouterr().out
    assert run_command([*first, "method.l2_pull.strength=-1"]) == 2
    assert "method.l2_pull.strength must be greater than or equal to 0, got -1" in capsys.readouterr().err


def test_the_printed_method_pulls(here: Path) -> None:
    """By its gradient in later tasks, from their second step on: before it nothing has moved."""
    write_blocks("A method of your own", here)
    norms: dict[float, dict[str, list[float]]] = {}
    for strength in (0.0, 1000.0):
        typed = ["method=l2_pull", f"method.l2_pull.strength={strength}", *TINY]
        _, folder = finished(typed, here)
        norms[strength] = {"base": [], "kettles": [], "software": []}
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            numbers = json.loads(line)
            if numbers["kind"] == "train":
                norms[strength][numbers["task"]].append(numbers["gradient_norm"])
    free, pulled = norms.values()
    assert free["base"] == pulled["base"]
    assert free["kettles"][0] == pulled["kettles"][0] < free["kettles"][1] * 10 < pulled["kettles"][1]


class Death(BaseException):
    """Stands for kill -9: no handler of the program sees it."""


@pytest.mark.parametrize("number", [8, 16, 18])
def test_the_printed_method_resumes(here: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write_blocks("A method of your own", here)
    typed = ["method=l2_pull", *TINY, "checkpoint.every_seconds=0"]
    assert run_command(["--config-dir", "mine", *typed]) == 0
    whole = summary_of(typed, [here / "mine"])["weights_sha256"]
    real, calls = checkpoint.save, iter(range(10**6))

    def save(folder: Path, state: dict[str, Any]) -> None:
        if next(calls) == number:
            raise Death
        real(folder, state)

    again = [*typed, "root=again"]
    with monkeypatch.context() as dying:
        dying.setattr(checkpoint, "save", save)
        with pytest.raises(Death):
            run_command(["--config-dir", "mine", *again])
    assert not (compose(again, [here / "mine"]).folder / "COMPLETED").exists()
    assert run_command(["--config-dir", "mine", *again]) == 0
    assert summary_of(again, [here / "mine"])["weights_sha256"] == whole


# Parts of an installed package ------------------------------------------------------------------------------

PARTS = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cl_runner.families.classifier import Classifier
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.metrics.base import per_example
from cl_runner.probes.base import Probe


@dataclass
class Rest(Method):
    """Does nothing; its options are inherited, one has a default."""

    often: int
    how: str = "gently"


@dataclass
class Deep(Rest):
    names: list[str] | None = None


@dataclass
class Steps(Probe):
    scale: float

    families: ClassVar[tuple[str, ...]] = ("classifier",)

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        return {"always": self.scale}


class Mine(Classifier):
    pass


@per_example
def first_letter(prediction, example):
    return prediction[:1] == example.answer[:1]


def upside_down(record):
    if record["text"] == "odd":
        raise ValueError("it is odd")
    yield {**record, "label": {"0": "1", "1": "0"}[record["label"]]}


class Nothing:
    pass


class Plain(Method):
    often: int


@dataclass
class Odd(Method):
    often: "Nowhere"


class Unsure(Classifier):
    kind = "acoustic"


class Half(Probe):
    pass


number = 3
'''
POINTS = {
    "methods": {"rest": "own_parts:Deep"},
    "probes": {"steps": "own_parts:Steps"},
    "families": {"mine": "own_parts:Mine"},
    "metrics": {"first": "own_parts:first_letter"},
    "converters": {"turned": "own_parts:upside_down"},
}
OWN = ["probe=steps", "task_order=tickets", "data_root=data", *SMALL, "training.max_steps=2"]


@pytest.fixture
def parts(here: Path) -> Path:
    """A module with a part of every kind, and files of a configuration for them."""
    write(here / "own_parts.py", PARTS)
    write_blocks("A benchmark of your own", here)
    write_tickets(here / "data")
    return here


@pytest.fixture
def installed(parts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as an installed package, whose entry points name the parts."""
    install(parts, POINTS)
    monkeypatch.syspath_prepend(str(parts / "site"))
    write(parts / "mine/method/rest.yaml", "# of a package\nrest: {often: 2}\n")
    write(parts / "mine/probe/steps.yaml", "# of a package\nsteps: {scale: 2.5}\n")
    return parts


def install(folder: Path, points: dict[str, dict[str, str]]) -> None:
    lines = []
    for kind, names in points.items():
        lines += [f"[cl_runner.{kind}]", *(f"{name} = {place}" for name, place in names.items())]
    place = folder / "site" / "own_package-1.2.dist-info"
    write(place / "METADATA", "Metadata-Version: 2.1\nName: own-package\nVersion: 1.2\n")
    write(place / "entry_points.txt", "\n".join([*lines, ""]))


def finished(arguments: Sequence[str], folder: Path) -> tuple[dict[str, Any], Path]:
    assert run_command(["--config-dir", str(folder / "mine"), *arguments]) == 0
    request = compose(arguments, [folder / "mine"])
    summary: dict[str, Any] = json.loads((request.folder / "summary.json").read_text())
    return summary, request.folder


def test_parts_of_an_installed_package(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["method=rest", "backbone.family=mine", "task.tickets.metrics=[first]", "task.tickets.convert=turned"]
    _, folder = finished([*chosen, *OWN], installed)
    assert (folder / "ability.csv").read_text().splitlines()[1].endswith("2.5")
    shown = OmegaConf.load(folder / "config.yaml")
    assert shown.method.rest == {"often": 2, "how": "gently", "names": None}, "defaults of the class are stated"
    capsys.readouterr()
    assert run_command(["--help"]) == 0
    listed = capsys.readouterr().out
    for kind, names in POINTS.items():
        for name, place in names.items():
            assert re.search(rf"^  {kind} +{name} +{place} of the package own-package 1.2$", listed, re.MULTILINE)


def test_parts_by_their_path(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(parts / "mine/method/rest.yaml", "# mine\nrest: {_target_: own_parts.Deep, often: 2}\n")
    write(parts / "mine/probe/steps.yaml", "# mine\nsteps: {_target_: own_parts.Steps, scale: 2.5}\n")
    paths = ["task.tickets.metrics=[own_parts.first_letter]", "task.tickets.convert=own_parts.upside_down"]
    typed = ["method=rest", "backbone.family=own_parts.Mine", *paths, *OWN]
    straight, folder = finished([o for o in typed if "convert" not in o], parts)
    turned, _ = finished(typed, parts)
    assert straight["weights_sha256"] != turned["weights_sha256"], "the labels are turned"
    predictions = json.loads((folder / "data.json").read_text())
    assert predictions["labels"] == ["complaint", "question"]
    assert run_command(["plan", "--config-dir", "mine", *typed]) == 0
    # An option with a default is set by `+`, and is part of what a run is.
    asked = [*typed, "+method.rest.how=roughly"]
    assert compose(asked, [parts / "mine"]).hash != compose(typed, [parts / "mine"]).hash
    said = [*typed, "+method.rest.how=gently"]
    assert compose(said, [parts / "mine"]).hash == compose(typed, [parts / "mine"]).hash
    capsys.readouterr()
    assert run_command(["--config-dir", "mine", *typed, "method.rest.how=roughly"]) == 2
    assert "+method.rest.how=roughly" in capsys.readouterr().err


def test_records_that_a_converter_refuses(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(parts / "data/tickets/phones/train.csv", "text,label\nfine,0\nodd,1\n")
    typed = ["task_order=tickets", "data_root=data", "task.tickets.convert=own_parts.upside_down", *SMALL]
    assert run_command(["--config-dir", "mine", *typed]) == 2
    assert "record 2 of data/tickets/phones/train.csv: it is odd" in capsys.readouterr().err


#: (class path of a node, or other things typed; what the message must say).
WRONG = [
    ("own_parts.Rst", r"method.rest._target_=own_parts.Rst: own_parts has no 'Rst'. Nearest: 'Rest'"),
    ("own_prts.Rest", r"there is no module 'own_prts', neither installed nor in .*"),
    ("Rest", r"a dotted path is expected, such as my_package.my_module.Mine"),
    ("own_parts.Nothing", r"Nothing is no Method. Write: class Nothing\(Method\), from cl_runner.methods.base"),
    ("own_parts.number", r"number is no Method"),
    ("own_parts.Plain", r"Plain is no dataclass. Write @dataclass above the class"),
    ("own_parts.Odd", r"the types of Odd's options cannot be read: name 'Nowhere' is not defined"),
    ("broken.Rest", r"importing broken ended in ZeroDivisionError: division by zero"),
    ("needy.Rest", r"importing needy ended in ModuleNotFoundError: No module named 'absent'"),
    (["method.rest.often=twice"], r"method.rest.often must be a whole number, got 'twice'.*method.rest.often=2"),
    (["+method.rest.names=2"], r"method.rest.names must be a list, got 2"),
    (["+method.rest.oftn=2"], r"no group or key 'method.rest.oftn'.*Nearest: 'method.rest.often'"),
    (["backbone.family=own_parts.Unsure"], r"Unsure.kind says which family it behaves as, one of classifier, causal"),
    (["backbone.family=own_parts.Nothing"], r"Nothing is no Family"),
    (["task.tickets.metrics=[own_parts.number]"], r"own_parts.number is nothing that can be called"),
    (["task.tickets.convert=own_parts.upside"], r"own_parts has no 'upside'. Nearest: 'upside_down'"),
    (["probe=half"], r"Half lacks what every Probe has: measure"),
    (["method=[rest,extra]"], r"unknown key 'method.rest.oftn'. Nearest: 'method.rest.often'"),
    (["method=strange"], r"no method is called 'strange'. Known: seq_ft, .*_target_: PACKAGE.MODULE.CLASS"),
]


@pytest.mark.parametrize(("typed", "says"), WRONG, ids=[str(typed) for typed, _ in WRONG])
def test_mistakes(parts: Path, typed: str | list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(parts / "broken.py", "1 / 0\n")
    write(parts / "needy.py", "import absent\n")
    target = typed if isinstance(typed, str) else "own_parts.Deep"
    write(parts / "mine/method/rest.yaml", f"# mine\nrest: {{_target_: {target}, often: 2}}\n")
    write(parts / "mine/method/extra.yaml", "# mine\nrest: {oftn: 3}\n")
    write(parts / "mine/method/strange.yaml", "# mine\nstrange: {}\n")
    write(parts / "mine/probe/half.yaml", "# mine\nhalf: {_target_: own_parts.Half}\n")
    more = [] if isinstance(typed, str) else typed
    chosen = [] if any(o.startswith("method=") for o in more) else ["method=rest"]
    base = [*chosen, *more, "task_order=tickets", "data_root=data", *SMALL]
    assert run_command(["--config-dir", "mine", *base]) == 2
    shown = capsys.readouterr().err
    assert re.search(says, shown, re.DOTALL), shown
    assert shown.count("cl_runner: ") == 1 and "Traceback" not in shown
    assert not (parts / "outputs").exists()


def test_a_name_of_ours_cannot_be_taken(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(parts, {"methods": {"ewc": "own_parts:Rest"}})
    monkeypatch.syspath_prepend(str(parts / "site"))
    with pytest.raises(ValueError, match="method 'ewc' is brought by cl_runner.* and by the package own-package 1.2"):
        find("methods", "ewc")
    assert find("methods", "ewc", "own_parts.Rest").module == "own_parts"
    assert find("methods", "lwf").built_in


def test_options_are_read_from_source_in_the_order_of_a_dataclass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are not imported: bases of other files, a diamond, a type that is changed, class attributes."""
    write(
        tmp_path / "cl_runner/made_up_base.py",
        "class Base:\n    chooses: ClassVar[bool] = False\n    unit: ClassVar[str]\n    node: str\n\n"
        "@dataclass\nclass Top(Base):\n    first: Positive\n    second: Count\n",
    )
    write(
        tmp_path / "cl_runner/made_up.py",
        "from cl_runner.made_up_base import Base, Top as Above\nfrom abc import ABC\n\n"
        "@dataclass\nclass Left(Above):\n    left: Literal['a', 'b']\n\n"
        "@dataclass\nclass Right(Above, ABC):\n    second: list[str]\n    chooses: ClassVar[bool] = True\n\n"
        "@dataclass(eq=False)\nclass Both(Left, Right):\n    third: bool | None\n",
    )
    monkeypatch.setattr(parts_module, "HERE", tmp_path / "cl_runner")
    outline = parts_module._outline("cl_runner.made_up", "Both")
    schema = parts_module._schema(outline)
    assert list(schema.model_fields) == ["first", "second", "left", "third"]
    assert outline.chooses is True and "unit" not in vars(outline)
    given = {"first": 1.0, "second": ["x"], "left": "a", "third": None}
    assert schema.model_validate(given).model_dump() == given
    for wrong in ({"second": 2}, {"first": 0}, {"left": "c"}):
        with pytest.raises(ValidationError):
            schema.model_validate({**given, **wrong})


@pytest.mark.parametrize("name", PROBES)
def test_what_a_probe_says_is_read_from_its_source(name: str) -> None:
    cls = part_class("probes", name)
    spec = probe_spec(name)
    assert list(spec.schema.model_fields) == [field.name for field in dataclasses.fields(cls)]
    assert (spec.families, spec.higher_is_better, spec.unit) == (cls.families, cls.higher_is_better, cls.unit)


# Files that replace ours ------------------------------------------------------------------------------------


@pytest.fixture
def wide(here: Path) -> Path:
    """A folder whose tiny_bert is not ours, and whose pe_select is what our pe starts from."""
    ours = (CONF / "backbone" / "tiny_bert.yaml").read_text()
    write(here / "mine/backbone/tiny_bert.yaml", ours.replace("hidden_size: 32", "hidden_size: 64"))
    select = (CONF / "method" / "pe_select.yaml").read_text()
    write(here / "mine/method/pe_select.yaml", select.replace("fraction: 0.005", "fraction: 0.25"))
    return here


LINES = [
    "conf/backbone/tiny_bert.yaml of the package is replaced by mine/backbone/tiny_bert.yaml",
    "conf/method/pe_select.yaml of the package is replaced by mine/method/pe_select.yaml",
]


def test_a_users_file_replaces_a_shipped_one(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = compose(["backbone=tiny_bert"], [Path("mine")])
    assert request.resolved["backbone"]["architecture"]["hidden_size"] == 64
    assert request.resolved["method"]["pe"]["fraction"] == 0.25
    assert sorted(request.replaced) == LINES
    assert compose(["backbone=tiny_t5", "method=ewc"], [Path("mine")]).replaced == ()
    assert run_command(["--config-dir", "mine", "backbone=tiny_bert", "--cfg", "job", "-p", "backbone"]) == 0
    shown = capsys.readouterr()
    assert "hidden_size: 64" in shown.out
    assert sorted(shown.err.splitlines()) == LINES


def test_the_first_of_several_folders_wins(wide: Path) -> None:
    theirs = (wide / "mine/method/pe_select.yaml").read_text()
    write(wide / "more/method/pe_select.yaml", theirs.replace("fraction: 0.25", "fraction: 0.75"))
    mine, more = Path("mine"), Path("more")
    for folders, fraction in (([mine, more], 0.25), ([more, mine], 0.75)):
        request = compose(["method=pe", "backbone=tiny_bert"], folders)
        assert request.resolved["method"]["pe"]["fraction"] == fraction
        assert request.resolved["backbone"]["architecture"]["hidden_size"] == 64
        assert request.replaced[1].endswith(f"by {folders[0]}/method/pe_select.yaml")


def test_jobs_of_a_multirun_see_them_too(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--config-dir", "mine", "-m", "seed=0,1", *TINY, "training.max_steps=1", "method=seq_ft"]
    assert run_command(typed) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines().count(LINES[0]) == 1, "said once"
    configs = [OmegaConf.load(path) for path in Path("outputs").rglob("config.yaml")]
    assert [config.backbone.architecture.hidden_size for config in configs] == [64, 64]
    assert run_command(typed) == 0
    again = capsys.readouterr().out
    assert f"--config-dir {wide}/mine" in again, "the lines that its jobs print name the folder"


def test_a_file_cannot_start_from_the_one_it_replaces(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "mine/method/pe.yaml", "# mine\ndefaults: [pe, _self_]\npe: {fraction: 0.25}\n")
    assert run_command(["--config-dir", "mine", "method=pe"]) == 2
    assert "mine/method/pe.yaml starts from itself" in capsys.readouterr().err
