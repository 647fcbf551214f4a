"""Snapshots: exact restore, chains, damage, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import cl_runner.build
from cl_runner.sparse.bits import INTEGERS, bits_of, combine, gaps_of, positions_of, tensor_digests, weights_hash
from cl_runner.sparse.chain import apply_snapshot, read_weights
from cl_runner.sparse.command import main
from cl_runner.sparse.snapshots import (
    Change,
    Snapshot,
    describe_snapshot,
    read_snapshot,
    save_snapshot,
    verify_snapshot,
    write_snapshot,
)

METHOD = {"pe": {"fraction": 0.005}}


def starting_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "encoder.weight": torch.randn(6, 5, generator=generator),
        "head.weight": torch.randn(4, generator=generator).bfloat16(),
        "scale": torch.randn((), generator=generator),
    }


def learn(
    path: Path,
    weights: dict[str, Tensor],
    task: str,
    index: int,
    base: str,
    positions: dict[str, list[int] | None],
) -> int:
    """Change `weights` at random, in whole tensors (None) or at positions, and write the snapshot."""
    parent = weights_hash(weights)
    generator = torch.Generator().manual_seed(100 + index)
    changes = {}
    for name, where in positions.items():
        new = torch.randn(weights[name].shape, generator=generator).to(weights[name])
        if where is None:
            old = weights[name].clone()
            weights[name].copy_(new)
            changes[name] = Change(weights[name], None, old)
        else:
            at = torch.tensor(where)
            old = weights[name].view(-1)[at]
            weights[name].view(-1)[at] = new.view(-1)[at]
            changes[name] = Change(weights[name].view(-1)[at], at, old)
    return write_snapshot(
        path,
        changes,
        model=weights,
        task=task,
        index=index,
        base=base,
        parent=parent,
        weights=weights_hash(weights),
        method=METHOD,
    )


def make_run(run: Path, weights: dict[str, Tensor], first: dict[str, list[int] | None]) -> list[dict[str, Tensor]]:
    """Three tasks: `first`, a sparse change, no change at all. The weights before and after each."""
    (run / "snapshots").mkdir(parents=True)
    base = weights_hash(weights)
    history = [{name: weight.clone() for name, weight in weights.items()}]
    sparse: dict[str, list[int] | None] = {next(iter(weights)): [0, 3, 7]}
    for index, (task, change) in enumerate({"books": first, "dvd": sparse, "music": {}}.items()):
        learn(run / "snapshots" / f"{index:02d}_{task}.safetensors", weights, task, index, base, change)
        history.append({name: weight.clone() for name, weight in weights.items()})
    return history


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight), name


def snapshots(run: Path) -> list[Path]:
    return sorted((run / "snapshots").iterdir())


WHOLE: dict[str, list[int] | None] = {"encoder.weight": None, "head.weight": None, "scale": None}
PART: dict[str, list[int] | None] = {"encoder.weight": [1, 29], "head.weight": [2], "scale": None}


@pytest.mark.parametrize("first", [WHOLE, PART])
def test_chain_is_bit_exact(tmp_path: Path, first: dict[str, list[int] | None]) -> None:
    history = make_run(tmp_path, starting_weights(), first)
    files = snapshots(tmp_path)
    base = None if first is WHOLE else history[0]
    for index in range(3):
        assert_equal(read_weights(files[: index + 1], base), history[index + 1])
    assert_equal(history[0], starting_weights())  # the base given was not changed
    assert [verify_snapshot(file) for file in files] == [[], [], []]


def test_format(tmp_path: Path) -> None:
    """The layout others rely on, read by the safetensors library itself."""
    weights = starting_weights()
    start = weights_hash(weights)
    path = tmp_path / "00_books.safetensors"
    size = learn(path, weights, "books", 0, start, PART)
    assert size == path.stat().st_size
    tensors = load_file(path)
    sparse = {f"{kind}/{name}" for kind in ("gap", "change") for name in ("encoder.weight", "head.weight")}
    assert set(tensors) == {*sparse, "change/scale"}
    assert tensors["gap/encoder.weight"].dtype == torch.uint16
    assert tensors["gap/encoder.weight"].long().tolist() == [1, 28]
    before, at = starting_weights(), torch.tensor([1, 29])
    old, new = (side["encoder.weight"].view(-1)[at].view(torch.int32) for side in (before, weights))
    assert tensors["change/encoder.weight"].dtype == torch.int32
    assert torch.equal(tensors["change/encoder.weight"], old ^ new)
    assert tensors["change/head.weight"].dtype == torch.int16
    assert tensors["change/scale"].shape == ()
    assert torch.equal(
        (before["scale"].view(torch.int32) ^ tensors["change/scale"]), weights["scale"].view(torch.int32)
    )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["task"], metadata["index"], metadata["base"]) == ("books", "0", start)
    assert metadata["weights"] == weights_hash(weights)
    assert json.loads(metadata["method"]) == METHOD
    model = {"encoder.weight": ["F32", 6, 5], "head.weight": ["BF16", 4], "scale": ["F32"]}
    assert json.loads(metadata["model"]) == model
    assert not (tmp_path / "00_books.safetensors.tmp").exists()


def test_description(tmp_path: Path) -> None:
    """PE table 3: stored values, bytes, share; a model of 35 fp32 values has 140 bytes."""
    make_run(tmp_path, {name: weight.float() for name, weight in starting_weights().items()}, PART)
    first, second, third = (describe_snapshot(file) for file in snapshots(tmp_path))
    assert (first.stored, second.stored, third.stored) == (2 + 1 + 1, 3, 0)
    assert first.file_bytes == snapshots(tmp_path)[0].stat().st_size
    assert first.model_bytes == third.model_bytes == 140
    assert first.share == pytest.approx(100 * first.file_bytes / 140)
    assert (first.parent, first.weights) == (first.base, second.parent)
    assert not first.whole
    assert first.shapes["encoder.weight"] == (6, 5)


def test_the_same_change_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        learn(tmp_path / name, starting_weights(), "books", 0, "base", PART)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("positions", "gaps"),
    [
        ([0, 65534], [0, 65534]),
        ([65535], [65535, 0]),  # 65535 goes on without an entry
        ([3, 65538, 65539], [3, 65535, 0, 1]),
        ([196610, 196611], [65535, 65535, 65535, 5, 1]),
    ],
)
def test_wide_gaps(positions: list[int], gaps: list[int]) -> None:
    found = gaps_of(torch.tensor(positions), 200_000)
    assert found.dtype == torch.uint16 and found.long().tolist() == gaps
    assert positions_of(found).tolist() == positions


def test_positions_beyond_int32(tmp_path: Path) -> None:
    positions = torch.tensor([5, 2**31 + 7])
    path = tmp_path / "x.safetensors"
    model = {"w": torch.empty(2, 2**31, device="meta")}
    names = {"base": "b", "parent": "p", "weights": "w"}
    changes = {"w": Change(torch.ones(2), positions, torch.zeros(2))}
    write_snapshot(path, changes, model=model, task="t", index=0, method={}, **names)
    found = read_snapshot(path).changes["w"].index
    assert found is not None and torch.equal(found, positions)


#: Bits that arithmetic would not keep: NaN with payloads, -0.0, the smallest subnormal, infinity.
STRANGE = {
    torch.float32: [0x7FC12345, -0x80000000, 1, 0x7F800000, 0x7F800001, 0x3F800000],
    torch.bfloat16: [0x7FC1, -0x8000, 1, 0x7F80, 0x7F81, 0x3F80],
    torch.float16: [0x7E01, -0x8000, 1, 0x7C00, 0x7C01, 0x3C00],
    torch.float64: [0x7FF8000000012345, -(2**63), 1, 0x7FF0000000000000, 0x7FF0000000000001, 0x3FF0000000000000],
}


@pytest.mark.parametrize("dtype", STRANGE, ids=str)
@pytest.mark.parametrize("whole", [False, True])
def test_forward_and_back_keep_every_bit(tmp_path: Path, dtype: torch.dtype, whole: bool) -> None:
    integers = INTEGERS[dtype.itemsize]
    strange = torch.tensor(STRANGE[dtype], dtype=integers).view(dtype)
    before = {"w": torch.randn(90_000).to(dtype).view(300, 300), "other": torch.ones(3, dtype=dtype)}
    at = torch.tensor([0, 1, 2, 70_000, 70_001, 89_999])
    after = {name: weight.clone() for name, weight in before.items()}
    after["w"].view(integers).view(-1)[at] = strange.view(integers)
    before["w"].view(integers).view(-1)[at] = strange.flip(0).view(integers)
    change = (
        Change(after["w"], None, before["w"])
        if whole
        else Change(after["w"].view(-1)[at], at, before["w"].view(-1)[at])
    )
    hashes = {"base": "b", "parent": weights_hash(before), "weights": weights_hash(after)}
    path = tmp_path / "x.safetensors"
    write_snapshot(path, {"w": change}, model=before, task="t", index=0, method={}, **hashes)
    weights = {name: weight.clone() for name, weight in before.items()}
    snapshot = read_snapshot(path)
    apply_snapshot(weights, snapshot)
    assert torch.equal(bits_of(weights["w"]), bits_of(after["w"])) and weights_hash(weights) == hashes["weights"]
    apply_snapshot(weights, snapshot)
    assert torch.equal(bits_of(weights["w"]), bits_of(before["w"])) and weights_hash(weights) == hashes["parent"]
    assert weights_hash(read_weights([path], before)) == hashes["weights"]


def test_six_bytes_a_value_in_fp32_and_four_in_bf16(tmp_path: Path) -> None:
    for dtype, per_value in ((torch.float32, 6), (torch.bfloat16, 4)):
        model = {"w": torch.zeros(100, 100, dtype=dtype)}
        at = torch.arange(0, 10_000, 100)
        changes = {"w": Change(torch.ones(100, dtype=dtype), at, torch.zeros(100, dtype=dtype))}
        path = tmp_path / "x.safetensors"
        names = {"base": "b", "parent": "p", "weights": "w"}
        size = write_snapshot(path, changes, model=model, task="t", index=0, method={}, **names)
        found = describe_snapshot(path)
        assert (found.stored, found.position_bytes, found.value_bytes) == (100, 200, 100 * (per_value - 2))
        assert found.header_bytes == size - 100 * per_value
        assert found.model_bytes == 10_000 * dtype.itemsize


def test_a_file_of_the_format_before_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "00_books.safetensors"
    monkeypatch.setattr("cl_runner.sparse.snapshots.FORMAT", "cl_runner.snapshot/1")
    learn(path, starting_weights(), "books", 0, "base", PART)
    monkeypatch.undo()
    assert verify_snapshot(path) == [
        f"{path}: format 'cl_runner.snapshot/1'; this version reads 'cl_runner.snapshot/2'"
    ]


def test_flipped_bits_and_truncation_are_found(tmp_path: Path) -> None:
    path, broken = tmp_path / "00_books.safetensors", tmp_path / "broken.safetensors"
    learn(path, starting_weights(), "books", 0, "base", PART)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(0, start, 7), *range(start, len(content))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        broken.write_bytes(flipped)
        problems = verify_snapshot(broken)
        assert len(problems) == 1 and str(broken) in problems[0], position
        assert ("the tensor" in problems[0]) == (position >= start), problems
        broken.write_bytes(content[:position])
        assert verify_snapshot(broken), position
    broken.write_bytes(content + b"x")
    assert verify_snapshot(broken) == [f"{broken}: 1 bytes follow the last tensor"]


def test_the_damaged_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "00_books.safetensors"
    learn(path, starting_weights(), "books", 0, "base", PART)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last bytes are those of the narrowest type: head.weight, bf16
    path.write_bytes(content)
    assert verify_snapshot(path) == [f"{path}: the tensor head.weight is damaged, its SHA-256 differs"]
    with pytest.raises(ValueError, match=r"00_books.*head\.weight is damaged"):
        read_snapshot(path)
    path.write_bytes(content[:-1])
    assert verify_snapshot(path) == [f"{path}: the file ends inside or before the tensor head.weight"]


def test_broken_chains(tmp_path: Path) -> None:
    history = make_run(tmp_path, starting_weights(), PART)
    files = snapshots(tmp_path)
    with pytest.raises(ValueError, match=r"00_books.* stores a part of the model only"):
        read_weights(files)
    with pytest.raises(ValueError, match=r"00_books.*does not follow on the starting weights"):
        read_weights(files, history[1])
    with pytest.raises(ValueError, match=r"02_music.*does not follow on .*00_books"):
        read_weights([files[0], files[2]], history[0])
    with pytest.raises(ValueError, match=r"no such file"):
        read_weights([tmp_path / "none.safetensors"], history[0])
    other = {**history[0], "scale": history[0]["scale"].half()}
    with pytest.raises(ValueError, match=r"different models: scale is F32 \[\] and F16 \[\]"):
        read_weights(files, other)
    # A snapshot that promises other weights than its values give.
    snapshot = read_snapshot(files[1])
    save_snapshot(files[1], Snapshot(dataclasses.replace(snapshot.header, weights="0" * 64), snapshot.changes))
    with pytest.raises(ValueError, match=r"01_dvd.*the restored weights are"):
        read_weights(files[:2], history[0])


def test_apply_in_place(tmp_path: Path) -> None:
    history = make_run(tmp_path, starting_weights(), PART)
    parameter = torch.nn.Parameter(history[0]["encoder.weight"].clone())
    weights = {**history[0], "encoder.weight": parameter}
    apply_snapshot(weights, read_snapshot(snapshots(tmp_path)[0]))
    assert torch.equal(parameter, history[1]["encoder.weight"])
    apply_snapshot(weights, read_snapshot(snapshots(tmp_path)[0]))
    assert torch.equal(parameter, history[0]["encoder.weight"])


def test_weights_hash() -> None:
    weights = starting_weights()
    start = weights_hash(weights)
    assert weights_hash(dict(reversed(weights.items()))) == start
    assert weights_hash({**weights, "scale": weights["scale"].double()}) != start
    assert weights_hash({**weights, "encoder.weight": weights["encoder.weight"].view(5, 6)}) != start
    weights["head.weight"].view(torch.int16)[0] ^= 1
    assert weights_hash(weights) != start
    # Digests of single tensors can be kept and combined.
    digests = tensor_digests(weights)
    digests["scale"] = tensor_digests({"scale": weights["scale"] * 2})["scale"]
    assert combine(digests) == weights_hash({**weights, "scale": weights["scale"] * 2})
    swapped = {"a": weights["scale"], "b": weights["scale"] * 2}
    assert weights_hash(swapped) != weights_hash({"a": swapped["b"], "b": swapped["a"]})


# the command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[dict[str, Tensor]]]:
    """A run of a tiny BERT whose first task trained a part of the model only, so that its base is needed."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})

    def rebuild(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        assert folder == tmp_path
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=7,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
            num_labels=2,
        )
        return AutoModelForSequenceClassification.from_config(config), tokenizer

    monkeypatch.setattr(cl_runner.build, "rebuild", rebuild)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    model, _ = rebuild(tmp_path)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return tmp_path, make_run(tmp_path, weights, {"classifier.weight": None, "bert.pooler.dense.bias": [2]})


