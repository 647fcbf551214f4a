"""Checkpoints of others: each is what its config.json says, or refused before any weights are loaded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import run_command, tiny
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from cl_runner.build import build_family
from cl_runner.compose import compose
from cl_runner.config import Backbone, Bertscore
from cl_runner.data.task import build_tasks
from cl_runner.families.base import Family
from cl_runner.families.loading import bytes_tokenizer, words_tokenizer
from cl_runner.job import check_data
from cl_runner.pretrained import places
from cl_runner.pretrained.places import INDEX, WEIGHTS
from cl_runner.record import write_request

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = ("bad", "good", "fair")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole checkpoint of every family."""
    top = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    words, decoder, encoder_decoder = words_tokenizer(48), bytes_tokenizer("causal"), bytes_tokenizer("seq2seq")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    bert = BertConfig(vocab_size=len(words), max_position_embeddings=64, **SIZES)
    llama = LlamaConfig(vocab_size=len(decoder), **SIZES, **ids)
    t5 = T5Config(
        vocab_size=len(encoder_decoder),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    made = {
        "classifier": (BertModel(bert), words),
        "causal": (LlamaForCausalLM(llama), decoder),
        "seq2seq": (T5ForConditionalGeneration(t5), encoder_decoder),
        "masked": (BertForMaskedLM(bert), words),
    }
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(top / name)
        tokenizer.save_pretrained(top / name)
    return {name: top / name for name in made}


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def changed(folder: Path, change: Callable[[Tensors], Mapping[str, torch.Tensor]]) -> None:
    """Other tensors in a folder's file."""
    path = folder / WEIGHTS
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})


