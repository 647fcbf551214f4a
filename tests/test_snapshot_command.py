"""The command `snapshot` on a run: list, verify, restore, mistakes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from stored import assert_equal, make_run, snapshots
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
)

import cl_runner.build
from cl_runner.history.command import main
from cl_runner.methods.base import Chain
from cl_runner.methods.icl import ICL
from cl_runner.methods.l2 import L2
from cl_runner.methods.mbpa import MbPA
from cl_runner.methods.slm import SLM
from cl_runner.sparse.snapshots import describe_snapshot


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[dict[str, Tensor]]]:
    """A run of a tiny BERT whose first task trained a part of the model only, so that its base is needed."""

    def rebuild(folder: Path, begun: int = 1) -> SimpleNamespace:
        assert folder == tmp_path
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=7,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
            num_labels=2,
        )
        model = AutoModelForSequenceClassification.from_config(config)
        return SimpleNamespace(model=model)

    monkeypatch.setattr(cl_runner.build, "rebuild", rebuild)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    model = rebuild(tmp_path).model
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return tmp_path, make_run(tmp_path, weights, {"classifier.weight": None, "bert.pooler.dense.bias": [2]})


def test_list(run: tuple[Path, object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run[0])]) == 0
    shown = capsys.readouterr().out
    description = describe_snapshot(snapshots(run[0])[0])
    for part in ("books", "dvd", "music", "17", description.parent[:8], f"{description.file_bytes:,}"):
        assert part in shown


def test_verify(run: tuple[Path, object], capsys: pytest.CaptureFixture[str]) -> None:
    folder, files = run[0], snapshots(run[0])
    assert main(["verify", str(folder)]) == 0
    assert "3 snapshots, no problems" in capsys.readouterr().out
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-2])
    assert main(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "01_dvd.safetensors: the file ends inside or before the tensor" in shown
    assert "02_music.safetensors: no sound snapshot leads to its parent" in shown
    assert main(["verify", str(files[1])]) == 1
    files[1].write_bytes(content)
    assert main(["verify", str(files[1])]) == 0


def test_restore(run: tuple[Path, list[dict[str, Tensor]]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, history = run
    for index, task in enumerate(("books", "dvd", "music")):
        output = folder / "restored" / f"{task}.safetensors"
        assert main(["restore", str(folder), "--after", task, "--output", str(output)]) == 0
        assert_equal(load_file(output), history[index + 1])
        plain = output.with_suffix(".txt")
        plain.touch()
        assert output.stat().st_mode == plain.stat().st_mode, "others may read it as any other file"


def test_methods_that_do_more_for_an_answer_than_ask_the_model() -> None:
    for name, kind in {"icl": ICL, "mbpa": MbPA, "slm": SLM}.items():
        assert Chain({name: kind.__new__(kind), "l2": L2.__new__(L2)}).answering == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "RUN", "--after", "dvds", "--output", "x.safetensors"], "Type: --after dvd"),
        (["restore", "RUN", "--after", "dvd", "--output", "x.bin"], "ends in .safetensors"),
        (["list", "RUN/none"], "there is no folder"),
        (["list", "RUN/snapshots"], "holds no snapshots"),
        (["restore", "RUN", "--after", "dvd"], "--output"),
        (["lisst", "RUN"], "Nearest: 'list'. Type: python -m cl_runner snapshot list"),
        ([], "|compose|revert|restore|export. See: python -m cl_runner snapshot --help"),
        (["--lisst"], "--help"),
        (["list"], "required: run"),
        (["export", "RUN", "--after", "dvd", "--output", "RUN/config.yaml"], "it is not a folder"),
        (["export", "RUN", "--after", "dvd", "--output", "RUN/config.yaml/x"], "config.yaml is not a folder"),
        (["restore", "RUN", "--after", "dvd", "--output", "RUN/config.yaml/x.safetensors"], "is not a folder"),
        (["restore", "RUN", "--after", "dvd", "--output", "RUN/folder.safetensors"], "it is a folder"),
        (["export", "RUN", "--after", "dvd", "--output", f"RUN/{'x' * 300}"], "File name too long"),
    ],
)
def test_wrong_requests(
    run: tuple[Path, object], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (run[0] / "folder.safetensors").mkdir()
    before = sorted(run[0].rglob("*"))
    assert main([argument.replace("RUN", str(run[0])) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cl_runner: ") and message in shown.err and "usage" not in shown.err
    assert not shown.out and sorted(run[0].rglob("*")) == before


def test_a_run_that_kept_no_snapshots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("snapshots: {save: none}")
    assert main(["list", str(tmp_path)]) == 2
    assert "type its line with snapshots.save=all" in capsys.readouterr().err


def test_left_out_snapshots(run: tuple[Path, object], capsys: pytest.CaptureFixture[str]) -> None:
    snapshots(run[0])[0].unlink()
    assert main(["restore", str(run[0]), "--after", "dvd", "--output", str(run[0] / "x.safetensors")]) == 2
    assert "snapshots.save" in capsys.readouterr().err
