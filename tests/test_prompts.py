"""Prompts before texts: what a model reads of them, by hand; what trains; pools and keys; deaths; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_resume import command, dies_and_goes_on
from tiny import learn, run_command, tiny, tiny_config, tiny_learner, tiny_words
from torch import Tensor
from torch.nn import functional

from cl_runner.batch import Batch, Part
from cl_runner.compose import compose
from cl_runner.families.base import Answering
from cl_runner.layers.before import reader_of
from cl_runner.layers.soft_prompts import network

SHORT = ("backbone.max_length=40", "backbone.dropout=0.0")


def learned(root: Path, method: str, *options: str, tasks: int = 2) -> tuple[Any, Any, list[Any], Any]:
    config = tiny_config(root, f"method={method}", *SHORT, *options)
    learner, chain, all_tasks = tiny_learner(config)
    for task in all_tasks[:tasks]:
        learn(learner, chain, task, config)
    learner.model.eval()
    return learner, chain, all_tasks, config


@torch.no_grad()
def logits_of(learner: Any, examples: Any) -> Tensor:
    found = learner.forward(learner.collate(examples))
    return torch.stack([found.logits[found.rows == row].mean(0) for row in range(len(examples))])


@torch.no_grad()
def by_hand(learner: Any, example: Any, vectors: Tensor, positions: list[int] | None = None) -> Tensor:
    """The mean logits of an example alone, its embeddings composed here, and none of the hooks."""
    learner.method.methods[next(iter(learner.method.methods))].before.stop()
    batch = learner.collate([example])
    embedded = learner.model.get_input_embeddings()(batch["input_ids"])[0]
    skipped = 0 if positions is None else 1
    composed = torch.cat([vectors, embedded[skipped:]])[None]
    mask = torch.ones(composed.shape[:2], dtype=torch.long)
    given: dict[str, Any] = {"inputs_embeds": composed, "attention_mask": mask}
    if positions is not None:
        given["position_ids"] = torch.tensor([[*positions, *range(1, len(embedded))]])
    if "decoder_input_ids" in batch:
        given["decoder_input_ids"] = batch["decoder_input_ids"]
        return learner.model(**given).logits[0].mean(0)
    if positions is None:
        answer = batch["labels"].shape[1]
        return learner.model(**given).logits[0, -answer - 1 : -1].mean(0)
    states = reader_of(learner.model)(**given)
    return learner.model.classifier(learner.model.dropout(states[1]))[0]


@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_prompts_stand_in_the_order_of_the_paper(backbone: str, tmp_path: Path) -> None:
    """[P_t; ...; P_1; x] for every row of a batch of several tasks; P + MLP(P) where there is a network."""
    options = (f"backbone={backbone}", "method.prog_prompt.length=3", "method.prog_prompt.mlp=mlp2")
    options += ("method.prog_prompt.bottleneck=6", "method.prog_prompt.learning_rate=0.02")
    learner, chain, tasks, config = learned(tmp_path, "prog_prompt", *options, tasks=3)
    prompts = chain.methods["prog_prompt"].prompts
    through = {name: prompts.values[name] + prompts.networks[name](prompts.values[name]) for name in prompts.values}
    assert not torch.equal(through["00"], prompts.values["00"])
    mixed = [tasks[1].test[0], tasks[0].test[1], tasks[2].test[2], tasks[0].test[3], tasks[1].test[4]]
    together = logits_of(learner, mixed)
    long = config.backbone.max_length
    places = {0: [0, long, long + 1], 1: [0, long + 2, long + 3], 2: [0, long + 4, long + 5]}
    for row, example in enumerate(mixed):
        order = range(example.task, -1, -1)
        vectors = torch.cat([through[f"{index:02d}"] for index in order])
        positions = [place for index in order for place in places[index]] if backbone == "tiny_bert" else None
        if positions is not None:
            chain.methods["prog_prompt"].heads.tasks = torch.tensor([example.task])
        alone = by_hand(learner, example, vectors, positions)
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_classifier_reads_what_the_release_puts_behind_the_padding(tmp_path: Path) -> None:
    """There a text without [CLS] is padded to seq_len, P_1 to P_t follow, and the state of P_t's first vector counts.

    Positions are 1 to seq_len, and for each prompt 0, and those that go on behind (`get_pos_id`).
    """
    options = ("method.prog_prompt.length=3", "method.prog_prompt.learning_rate=0.05")
    learner, chain, tasks, config = learned(tmp_path, "prog_prompt", *options, tasks=3)
    prompts, bert = chain.methods["prog_prompt"].prompts, learner.model.bert
    mixed = [tasks[2].test[0], tasks[0].test[1], tasks[1].test[2], tasks[2].test[3]]
    found = learner.features(learner.collate(mixed))
    seq_len = config.backbone.max_length - 1
    for row, example in enumerate(mixed):
        chain.methods["prog_prompt"].before.stop()
        text = learner.collate([example])["input_ids"][0, 1:].tolist()
        padding = seq_len - len(text)
        words = bert.embeddings.word_embeddings(torch.tensor(text + [0] * padding))
        embedded, positions = [words], [*range(1, seq_len + 1)]
        for index in range(example.task + 1):
            embedded.append(prompts.values[f"{index:02d}"])
            positions += [0, *range(seq_len + 1 + 2 * index, seq_len + 3 + 2 * index)]
        mask = [1] * len(text) + [0] * padding + [1] * 3 * (example.task + 1)
        given = {"attention_mask": torch.tensor([mask]), "position_ids": torch.tensor([positions])}
        states = bert(inputs_embeds=torch.cat(embedded)[None], **given).last_hidden_state[0]
        torch.testing.assert_close(found[row], states[seq_len + 3 * example.task], rtol=1e-4, atol=1e-5)


def test_networks_are_the_releases() -> None:
    names = {"mlp1": ["Linear", "ReLU", "Linear"], "mlp2": ["Linear", "ReLU", "Linear", "Tanh", "Linear"]}
    for kind, layers in names.items():
        made = network(kind, 12, 8, layer_norm=False)  # type: ignore[arg-type]
        assert isinstance(made, torch.nn.Sequential) and [type(layer).__name__ for layer in made] == layers
    normed = network("mlp1", 12, 8, layer_norm=True)
    assert isinstance(normed, torch.nn.Sequential) and type(normed[-1]).__name__ == "LayerNorm"


def test_a_prompt_exists_from_its_task_on_and_then_stays(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=prog_prompt", *SHORT, "method.prog_prompt.length=3")
    learner, chain, tasks = tiny_learner(config)
    prompts = chain.methods["prog_prompt"].prompts
    table = learner.model.get_input_embeddings().weight
    rows = {tuple(row.tolist()) for row in table}
    assert list(prompts.values) == ["00"] and all(tuple(row.tolist()) in rows for row in prompts.values["00"])
    what = chain.trains(learner, tasks[0])
    assert torch.equal(what.written["prompts.values.00"][0], table[learner.family.tokenizer.cls_token_id])
    assert torch.equal(what.written["prompts.values.00"][1:], prompts.values["00"][1:])
    learn(learner, chain, tasks[0], config)
    learner.model.eval()
    before, first = logits_of(learner, tasks[0].test[:5]), learner.weights()
    learn(learner, chain, tasks[1], config)
    learner.model.eval()
    assert list(prompts.values) == ["00", "01"]
    assert torch.equal(before, logits_of(learner, tasks[0].test[:5])), "of a task that is known nothing is forgotten"
    moved = {name for name, value in first.items() if not torch.equal(value, learner.parameters()[name])}
    assert moved <= {"classifier.weight.01", "classifier.bias.01"} and moved


def test_a_prompt_may_begin_where_the_last_one_ended(tmp_path: Path) -> None:
    options = ("backbone=tiny_t5", "method.prog_prompt.start=previous", "method.prog_prompt.mlp=mlp1")
    learner, chain, tasks, _ = learned(
        tmp_path, "prog_prompt", *options, "method.prog_prompt.bottleneck=6", "method.prog_prompt.learning_rate=0.01"
    )
    prompts = chain.methods["prog_prompt"].prompts
    learner.grow(tasks[2])
    assert torch.equal(prompts.values["02"], prompts.values["01"])


def test_one_prompt_learns_all_tasks(tmp_path: Path) -> None:
    learner, chain, tasks, config = learned(tmp_path, "prompt_tuning", "backbone=tiny_t5", tasks=1)
    first = {name: value.clone() for name, value in learner.weights().items()}
    learn(learner, chain, tasks[1], config)
    moved = {name for name, value in first.items() if not torch.equal(value, learner.parameters()[name])}
    assert moved == {"prompts.values.00"}
    learner.model.eval()
    example = tasks[0].test[0]
    found = logits_of(learner, [example, tasks[1].test[1]])[0]
    alone = by_hand(learner, example, chain.methods["prompt_tuning"].prompts.values["00"])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_tasks_told_apart_share_nothing(tmp_path: Path) -> None:
    learner, chain, tasks, _ = learned(tmp_path, "prompt_per_task", "backbone=tiny_gpt2")
    method = chain.methods["prog_prompt"]
    assert [method.given(task) for task in (0, 1, 2, -1)] == [["00"], ["01"], [], []]
    plain, _, _ = tiny_learner(tiny_config(tmp_path, "method=seq_ft", "backbone=tiny_gpt2", *SHORT))
    plain.model.eval()
    nobody = learner.collate(tasks[2].test[:3])
    assert torch.equal(learner.forward(nobody).logits, plain.forward(nobody).logits)
    example = tasks[1].test[0]
    alone = by_hand(learner, example, method.prompts.values["01"])
    torch.testing.assert_close(logits_of(learner, [tasks[0].test[0], example])[1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "backbone"), [("prog_prompt", "tiny_gpt2"), ("prog_prompt", "tiny_t5"), ("l2p", "tiny_llama")]
)
def test_answers_with_a_cache_are_those_without(method: str, backbone: str, tmp_path: Path) -> None:
    """Rows of several lengths, prompts and tasks: each as it is alone, with a cache as without."""
    learner, _, tasks, _ = learned(
        tmp_path, method, f"backbone={backbone}", f"method.{method}.length=3", f"method.{method}.learning_rate=0.3"
    )
    mixed = [tasks[1].test[0], tasks[0].test[1], tasks[0].test[2], tasks[1].test[3]]
    how = Answering(6, raw=True)
    answer = [one.text for one in learner.answer(learner.collate(mixed, answers=False), how)]
    assert answer == [learner.answer(learner.collate([one], answers=False), how)[0].text for one in mixed]
    assert len(set(answer)) > 1 or method == "l2p" or backbone == "tiny_t5"
    learner.model.config.use_cache = False
    learner.model.generation_config.use_cache = False
    assert answer == [one.text for one in learner.answer(learner.collate(mixed, answers=False), how)]
    labels = Answering(6, labels=("positive", "negative"))
    sure = [one.confidence for one in learner.answer(learner.collate(mixed, answers=False), labels)]
    alone = [learner.answer(learner.collate([one], answers=False), labels)[0].confidence for one in mixed]
    assert sure == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    ("backbone", "query"), [("tiny_bert", "model"), ("tiny_llama", "model"), ("tiny_llama", "embedding")]
)
def test_a_text_chooses_the_nearest_keys(backbone: str, query: str, tmp_path: Path) -> None:
    """Query, choice, order, loss and its gradient, by their definitions; padding and answers are no part of a query."""
    options = (f"backbone={backbone}", f"method.l2p.query={query}", "method.l2p.length=2", "method.l2p.top_n=2")
    learner, chain, tasks, _ = learned(tmp_path, "l2p", *options)
    method, examples = chain.methods["l2p"], tasks[1].test[:4]
    plain, _, _ = tiny_learner(tiny_config(tmp_path, "method=seq_ft", f"backbone={backbone}", *SHORT))
    plain.model.eval()
    for row, example in enumerate(examples):
        alone = plain.collate([example], answers=False)
        if query == "embedding":
            wanted = plain.model.get_input_embeddings()(alone["input_ids"])[0].mean(0)
        else:
            states = plain.model(**{n: t for n, t in alone.items() if n != "labels"}, output_hidden_states=True)
            wanted = states.hidden_states[-1][0]
            wanted = wanted[0] if backbone == "tiny_bert" else wanted.mean(0)
        cosines = functional.cosine_similarity(wanted[None], method.prompts.keys, dim=1)
        learner.forward(learner.collate(examples))
        assert method.chosen[row].tolist() == cosines.argsort(descending=True)[:2].tolist()
        torch.testing.assert_close(method.cosines[row], cosines[method.chosen[row]], rtol=1e-3, atol=1e-5)
    keys = method.prompts.keys.requires_grad_(True)
    values = method.prompts.values.requires_grad_(True)
    part, pulled = Part(examples), torch.zeros(())
    for start, end in ((0, 3), (3, 4)):  # passes of unequal size
        batch = learner.collate(examples[start:end])
        output = learner.forward(batch)
        weights = learner.family.targets(examples)
        pulled = pulled + sum(weights[start:end]) / sum(weights) * chain.loss(learner, part, batch, output)
    found = torch.autograd.grad(pulled, keys, retain_graph=True)[0]
    with torch.no_grad():
        learner.forward(learner.collate(examples))
        queries = functional.normalize(method._queries(learner, learner.collate(examples)), dim=-1)
    by_definition = (
        -0.5
        * sum(
            functional.cosine_similarity(queries[row], keys[number], dim=0)
            for row in range(4)
            for number in method.chosen[row]
        )
        / 4
    )
    torch.testing.assert_close(pulled, by_definition, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, torch.autograd.grad(by_definition, keys)[0], rtol=1e-3, atol=1e-6)
    output = learner.forward(learner.collate(examples))
    touched = torch.autograd.grad(output.loss, values)[0].flatten(1).abs().sum(1) > 0
    assert touched.nonzero()[:, 0].tolist() == method.chosen.unique().tolist(), "prompts that nothing chose stay"


def test_what_others_chose_is_farther_away(tmp_path: Path) -> None:
    _, chain, tasks, _ = learned(tmp_path, "l2p", "method.l2p.diversify=true", "method.l2p.top_n=2")
    method = chain.methods["l2p"]
    assert sum(method.earlier) == 2 * 2 * len(tasks[0].train) and sum(method.used) > sum(method.earlier)
    method.earlier = [9, 1, 0, 0, *[90] * 6]
    cosines = torch.tensor([[0.9, 0.8, 0.1, 0.3, *[0.0] * 6]])
    assert method.choose(cosines, training=False).tolist() == [[0, 1]]
    assert method.choose(cosines, training=True).tolist() == [[3, 2]]
    method.earlier = [4, 1, 5, 5, *[5] * 6]
    assert method.choose(cosines, training=True).tolist() == [[1, 0]]
    state = chain.state_dict()
    _, fresh, _ = tiny_learner(tiny_config(tmp_path, "method=l2p", *SHORT, "method.l2p.top_n=2"))
    fresh.load_state_dict(state)
    assert fresh.methods["l2p"].used == method.used


def test_a_batch_of_no_examples_is_read_all_the_same(tmp_path: Path) -> None:
    """Those of probes have ids and a mask alone."""
    learner, chain, tasks, _ = learned(tmp_path, "l2p", "backbone=tiny_llama", tasks=1)
    batch = learner.collate(tasks[0].test[:2], answers=False)
    nobody = Batch({name: batch[name] for name in ("input_ids", "attention_mask")})
    chosen = []
    for one in (batch, nobody):
        found = learner.method.before_forward(learner, one)
        assert found["input_ids"].shape[1] == batch["input_ids"].shape[1] + 15
        chosen.append(chain.methods["l2p"].chosen)
    assert torch.equal(*chosen)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["method=prog_prompt", "backbone.max_length=50"], "Type: method.prog_prompt.length=4 (or backbone.max_length"),
        (["method=prompt_tuning", "method.prompt_tuning.length=1", "backbone.max_length=64"], "backbone.max_length=N"),
        (["method=l2p", "method.l2p.top_n=11"], "Type: method.l2p.top_n=10"),
        (["method=l2p", "method.l2p.key=prompt_means"], "Type: method.l2p.query=embedding"),
        (["method=[prog_prompt,ewc]"], "Type: method=prog_prompt"),
        (["method=prog_prompt", "method.prog_prompt.bottleneck=9"], "bottleneck"),
        (["method=l2p_trace", "method.l2p.pull=1"], "pull"),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(tiny(tmp_path, *options)) == 2
    assert said in capsys.readouterr().err


# peft 0.21 asks transformers 5.23 by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("method", "backbone"), [("prog_prompt", "tiny_llama"), ("prompt_tuning", "tiny_t5")])
def test_peft_loads_what_is_exported(method: str, backbone: str, tmp_path: Path) -> None:
    import peft
    import transformers

    options = (f"backbone={backbone}", f"method.{method}.length=3", f"method.{method}.learning_rate=0.05")
    options += (f"method.{method}.mlp=mlp1", f"method.{method}.bottleneck=5")
    learner, chain, tasks, config = learned(tmp_path, method, *options)
    plain, _ = learner.family.build(config.seed)
    plain.save_pretrained(tmp_path / "base")
    how = chain.export(learner.model, tasks, tmp_path / "prompts", str(tmp_path / "base"))
    if method == "prog_prompt":
        how = how.replace("prompts/base'", "prompts/kettles'")
        assert how.endswith("and so on for each of 2 tasks")
    model = eval(how.partition(" and so on")[0], {"peft": peft, "transformers": transformers}).eval()
    batch = learner.collate(tasks[1].train[:1])
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "position_ids")}
    with torch.no_grad():
        wanted = learner.model(**learner.method.before_forward(learner, Batch(inputs, batch.examples))).logits
        torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("no_pictures")
def test_death_and_snapshots_of_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("length=3", "start=previous", "mlp=mlp1", "bottleneck=4")
    given = ["method=prog_prompt", "backbone.max_length=40", "task_order.base.train=24"]
    given += [f"method.prog_prompt.{option}" for option in options]

    def typed(root: Path) -> list[str]:
        return tiny_words(*command(root), *given)

    dies_and_goes_on(typed, (9,), "accuracy.csv", tmp_path, monkeypatch)
    run = str(compose(typed(tmp_path / "9")).folder)
    capsys.readouterr()
    assert run_command(["snapshot", "verify", run]) == 0
    assert "no problems" in capsys.readouterr().out
    file = tmp_path / "all.safetensors"
    assert run_command(["snapshot", "restore", run, "--after", "kettles", "--output", str(file)]) == 0
    prompts = {name for name in load_file(file) if name.startswith("prompts.values")}
    assert prompts == {"prompts.values.00", "prompts.values.01"}
    capsys.readouterr()
    assert run_command(["snapshot", "export", run, "--after", "kettles", "--output", str(tmp_path / "folder")]) == 0
    assert "answers as the run did" in capsys.readouterr().out