def test_list(run: tuple[Path, object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run[0])]) == 0
    shown = capsys.readouterr().out
    description = describe_snapshot(snapshots(run[0])[0])
    for part in ("books", "dvd", "music", "17", description.parent[:8], f"{description.file_bytes:,}"):
        assert part in shown


def test_verify(run: tuple[Path, object], capsys: pytest.CaptureFixture[str]) -> None:
    folder, files = run[0], snapshots(run[0])
    assert main(["verify", str(folder)]) == 0
    assert "3 snapshots, no problems" in capsys.readouterr().out
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-2])
    assert main(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "01_dvd.safetensors: the file ends inside or before the tensor" in shown
    assert "02_music.safetensors: no sound snapshot leads to its parent" in shown
    assert main(["verify", str(files[1])]) == 1
    files[1].write_bytes(content)
    assert main(["verify", str(files[1])]) == 0


def test_restore(run: tuple[Path, list[dict[str, Tensor]]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, history = run
    for index, task in enumerate(("books", "dvd", "music")):
        output = folder / "restored" / f"{task}.safetensors"
        assert main(["restore", str(folder), "--after", task, "--output", str(output)]) == 0
        assert_equal(load_file(output), history[index + 1])


def test_export(run: tuple[Path, list[dict[str, Tensor]]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, history = run
    output = folder / "exported"
    assert main(["export", str(folder), "--after", "dvd", "--output", str(output)]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(output)
    assert_equal(dict(model.named_parameters()), history[2])
    assert AutoTokenizer.from_pretrained(output)("good bad")["input_ids"] == [2, 5, 6, 3]
    assert main(["export", str(folder), "--after", "dvd", "--output", str(output)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "RUN", "--after", "dvds", "--output", "x.safetensors"], "Type: --after dvd"),
        (["restore", "RUN", "--after", "dvd", "--output", "x.bin"], "ends in .safetensors"),
        (["list", "RUN/none"], "there is no folder"),
        (["list", "RUN/snapshots"], "holds no snapshots"),
        (["restore", "RUN", "--after", "dvd"], "--output"),
        (["lisst", "RUN"], "Nearest: 'list'. Type: python -m cl_runner snapshot list"),
        ([], "|compose|revert|restore|export. See: python -m cl_runner snapshot --help"),
        (["--lisst"], "--help"),
        (["list"], "required: run"),
        (["export", "RUN", "--after", "dvd", "--output", "RUN/config.yaml"], "it is not a folder"),
        (["export", "RUN", "--after", "dvd", "--output", "RUN/config.yaml/x"], "config.yaml is not a folder"),
        (["restore", "RUN", "--after", "dvd", "--output", "RUN/config.yaml/x.safetensors"], "is not a folder"),
        (["restore", "RUN", "--after", "dvd", "--output", "RUN/folder.safetensors"], "it is a folder"),
        (["export", "RUN", "--after", "dvd", "--output", f"RUN/{'x' * 300}"], "File name too long"),
    ],
)
def test_wrong_requests(
    run: tuple[Path, object], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (run[0] / "folder.safetensors").mkdir()
    before = sorted(run[0].rglob("*"))
    assert main([argument.replace("RUN", str(run[0])) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cl_runner: ") and message in shown.err and "usage" not in shown.err
    assert not shown.out and sorted(run[0].rglob("*")) == before


def test_left_out_snapshots(run: tuple[Path, object], capsys: pytest.CaptureFixture[str]) -> None:
    snapshots(run[0])[0].unlink()
    assert main(["restore", str(run[0]), "--after", "dvd", "--output", str(run[0] / "x.safetensors")]) == 2
    assert "snapshots.save" in capsys.readouterr().err
