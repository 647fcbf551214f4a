"""Models that see: losses, padding and answers against plain calls, what is frozen, pictures found, whole runs."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from tiny import learn, run_command, tiny_learner
from torch.nn import functional
from transformers import ProcessorMixin, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cl_runner import checkpoint
from cl_runner.compose import compose
from cl_runner.config import Backbone, Config
from cl_runner.data.example import Example, Picture
from cl_runner.data.task import build_tasks, fingerprint
from cl_runner.families import image_text
from cl_runner.families.base import Answering
from cl_runner.families.freezing import frozen
from cl_runner.families.image_text import ImageText
from cl_runner.learner import Learner

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
#: Two tasks of a few coloured pictures on the tiny LLaVA.
SEEING = (
    "backbone=tiny_llava",
    "task_order=vqa",
    "task_order.tasks=[{name: action}, {name: count}]",
    "training.base.epochs=2",
    "training.incremental.epochs=1",
    "training.base.batch_size=8",
    "training.incremental.batch_size=8",
    "hardware.threads=1",
    "wandb=disabled",
)
#: A Qwen3-VL of two layers each, with a second way from its eyes into its speech.
QWEN: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "image_token_id": 259,
    "video_token_id": 260,
    "vision_start_token_id": 261,
    "vision_end_token_id": 262,
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    },
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": 263,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    },
}
QWEN_TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
MODELS = ("llava", "qwen")
every_model = pytest.mark.parametrize("name", MODELS)


def data(folder: Path) -> Path:
    """A data root: what colour is it?"""
    draw = random.Random(0)
    (folder / "coco" / "val2014").mkdir(parents=True)
    for domain in ("action", "count"):
        (folder / "vqa" / domain).mkdir(parents=True)
        for split, number in (("train", 24), ("eval", 2), ("test", 6)):
            rows = []
            for i in range(number):
                colour, place = draw.choice(sorted(COLOURS)), f"val2014/{domain}_{split}_{i}.png"
                Image.new("RGB", (draw.choice([16, 20, 40]), draw.choice([16, 24])), COLOURS[colour]).save(
                    folder / "coco" / place
                )
                question = "What colour?" if domain == "action" else "What colour is it?"
                rows.append({"prompt": question, "answer": colour, "pic_path": f"/data1/elsewhere/{place}"})
            (folder / "vqa" / domain / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data(tmp_path_factory.mktemp("data"))


def seeing(root: Path, *more: str) -> list[str]:
    chosen = {override.partition("=")[0] for override in more}
    return [*(o for o in SEEING if o.partition("=")[0] not in chosen), f"data_root={root}", *more]


def config(root: Path, *more: str) -> Config:
    return compose(seeing(root, *more)).config


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
def tiny_llava() -> Backbone:
    return compose(["backbone=tiny_llava"]).config.backbone


def qwen_processor(backbone: Any, tokenizer: Any) -> Qwen3VLProcessor:
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_TOKENS})
    template = image_text.TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    pictures = Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    )
    return Qwen3VLProcessor(image_processor=pictures, tokenizer=tokenizer, chat_template=template)


def built(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[ImageText, Any]:
    torch.set_num_threads(1)
    backbone = tiny_llava()
    if name == "qwen":
        # The real processor asks for a part for videos, which takes a package of its own.
        monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *arguments: None)
        monkeypatch.setattr(image_text, "small_processor", qwen_processor)
        backbone = backbone.model_copy(update={"architecture": QWEN, "frozen": ["*visual.blocks*"]})
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
def test_loss_is_that_of_the_plain_call(name: str, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    family, model = built(name, monkeypatch)
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
def test_prompts_have_the_processors_tokens(
    name: str, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, _ = built(name, monkeypatch)
    for example in examples:
        (wanted,) = plain_inputs(family, example, [])["input_ids"].tolist()
        batch = family.collate([example], answers=False)
        assert batch["input_ids"][0].tolist() == wanted
        assert family.lengths([example], answers=False) == [len(wanted)]


@every_model
def test_padding_has_no_part_in_gradients(name: str, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens on the left, and of patches behind those of a smaller picture."""
    family, model = built(name, monkeypatch)
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
def test_answers_are_those_of_the_plain_greedy_loop_at_every_batch_size(
    name: str, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model = built(name, monkeypatch)

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
def test_likelihood_of_labels_by_brute_force(
    name: str, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model = built(name, monkeypatch)
    labels = ("no", "red", "red and blue")
    wanted = [
        [-plain_losses(family, model, Example(e.prompt, label, picture=e.picture)).sum().item() for label in labels]
        for e in examples
    ]
    answers = family.answer(model, family.collate(examples, answers=False), Answering(4, labels))
    for answer, row in zip(answers, wanted, strict=True):
        assert answer.text == labels[row.index(max(row))]
        assert answer.confidence == pytest.approx(float(torch.tensor(row).softmax(0).max()), abs=1e-4)


def test_a_checkpoint_is_read_with_its_processor(
    tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chat template, sizes of pictures and tokens are those of its files."""
    family, model = built("llava", monkeypatch)
    model.float().save_pretrained(tmp_path / "model")
    family.processor.save_pretrained(tmp_path / "model")
    changes = {"checkpoint": str(tmp_path / "model"), "tokenizer": None, "architecture": None}
    again = ImageText(family.backbone.model_copy(update=changes), [])
    copy, _ = again.build(7)
    wanted, found = (f.forward(m, f.collate(examples)).loss for f, m in ((family, model), (again, copy)))
    assert torch.equal(wanted, found)
    assert frozen(copy) == frozen(again.skeleton()) == frozen(model)


def test_other_targets_leave_what_is_read(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    family, model = built("llava", monkeypatch)
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


@pytest.mark.parametrize(("name", "batch_size"), [("llava", 1), ("llava", 4), ("qwen", 4)])
def test_importance_by_brute_force(
    name: str, batch_size: int, root: Path, monkeypatch: pytest.MonkeyPatch, examples: list[Example]
) -> None:
    """Of layers before and after the picture joins the text, where each example has one gradient."""
    family, model = built(name, monkeypatch)
    chosen = config(root, f"importance.batch_size={batch_size}")
    tasks = build_tasks(chosen.task_order, chosen.task)
    learner = Learner(model.float(), family, tasks, 0, torch.device("cpu"), importance=chosen.importance)
    found = learner.importance(examples, gradient=True)
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


@pytest.mark.parametrize("method", ["seq_ft", "piece_s", "layer_norm", "[ewc,seq_ft]"])
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


def test_freezing_is_for_every_family_and_knows_its_names() -> None:
    learner, _, _ = tiny_learner(compose(["backbone=tiny_llama", "backbone.frozen=['*layers.0*']"]).config)
    learner.train_all(True)
    trains = set(learner.params())
    assert frozen(learner.model) and trains == set(learner.parameters()) - frozen(learner.model)
    with pytest.raises(ValueError, match="backbone.frozen: the pattern .* matches no parameter"):
        tiny_learner(compose(["backbone=tiny_llama", "backbone.frozen=['*vision_tower*']"]).config)


# Data -------------------------------------------------------------------------------------------------------


def test_pictures_are_found_by_the_end_of_their_path(root: Path, tmp_path: Path) -> None:
    chosen = config(root)
    action, _ = build_tasks(chosen.task_order, chosen.task)
    picture = action.train[3].picture
    assert picture is not None and picture.name == "val2014/action_train_3.png"
    assert picture.path == str(root / "coco" / picture.name) and picture.size == Path(picture.path).stat().st_size
    moved = data(tmp_path / "moved")
    elsewhere = config(moved)
    again, _ = build_tasks(elsewhere.task_order, elsewhere.task)
    assert fingerprint(again) == fingerprint(action), "where pictures lie is no part of the data"
    Image.new("RGB", (90, 70), "white").save(moved / "coco" / picture.name)
    other, _ = build_tasks(elsewhere.task_order, elsewhere.task)
    assert fingerprint(other) != fingerprint(action)


def test_importance_of_one_question_about_two_pictures_is_not_shared(root: Path) -> None:
    learner, _, (action, _) = tiny_learner(config(root))
    first, second = action.train[:2]
    keys = {
        learner._importance_key([e], False, torch.float32, config(root).importance, "w")
        for e in (Example("What?", "x", picture=first.picture), Example("What?", "x", picture=second.picture))
    }
    assert len(keys) == 2


def test_mistakes_with_pictures(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(where: Path, *more: str) -> str:
        assert run_command(seeing(where, f"root={tmp_path / 'out'}", *more)) == 2
        return capsys.readouterr().err

    lost = data(tmp_path / "lost")
    (lost / "coco" / "val2014" / "count_test_1.png").unlink()
    message = said(lost)
    assert "row 2 of" in message and "count_test_1.png, of which no end lies below" in message
    assert "train2014.zip" in message and "data_root=FOLDER" in message
    assert "Nearest: 'pic_path'" in said(root, "task.vqa.picture='${data_root}/coco/{pic_paht}'")
    assert "FOLDER/{COLUMN}" in said(root, "task.vqa.picture=coco")
    assert "reads texts alone. Type: backbone=llava_1_5_7b" in said(root, "backbone=tiny_llama")
    assert "reads pictures, and task action has examples without" in said(root, "task.vqa.picture=null")
    assert "Type: backbone.chat_template=true" in said(root, "backbone.chat_template=false")
    assert "probe held_text needs" in said(root, "probe=held_text")
    assert run_command(["plan", *seeing(root)]) == 2
    assert "plans know texts alone" in capsys.readouterr().err


# Runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cl_runner.report.page.write_run_report", lambda folder: folder / "report.html")


def finished(arguments: list[str]) -> dict[str, Any]:
    assert run_command(arguments) == 0
    return content(compose(arguments).folder)


def content(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "weights": summary["weights_sha256"],
        "numbers": summary["metrics"],
        "predictions": [path.read_text() for path in sorted((folder / "predictions").iterdir())],
        "snapshots": [path.read_bytes() for path in sorted((folder / "snapshots").iterdir())],
    }


def test_colours_are_learned_from_pictures(root: Path, tmp_path: Path, no_report: None) -> None:
    """The question is the same for all of them."""
    more = ["training.base.epochs=30", "training.base.learning_rate=0.01", "task_order.tasks=[{name: action}]"]
    done = finished(seeing(root, "method=seq_ft", f"root={tmp_path}", *more))
    assert done["numbers"]["average_accuracy"] == 100


@pytest.mark.parametrize("option", ["llava_1_5_7b", "qwen3_vl_4b"])
def test_presets_run_two_steps(option: str, root: Path, tmp_path: Path, no_report: None) -> None:
    """Their own method, batch and schedule, on the tiny LLaVA."""
    small = [o for o in SEEING if not o.startswith("training")]
    arguments = [f"experiment=piece/{option}", *small, "hardware=cpu", f"data_root={root}", f"root={tmp_path}"]
    assert run_command([*arguments, "training.max_steps=2"]) == 0
    (summary,) = tmp_path.rglob("summary.json")
    assert [d["steps"] for d in json.loads(summary.read_text())["tasks_detail"]] == [2, 2]
    preset = compose([f"experiment=piece/{option}"]).config
    stage = preset.training.incremental
    assert (stage.batch_size, stage.micro_batch, stage.learning_rate, stage.epochs) == (128, 4, 1e-5, 5)
    assert [task.name for task in preset.task_order.tasks] == ["action", "commonsense", "count"]


@pytest.mark.parametrize(("method", "dies_at"), [("piece_s", 11), ("seq_ft", 4)])
def test_interrupted_and_resumed_equals_uninterrupted(
    method: str, dies_at: int, root: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside the second task or the first."""
    real, calls = checkpoint.save, iter(range(10**6))

    class Death(BaseException):
        """Stands for kill -9."""

    def save(folder: Path, state: dict[str, Any]) -> None:
        if next(calls) == dies_at:
            raise Death
        real(folder, state)

    def arguments(place: str) -> list[str]:
        return seeing(root, f"method={method}", "checkpoint.every_seconds=0", f"root={tmp_path / place}")

    whole = finished(arguments("whole"))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save)
        with pytest.raises(Death):
            run_command(arguments("killed"))
    assert finished(arguments("killed")) == whole
