"""A program that a model wrote, run in a process of its own that can do little but compute.

What the kernel enforces: wall and processor time, memory, the size of files, no core dumps; on Linux, where they are
there, a network namespace with nothing in it, and Landlock, which refuses to change files outside a temporary folder
that is removed; no new processes, unless the run belongs to the superuser. The process knows no environment variables
and no site packages, its input is empty, its output is thrown away, and its group is killed at its end.

What an audit hook of the interpreter refuses as well (PEP 578): sockets, new processes, signals to others, `ctypes`,
and to write, rename or remove anything outside the temporary folder. A program that sets out to get past the hook can
do so; language models that complete functions do not. Not prevented: to read what the user can read, and, past the
hook, to change the mode or owner of the user's files. Where that is not enough, run in a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cl_runner.probes.confined import ISOLATED

CONFINED = Path(__file__).with_name("confined.py")
#: Seconds that the interpreter may take to start on a busy machine; the program's own limit does not depend on it.
STARTING = 10.0


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Attributes:
        passed: it came to its end, without an exception and without leaving early.
        reason: why it did not pass: the exception, "timed out", the signal; empty if it passed.
        kept: what held it back from the network and from files outside its folder: the kernel (namespace, landlock)
            or the interpreter's hook alone.
    """

    passed: bool
    reason: str
    kept: str


def execute(program: str, seconds: float, memory_bytes: int) -> Verdict:
    """Run a Python program with nothing but the standard library.

    Args:
        seconds: of wall time, counted from the program's first line.
        memory_bytes: of address space, the interpreter's own 30 MB included.
    """
    mark = secrets.token_hex(16)
    start = [sys.executable, *ISOLATED, str(CONFINED), "confine", str(seconds), str(memory_bytes)]
    with tempfile.TemporaryDirectory(prefix="cl_runner_", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            start,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        late = False
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps({"program": program, "mark": mark}).encode())
            process.wait(seconds + STARTING)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(process.stdout.fileno(), False)  # whoever fled with the other end cannot hold us up
        with process.stdout:
            said = process.stdout.read(4096) or b""
    return _verdict(said, mark, process.returncode, late)


def _verdict(said: bytes, mark: str, status: int, late: bool) -> Verdict:
    kept, _, rest = said.partition(b"\n")
    try:
        told = json.loads(rest)
        passed, reason = told["mark"] == mark, str(told["reason"])
    except (ValueError, KeyError, TypeError):  # it ended before it could say, or wrote nonsense there itself
        passed, reason = False, ""
    if late or status in (-signal.SIGALRM, -signal.SIGXCPU):
        reason = "timed out"
    elif status < 0:
        reason = f"killed by {signal.Signals(-status).name}"
    elif not passed and not reason:
        reason = f"left with status {status} before its end"
    return Verdict(passed and not reason, reason, kept.decode(errors="replace")[:50])
