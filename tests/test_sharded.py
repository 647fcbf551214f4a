"""Weights in parts over the processes (FSDP2), while they train or always: what one learns, in files of one process."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_several import HERE, LONG, PASSES, check_alike, ended, line, lines_of, run_of, start, until_trained
from tiny import EVERY_FAMILY, RARELY, run_command, without_report

from cl_runner import distributed
from cl_runner.intervals import read_predictions
from cl_runner.own_cards import cards_of_their_own

SHARD = "hardware.shard=true"
ALWAYS = "hardware.shard=always"
SELECTS = ("training.select=best_validation", "task_order.base.validation=6", "task_order.incremental.validation=6")
LINES = {"all weights": ("method=seq_ft", "backbone=tiny_llama", *PASSES)}
MORE = {
    "selected weights and penalties": ("method=pe", *PASSES),
    "checkpointing": ("method=seq_ft", "backbone=tiny_llama", "hardware.gradient_checkpointing=true", *PASSES),
    "momentum": ("method=seq_ft", "training.optimizer=sgd", "training.momentum=0.9", *PASSES),
    "the best epoch": ("method=seq_ft", *SELECTS, *PASSES),
    "the most important weights": ("method=piece_s", "backbone=tiny_gpt2", *PASSES),
    "magnitudes": ("method=magnitude_largest", "backbone=tiny_t5", *PASSES),
    "a Fisher of old tasks": ("method=ewc", *PASSES),
    "a sum of Fishers": ("method=ewc_online", *PASSES),
    "equal penalties": ("method=l2", "backbone=tiny_t5", *PASSES),
    "recorded outputs": ("method=lwf", *PASSES),
    "a teacher at old weights": ("method=lwf_piece", "backbone=tiny_llama", *PASSES),
    "two penalties": ("method=ewc_lwf", *PASSES),
    "replay": ("method=replay", "backbone=tiny_t5", *PASSES),
    "some tensors": ("method=bitfit", *PASSES),
    "norms": ("method=layer_norm", "backbone=tiny_llama", *PASSES),
    "nothing": ("method=frozen", *PASSES),
    "adapters": ("method=seq_lora", "backbone=tiny_gpt2", *PASSES),
    "an adapter a task": ("method=lora", *PASSES),
    "a whole batch": ("method=seq_ft", "backbone=tiny_llama"),
}
#: What never needs whole weights, generated answers and such as are chosen among labels, in the middle of a task too.
NEVER_WHOLE = {
    "all weights": LINES["all weights"],
    "the most probable label": ("method=layer_norm", "backbone=tiny_llama", "evaluation.labels=likelihood", *PASSES),
    "every epoch": ("method=bitfit", "evaluation.every_epoch=true", *PASSES),
    "the best of epochs with old examples": ("method=[seq_ft,l2,replay]", *SELECTS, *PASSES),
    "selected weights and penalties": MORE["selected weights and penalties"],
    "importance of odd batches": (*MORE["the most important weights"], "importance.batch_size=7"),
    "magnitudes of a classifier": ("method=magnitude_largest", *PASSES),
    "a sum of drawn Fishers": ("method=ewc_online", "backbone=tiny_llama", "importance.labels=model", *PASSES),
    "two penalties": MORE["two penalties"],
    "adapters": MORE["adapters"],
    "an adapter a task": MORE["an adapter a task"],
    "recorded outputs": MORE["recorded outputs"],
    "a teacher": ("method=lwf", "backbone=tiny_llama", *PASSES),
    "probes": (
        "method=seq_ft",
        "backbone=tiny_llama",
        "probe=[task_loss,held_text,oracle]",
        "probe.oracle.tell=[labels]",
        *PASSES,
    ),
    "half precision": ("method=frozen", "backbone=tiny_llama", "backbone.dtype=bfloat16", "training.base.epochs=0"),
}
#: Rows of two labels over four processes, and passes that do not come out even.
ON_FOUR = ("selected weights and penalties", "two penalties", "replay", "a whole batch")


def texts_of(folder: Path) -> list[str]:
    """Every answer of every evaluation."""
    rows = [read_predictions(folder, row) for row in range(len(list(folder.glob("predictions/*.jsonl"))))]
    return [text for row in rows for answers in row.values() for text, _ in answers]


@RARELY
@pytest.mark.parametrize("number", [2, 4])
def test_parts_learn_what_the_whole_learns(number: int, tmp_path: Path) -> None:
    """Losses within 1e-5 of themselves, the same selections and answers, with dropout on; rows that come out uneven."""
    assert all(NEVER_WHOLE[kind] == of for kind, of in (LINES | MORE).items() if kind in NEVER_WHOLE), "one name"
    chosen = LINES | (MORE if number == 2 else {kind: MORE[kind] for kind in ON_FOUR})
    never = NEVER_WHOLE if number == 2 else LINES
    lines = [line(tmp_path / "many" / kind.replace(" ", "_"), *of, SHARD) for kind, of in chosen.items()]
    lines += [line(tmp_path / "never" / kind.replace(" ", "_"), *of, ALWAYS) for kind, of in never.items()]
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    told = ended(start(number, str(HERE / "several.py"), str(tmp_path / "lines.json")), minutes=12)
    assert [status for status, *_ in told] == [0] * number, told
    assert not any("Warning" in said for *_, said in told), told
    for kind, of in (chosen | never).items():
        name = kind.replace(" ", "_")
        with without_report():
            assert run_command(line(tmp_path / "one" / name, *of)) == 0
        one = run_of(tmp_path / "one" / name)
        for root in (tmp_path / "many" / name, tmp_path / "never" / name):
            if root.is_dir():
                check_alike(one, run_of(root))
                assert texts_of(run_of(root)) == texts_of(one)
    # In a pass rows of blocks are brought together twice and others once, and all gradients, of fp32, are sent.
    detail = json.loads((run_of(tmp_path / "many" / "all_weights") / "summary.json").read_text())["tasks_detail"][0]
    model = 4 * detail["trainable"]
    passes = 4 / number
    assert model * passes < detail["processes"]["sent_bytes_per_step"] < 1.1 * model * passes * (1 + 2 / number)


@pytest.mark.skipif(not EVERY_FAMILY, reason="starts many processes: CL_RUNNER_EVERY_FAMILY=1")
def test_half_precision_is_rounded_once_more(tmp_path: Path) -> None:
    one_task = ("task_order.tasks=[{name: base, domains: [novels]}]", "task_order.base.train=16")
    of = ("method=seq_ft", "backbone=tiny_llama", "backbone.dtype=bfloat16", *one_task, *PASSES)
    told = ended(start(2, "-m", "cl_runner", *line(tmp_path / "many", *of, SHARD)))
    assert [status for status, *_ in told] == [0, 0], told
    assert run_command(line(tmp_path / "one", *of)) == 0
    losses = [[row["loss"] for row in lines_of(run_of(tmp_path / root), "train")] for root in ("one", "many")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.skipif(not EVERY_FAMILY, reason="starts many processes: CL_RUNNER_EVERY_FAMILY=1")
@pytest.mark.parametrize("lies", [SHARD, ALWAYS])
def test_a_run_goes_on_with_another_number_of_processes(lies: str, tmp_path: Path) -> None:
    """1, then 2, then 4, then 1 that knows of no parts, in the first task and the second, where there is a Fisher."""
    of = ("method=ewc_online", "training.base.epochs=5", "training.incremental.epochs=6", LONG[-1], *PASSES)
    root = tmp_path / "stopped"
    again: tuple[str, ...] = ()
    for number, steps in ((1, 4), (2, 12), (4, 32)):
        in_parts = number > 1
        processes = start(number, "-m", "cl_runner", *line(root, *of, *again, *([lies] if in_parts else [])))
        folder = until_trained(root, steps, processes)
        processes[-1].send_signal(signal.SIGTERM)
        assert {status for status, *_ in ended(processes)} == {75}
        files = {path.name.partition("-")[2]: path.stat().st_size for path in folder.glob("state/tensors-*")}
        parts = {name: size for name, size in files.items() if "-of-" in name}
        assert len(files) - len(parts) == 1 and len(parts) == (number if in_parts else 0)
        assert not parts or max(parts.values()) < 1.2 * min(parts.values()), "each wrote what it has"
        assert not in_parts or sum(parts.values()) > 20 * sum(files.values()) - 20 * sum(parts.values())
        again = ("resume=warn",)
    assert run_command([*line(root, *of), "resume=warn"]) == 0
    assert run_command(line(tmp_path / "one", *of)) == 0
    check_alike(run_of(tmp_path / "one"), folder)


@pytest.mark.skipif(not EVERY_FAMILY, reason="starts many processes: CL_RUNNER_EVERY_FAMILY=1")
def test_a_damaged_part_is_named_once(tmp_path: Path) -> None:
    """Of a saved state each file is read by one process, and all end alike."""
    of = line(tmp_path, *LONG[1:], "method=seq_ft", SHARD, *PASSES)
    processes = start(2, "-m", "cl_runner", *of)
    folder = until_trained(tmp_path, 4, processes)
    processes[0].send_signal(signal.SIGTERM)
    assert {status for status, *_ in ended(processes)} == {75}
    for part in (1, 2):
        (path,) = folder.glob(f"state/tensors-*-{part}-of-2.safetensors")
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        told = ended(start(2, "-m", "cl_runner", *of))
        assert [status for status, *_ in told] == [2, 2]
        assert sorted(f"{path.name} (its SHA-256" in said for *_, said in told) == [False, True], told
        path.write_bytes(whole)


@pytest.mark.skipif(not EVERY_FAMILY, reason="starts many processes: CL_RUNNER_EVERY_FAMILY=1")
def test_what_methods_know_is_kept_whole_for_forks(tmp_path: Path) -> None:
    of = line(tmp_path, "method=ewc", "checkpoint.after_tasks=true", *PASSES)
    told = ended(start(2, "-m", "cl_runner", *of, SHARD))
    assert [status for status, *_ in told] == [0, 0], told
    assert run_command(["fork", str(run_of(tmp_path)), "--at", "base", "method.ewc.strength=1"]) == 0


@pytest.mark.skipif(not EVERY_FAMILY, reason="starts many processes: CL_RUNNER_EVERY_FAMILY=1")
@pytest.mark.parametrize(
    "kind",
    [
        ("method=ewc", SHARD),
        ("method=[seq_ft,l2]", "backbone=tiny_llama", ALWAYS),
        ("method=[piece_s,ewc]", "backbone=tiny_gpt2", "importance.cache_gb=0", ALWAYS),
    ],
)
def test_the_same_number_goes_on_bit_for_bit(kind: tuple[str, ...], tmp_path: Path) -> None:
    of = (*LONG[1:], *kind, *PASSES)
    root = tmp_path / "stopped"
    processes = start(2, "-m", "cl_runner", *line(root, *of))
    folder = until_trained(root, 65, processes)  # in the second task, where there is a Fisher
    processes[0].send_signal(signal.SIGTERM)
    assert {status for status, *_ in ended(processes)} == {75}
    for place in (root, tmp_path / "whole"):
        told = ended(start(2, "-m", "cl_runner", *line(place, *of)))
        assert [status for status, *_ in told] == [0, 0], told
    check_alike(run_of(tmp_path / "whole"), folder, exactly=True)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=gem", SHARD), "gem needs all of what trains"),
        (("method=[seq_ft,der]", SHARD), "der needs all of what trains"),
        (("method=seq_ft", "training.optimizer=adafactor", SHARD), "Type: training.optimizer=adamw"),
        (("method=piece_s", "importance.micro_batch=4", ALWAYS), "Type: importance.micro_batch=1 (or hardware.shard="),
        (("method=[ewc,seq_lora]", ALWAYS), "importance of weights that a method adds needs a pass for each example"),
        (("method=piece_s", "method.piece.compat=[bf16_accumulation]", ALWAYS), "or leave bf16_accumulation out"),
        (("method=seq_ft", "backbone=tiny_t5", ALWAYS), "tiny_t5 (seq2seq) makes passes of several kinds, and"),
        (("method=seq_ft", "task_order.restart=true", ALWAYS), "goes back to the first weights. Type: hardware."),
    ],
)
def test_what_cannot_lie_in_parts_is_named(
    overrides: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(line(tmp_path, *overrides)) == 2
    assert said in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_here", distributed._Here(size=2, beside=2))
    for name, given in (("is_available", True), ("device_count", 1), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, given=given: given)
    assert run_command(line(tmp_path, "method=seq_ft", "hardware=gpu", SHARD)) == 2
    said = capsys.readouterr().err
    assert "2 processes of this machine see 1 GPU, and" in said and "--nproc-per-node=1), or type: hardware=cpu" in said


@pytest.mark.parametrize(
    ("seen", "apart"),
    [
        ((("a", "b"), ("a", "b")), True),  # both see both, as below torchrun
        ((("a",), ("b",)), True),  # each sees its own, as below srun --gpus-per-task=1
        ((("a",), ("a",)), False),
        (((), ()), False),
    ],
)
def test_a_gpu_of_ones_own(
    seen: tuple[tuple[str, ...], tuple[str, ...]], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, bytes] = {}

    class Store:
        def set(self, key: str, value: str) -> None:
            told[key] = value.encode()

        def get(self, key: str) -> bytes:
            return told.get(key, b"")

    found = []
    for rank, cards in [*enumerate(seen), *enumerate(seen)]:  # the second time all have said theirs
        monkeypatch.setattr(torch.cuda, "device_count", lambda cards=cards: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i, cards=cards: SimpleNamespace(uuid=cards[i]))
        found.append(cards_of_their_own(Store(), rank, 2, rank))
    assert found[2:] == [apart, apart]


def test_one_process_has_all_of_it(tmp_path: Path) -> None:
    """Where there is nobody to share with, nothing is another one."""
    of = ("method=pe_rand", "task_order.tasks=[{name: base, domains: [novels]}, {name: kettles}]")
    with without_report():
        assert run_command(line(tmp_path / "one", *of)) == run_command(line(tmp_path / "other", *of, SHARD)) == 0
    one, other = run_of(tmp_path / "one"), run_of(tmp_path / "other")
    assert one.name == other.name, "it is the same run"
    assert torch.equal(*(torch.tensor([row["loss"] for row in lines_of(folder, "train")]) for folder in (one, other)))
    check_alike(one, other, exactly=True)
