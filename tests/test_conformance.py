"""One table: every method on every family that it claims, through every invariant."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from conformance import ROWS, Cell, Row, check, fits, moved
from tiny import EVERY_FAMILY

from cl_runner.combinations import combinations, refusal
from cl_runner.groups import options


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of every other row one of the families that it names; with CL_RUNNER_EVERY_FAMILY=1, as .ci/run has it, all."""
    if "cell" not in metafunc.fixturenames:
        return
    turns = {row: row.families[i % len(row.families) :][:1] if row.families else () for i, row in enumerate(ROWS)}
    names = {row: row.claimed if EVERY_FAMILY else turns[row] if i % 2 == 0 else () for i, row in enumerate(ROWS)}
    if metafunc.function is test_a_term_of_weight_0_changes_nothing and not EVERY_FAMILY:
        names = {row: row.families[-1:] if row.choice in CROSSED else () for row in ROWS}
    cells = [(row, family) for row in ROWS for family in names[row] if family not in row.refuses]
    if metafunc.function is test_smaller_passes_learn_the_same:
        cells = [(row, family) for row, family in cells if not row.by_pass]
    metafunc.parametrize("cell", cells, ids=[f"{row.choice}-{family}" for row, family in cells], indirect=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module")
def cell(request: pytest.FixtureRequest, root: Path) -> Cell:
    row, family = request.param
    return Cell(row, family, root)


def test_the_table_has_every_method() -> None:
    assert {row.choice for row in ROWS if "[" not in row.choice} == set(options("method"))
    assert all(set(row.families) <= set(row.claimed) for row in ROWS)


#: Rows that are tried beside idle companions in every run: draws, counts and passes that these could disturb.
CROSSED = ("migu", "replay_online", "der", "opr", "si")
REFUSED = [(row, *refused) for row in ROWS for refused in row.refuses.items()]


@pytest.mark.parametrize(("row", "family", "said"), REFUSED, ids=[f"{row.choice}-{name}" for row, name, _ in REFUSED])
def test_what_a_family_cannot_have_is_refused(row: Row, family: str, said: str, root: Path) -> None:
    with pytest.raises(ValueError, match=said):
        check(row, family, root)


def test_the_loss_falls(cell: Cell) -> None:
    learns = [bool(cell.first.losses), bool(cell.second.losses) and not cell.row.ends_on_old]
    assert all(after < before for (before, after), falls in zip(cell.losses, learns, strict=True) if falls)
    assert cell.first.losses or cell.row.choice == "icl"
    assert cell.second.losses or cell.row.choice in ("icl", "frozen")


def test_only_the_allowed_weights_move(cell: Cell) -> None:
    flags, row, learner = moved(cell), cell.row, cell.learner
    backbone = [flags[name] for name in learner.measurable() if name not in learner.added]
    share = sum(int(flag.sum()) for flag in backbone) / sum(flag.numel() for flag in backbone)
    assert share <= 1.3 * row.trained
    assert share > 0.5 if row.trained == 1 else any(bool(f.any()) for f in flags.values()) or row.trained == 0
    for name, flag in flags.items():
        allowed = torch.zeros_like(flag)
        if name in cell.second.allowed:
            index = cell.second.allowed[name]
            allowed[slice(None) if index is None else index] = True
        assert not bool((flag & ~allowed).any()), f"{name}: a fixed weight moved"
        assert not bool(flag.any()) or fits(row.only, name), f"{name}: nothing of it may move"
    # What was there before the task began is what the task before left.
    for name, values in cell.between.items():
        assert name in learner.added or torch.equal(cell.second.before[name], values), name
    frozen = len(learner.measurable()) < len(learner.parameters())  # by the backbone, such as what sees
    part = 0 < row.trained < 1 or any(bool(flags[name].any()) for name in learner.added) or (frozen and row.trained)
    assert ("certificate" in cell.second.detail) == bool(part)
    if part:
        proof = cell.second.detail["certificate"]
        assert proof["holds"] and proof["changed"] == sum(int(flag.sum()) for flag in flags.values())


def test_a_task_goes_on_from_its_middle_with_the_same_bits(cell: Cell) -> None:
    if not cell.second.losses:
        return
    learner, method, losses = cell.again(cell.second.inside, cell.second.training)
    assert losses == cell.second.losses[2:]
    found = learner.weights()
    assert all(torch.equal(found[name], values) for name, values in cell.second.after.items())
    same(method.state_dict(), cell.state, 0.0)


def test_smaller_passes_learn_the_same(cell: Cell) -> None:
    if not cell.second.losses:
        return
    learner, method, losses = cell.again(cell.second.prepared, None, "base.micro_batch=4", "incremental.micro_batch=4")
    assert losses == pytest.approx(cell.second.losses, rel=1e-4)
    for name, values in learner.weights().items():
        assert torch.allclose(values, cell.second.after[name], rtol=1e-3, atol=1e-5), name
    same(method.state_dict(), cell.state, 1e-3)


def test_a_term_of_weight_0_changes_nothing(cell: Cell) -> None:
    """Its passes and what it records leave no trace in the other method: no draw, no count, no weight."""
    companions = [one for one in ("ewc", "lwf") if one not in cell.row.nodes]
    if not companions or refusal((*cell.row.choices, *companions)):
        return
    found = cell.beside(*companions).weights()
    assert all(torch.equal(found[name], values) for name, values in cell.second.after.items())


@pytest.mark.parametrize("pair", combinations(), ids="+".join)
def test_pairs_learn_or_are_refused(pair: tuple[str, str], root: Path) -> None:
    """What `python -m cl_runner methods` shows of combinations is what is tried here."""
    chain, said = Row(f"[{','.join(pair)}]", 1), refusal(pair)
    family = next(name for name in ("bert", "llama") if name in chain.claimed)
    if said is not None:
        assert refusal(re.search(r"Type: method=\[?([\w,.]+)", said).group(1).split(",")) is None, said
        return
    first, second = Cell(chain, family, root).losses
    assert first[1] < first[0] and math.isfinite(second[1])


def same(found: object, wanted: object, tolerance: float, scale: float = 1.0) -> None:
    """Two states: draws and counters are equal, numbers of the weights' kind to rounding."""
    assert type(found) is type(wanted)
    if isinstance(found, dict):
        assert found.keys() == wanted.keys()
        size = max((float(one.abs().max()) for one in wanted.values() if isinstance(one, torch.Tensor)), default=scale)
        for key in found:
            same(found[key], wanted[key], tolerance, size)
    elif isinstance(found, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, tolerance, scale)
    elif isinstance(found, torch.Tensor) and tolerance and found.is_floating_point():
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * scale)
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, wanted)
    else:
        assert found == wanted
