"""The certificate that a sparse task touched nothing but its selection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import TINY, run_command

from cl_runner.learner import Learner
from cl_runner.methods.selector import Selector
from cl_runner.sparse.bits import tensor_digests
from cl_runner.sparse.certificate import certify, rest_digests


def test_digests_ignore_the_selected_entries_and_nothing_else() -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    selected = {"a": torch.tensor([1, 4])}
    before = rest_digests(weights, selected)
    assert before["b"] == tensor_digests(weights)["b"]
    weights["a"].view(-1)[[1, 4]] = torch.tensor([9.0, 4.0])
    after = rest_digests(weights, selected)
    proof = certify(before, after, 2, 8, 1)
    assert (proof["selected"], proof["changed"], proof["untouched"], proof["holds"]) == (2, 1, 6, True)
    weights["b"][0] = -1
    weights["a"][0, 0] = -0.0  # equal in value, another bit pattern
    with pytest.raises(RuntimeError, match="2 tensors changed outside the selected entries, the first is a"):
        certify(before, rest_digests(weights, selected), 2, 8, 1)


def test_a_run_certifies_every_sparse_task(tmp_path: Path) -> None:
    assert run_command([*TINY, "method=pe_select", f"root={tmp_path}"]) == 0
    (path,) = tmp_path.rglob("summary.json")
    base, *later = json.loads(path.read_text())["tasks_detail"]
    assert "certificate" not in base
    for task in later:
        proof = task["certificate"]
        assert proof["holds"] and proof["selected"] == task["trainable"] >= proof["changed"] == task["changed"] > 0
        assert proof["selected"] + proof["untouched"] == task["model_parameters"]
    # Nothing but the selected entries moved, so what no task selected is what the base task left.
    masks = json.loads((path.parent / "masks.json").read_text())["tasks"]
    assert [entry["task"] for entry in masks] == ["kettles", "software"]
    assert sum(cell["selected"] for cell in masks[0]["cells"]) == later[0]["trainable"]
    assert set(masks[1]["overlap"]) == {"kettles"} and 0 <= masks[1]["overlap"]["kettles"]["all"] <= 1


def test_a_run_whose_method_strays_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stray(self: Selector, learner: Learner) -> None:
        if learner.selected:
            with torch.no_grad():
                learner.parameters()["classifier.bias"].add_(1.0)

    monkeypatch.setattr(Selector, "after_step", stray)
    command = [*TINY, "method=pe_select", "method.pe.exclude=['classifier*']", f"root={tmp_path}"]
    for _ in range(3):  # typed again, it does not go on from what it must not have learned
        assert run_command(command) == 1
        assert not list(tmp_path.rglob("01_kettles*")) and not list(tmp_path.rglob("COMPLETED"))
    assert "1 tensors changed outside the selected entries, the first is classifier.bias" in capsys.readouterr().out