def says(folder: Path, **values: object) -> None:
    """Other values in a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@functools.cache
def backbone(*overrides: str) -> Backbone:
    return compose(overrides).config.backbone


def family_of(folder: Path, kind: str = "classifier", *overrides: str) -> Family:
    """The family of a backbone in a folder, checked."""
    sizes = {"max_length": 48, "max_answer_length": None if kind == "classifier" else 8, "checkpoint": str(folder)}
    family = build_family(backbone(f"backbone={kind}_folder", *overrides).model_copy(update=sizes), LABELS)
    family.verify(family.skeleton())
    return family


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def sharded(tensors: Tensors) -> Tensors:
    """Names as FSDP writes them: a wrapper around the whole and around every layer."""
    return {
        "_fsdp_wrapped_module." + name.replace(".layers.", "._fsdp_wrapped_module.layers."): tensor
        for name, tensor in tensors.items()
    }


#: kind of model, what is done to its tensors, what the message must say.
TENSORS = {
    "ddp": ("classifier", prefixed("module."), r"37 of 39 .* 39 of its 39 are left over.*key_prefixes=\[module\.\]'"),
    "peft": (
        "causal",
        prefixed("base_model.model."),
        r"21 of 21.*Type: 'backbone.key_prefixes=\[base_model.model\.\]'",
    ),
    "compiled": ("causal", prefixed("_orig_mod."), r"Type: 'backbone.key_prefixes=\[_orig_mod\.\]'"),
    "nested": ("causal", prefixed("module._orig_mod."), r"Type: 'backbone.key_prefixes=\[module\.,_orig_mod\.\]'"),
    "fsdp": ("causal", sharded, r"Type: 'backbone.key_prefixes=\[_fsdp_wrapped_module\.\]'"),
    "student": ("classifier", prefixed("student."), r"hold student\., .*Type: 'backbone.key_prefixes=\[student\.\]'"),
    "half": (
        "causal",
        lambda t: prefixed("module.")(without("mlp")(t)),
        r"hold module\.,.* but without it they do not all fit either",
    ),
    "layer": ("classifier", without("layer.1."), r"16 of \d+ tensors are missing \(bert.encoder.layer.1"),
    "embedding": ("causal", without("embed_tokens"), r"1 of 21 tensors are missing \(model.embed_tokens.weight\)"),
    "head": ("causal", without("lm_head"), r"1 of 21 tensors are missing \(lm_head.weight\)"),
    "adapter": (
        "causal",
        lambda t: t | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 16)},
        r"It holds an adapter beside .*merge_and_unload",
    ),
    "more": (
        "causal",
        lambda t: t | {"model.layers.2.mlp.up_proj.weight": torch.zeros(16, 16)},
        r"1 of its 22 are left over \(model.layers.2.mlp.up_proj.weight\)",
    ),
    "shape": (
        "classifier",
        lambda t: t | {"embeddings.position_embeddings.weight": torch.zeros(32, 16)},
        r"position_embeddings.weight is \[32, 16\], not \[64, 16\]",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    kind, change, said = TENSORS[name]
    folder = copied(originals[kind], tmp_path / name)
    changed(folder, change)
    with pytest.raises(ValueError, match=f"(?s)does not hold what its config.json says.*{said}"):
        family_of(folder, kind)


def test_other_classes_of_a_model(originals: dict[str, Path], tmp_path: Path) -> None:
    """A model without its head, an encoder without its decoder, fewer layers than the file has."""
    base = copied(originals["causal"], tmp_path / "base")
    LlamaModel.from_pretrained(base).save_pretrained(base)
    with pytest.raises(ValueError, match=r"1 of 21 tensors are missing \(lm_head.weight\)"):
        family_of(base, "causal")
    encoder = copied(originals["seq2seq"], tmp_path / "encoder")
    T5EncoderModel.from_pretrained(encoder).save_pretrained(encoder)
    says(encoder, is_encoder_decoder=True)
    with pytest.raises(ValueError, match=r"tensors are missing \(decoder\."):
        family_of(encoder, "seq2seq")
    fewer = copied(originals["classifier"], tmp_path / "fewer")
    says(fewer, num_hidden_layers=1)
    with pytest.raises(
        ValueError, match=r"16 of its 39 are left over \(bert.encoder.layer.1|left over \(encoder.layer.1"
    ):
        family_of(fewer)


@pytest.mark.parametrize(
    ("change", "prefixes"),
    [
        (prefixed("module."), "module."),
        (prefixed("module._orig_mod."), "module.,_orig_mod"),
        (sharded, "_fsdp_wrapped_module"),
    ],
)
def test_wrappers_names_are_taken_off(
    change: Callable[[Tensors], Tensors], prefixes: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(originals["causal"], tmp_path / "wrapped")
    changed(folder, change)
    model, _ = family_of(folder, "causal", f"backbone.key_prefixes=[{prefixes}]").build(0)
    wanted = AutoModelForCausalLM.from_pretrained(originals["causal"])
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.generation_config.eos_token_id == wanted.generation_config.eos_token_id
    with pytest.raises(ValueError, match=r"no tensor of .* has that in its name. Type: backbone.key_prefixes=\[\]"):
        family_of(originals["causal"], "causal", "backbone.key_prefixes=[module.]")


@pytest.mark.parametrize("labels", [2, 3])
def test_an_old_head_is_dropped_and_a_new_one_drawn_from_the_seed(
    labels: int, originals: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(originals["classifier"], tmp_path / "old")
    old = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    torch.nn.init.constant_(old.classifier.weight, 7.0)
    old.save_pretrained(folder)
    family, plain = family_of(folder), family_of(originals["classifier"])
    for seed in (0, 1):
        model, wanted = family.build(seed)[0].state_dict(), plain.build(seed)[0].state_dict()
        assert all(torch.equal(model[name], wanted[name]) for name in wanted), "as without an old head"
    assert not torch.equal(model["classifier.weight"], family.build(0)[0].classifier.weight)
    assert "the head it has (classifier.bias, classifier.weight) is dropped" in family.verify(family.skeleton())[0]


def test_what_a_classifier_may_lack(originals: dict[str, Path]) -> None:
    """A head for masked words is left aside, and the pooler that such a model lacks is said to be drawn."""
    family = family_of(originals["masked"])
    said = family.verify(family.skeleton())
    assert said == [
        "bert.pooler.dense.bias, bert.pooler.dense.weight is not in it, and drawn from the seed as the head is"
    ]
    model = family.build(0)[0].state_dict()
    assert all(torch.equal(model[n], t) for n, t in load_file(originals["masked"] / WEIGHTS).items() if n in model)


# Files -----------------------------------------------------------------------------------------------------------


def lfs(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 437998572\n"
    (folder / WEIGHTS).write_text(pointer)


def halved(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def shard(folder: Path, *lost: str) -> None:
    """Two files and an index, of which some are lost."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for place in set(places.values()) - set(lost):
        save_file({name: t for name, t in tensors.items() if places[name] == place}, folder / place, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def rid(*patterns: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()

    return remove


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def another(tokenizer: PreTrainedTokenizerFast) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        rid("tokenizer*")(folder)
        tokenizer.save_pretrained(folder)

    return save


def more_tokens(folder: Path) -> None:
    tokenizer = bytes_tokenizer("causal")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def shifted(folder: Path) -> None:
    """A tokenizer of the same size, whose numbers mean other tokens."""
    said = json.loads((folder / "tokenizer.json").read_text())
    size = len(said["model"]["vocab"])
    said["model"]["vocab"] = {token: (i - 3) % size for token, i in said["model"]["vocab"].items()}
    said["added_tokens"] = [token | {"id": (token["id"] - 3) % size} for token in said["added_tokens"]]
    said["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(said))


def endless(folder: Path) -> None:
    tokenizer = bytes_tokenizer("causal")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>").save_pretrained(folder)


def speechless(folder: Path) -> None:
    """A list of words that holds none of a text."""
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["vocab"] = {token: i for token, i in said["model"]["vocab"].items() if i < 4}
    (folder / "tokenizer.json").write_text(json.dumps(said))


#: kind of model, what is done to the folder, what the message must say.
FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "lfs": ("classifier", lfs, r"pointer of Git LFS \(\d+ bytes\).*Type: git lfs pull"),
    "half": ("classifier", halved, r"no whole file of safetensors \(5,000 bytes"),
    "empty": ("classifier", lambda f: (f / WEIGHTS).write_bytes(b""), r"no whole file of safetensors \(0 bytes"),
    "lost": (
        "causal",
        lambda f: shard(f, "model-00002-of-00002.safetensors"),
        r"names 2 files, and model-00002-.* is not",
    ),
    "index": ("causal", lambda f: [shard(f), (f / INDEX).write_text("{}")], r"weight_map"),
    "bin": ("classifier", pickled, r"only pytorch_model.bin: .* never read.*save_pretrained"),
    "none": ("classifier", rid(WEIGHTS), r"has no model.safetensors. Fetch the weights"),
    "outside": (
        "causal",
        lambda f: [shard(f), (f / INDEX).write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))],
        r"names '../b.safetensors', which is no file of that folder",
    ),
    "int8": (
        "classifier",
        lambda f: changed(f, lambda t: {n: v.to(torch.int8) if "query.weight" in n else v for n, v in t.items()}),
        r"query.weight of .* is of type I8, as quantised weights are",
    ),
    "tokenizer": ("classifier", lambda f: (f / "tokenizer.json").write_text("{"), r"cannot load"),
    "adapter": ("causal", adapter, r"holds an adapter.*merge_and_unload"),
    "gptq": ("causal", lambda f: says(f, quantization_config={"quant_method": "gptq"}), r"quantised \(gptq"),
    "code": (
        "causal",
        lambda f: says(f, model_type="mine", auto_map={"AutoConfig": "configuration_mine.Mine"}),
        r"'mine' is Python code in the folder.* never run here",
    ),
    "type": ("causal", lambda f: says(f, model_type="llama99"), r"no architecture 'llama99'.*Nearest: 'llama'"),
    "untyped": ("causal", lambda f: says(f, model_type=None), r"does not say which architecture"),
    "json": ("causal", lambda f: (f / "config.json").write_text("{"), r"config.json cannot be read as JSON"),
    "list": ("causal", lambda f: (f / "config.json").write_text("[]"), r"config.json holds no JSON object"),
    "size": ("causal", lambda f: says(f, hidden_size="wide"), r"cannot load .*hidden_size"),
    "tokens": ("classifier", rid("tokenizer*", "vocab*"), r"no tokenizer in that folder.*save_pretrained"),
    "tokens of bytes": ("causal", rid("tokenizer.json"), r"cannot load|knows no word"),
    "unknown": ("classifier", speechless, r"has 4 tokens and knows no word of a text \(all of them are unknown\)"),
    "pad": ("causal", more_tokens, r"260 tokens.* embeddings of 259 \('\[PAD\]' is 259\).*resize_token_embeddings"),
    "larger": ("causal", another(words_tokenizer(48)), r"eos_token"),
    "smaller": (
        "causal",
        lambda f: says(f, vocab_size=5000),
        r"259 tokens, .* embeddings of 5000: they are not of one",
    ),
    "shifted": ("causal", shifted, r"eos_token_id 2, which is the word .* they are not of one model"),
    "endless": ("causal", endless, r"no token that ends an answer"),
    "pad_id": ("causal", lambda f: says(f, pad_token_id=259), r"pad_token_id 259, .* embeddings of 259"),
    "start": ("seq2seq", lambda f: says(f, decoder_start_token_id=900), r"decoder_start_token_id 900"),
}


