"""Hidden states and CKA: formula by brute force, what a run keeps, pictures of one run and of several, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_folders import make_run, words
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import learn, run_command, tiny, tiny_config, tiny_learner

from cl_runner.build import build_probes
from cl_runner.digests import Damaged
from cl_runner.families.tokens import after_first
from cl_runner.learner import Learner
from cl_runner.matrix import read_matrix
from cl_runner.probes.representations import PRODUCTS, products, similarity
from cl_runner.report.folder import read_run
from cl_runner.report.page import write_run_report
from cl_runner.report.representations import compared, maps, read_states, thinned_steps

FAMILIES = ["tiny_bert", "tiny_llama", "tiny_t5"]


def brute_force(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Kornblith et al. 2019, eq. 3 with linear kernels: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), sum by sum."""

    def hsic(k: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
        n = len(k)
        h = np.eye(n) - np.ones((n, n)) / n
        return float(np.trace(k @ h @ other @ h)) / (n - 1) ** 2

    k = np.array([[sum(a * b for a, b in zip(one, two, strict=True)) for two in x] for one in x])
    other = np.array([[sum(a * b for a, b in zip(one, two, strict=True)) for two in y] for one in y])
    return float(hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other)))


def test_cka_is_the_papers_and_sees_no_rotation_scale_or_shift() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9, 4)), random.normal(size=(9, 7))
    y[:, :4] += x

    def cka(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
        return similarity(products(torch.from_numpy(one)), products(torch.from_numpy(other)))

    assert cka(x, y) == pytest.approx(brute_force(x, y), abs=1e-12) and 0.2 < cka(x, y) < 0.95
    rotation, _ = np.linalg.qr(random.normal(size=(4, 4)))
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-12)
    # Of features in place of products: ||Y'X||^2 / (||X'X|| ||Y'Y||).
    a, b = x - x.mean(0), y - y.mean(0)
    by_features = np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert cka(x, y) == pytest.approx(by_features, abs=1e-12)
    flat = np.ones((9, 4))
    assert (cka(flat, flat), cka(flat, x)) == (1.0, 0.0)


def probed(tmp_path: Path, *overrides: str) -> tuple[Learner, Any, Any, Path]:
    config = tiny_config(tmp_path, "method=seq_ft", "probe=representations", *overrides)
    learner, method, tasks = tiny_learner(config)
    (probe,) = build_probes(config.probe).values()
    folder = tmp_path / "probe"
    folder.mkdir()
    return learner, probe, (config, method, tasks), folder


@pytest.mark.parametrize("backbone", FAMILIES)
def test_states_are_the_plain_models_and_the_model_stays_as_it_is(backbone: str, tmp_path: Path) -> None:
    """Each text alone, without padding; CKA by the files alone."""
    learner, probe, (config, method, tasks), folder = probed(
        tmp_path, f"backbone={backbone}", "probe.representations.texts=9", "probe.representations.layers=[1,-1]",
        "training.base.learning_rate=0.01", "training.max_steps=3",
    )  # fmt: skip
    probe.prepare(learner, folder)
    before, modes = learner.weights(), [module.training for module in learner.model.modules()]
    first = probe.measure(learner, folder, "start")
    assert [module.training for module in learner.model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())
    assert all(value == pytest.approx(1, abs=1e-9) for value in first.values())
    learn(learner, method, tasks[0], config)
    found = probe.measure(learner, folder, "base")
    assert 0 < found["cka/layer_02"] < 1 - 1e-6 and list(found) == ["cka/mean", "cka/layer_01", "cka/layer_02"]
    assert found["cka/mean"] == pytest.approx((found["cka/layer_01"] + found["cka/layer_02"]) / 2)
    states = load_file(folder / "states_base.safetensors")
    with safe_open(folder / "states_base.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["tasks"]) == [["base", 3], ["kettles", 3], ["software", 3]]
    assert list(states) == ["layer_01", "layer_02"] and len(states["layer_02"]) == 9
    texts = [example for task in tasks for example in task.test[:3]]
    model = learner.model.get_encoder() if backbone == "tiny_t5" else learner.model  # type: ignore[operator]
    model.eval()
    for number, example in enumerate(texts):
        batch = learner.collate([example], answers=False)
        with torch.no_grad():
            hidden = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
        for layer in (1, 2):
            first = 1 if backbone == "tiny_llama" else 0
            wanted = hidden[layer][0, 0] if backbone == "tiny_bert" else hidden[layer][0, first:].mean(0)
            np.testing.assert_allclose(states[f"layer_{layer:02d}"][number], wanted.numpy(), atol=2e-5)
    start = load_file(folder / "states_start.safetensors")
    exact = brute_force(*(kept["layer_02"].astype(np.float64) for kept in (start, states)))
    assert found["cka/layer_02"] == pytest.approx(exact, abs=1e-9)


def test_a_decoders_first_token_is_left_out_where_another_one_follows() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    assert after_first(mask).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize(("layers", "right"), [("[0]", "[1,2]"), ("[3]", "[1,2]"), ("[-3,1]", "[1,2]")])
def test_a_layer_that_is_not_there(layers: str, right: str, tmp_path: Path) -> None:
    learner, probe, _, folder = probed(tmp_path, f"probe.representations.layers={layers}")
    with pytest.raises(ValueError, match="the model has the blocks 1 to 2") as said:
        probe.prepare(learner, folder)
    assert f"Type: probe.representations.layers={right}" in str(said.value)
    assert not (folder / PRODUCTS).exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full and sparse fine-tuning as a user runs them."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("seq_ft", "piece_s"):
        typed = (f"method={method}", "probe=representations", "probe.representations.texts=12")
        assert run_command(tiny(root, *typed, "training.base.learning_rate=0.01")) == 0
    return root


def test_a_run_keeps_states_and_cka_and_shows_them(runs: Path) -> None:
    (folder,) = (path.parent for path in runs.rglob("seq_ft/*/summary.json"))
    names, rows = read_matrix(folder / "ability.csv")
    assert names[0] == "representations/cka/mean" and rows.shape == (4, 3) and rows[0] == pytest.approx(1)
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["representations/cka/layer_02"] for row in summary["ability"]] == rows[:, 2].tolist()
    sums = (folder / "probes" / "representations" / "SHA256SUMS").read_text()
    assert all(f"  states_{after}.safetensors\n" in sums for after in ("start", "base", "kettles", "software"))
    text = words(folder / "report.html")
    assert "Texts inside the model" in text and "General ability</h2>" not in text, "it has a section of its own"
    assert f"<td>{rows[3, 2]:.4f}</td>" in text
    assert {"representations.png", "cka.png"} <= {path.name for path in (folder / "plots").iterdir()}


