"""What the sandbox lets through, and what it keeps out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_runner.probes import sandbox
from cl_runner.probes.sandbox import execute

MEMORY = 512 << 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nassert x == 1", ""),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "left with status 0"),
        ("import os; os.write(3, b'{}'); os._exit(0)", "left with status 0"),
        ("import os, signal; os.kill(os.getppid(), 9)", "os.kill is not allowed"),
        ("import ctypes; ctypes.string_at(0)", "PermissionError"),
        ("while True: pass", "timed out"),
        ("import time; time.sleep(60)", "timed out"),
        ("[0] * (1 << 40)", "MemoryError"),
        ("rows = []\nwhile True: rows.append(bytearray(1 << 24))", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "socket.getaddrinfo is not allowed"),
        ("import socket; socket.socket()", "socket.__new__ is not allowed"),
        ("import os; os.fork()", "os.fork is not allowed"),
        ("import os; os.system('true')", "os.system is not allowed"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "os.exec is not allowed"),
        ("open('/tmp/../tmp/cl_runner_was_here', 'w')", "PermissionError"),
        ("import os; os.symlink('/', 'root'); open('root/cl_runner_was_here', 'a')", "PermissionError"),
        ("import os; os.remove('/etc/hostname')", "PermissionError"),
        ("with open('own', 'w') as f: f.write('x')\nassert open('own').read() == 'x'\nimport os; os.remove('own')", ""),
        ("with open('own', 'wb') as f:\n for _ in range(64): f.write(bytes(1 << 20))", "OSError: [Errno 27]"),
        ("print('x' * 10**7)\nimport sys; sys.stderr.write('y' * 10**7)", ""),
        ("input()", "EOFError"),
        ("import os; assert set(os.environ) <= {'LC_CTYPE'}, os.environ", ""),
        ("import torch", "ModuleNotFoundError"),
        (
            "assert __name__ != '__main__'\nimport math, random, re, collections, itertools, hashlib, typing, datetime",
            "",
        ),
    ],
)
def test_what_the_sandbox_lets_through(text: str, reason: str) -> None:
    slow = reason == "timed out"
    verdict = execute(text, 0.3 if slow else 20.0, MEMORY)
    assert verdict.passed == (not reason), verdict
    assert reason in verdict.reason
    assert verdict.kept.startswith("network ")
    assert not Path("/tmp/cl_runner_was_here").exists()


def test_a_program_that_ignores_its_alarm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STARTING", 1.0)
    program = "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(60)"
    assert execute(program, 0.2, MEMORY).reason == "timed out"


def without_hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Switch the interpreter's hook off; what is left is the kernel."""
    source = sandbox.CONFINED.read_text(encoding="utf-8")
    assert source.count("    guard(folder)\n") == 1
    confined = tmp_path / "confined.py"
    confined.write_text(source.replace("    guard(folder)\n", ""), encoding="utf-8")
    monkeypatch.setattr(sandbox, "CONFINED", confined)
    return execute("", 20.0, MEMORY).kept


def test_the_kernel_alone_keeps_a_program_from_files_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "files landlock" not in without_hook(monkeypatch, tmp_path):
        pytest.skip("this kernel has no Landlock")
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for change in ("open({!r}, 'w')", "os.remove({!r})", "os.truncate({!r}, 0)", "os.rename({!r}, 'mine')"):
        verdict = execute("import os\n" + change.format(str(victim)), 20.0, MEMORY)
        assert "PermissionError" in verdict.reason or "Invalid cross-device link" in verdict.reason
    assert victim.read_text() == "whole"
    assert execute(
        "import os\nos.mkdir('a')\nopen('a/b', 'w')\nos.rename('a/b', 'c')\nos.remove('c')", 20.0, MEMORY
    ).passed


def test_the_kernel_alone_keeps_a_program_from_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "network namespace" not in without_hook(monkeypatch, tmp_path):
        pytest.skip("this system permits no network namespaces")
    devices = execute(
        "rows = open('/proc/net/dev').readlines()[2:]\nassert [r.split(':')[0].strip() for r in rows] == ['lo']",
        20.0,
        MEMORY,
    )
    assert devices.passed, devices
    away = execute(
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))", 20.0, MEMORY
    )
    assert "OSError: [Errno 101]" in away.reason
