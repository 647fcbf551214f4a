"""Files of the user's own replace ours, and the run says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from own import write
from tiny import TINY, run_command

from cl_runner.compose import compose
from cl_runner.groups import CONF

pytestmark = pytest.mark.usefixtures("no_pictures")


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
