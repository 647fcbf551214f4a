"""How runs end: full disks, output that cannot be shown or read, signals, and what is said to help."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny import run_command, tiny

from cl_runner import checkpoint, digests, tensor_files
from cl_runner.compose import Request, compose
from cl_runner.failures import advice
from cl_runner.full_disk import FullDiskError, is_full, room_for
from cl_runner.interrupt import Interrupted, Stop, stopping
from cl_runner.journal import Journal
from cl_runner.streams import lasting_streams


def full(*given: object, **named: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return compose(tiny(tmp_path, "method=seq_ft"))


# A full disk ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_known_by_number_text_and_cause() -> None:
    assert is_full(OSError(errno.ENOSPC, "x")) and is_full(OSError(errno.EDQUOT, "x"))
    assert is_full(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert not is_full(OSError(errno.EACCES, "os error 28)")) and not is_full(RuntimeError("os error 28)"))
    try:
        try:
            full()
        except SafetensorError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        assert is_full(error)


def test_the_file_its_bytes_and_what_is_safe_are_said(tmp_path: Path, request_: Request) -> None:
    path = tmp_path / "half"
    with pytest.raises(FullDiskError) as caught, room_for(path, 1234):
        path.write_text("begun")
        full()
    assert not path.exists(), "what was begun makes room"
    said = advice(caught.value, request_)
    assert f"{path} needs 1,234 bytes" in said and "bytes are free there" in said
    assert "Nothing is lost" in said and said.endswith(f"goes on: {request_.command}")
    (request_.folder / "state").mkdir(parents=True)
    (request_.folder / "state" / "checkpoint.json").write_text("")
    assert f"is safe in {request_.folder}/state" in advice(caught.value, request_)


def test_all_writers_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.zeros(10)}
    monkeypatch.setattr(checkpoint, "_write", full)
    monkeypatch.setattr(tensor_files, "save_file", full)
    monkeypatch.setattr(digests.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    writers: list[Any] = [
        lambda: checkpoint.save(tmp_path / "state", tensors),
        lambda: tensor_files.write_tensors(tmp_path / "cache" / "x.safetensors", tensors),
        lambda: digests.replace_file(tmp_path / "text", "1234567890"),
    ]
    for write, needed in zip(writers, (40, 40, 10), strict=True):
        with pytest.raises(FullDiskError) as caught:
            write()
        assert caught.value.needed == needed and str(tmp_path) in caught.value.filename
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "nothing half written"


def test_a_run_on_a_full_disk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("method=seq_ft", "training.max_steps=1", "importance.cache_gb=0")
    tasks = "task_order.tasks=[{name: kettles}]"
    arguments = tiny(tmp_path, *small, tasks)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        assert run_command(arguments) == 1
    shown = capsys.readouterr().out
    assert "The disk is full: " in shown and "needs " in shown and "Traceback" not in shown
    assert compose(arguments).command in shown
    assert run_command(arguments) == 0


# What may help ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (ConnectionError("no route"), True),
        (PermissionError(errno.EACCES, "denied", "/x"), True),
        (RuntimeError("CUDA error: an illegal memory access"), True),
        (IndexError("index 7 is out of range"), False),
        (ValueError("no such layer"), False),
        (AssertionError(), False),
        (ModuleNotFoundError("No module named 'x'"), False),
    ],
)
def test_the_same_command_helps_only_where_it_can(error: Exception, helps: bool, request_: Request) -> None:
    said = advice(error, request_)
    assert ("the same command tries again" in said) is helps
    assert said.endswith(request_.command)


# Output -----------------------------------------------------------------------------------------------------


def stream(path: Path, encoding: str = "ascii") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(path, "w")), encoding=encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_escaped(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream(tmp_path / "out", encoding))
    with sys.stdout, lasting_streams():
        print("κ → 星")
    assert (tmp_path / "out").read_text() == "\\u03ba \\u2192 \\u661f\n"


def test_output_outlasts_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    before = io.TextIOWrapper(io.BufferedWriter(io.FileIO(writing, "w")), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", before)
    monkeypatch.setattr(sys, "stderr", None)
    with before:
        with lasting_streams() as lost:
            print("nobody reads")
            print("nobody", file=sys.stderr)
            assert not lost()
        assert sys.stdout is before and sys.stderr is None


def test_output_that_nothing_buffers_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.FileIO(tmp_path / "both", "w")  # as python -u and PYTHONUNBUFFERED leave it
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
    with sys.stdout, lasting_streams() as lost:
        print("first", file=sys.stderr)
        print("second")
        assert (tmp_path / "both").read_text() == "first\nsecond\n"
        assert not lost()


def test_a_full_disk_under_the_output_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    monkeypatch.setattr(sys, "stdout", stream(Path("/dev/full")))
    with sys.stdout, lasting_streams() as lost:
        print("nowhere")
        assert lost()


# Signals ------------------------------------------------------------------------------------------


def test_a_closed_terminal_stops_a_run_unless_it_is_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert signal.SIGHUP not in stopping()
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("evaluate", "Interrupted before anything was saved. The same command begins again: python"),
        ("on_epoch", "Interrupted, and saved as of the first step of base. The same command goes on: python"),
        ("learned", "Interrupted, and saved as of step 12 of base. The same command goes on: python"),
    ],
)
def test_what_an_interrupted_run_goes_on_from_is_said(
    where: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: object, **named: object) -> None:
        raise Interrupted

    monkeypatch.setattr(Journal, where, stopped)
    assert run_command(tiny(tmp_path, "method=seq_ft", "evaluation.every_epoch=true")) == 75
    assert said in " ".join(capsys.readouterr().out.split())
