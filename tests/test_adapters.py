"""Adapters on peft's layers: what trains, what is kept, formulas against autograd, files that peft loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import command, dies_and_goes_on
from test_run import finished
from tiny import learn, run_command, seeded, some, tiny, tiny_config, tiny_learner, tiny_words, weights_of

from cl_runner.batch import Batch
from cl_runner.sparse.snapshots import describe_snapshot


def rate(method: str) -> list[str]:
    """A rate at which a tiny model learns."""
    return [f"method.{method}.learning_rate=3e-3"]


def learned(tmp_path: Path, *options: str, tasks: int = 2) -> tuple[Any, Any, list[Any]]:
    config = tiny_config(tmp_path, *options)
    learner, method, all_tasks = tiny_learner(config)
    for task in all_tasks[:tasks]:
        learn(learner, method, task, config)
    return learner, method, all_tasks


def adapters_of(learner: Any) -> set[str]:
    return {name.partition(".lora_A.")[2][:2] for name in learner.parameters() if ".lora_A." in name}


@pytest.mark.parametrize("method", ["inc_lora", "o_lora", "lora"])
def test_adapters_exist_from_their_tasks_beginning_on(method: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"method={method}")
    learner, chain, tasks = tiny_learner(config)
    assert adapters_of(learner) == {"00"}
    learn(learner, chain, tasks[0], config)
    assert adapters_of(learner) == {"00"}
    before = weights_of(learner)
    learn(learner, chain, tasks[1], config)
    assert adapters_of(learner) == {"00", "01"}
    moved = {n for n, value in before.items() if not torch.equal(value, learner.parameters()[n])}
    assert all("classifier" in name for name in moved), "of what was there, a classifier's head moves alone"
    learner.grow(tasks[2])
    assert adapters_of(learner) == {"00", "01", "02"}


@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_gpt2", "tiny_t5"])
def test_nothing_changes_before_something_learns(backbone: str, tmp_path: Path) -> None:
    """B begins with zeros; PiSSA puts into the adapter what it takes from the weights."""
    plain, _, tasks = tiny_learner(tiny_config(tmp_path, "method=seq_ft", f"backbone={backbone}"))
    logits = []
    for options in ([], ["method.seq_lora.dora=true"], ["method.seq_lora.start=pissa"]):
        learner, _, _ = tiny_learner(tiny_config(tmp_path, "method=seq_lora", f"backbone={backbone}", *options))
        learner.model.eval()
        logits.append(learner.forward(learner.collate(tasks[0].train[:4])).logits)
    plain.model.eval()
    expected = plain.forward(plain.collate(tasks[0].train[:4])).logits
    for found in logits:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_penalty_of_o_lora_is_the_releases(tmp_path: Path) -> None:
    """Gradient and value against autograd, layer by layer and adapter by adapter, in fp64."""
    options = [
        "method=o_lora",
        "method.o_lora.orthogonal_strength=0.7",
        "method.o_lora.norm_strength=0.3",
        *rate("o_lora"),
    ]
    learner, method, tasks = learned(tmp_path, *options)
    learner.grow(tasks[2])
    learner.choose(tasks[2], method.trains(learner, tasks[2]))
    learner.begin()
    with learner.holding():
        for values in learner.trained.values():
            values.data.add_(0.1 * torch.randn(values.shape, generator=seeded()))
            values.grad = None
        method.grads(learner)
        new = {n: v.detach().double().requires_grad_() for n, v in learner.trained.items()}
        old = {n: p.detach().double() for n, p in learner.parameters().items() if ".lora_A." in n}
        penalty: Any = 0.0
        for name, values in new.items():
            if ".lora_" not in name:
                continue
            penalty += 0.3 * values.norm()
            for earlier in ("00", "01"):
                if ".lora_A." in name:
                    penalty += 0.7 * (old[name.replace(".02.", f".{earlier}.")] @ values.T).abs().sum()
        penalty.backward()
        assert learner.terms["o_lora"] == pytest.approx(float(penalty.detach()), rel=1e-5)
        for name, values in new.items():
            if values.grad is not None:
                found = learner.trained[name].grad
                assert found is not None
                torch.testing.assert_close(found.double(), values.grad, rtol=1e-4, atol=1e-6)
            else:
                assert learner.trained[name].grad is None, "a head has no penalty"


def test_the_penalty_makes_adapters_orthogonal(tmp_path: Path) -> None:
    def overlap(strength: float) -> float:
        options = ["method=o_lora", f"method.o_lora.orthogonal_strength={strength}", "method.o_lora.learning_rate=0.02"]
        learner, _, _ = learned(tmp_path, *options)
        weights = learner.parameters()
        first = [n for n in weights if ".lora_A.00" in n]
        return sum(float((weights[n] @ weights[n.replace(".00.", ".01.")].T).abs().sum()) for n in first)

    assert overlap(5.0) < 0.5 * overlap(0.0)


def test_merged_is_the_same_function_as_summed(tmp_path: Path) -> None:
    """After one task; of the next one, fp32 rounding aside."""
    options = ["method=o_lora", "method.o_lora.dropout=0", *rate("o_lora")]
    summed, _, tasks = learned(tmp_path, *options)
    merged, method, _ = learned(tmp_path, *options, "method.o_lora.merge=true")
    assert not adapters_of(merged) and adapters_of(summed) == {"00", "01"}
    assert all(len(rows) == 16 for rows in method.methods["o_lora"].rows.values()), "A of both tasks is kept"
    for learner in (summed, merged):
        learner.model.eval()
    left, right = (learner.forward(learner.collate(tasks[1].train[:6])).logits for learner in (summed, merged))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_a_known_task_forgets_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=lora", *rate("lora"))
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    learner.model.eval()
    examples = tasks[0].test[:5]
    before = learner.forward(learner.collate(examples)).logits
    learn(learner, method, tasks[1], config)
    learner.model.eval()
    assert torch.equal(before, learner.forward(learner.collate(examples)).logits)
    mixed = [*examples, *tasks[1].test[:3], *tasks[2].test[:2]]
    together = learner.forward(learner.collate(mixed)).logits
    for row, example in enumerate(mixed):
        alone = learner.forward(learner.collate([example])).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_texts_of_no_task_are_the_backbones(tmp_path: Path) -> None:
    learner, _, tasks = learned(tmp_path, "method=lora", "backbone=tiny_llama", *rate("lora"))
    plain, _, _ = tiny_learner(tiny_config(tmp_path, "method=seq_ft", "backbone=tiny_llama"))
    batch = learner.collate(tasks[0].train[:3])
    for one in (learner, plain):
        one.model.eval()
    nobody = Batch(dict(batch))
    assert torch.equal(learner.forward(nobody).logits, plain.forward(nobody).logits)
    assert not torch.equal(learner.forward(batch).logits, plain.forward(batch).logits)


def high(weight: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    outward, _, inward = torch.linalg.svd(weight.double(), full_matrices=False)
    return outward[:, :kept], inward[:kept]


@pytest.mark.parametrize("project", ["gradients", "steps"])
def test_osf_keeps_what_it_says(project: str, tmp_path: Path) -> None:
    """U_high^T W V_high is what it was, exactly with project=steps, whatever the optimizer makes of a gradient."""
    options = ["method=osf", f"method.osf.project={project}", "method.osf.kept_share=0.4", *rate("osf")]
    config = tiny_config(tmp_path, *options)
    learner, method, tasks = tiny_learner(config)
    names = method.methods["osf"].subspaces.beneath()
    before = weights_of(learner)
    learn(learner, method, tasks[0], config)
    after = weights_of(learner)
    assert not any("osf_svd" in name for name in after), "nothing is left of a cut"
    drift, moved = 0.0, 0.0
    for name in names:
        kept = int(0.4 * min(before[name].shape))
        outward, inward = high(before[name], kept)
        change = after[name].double() - before[name].double()
        moved = max(moved, float(change.abs().max()))
        drift = max(drift, float((outward.T @ change).abs().max()), float((change @ inward.T).abs().max()))
    assert moved > 1e-3
    assert drift < 1e-5 if project == "steps" else drift > 1e-4
    others = {n for n in before if not torch.equal(before[n], after[n])} - set(names)
    assert all("classifier" in name for name in others)


def test_osf_refuses_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tiny(tmp_path, "method=osf", "backbone=tiny_gpt2")) == 2
    assert "Conv1D" in capsys.readouterr().err
    assert run_command(tiny(tmp_path, "method=osf", "method.osf.kept_share=[0.3,0.5]")) == 2
    assert "2 shares for 3 tasks. Type: method.osf.kept_share=0.3" in capsys.readouterr().err
    assert run_command(tiny(tmp_path, "method=seq_lora", "method.seq_lora.rank=500")) == 2
    assert "Type: method.seq_lora.rank=32" in capsys.readouterr().err
    assert run_command(tiny(tmp_path, "method=seq_lora", "method.seq_lora.targets=[ffn_gate]")) == 2
    assert "no ffn_gate layers" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("method", "backbone"),
    some(
        [
            ("[o_lora,ewc]", "tiny_bert"),
            ("o_lora", "tiny_t5"),
            ("[inc_lora,migu]", "tiny_llama"),
            ("lora", "tiny_bert"),
            ("osf", "tiny_llama"),
            ("[seq_lora,lwf]", "tiny_llama"),
        ],
        5,
    ),
)
def test_death_with_adapters(method: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [f"method={method}", f"backbone={backbone}", "importance.cache_gb=0", "task_order.base.train=24"]
    options += ["method.o_lora.merge=true"] if method == "o_lora" else []

    def typed(root: Path) -> list[str]:
        return tiny_words(*command(root), *options)

    dies_and_goes_on(typed, (9,), "accuracy.csv", tmp_path, monkeypatch)


# peft 0.21 asks transformers 5.23 by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("method", "backbone"),
    some(
        [
            ("o_lora", "tiny_llama"),
            ("o_lora method.o_lora.merge=true", "tiny_bert"),
            ("lora", "tiny_bert"),
            ("seq_lora method.seq_lora.start=pissa", "tiny_bert"),
            ("seq_lora method.seq_lora.dora=true", "tiny_t5"),
            ("osf", "tiny_llama"),
        ],
        4,
    ),
)
def test_export_is_what_peft_loads(
    method: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import peft
    import transformers

    options = [*f"method={method} backbone={backbone}".split(), *rate(method.split()[0])]
    run = finished(tmp_path, *options)
    capsys.readouterr()
    assert run_command(["snapshot", "verify", str(run)]) == 0
    assert "no problems" in capsys.readouterr().out
    output = tmp_path / "exported"
    assert run_command(["snapshot", "export", str(run), "--after", "software", "--output", str(output)]) == 0
    how = capsys.readouterr().out.partition("load it with ")[2].partition("\n")[0]
    if method == "lora":
        how = how.partition(" and so on")[0]
    if not how.startswith("peft"):
        maker = "AutoModelForCausalLM" if "llama" in backbone else "AutoModelForSequenceClassification"
        how = f"transformers.{maker}.{how}"
    model = eval(how, {"peft": peft, "transformers": transformers})
    model.eval()
    config = tiny_config(tmp_path, *options)
    learner, chain, tasks = tiny_learner(config)
    for task in tasks:
        learn(learner, chain, task, config)
    learner.model.eval()
    batch = learner.collate(tasks[0].train[:4])
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    expected = learner.model(**learner.method.before_forward(learner, Batch(inputs, batch.examples))).logits
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_parameter_that_begins_with_a_task_is_in_its_snapshot(tmp_path: Path) -> None:
    run = finished(tmp_path, "method=inc_lora")
    files = sorted((run / "snapshots").glob("*.safetensors"))
    counts = [sum(".lora_A." in name for name in describe_snapshot(file).shapes) for file in files]
    assert counts[1] == 2 * counts[0] and counts[2] == 3 * counts[0]
    assert [describe_snapshot(file).stored for file in files[1:]] == [describe_snapshot(files[0]).stored] * 2


def test_migu_knows_a_and_b_by_what_they_answer(tmp_path: Path) -> None:
    """A by its own output, B by that of the whole layer: W x and the adapter's share (arXiv:2406.17245, 3.2)."""
    learner, chain, tasks = learned(tmp_path, "method=[seq_lora,migu]", "method.seq_lora.dropout=0", tasks=1)
    learner.choose(tasks[1], chain.trains(learner, tasks[1]))
    learner.begin()
    layer = learner.model.get_submodule("bert.encoder.layer.0.attention.self.query")
    seen: dict[str, torch.Tensor] = {}
    layer.register_forward_hook(lambda module, given, found: seen.update(all=found.detach()))
    layer.lora_A["00"].register_forward_hook(lambda module, given, found: seen.update(a=found.detach()))
    with learner.holding():
        from cl_runner.batch import Part

        part = Part(tasks[1].train[:6])
        learner.model.eval()
        batch = chain.prepare(learner, part, learner.collate(part.examples))
        output = learner.forward(batch)
        chain.loss(learner, part, batch, output)
        output.loss.backward()
        prefix = "bert.encoder.layer.0.attention.self.query"
        kept = {
            name: learner.trained[f"{prefix}.lora_{name}.00.weight"].grad.clone()  # type: ignore[union-attr]
            for name in "AB"
        }
        chain.grads(learner)
        mask = batch["attention_mask"][..., None]
        for name, found in (("A", seen["a"]), ("B", seen["all"])):
            strength = (found.abs() * mask).sum((0, 1)) / mask.sum()
            rows = strength >= strength.quantile(0.7)
            expected = kept[name] * rows[:, None]
            assert 0 < int(rows.sum()) < len(rows)
            torch.testing.assert_close(learner.trained[f"{prefix}.lora_{name}.00.weight"].grad, expected)


def test_a_plan_asks_about_an_architecture_that_nothing_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a past run of another method, whose time is known, the plan of one with adapters is what it was alone."""
    finished(tmp_path, "method=o_lora")
    for method in ("seq_ft", "o_lora", "osf"):
        shown = []
        for root in (tmp_path / "alone", tmp_path):
            assert run_command(["plan", *tiny(root, f"method={method}")]) == 0
            shown.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("Trains")])
        assert shown[0] == shown[1] != []