@pytest.mark.parametrize("name", FILES)
def test_folders_that_hold_no_model(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    kind, change, said = FILES[name]
    folder = copied(originals[kind], tmp_path / "model")
    change(folder)
    with pytest.raises(ValueError, match=f"(?s){said}") as found:
        family_of(folder, kind)
    assert "trust_remote_code" not in str(found.value)


def test_whole_shards_and_padded_embeddings_are_a_model(originals: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(originals["causal"], tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(320)
    model.save_pretrained(folder)
    shard(folder)
    assert torch.equal(family_of(folder, "causal").build(0)[0].lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("kind", "folder", "said"),
    [
        ("causal", "masked", r"bert is none of the architectures of AutoModelForCausalLM.*backbone=classifier_folder"),
        ("causal", "seq2seq", r"t5 is none .* Type: backbone=seq2seq_folder"),
        ("seq2seq", "causal", r"llama is none .* Type: backbone=causal_folder"),
    ],
)
def test_the_family_of_another_architecture(kind: str, folder: str, said: str, originals: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=said):
        family_of(originals[folder], kind)


def test_attention_and_sizes_that_are_not_there(originals: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"flash_attention_2: torch sees no GPU here. Type: backbone.attention=sdpa"):
        family_of(originals["causal"], "causal", "backbone.attention=flash_attention_2")
    with pytest.raises(ValueError, match=r"nothing reads it, as tiny_bert has random weights"):
        build_family(backbone("backbone=tiny_bert", "backbone.key_prefixes=[module.]"), LABELS)
    with pytest.raises(ValueError, match=r"architecture.num_hidden_layers must be at least 1, got 0"):
        build_family(backbone("backbone=tiny_bert", "backbone.architecture.num_hidden_layers=0"), LABELS).skeleton()


def test_a_folder_is_refused_with_one_message_before_anything_is_written(
    originals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(originals["classifier"], tmp_path / "model")
    changed(folder, prefixed("module."))
    given = [f"backbone.checkpoint={folder}", "backbone.max_length=48"]
    assert run_command(tiny(tmp_path / "outputs", "backbone=classifier_folder", *given)) == 2
    said = capsys.readouterr().err
    assert said.startswith("cl_runner: backbone.checkpoint=") and "Traceback" not in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_names_of_folders(originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copied(originals["classifier"], tmp_path / "top" / "model")
    for name, said in (
        ("top/model", r"is a folder here, and only ./top/model names one. Type: backbone.checkpoint=./top/model"),
        ("./top", r"; model in it has one. Type: backbone.checkpoint=./top/model\. Save"),
        (f"./top/model/{WEIGHTS}", r"which is a file. Type: backbone.checkpoint=./top/model"),
        ("./nowhere", r"no config.json in that folder, which does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            places.locate(backbone("backbone=classifier_folder").model_copy(update={"checkpoint": name}))
    digest = places.sha256(tmp_path / "top" / "model" / WEIGHTS)
    pinned = {"checkpoint": "./top/model", "weights_sha256": digest}
    place = places.locate(backbone("backbone=classifier_folder").model_copy(update=pinned))
    assert places.is_folder(place) and places.folder_of(place) == tmp_path / "top" / "model"
    with pytest.raises(ValueError, match=rf"has SHA-256 {digest}, expected 00"):
        places.locate(backbone("backbone=classifier_folder").model_copy(update=pinned | {"weights_sha256": "00"}))


def test_encoders_are_checked_as_backbones_are(originals: dict[str, Path], tmp_path: Path) -> None:
    from cl_runner.metrics import bertscore

    good = Bertscore(checkpoint=str(originals["masked"]), layer=2)
    assert bertscore.check(good) == 2
    folder = copied(originals["classifier"], tmp_path / "model")
    changed(folder, prefixed("module."))
    with pytest.raises(ValueError, match=r"evaluation.bertscore.checkpoint=.* hold module\..*inside the wrapper"):
        bertscore.load(str(folder), 1)
    speechless(folder)
    with pytest.raises(ValueError, match=r"evaluation.bertscore.checkpoint=.* knows no word"):
        bertscore.load(str(folder), 2)


def test_a_checkpoint_that_changed_since_a_run_began(originals: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(originals["classifier"], tmp_path / "model")
    given = tiny(tmp_path / "outputs", "backbone=classifier_folder", f"backbone.checkpoint={folder}")
    request = compose(given)
    tasks = build_tasks(request.config.task_order, request.config.task)
    request.folder.mkdir(parents=True)
    write_request(request, tasks, "cpu")
    check_data(request, tasks)
    before = (folder / WEIGHTS).read_bytes()
    changed(folder, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    said = (
        rf"backbone.checkpoint: {WEIGHTS} of the checkpoint changed .*Put the old file back, .* root=\S*_new_checkpoint"
    )
    with pytest.raises(ValueError, match=said):
        check_data(request, tasks)
    (folder / WEIGHTS).write_bytes(before)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer_config.json of the checkpoint changed"):
        check_data(request, tasks)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"no config.json in that folder"):
        check_data(request, tasks)
    (request.folder / "COMPLETED").touch()
    check_data(request, tasks)  # what is finished needs it no more


def test_a_digest_is_remembered_as_long_as_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LARGE", 1)
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"one")
    first = places.sha256(path, cache)
    assert first == hashlib.sha256(b"one").hexdigest()
    kept = next(cache.iterdir())
    monkeypatch.setattr(places, "_digests", {})
    monkeypatch.setattr(places, "_read", lambda *_: pytest.fail("it was read again"))
    assert places.sha256(path, cache) == first
    monkeypatch.undo()
    monkeypatch.setattr(places, "LARGE", 1)
    monkeypatch.setattr(places, "_digests", {})
    kept.write_text(kept.read_text().replace(first[:8], "00000000"))
    assert places.sha256(path, cache) == first, "a damaged note is not believed"
    state = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert places.sha256(path, cache) == hashlib.sha256(b"two").hexdigest()