def test_runs_are_compared_in_one_projection(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [path.parent for path in sorted(runs.rglob("summary.json"))]
    labelled = {run.method: run for run in map(read_run, folders)}
    (found,) = compared(labelled)
    assert list(found.states) == ["untouched model", "piece_s", "seq_ft"] and not found.notes
    shown = maps(found.states)
    vectors = np.concatenate([each.blocks["layer_02"] for each in found.states.values()])
    centred = vectors - vectors.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    by_hand = centred @ axes[:2].T
    places = np.concatenate(shown.places["layer_02"])
    np.testing.assert_allclose(np.abs(places), np.abs(by_hand), atol=1e-5)
    assert shown.shares["layer_02"] == pytest.approx(100 * (sizes[:2] ** 2).sum() / (sizes**2).sum())
    assert run_command(["report", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 0
    text = words(tmp_path / "page.html")
    assert "Texts inside the model over" in text and "Learned against kept" not in text
    capsys.readouterr()
    asked = ["figure", "piece/4", *map(str, folders), "--output", str(tmp_path / "o")]
    assert run_command(asked) == 0 and run_command([*asked[:-1], str(tmp_path / "t"), "--projection", "tsne"]) == 0
    lines = (tmp_path / "o" / "piece_4.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3 * 12 and lines[1].startswith("piece/4,") and ",layer_01,base,1," in lines[1]
    assert float(lines[1].split(",")[7]) == pytest.approx(shown.places["layer_01"][0][0, 0])
    assert lines != (tmp_path / "t" / "piece_4.csv").read_text().splitlines()
    said = capsys.readouterr().out
    assert "its caption says: intermediate and upper layers" in said and "piece_4.png" in said


def test_states_of_other_texts_are_not_drawn_together(runs: Path, tmp_path: Path) -> None:
    labelled = {run.method: run for run in (read_run(path.parent) for path in sorted(runs.rglob("summary.json")))}
    other = make_run(tmp_path, "seq_ft", tasks=labelled["seq_ft"].tasks)
    place = other / "probes" / "representations"
    place.mkdir(parents=True)
    said = {"texts": "others", "tasks": json.dumps([["base", 12]])}
    states = {name: np.ones((12, 16), np.float32) for name in ("layer_01", "layer_02")}
    for after in ("start", *labelled["seq_ft"].tasks):
        save_file(states, place / f"states_{after}.safetensors", said)
    found = compared({**labelled, "other": read_run(other)})
    assert [list(each.runs) for each in found] == [["piece_s", "seq_ft"], ["other"]]
    save_file({"layer_01": states["layer_01"][:5]}, place / "states_base.safetensors", said)
    with pytest.raises(Damaged, match="not of its texts"):
        read_states(read_run(other), "base")
    (other / "ability.csv").write_text("after,representations/cka/mean\nstart,1.0\nbase,0.5\n")
    with pytest.raises(ValueError, match="Left out: texts inside the model"):
        write_run_report(other)


def test_of_many_steps_some_are_drawn() -> None:
    assert thinned_steps([str(n) for n in range(11)]) == ["0", "2", "4", "6", "8", "10"]
    assert thinned_steps(["start", "a"]) == ["start", "a"]
