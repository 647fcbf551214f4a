"""Language models: losses, padding, truncation and answers against the plainest way to compute them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny import Losses, run_command, tiny, tiny_config, tiny_learner
from torch.nn import functional

from cl_runner.batch import Part
from cl_runner.compose import compose
from cl_runner.config import AnswerText, Backbone, Sampling, TrainingLength
from cl_runner.data.example import Example
from cl_runner.families import rows as rows_of_families
from cl_runner.families.base import IGNORED, Answering
from cl_runner.families.causal import Causal
from cl_runner.families.encoding import Encoding
from cl_runner.families.loading import bytes_tokenizer
from cl_runner.families.rows import Note, Rows, parts
from cl_runner.families.seq2seq import Seq2Seq
from cl_runner.families.tokens import answer_of
from cl_runner.learn import learn_task
from cl_runner.text_hashes import hashes, text_hash
from cl_runner.train import epoch_order

EXAMPLES = [
    Example("Was the film good?\nAnswer: ", "yes, very"),
    Example("Stance:", "B"),
    Example("Wie heißt das? 这是中文。 " * 3, "neutral – aber nicht ganz"),
]
MODELS = ("tiny_llama", "tiny_gpt2", "tiny_t5")
every_model = pytest.mark.parametrize("name", MODELS)


def backbone(name: str, **changes: Any) -> Backbone:
    return compose([f"backbone={name}"]).config.backbone.model_copy(update=changes)


def built(name: str, **changes: Any) -> tuple[Causal | Seq2Seq, Any]:
    torch.set_num_threads(1)
    family = (Seq2Seq if name == "tiny_t5" else Causal)(backbone(name, **changes), [])
    model, _ = family.build(3)  # with other seeds a random T5 writes its padding token only
    return family, model.double().eval()


def plain_losses(family: Causal | Seq2Seq, model: Any, example: Example) -> torch.Tensor:
    """-log p of each of the answer's tokens, one example without padding, as the model's class computes it."""
    tokenizer = family.tokenizer
    answer = [*tokenizer(example.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt = tokenizer(example.prompt)["input_ids"]
    if isinstance(family, Seq2Seq):
        labels = torch.tensor([answer])
        logits = model(input_ids=torch.tensor([prompt]), labels=labels).logits[0]
    else:
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return functional.cross_entropy(logits, torch.tensor(answer), reduction="none")


@every_model
def test_loss_is_on_the_answers_tokens_their_end_included(name: str) -> None:
    family, model = built(name)
    wanted = [plain_losses(family, model, example).detach() for example in EXAMPLES]
    batch = family.collate(EXAMPLES)
    output = family.forward(model, batch)
    assert [len(losses) for losses in wanted] == family.targets(EXAMPLES)
    assert len(output.targets) == sum(family.targets(EXAMPLES)) == len(output.logits)
    everything = torch.cat(wanted)
    found = functional.cross_entropy(output.logits, output.targets, reduction="none").detach()
    # Logits are cast to fp32 for the loss.
    assert torch.allclose(found.double(), everything, rtol=0, atol=1e-5)
    assert output.loss.item() == pytest.approx(float(everything.mean()), abs=1e-5)
    for tokens, of in (("mean", torch.Tensor.mean), ("sum", torch.Tensor.sum)):
        total = sum(float(of(losses)) for losses in wanted)
        assert family.loss_sum(model, batch, tokens).item() == pytest.approx(total, abs=1e-5)  # type: ignore[arg-type]


@every_model
def test_padding_has_no_part_in_gradients(name: str) -> None:
    family, model = built(name)
    family.loss_sum(model, family.collate(EXAMPLES), "sum").backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for example in EXAMPLES:
        family.loss_sum(model, family.collate([example]), "sum").backward()
    for n, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(together[n], p.grad, rtol=1e-4, atol=1e-6), n


@every_model
def test_other_targets_leave_what_is_read(name: str) -> None:
    family, model = built(name)
    batch = family.collate(EXAMPLES)
    output = family.forward(model, batch)
    drawn = (output.targets + 1) % output.logits.shape[1]
    changed = family.relabel(batch, drawn)
    again = family.forward(model, changed)
    assert torch.equal(again.targets, drawn) and torch.equal(again.logits, output.logits)
    assert int((changed["labels"] != batch["labels"]).sum()) == len(drawn)


def greedy(family: Causal | Seq2Seq, model: Any, prompt: str, count: int) -> list[int]:
    """Token after token without cache or padding."""
    ids = family.tokenizer(prompt)["input_ids"]
    written: list[int] = []
    while len(written) < count:
        if isinstance(family, Seq2Seq):
            start = [model.config.decoder_start_token_id]
            given = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([start + written])}
        else:
            given = {"input_ids": torch.tensor([ids + written])}
        written.append(int(model(**given).logits[0, -1].argmax()))
        if written[-1] == family.tokenizer.eos_token_id:
            break
    return written


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_a_head_reads_one_block_whose_product_is_one(name: str) -> None:
    """torch 2.13 takes the product of a slice with weights that do not train from a copy of them for each row."""
    family, model = built(name)
    read: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda head, given: read.append(given[0]))
    batch = family.collate(EXAMPLES)
    logits = family.forward(model, batch).logits
    model.requires_grad_(False)
    assert torch.equal(family.forward(model, batch).logits, logits)
    family.answer(model, family.collate(EXAMPLES, answers=False), Answering(3))
    assert len(read) > 3 and all(one.is_contiguous() for one in read)


@every_model
@torch.no_grad()
def test_answers_are_those_of_the_plain_greedy_loop_at_every_batch_size(name: str) -> None:
    family, model = built(name)
    wanted = [
        family.tokenizer.decode(greedy(family, model, e.prompt, 12), skip_special_tokens=True).strip() for e in EXAMPLES
    ]
    how = Answering(max_new_tokens=12)
    together = [p.text for p in family.answer(model, family.collate(EXAMPLES, answers=False), how)]
    alone = [family.answer(model, family.collate([e], answers=False), how)[0].text for e in EXAMPLES]
    assert together == alone == wanted
    assert any(wanted), "nothing to compare"


@every_model
@torch.no_grad()
def test_likelihood_of_labels_by_brute_force(name: str) -> None:
    """Labels of different lengths, one the beginning of another; the prompt is read once."""
    family, model = built(name)
    labels = ("no", "yes", "yes, very", "B")
    wanted = torch.tensor(
        [[-float(plain_losses(family, model, Example(e.prompt, label)).sum()) for label in labels] for e in EXAMPLES]
    )
    found = family._label_scores(model, family.collate(EXAMPLES, answers=False), labels)
    assert torch.allclose(found, wanted.to(found.dtype), rtol=0, atol=1e-4)
    answers = family.answer(model, family.collate(EXAMPLES, answers=False), Answering(4, labels))
    for answer, row in zip(answers, wanted, strict=True):
        assert answer.text == labels[int(row.argmax())]
        assert answer.confidence == pytest.approx(float(row.softmax(0).max()), abs=1e-4)


@every_model
@torch.no_grad()
def test_answers_end_where_nothing_reads_on(name: str) -> None:
    """Rows that go on are not disturbed by those that have ended."""
    family, model = built(name)
    batch = family.collate(EXAMPLES, answers=False)
    whole = family.answer(model, batch, Answering(12, text="raw"))
    ends = {example.prompt: 2 * place for place, example in enumerate(EXAMPLES)}
    how = Answering(12, text="raw", until=(lambda text, example: len(text) >= ends[example.prompt],))
    short = family.answer(model, batch, how)
    for place, (one, other) in enumerate(zip(short, whole, strict=True)):
        assert other.text.startswith(one.text.rstrip("\ufffd")) and one.logits == other.logits
        assert len(one.text) >= min(2 * place, len(other.text))
    assert sum(len(one.text) for one in short) < sum(len(one.text) for one in whole)


def test_sampled_answers_depend_on_the_seed_alone() -> None:
    family, model = built("tiny_llama")
    how = Answering(20, sampling=Sampling(temperature=1.5, top_k=None, top_p=None))

    def drawn(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return [p.text for p in family.answer(model, family.collate(EXAMPLES, answers=False), how)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_cutting_by_the_prompts_text_is_another_answer_where_decoding_changes_it() -> None:
    """As released with PIECE: a prompt that does not come back as it was stays in front of the answer."""

    def answers(length: int) -> list[str]:
        family, model = built("tiny_llama", max_length=length, truncation="keep_end")
        batch = family.collate([Example("a sentence with no room", "x"), Example("ok", "x")], answers=False)
        found = [family.answer(model, batch, Answering(8, slice_by=by)) for by in ("ids", "prefix")]  # type: ignore[arg-type]
        assert found[0][1] == found[1][1], "a prompt that is whole is cut off by either"
        return [found[0][0].text, found[1][0].text]

    by_ids, by_prefix = answers(64)
    assert by_ids == by_prefix
    by_ids, by_prefix = answers(8)
    assert by_prefix == ("no room" + by_ids).strip() != by_ids


def encoding(**changes: Any) -> Encoding:
    chosen = backbone("tiny_llama", **changes)
    tokenizer = bytes_tokenizer("causal")
    return Encoding(chosen, tokenizer, tokenizer.eos_token_id, open_end=True)


@pytest.mark.parametrize(
    ("truncation", "kept"), [("keep_start", "01234567"), ("keep_end", "cdefghij"), ("keep_both", "0123ghij")]
)
def test_truncation_keeps_what_it_says_and_the_special_tokens(truncation: str, kept: str) -> None:
    tokenizer = bytes_tokenizer("causal")
    (ids,) = encoding(max_length=9, truncation=truncation).prompts(["0123456789abcdefghij"])
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == kept


def test_an_answer_that_is_cut_has_no_end() -> None:
    whole, cut = encoding(max_answer_length=4).answers(["abc", "abcd"])
    end = bytes_tokenizer("causal").eos_token_id
    assert len(whole) == len(cut) == 4 and whole[-1] == end and end not in cut


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[me]{% endif %}"
)


@pytest.mark.parametrize(
    ("truncation", "kept"), [("keep_start", "01234567"), ("keep_end", "cdefghij"), ("keep_both", "0123ghij")]
)
def test_a_chat_template_stays_whole_around_a_text_that_is_cut(truncation: str, kept: str) -> None:
    tokenizer = bytes_tokenizer("causal")
    tokenizer.chat_template = TEMPLATE
    chosen = backbone("tiny_llama", chat_template=True, max_length=19, truncation=truncation)
    short, long = Encoding(chosen, tokenizer, tokenizer.eos_token_id, open_end=True).prompts(
        ["Why?", "0123456789abcdefghij"]
    )
    assert tokenizer.decode(short) == "<s>[user]Why?[me]"
    assert tokenizer.decode(long) == f"<s>[user]{kept}[me]" and len(long) == 19


def test_a_chat_template_that_is_not_there_or_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tiny(tmp_path, "backbone=tiny_llama", "backbone.chat_template=true")) == 2
    assert "Type: backbone.chat_template=false" in capsys.readouterr().err
    tokenizer = bytes_tokenizer("causal")
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="Type: backbone.max_length=75"):
        Encoding(backbone("tiny_llama", chat_template=True, max_length=9), tokenizer, 2, open_end=True)


@torch.no_grad()
def test_a_checkpoints_own_penalties_do_not_count() -> None:
    family, model = built("tiny_llama")
    batch = family.collate(EXAMPLES, answers=False)
    plain = family.answer(model, batch, Answering(12))
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.suppress_tokens = 50.0, 1, list(range(3, 200))
    assert family.answer(model, batch, Answering(12)) == plain and model.generation_config is own


def test_what_of_a_generated_text_is_the_answer() -> None:
    text = " <think> B? </think>\n\n A person\n"
    assert answer_of(text, "raw") == text, "TRACE"
    assert answer_of(text, "piece") == "\n\n A person", "PIECE takes white space off before the thoughts"
    assert answer_of(text, "spoken") == "A person"
    for rule in get_args(AnswerText):
        assert answer_of("</think>", rule).strip() == ("</think>" if rule == "raw" else "")


def test_prompt_and_answer_share_their_tokens_as_a_release_has_it() -> None:
    """TRACE: the sum of both limits for a prompt with its answer; PIECE: the sum for each; ours: each its own."""
    prompt, short, long = "p" * 50, "a", "b" * 50
    found, cut = {}, {}
    for rule in get_args(TrainingLength):
        family = Causal(
            backbone("tiny_llama", max_length=20, max_answer_length=10, truncation="keep_end", training_length=rule), []
        )
        examples = [Example(prompt, short), Example(prompt, long)]
        ends = family.targets(examples)
        wholes = family.lengths(examples)
        found[rule] = [(whole - end, end) for whole, end in zip(wholes, ends, strict=True)]
        short_text = Example("p" * 15, "a" * 12)
        cut[rule] = [note for note, count in family.noted([*examples, short_text]).items() if note.startswith("text")]
        assert family.noted([*examples, short_text], training=False)["texts cut at 20 tokens"] == 2
        batch = family.collate(examples)
        assert batch["attention_mask"].sum(1).tolist() == wholes and batch["labels"].shape[1] == max(ends)
        assert family.lengths(examples, answers=False) == [20, 20], "what is answered is as long as ever"
        assert batch["input_ids"][0, -wholes[0]] == family.tokenizer.bos_token_id, "special tokens stay"
    # Of a prompt before a long answer its start and one more token stay.
    assert found == {"apart": [(20, 2), (20, 10)], "together": [(28, 2), (2, 28)], "sum": [(30, 2), (30, 30)]}
    said = ["texts cut at 20 tokens", "texts cut to 30 tokens with their answers", "texts cut at 30 tokens"]
    assert list(cut.values()) == [[note] for note in said]


def test_protocols_are_the_releases() -> None:
    trace, piece, standard = (
        compose(["task_order=trace", "backbone=tiny_llama", f"protocol={name}"]).config
        for name in ("trace", "piece", "standard")
    )
    assert trace.evaluation.sampling == Sampling(temperature=0.1, top_k=50, top_p=None)
    assert [trace.evaluation.new_tokens(own) for own in (16, 256)] == [512, 512]
    assert [piece.evaluation.new_tokens(own) for own in (16, 256)] == [16, 256]
    assert [c.evaluation.answer_text for c in (trace, piece, standard)] == ["raw", "piece", "spoken"]
    assert [c.backbone.training_length for c in (trace, piece, standard)] == ["together", "sum", "apart"]
    assert [c.backbone.special_tokens for c in (trace, piece, standard)] == ["read", "read", "text"]
    released = compose(["task_order=trace", "backbone=llama2_7b_chat", "protocol=trace"]).config.backbone
    assert (released.max_length, released.longest_in_training, released.chat_template) == (1024, 1536, False)
    assert trace.task["trace_fomc"].released_metrics["trace"] == ["trace_accuracy"]


@torch.no_grad()
def test_a_protocols_answers_are_as_long_and_as_whole_as_it_says(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "backbone=tiny_llama", "evaluation.max_new_tokens=23", "evaluation.answer_text=raw")
    learner, _, tasks = tiny_learner(config)
    learner.evaluation = config.evaluation
    how = learner.answering(tasks[0])
    assert (how.max_new_tokens, how.text, tasks[0].max_new_tokens) == (23, "raw", 16)
    learner.model.eval()
    batch = learner.collate(tasks[0].test, answers=False)
    raw = [prediction.text for prediction in learner.answer(batch, how)]
    spoken = learner.answer(batch, dataclasses.replace(how, text="spoken"))
    assert [text.strip() for text in raw] == [prediction.text for prediction in spoken] and max(map(len, raw)) > 16


def test_scoring_of_a_release_that_no_task_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tiny(tmp_path, "backbone=tiny_llama", "protocol=piece")) == 2
    assert "Type: protocol=standard" in capsys.readouterr().err
    assert run_command(["task_order=trace", "backbone=tiny_llama", "evaluation.scoring=peice", f"root={tmp_path}"]) == 2
    assert "its releases: piece, trace" in capsys.readouterr().err


def test_tokens_are_kept_by_content(tmp_path: Path) -> None:
    texts, answers = ["one text", "another", ""], ["yes", "no"]
    encoding().remember(texts, answers, tmp_path)
    (file,) = tmp_path.iterdir()

    class Silent:
        """A tokenizer that must not be asked."""

        def __init__(self) -> None:
            self.inner = bytes_tokenizer("causal")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, text: Any, **options: Any) -> Any:
            assert isinstance(text, str), "encoded anew"
            return self.inner(text, **options)

    tokenizer: Any = Silent()
    again = Encoding(backbone("tiny_llama"), tokenizer, tokenizer.eos_token_id, open_end=True)
    again.remember(texts, answers, tmp_path)
    assert again.prompts(texts) == encoding().prompts(texts) and again.answers(answers) == encoding().answers(answers)
    encoding(max_length=5).remember(texts, answers, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(b"damaged")
    encoding().remember(texts, answers, tmp_path)
    assert file.stat().st_size > 100


def test_rows_are_those_of_a_dictionary_of_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    wanted = {f"text {n}": random.integers(1 << 31, size=n % 5).tolist() for n in range(12)}
    notes = {text: Note(len(row) + 2, len(row) > 3) for text, row in wanted.items()}
    added, taken = Rows(), Rows()
    for text, row in wanted.items():
        assert text not in added
        added.add(text, row, notes[text])
    some = list(wanted)[::-2]
    shards = []
    for part in (some[:4], some[4:]):
        of_part = Rows()
        for text in part:
            of_part.add(text, wanted[text], notes[text])
        shards.append(of_part.flat())
    taken.take(some, hashes(map(text_hash, some)), shards)
    for text in set(wanted) - set(some):
        taken.add(text, wanted[text], notes[text])
    for rows in (added, taken):
        assert set(rows) == set(wanted) and "other" not in rows
        for text, row in wanted.items():
            assert rows[text] == row and rows.length(text) == len(row) and rows.note(text) == notes[text]
    taken.take([], hashes(()), [])
    assert not list(taken) and "text 1" not in taken
    monkeypatch.setattr(rows_of_families, "AT_ONCE", 3)
    assert [list(part) for part in parts(range(7))] == [[0, 1, 2], [3, 4, 5], [6]]


def test_grouping_by_length_is_a_shuffle_with_less_padding() -> None:
    lengths = [(i * 37) % 100 for i in range(203)]
    plain, grouped = epoch_order(0, 1, 2, 203), epoch_order(0, 1, 2, 203, lengths, 8)
    assert sorted(grouped) == sorted(plain) == list(range(203)) and grouped != plain
    assert grouped == epoch_order(0, 1, 2, 203, lengths, 8) != epoch_order(0, 1, 3, 203, lengths, 8)

    def waste(order: list[int]) -> int:
        parts = [order[i : i + 8] for i in range(0, 203, 8)]
        return sum(max(lengths[i] for i in part) * len(part) - sum(lengths[i] for i in part) for part in parts)

    assert waste(grouped) < 0.2 * waste(plain)


def test_micro_batches_do_not_change_a_step_of_a_language_model(tmp_path: Path) -> None:
    """Answers of different lengths: the mean is over all answer tokens of the batch, however it is cut."""

    def trained(*more: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        config = tiny_config(tmp_path, "method=seq_ft", "backbone=tiny_llama", "training.max_steps=2", *more)
        learner, method, tasks = tiny_learner(config)
        watch = Losses()
        learn_task(learner, method, tasks[0], config.training, watch)
        return learner.weights(), watch.numbers

    whole, steps = trained()
    cut, parts = trained("training.base.micro_batch=3")
    assert [s["loss"] for s in parts] == pytest.approx([s["loss"] for s in steps], rel=1e-5)
    assert [s["tokens"] for s in parts] == [s["tokens"] for s in steps]
    assert all(p["padding_share"] < s["padding_share"] for p, s in zip(parts, steps, strict=True))
    assert all(torch.allclose(cut[n], whole[n], rtol=1e-3, atol=1e-5) for n in whole)


def test_lwf_of_language_models_is_the_distance_to_the_old_weights_outputs(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=[lwf,pe_select]", "method.lwf.strength=2.0", "backbone=tiny_llama")
    learner, method, tasks = tiny_learner(config)
    method.select(learner, tasks[1])
    learner.choose(tasks[1], method.trains(learner, tasks[1]))
    method.before_task(learner, tasks[1])
    learner.begin()
    method.data(learner, tasks[1], [tasks[1].train])
    part = Part(tasks[1].train[:2])
    batch = learner.collate([tasks[1].train[i] for i in [0, 1]])
    before = learner.weights()
    learner.model.eval()
    old = learner.forward(batch).logits.detach()
    with torch.no_grad():
        for name, index in learner.selected.items():
            learner.parameters()[name].view(-1)[index] += 0.5
    moved = learner.weights()
    output = learner.forward(batch)
    term = torch.as_tensor(method.loss(learner, part, method.prepare(learner, part, batch), output)).detach()
    wanted = 2.0 * (output.logits.detach() - old).square().sum(-1).mean()
    assert float(term) == pytest.approx(float(wanted), rel=1e-5) and float(term) > 0
    assert all(torch.equal(p, moved[n]) for n, p in learner.parameters().items())
    assert any(not torch.equal(before[n], moved[n]) for n in before)


@pytest.mark.parametrize("backbone", ["tiny_llama", "bert"])
def test_lwf_of_pieces_release_is_half_labels_half_divergence_at_temperature_2(backbone: str, tmp_path: Path) -> None:
    """From the first task on; against the definition of the divergence."""
    config = tiny_config(tmp_path, "method=lwf_piece", *(["backbone=tiny_llama"] if backbone != "bert" else []))
    learner, method, tasks = tiny_learner(config)
    lwf = method.methods["lwf"]
    learner.choose(tasks[0], None)
    method.before_task(learner, tasks[0])
    learner.begin()
    method.data(learner, tasks[0], [tasks[0].train])
    old = learner.weights()
    with torch.no_grad():
        for p in learner.parameters().values():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    learner.model.eval()
    part = Part(tasks[0].train[:4])
    batch = method.prepare(learner, part, learner.collate(part.examples))
    output = learner.forward(batch)
    extra = lwf.loss(learner, part, batch, output)
    with learner.at(old):
        wanted = (learner.forward(batch).logits / 2).softmax(-1).detach()
    found = (output.logits / 2).softmax(-1)
    divergence = 4 * (wanted * (wanted.log() - found.log())).sum(-1).mean()
    assert float(divergence.detach()) > 1e-4
    torch.testing.assert_close(output.loss + extra, output.loss / 2 + divergence / 2, rtol=1e-4, atol=1e-6)


def test_options_of_lwf_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["method.lwf.temperature=2.0"], "Type: method.lwf.temperature=null"),
        (["method.lwf.distance=kullback_leibler"], "Type: method.lwf.temperature=2.0"),
        (["method=lwf_piece", "method.lwf.outputs=probabilities"], "Type: method.lwf.outputs=logits"),
    ):
        assert (
            run_command(tiny(tmp_path, *(["method=lwf"] if "method=lwf_piece" not in options else []), *options)) == 2
        )
        assert said in capsys.readouterr().err


def test_a_model_at_other_weights_comes_back_after_an_error(tmp_path: Path) -> None:
    learner, _, _ = tiny_learner(tiny_config(tmp_path, "method=seq_ft", "backbone=tiny_llama"))
    before = learner.weights()
    other = {name: torch.zeros_like(p) for name, p in before.items()}
    with pytest.raises(RuntimeError), learner.at(other):
        assert all(not bool(p.any()) for p in learner.parameters().values())
        raise RuntimeError
    assert all(torch.equal(p, before[n]) for n, p in learner.parameters().items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backbone=tiny_llama", "backbone.max_length=1000"], r"reads 1024 tokens.*Type: backbone.max_length=960"),
        (["backbone=tiny_llama", "backbone.max_answer_length=null"], "Type: backbone.max_answer_length=128"),
        (["backbone=tiny_t5", "backbone.chat_template=true"], "Type: backbone.chat_template=false"),
        (["backbone=tiny_llama", "backbone.tokenizer=null"], "Type: backbone.tokenizer=bytes"),
        (["backbone=causal_folder"], "backbone.checkpoint=./model: no config.json in that folder"),
        (["probe=held_text", "backbone=tiny_bert"], "Type: probe=none"),
        (["method=pe_qkv", "backbone=tiny_llama"], "query"),
    ],
)
def test_mistakes(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert run_command(tiny(tmp_path, *arguments)) == 2
    assert re.search(said, capsys.readouterr().err), said


def test_labels_are_ignored_where_there_is_no_answer() -> None:
    family, _ = built("tiny_llama")
    batch = family.collate(EXAMPLES)
    assert (batch["labels"][:, -1] == family.tokenizer.eos_token_id).all(), "answers end in the last column"
    assert int((batch["labels"] == IGNORED).sum()) == batch["labels"].numel() - sum(family.targets(EXAMPLES))
    assert set(family.collate(EXAMPLES, answers=False)) == {"input_ids", "attention_mask", "position_ids"}
