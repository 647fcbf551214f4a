"""Parts of the user's own: of installed packages and by their path; mistakes in them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from own import SMALL, finished, write, write_blocks, write_tickets
from pydantic import ValidationError
from tiny import run_command

from cl_runner import parts as parts_module
from cl_runner.built_in import PROBES
from cl_runner.compose import compose
from cl_runner.parts import part_class, probe_spec
from cl_runner.registry import find

pytestmark = pytest.mark.usefixtures("no_pictures")


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
