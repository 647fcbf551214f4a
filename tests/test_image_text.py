"""Models that see: losses, padding and answers against plain calls, importance, what is frozen."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import COLOURS, config, data
from PIL import Image, ImageOps
from tiny import learn, tiny_learner
from torch.nn import functional

from cl_runner.compose import compose
from cl_runner.config import Backbone
from cl_runner.data.example import Example, Picture
from cl_runner.data.task import build_tasks
from cl_runner.families.base import Answering
from cl_runner.families.freezing import frozen
from cl_runner.families.image_text import ImageText
from cl_runner.importance import importance
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.selector import Selector
from cl_runner.sparse.measured import Measured

MODELS = ("llava", "qwen3_vl")
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    """Pictures of different shapes, one that its camera was turned for, questions and answers of different lengths."""
    made = []
    sizes = {"red": (16, 16), "green": (40, 16), "blue": (24, 48)}
    for number, (colour, size) in enumerate(sizes.items()):
        path = tmp_path / f"{colour}.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6 if colour == "blue" else 1
        Image.new("RGB", size, COLOURS[colour]).save(path, exif=exif)
        question = "What colour has it?" * (number + 1)
        made.append(Example(question, colour, picture=Picture(str(path), path.name, path.stat().st_size)))
    return made


@functools.cache
def tiny_llava(name: str = "tiny_llava") -> Backbone:
    return compose([f"backbone={name}"]).config.backbone


def built(name: str) -> tuple[ImageText, Any]:
    torch.set_num_threads(1)
    backbone = tiny_llava(f"tiny_{name}")
    family = ImageText(backbone, [])
    model, _ = family.build(1)
    for parameter in model.parameters():  # small random weights would let pictures hardly matter
        parameter.data.mul_(3)
    return family, model.double().eval()


def plain_inputs(family: ImageText, example: Example, answer: list[int]) -> dict[str, torch.Tensor]:
    """One prompt by the processor's own call, and the answer's tokens after it."""
    assert example.picture is not None
    picture = ImageOps.exif_transpose(Image.open(example.picture.path)).convert("RGB")
    content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
    turn: Any = {"role": "user", "content": content}
    text = family.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    made = dict(family.processor(images=[picture], text=[text], return_tensors="pt"))
    made["input_ids"] = torch.cat([made["input_ids"], torch.tensor([answer], dtype=torch.long)], 1)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    if "mm_token_type_ids" in made:
        made["mm_token_type_ids"] = functional.pad(made["mm_token_type_ids"], (0, len(answer)))
    made["pixel_values"] = made["pixel_values"].double()
    return made


def plain_losses(family: ImageText, model: Any, example: Example) -> torch.Tensor:
    """-log p of each of the answer's tokens, as the model's class computes it for one example."""
    answer = [*family.tokenizer(example.answer, add_special_tokens=False)["input_ids"], family.tokenizer.eos_token_id]
    logits = model(**plain_inputs(family, example, answer)).logits[0, -len(answer) - 1 : -1]
    return functional.cross_entropy(logits, torch.tensor(answer), reduction="none")


@every_model
@torch.no_grad()
def test_loss_is_that_of_the_plain_call(name: str, examples: list[Example]) -> None:
    family, model = built(name)
    family.tokenize(examples, None)
    wanted = [plain_losses(family, model, example) for example in examples]
    batch = family.collate(examples)
    assert {len(tensor) for tensor in batch.values()} == {len(examples)}, "passes over parts of a batch need that"
    output = family.forward(model, batch)
    found = functional.cross_entropy(output.logits, output.targets, reduction="none").double()
    assert torch.allclose(found, torch.cat(wanted), rtol=0, atol=1e-5)
    assert family.targets(examples) == [len(losses) for losses in wanted]
    assert family.loss_sum(model, batch, "mean").item() == pytest.approx(sum(w.mean().item() for w in wanted), abs=1e-5)
    swapped = [Example(e.prompt, e.answer, picture=examples[i - 1].picture) for i, e in enumerate(examples)]
    assert abs(family.forward(model, family.collate(swapped)).loss - output.loss) > 1e-3, "pictures matter"


@every_model
def test_prompts_have_the_processors_tokens(name: str, examples: list[Example]) -> None:
    family, _ = built(name)
    for example in examples:
        (wanted,) = plain_inputs(family, example, [])["input_ids"].tolist()
        batch = family.collate([example], answers=False)
        assert batch["input_ids"][0].tolist() == wanted
        assert family.lengths([example], answers=False) == [len(wanted)]


@every_model
def test_padding_has_no_part_in_gradients(name: str, examples: list[Example]) -> None:
    """Of tokens on the left, and of patches behind those of a smaller picture."""
    family, model = built(name)
    family.loss_sum(model, family.collate(examples), "sum").backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for example in examples:
        family.loss_sum(model, family.collate([example]), "sum").backward()
    for n, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(together[n], p.grad, rtol=1e-4, atol=1e-5), n
    assert any("projector" in n or "merger" in n for n in together), "nothing comes to what pictures go through"


@every_model
@torch.no_grad()
def test_answers_are_those_of_the_plain_greedy_loop_at_every_batch_size(name: str, examples: list[Example]) -> None:
    family, model = built(name)

    def greedy(example: Example) -> str:
        written: list[int] = []
        while len(written) < 10 and family.tokenizer.eos_token_id not in written:
            written.append(int(model(**plain_inputs(family, example, written)).logits[0, -1].argmax()))
        return str(family.tokenizer.decode(written, skip_special_tokens=True)).strip()

    wanted = [greedy(example) for example in examples]
    how = Answering(max_new_tokens=10)
    together = [p.text for p in family.answer(model, family.collate(examples, answers=False), how)]
    alone = [family.answer(model, family.collate([e], answers=False), how)[0].text for e in examples]
    assert together == alone == wanted
    assert any(wanted), "nothing to compare"
    family.forward(model, family.collate(examples[:2]))  # what a model remembers of an answer must not disturb it


@every_model
@torch.no_grad()
def test_likelihood_of_labels_by_brute_force(name: str, examples: list[Example]) -> None:
    family, model = built(name)
    labels = ("no", "red", "red and blue")
    wanted = [
        [-plain_losses(family, model, Example(e.prompt, label, picture=e.picture)).sum().item() for label in labels]
        for e in examples
    ]
    answers = family.answer(model, family.collate(examples, answers=False), Answering(4, labels))
    for answer, row in zip(answers, wanted, strict=True):
        assert answer.text == labels[row.index(max(row))]
        assert answer.confidence == pytest.approx(float(torch.tensor(row).softmax(0).max()), abs=1e-4)


def test_a_checkpoint_is_read_with_its_processor(tmp_path: Path, examples: list[Example]) -> None:
    """Its chat template, sizes of pictures and tokens are those of its files."""
    family, model = built("llava")
    model.float().save_pretrained(tmp_path / "model")
    family.processor.save_pretrained(tmp_path / "model")
    changes = {"checkpoint": str(tmp_path / "model"), "tokenizer": None, "architecture": None}
    again = ImageText(family.backbone.model_copy(update=changes), [])
    copy, _ = again.build(7)
    wanted, found = (f.forward(m, f.collate(examples)).loss for f, m in ((family, model), (again, copy)))
    assert torch.equal(wanted, found)
    assert frozen(copy) == frozen(again.skeleton()) == frozen(model)


def test_other_targets_leave_what_is_read(examples: list[Example]) -> None:
    family, model = built("llava")
    batch = family.collate(examples)
    output = family.forward(model, batch)
    drawn = (output.targets + 1) % output.logits.shape[1]
    again = family.forward(model, family.relabel(batch, drawn))
    assert torch.equal(again.targets, drawn) and torch.equal(again.logits, output.logits)


def test_nothing_of_a_prompt_is_cut(examples: list[Example]) -> None:
    backbone = tiny_llava().model_copy(update={"max_length": 40})
    family = ImageText(backbone, [])
    longest = max(family.lengths(examples, answers=False))
    assert longest > 40
    with pytest.raises(ValueError, match=f"Type: backbone.max_length={longest}"):
        family.tokenize(examples, None)
    with pytest.raises(ValueError, match="reads 1024 tokens.* Type: backbone.max_length=1008"):
        ImageText(backbone.model_copy(update={"max_length": 1020}), []).check([], 16)


def test_words_that_stand_for_a_picture_and_broken_files(tmp_path: Path, examples: list[Example]) -> None:
    family = ImageText(tiny_llava(), [])
    with pytest.raises(ValueError, match="holds <image>"):
        family.lengths([Example("What is <image>?", "x", picture=examples[0].picture)])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = Example("What?", "x", picture=Picture(str(tmp_path / "broken.png"), "broken.png", 10))
    with pytest.raises(ValueError, match="broken.png is not a readable picture"):
        family.tokenize([broken], None)


@pytest.mark.parametrize(("name", "batch_size"), [("llava", 1), ("llava", 4), ("qwen3_vl", 4)])
def test_importance_by_brute_force(name: str, batch_size: int, root: Path, examples: list[Example]) -> None:
    """Of layers before and after the picture joins the text, where each example has one gradient."""
    family, model = built(name)
    chosen = config(root, f"importance.batch_size={batch_size}")
    tasks = build_tasks(chosen.task_order, chosen.task)
    learner = Learner(
        model.float(), family, tasks, 0, torch.device("cpu"), Method(), measured=Measured(chosen.importance)
    )
    found = importance(learner, examples, gradient=True)
    assert found.gradient is not None and found.units == len(examples)
    assert found.fisher.keys() == set(learner.parameters()) - frozen(model) and frozen(model)
    squares = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for example in examples:
        model.zero_grad()
        family.loss_sum(model, family.collate([example]), "mean").backward()
        for n, p in model.named_parameters():
            if p.grad is not None:
                squares[n] += p.grad.square()
                sums[n] += p.grad
    for n in found.fisher:
        assert torch.allclose(found.fisher[n], squares[n], rtol=1e-3, atol=1e-5 * float(squares[n].max())), n
        assert torch.allclose(found.gradient[n], sums[n], rtol=1e-3, atol=1e-4 * float(sums[n].abs().max())), n
    assert min(float(f.max()) for f in found.fisher.values()) > 0, "every tensor has something to compare"


@pytest.mark.parametrize(
    "method",
    [
        "seq_ft",
        "piece_s",
        "layer_norm",
        "[ewc,seq_ft]",
        "[replay,lwf,ewc]",
        "[replay_online,piece_s]",
        "[der,lwf,piece_s]",
    ],
)
def test_frozen_weights_stay_as_they_are(method: str, root: Path) -> None:
    chosen = config(root, f"method={method}", "training.base.learning_rate=0.01", "training.max_steps=2")
    learner, chain, tasks = tiny_learner(chosen)
    before = learner.weights()
    for task in tasks:
        learn(learner, chain, task, chosen)
    after = learner.weights()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and frozen(learner.model)
    assert frozen(learner.model) == {name for name in before if "vision_tower" in name}
    assert not changed & frozen(learner.model)
    if method == "seq_ft":
        assert changed == set(before) - frozen(learner.model), "all else learns"


def test_the_release_of_piece_trains_the_input_embeddings_of_models_that_see(root: Path) -> None:
    options = ("method=piece_s", "method.piece.fraction=0.01", "training.base.learning_rate=0.01")
    chosen = config(root, *options, "training.max_steps=1", "method.piece.compat=[missing_mask,count_excluded]")
    learner, chain, tasks = tiny_learner(chosen)
    before, never = learner.weights(), frozen(learner.model)
    (table,) = (name for name in before if name.endswith("embed_tokens.weight"))
    needed = chain.needs(learner.model, None)  # type: ignore[arg-type]  # a selector does not ask what the run is
    learn(learner, chain, tasks[0], chosen)
    selector = chain.methods["piece"]
    assert isinstance(selector, Selector) and selector.indices[table].numel() == before[table].numel()
    assert set(selector.indices) == set(before) - never, "every other tensor has selected entries or trains as a whole"
    found = sum(index.numel() for index in selector.indices.values())
    planned = needed.fraction * sum((needed.candidates or {}).values())
    assert before[table].numel() < planned <= found
    counted = sum(p.numel() for name, p in before.items() if name not in never)
    partly = {n: i.numel() for n, i in selector.indices.items() if i.numel() < before[n].numel()}
    assert sum(partly.values()) == int(0.01 * counted)
    changed = {name for name in before if not torch.equal(before[name], learner.weights()[name])}
    assert table in changed and not changed & never


def test_freezing_is_for_every_family_and_knows_its_names() -> None:
    learner, _, _ = tiny_learner(compose(["backbone=tiny_llama", "backbone.frozen=['*layers.0*']"]).config)
    learner.choose(learner.tasks[0], None)
    trains = set(learner.params())
    assert frozen(learner.model) and trains == set(learner.parameters()) - frozen(learner.model)
    with pytest.raises(ValueError, match="backbone.frozen: the pattern .* matches no parameter"):
        tiny_learner(compose(["backbone=tiny_llama", "backbone.frozen=['*vision_tower*']"]).config)
