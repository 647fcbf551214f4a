"""A program that a model wrote, run in a process of its own that can do little but compute.

The program is a module named "program" of an interpreter of its own, without site packages, as the reference of
HumanEval executes it (Chen et al. 2021): its last line must be reached. There a module's name is "builtins", so that a
program that looks itself up (pickle, type hints) fails, and functions like os.getcwd are missing; here it is as in
plain Python. It knows no environment variables, its input is
empty, its output is thrown away, and its process is killed at its end.

What the kernel enforces: wall time, which this process counts as well, processor time, memory, the size of files, no
core dumps. On Linux, where they are there: a network namespace with nothing in it, in which /proc is empty; Landlock,
which refuses to change the content of files outside a temporary folder that is removed, and to look into other
processes; a seccomp filter, which refuses to change modes, owners, times and attributes of files, by descriptors that
are open for reading as well, new processes, connections, signals to others and settings of the machine. Without that
filter there are no new processes and threads, unless the run belongs to the superuser. `Verdict.kept` says which of
them hold.

What an audit hook of the interpreter refuses as well (PEP 578), everywhere: the same, `ctypes`, locks of files, and
what reaches into the frames of others. A program that sets out to get past the hook can do so; language models that
complete functions do not.

The verdict is this process's: it draws a mark, which the other one has to say when the program has come to its end.
While the program runs, the mark is in no variable, file or pipe that Python gives access to. But program and test are
one, as in the reference: a program that replaces what the test calls, or that reaches the interpreter's own memory, is
not told from one that passes.

Not prevented: to read what the user can read. Where that is not enough, run in a container.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cl_runner.probes.confined import MARK

BINDING, CONFINED = Path(__file__).with_name("binding.py"), Path(__file__).with_name("confined.py")
#: An interpreter without site packages and variables, that writes no byte code.
INTERPRETER = (sys.executable, "-I", "-S", "-B", "-X", "utf8")
#: Seconds that the interpreter may take to start on a busy machine; the program's own limit does not depend on it.
STARTING = 60.0
#: Seconds after which a program is ended that has switched off its own alarm.
LATE = 1.0


class NotStarted(RuntimeError):
    """The interpreter for the program did not start, so that nothing is known of the program."""


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Attributes:
        passed: it came to its end, without an exception and without leaving early.
        reason: why it did not pass: the exception, "timed out", the signal; empty if it passed.
        kept: what held it back from the network, from files outside its folder, and from other calls of the system:
            the kernel (namespace, landlock, seccomp) or the interpreter's hook alone.
    """

    passed: bool
    reason: str
    kept: str


def execute(program: str, seconds: float, memory_bytes: int) -> Verdict:
    """Run a Python program with nothing but the standard library.

    Args:
        seconds: of wall time, counted from the program's first line.
        memory_bytes: of address space, the interpreter's own 30 MB included.

    Raises:
        NotStarted: the interpreter did not come as far as the program.
    """
    mark, text = secrets.token_bytes(MARK), program.encode("utf-8", "surrogatepass")
    confined = [*INTERPRETER, str(CONFINED), str(seconds)]
    with tempfile.TemporaryDirectory(prefix="cl_runner_", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [*INTERPRETER, str(BINDING), str(seconds), str(memory_bytes), *confined],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(struct.pack("<Q", len(text)) + text + mark)
            with process.stdout:
                kept, said, late = _listen(process.stdout.fileno(), mark, seconds)
            if not late:  # it has said all; that it also ends is its own affair
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LATE)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if kept is None:
        how = f"did not begin within {STARTING:.0f} s" if late else f"ended with status {process.returncode}"
        raise NotStarted(f"the interpreter for a generated program {how} before the program")
    if mark in said:
        return Verdict(True, "", kept)
    return Verdict(False, _reason(said, process.returncode, late), kept)


def _listen(pipe: int, mark: bytes, seconds: float) -> tuple[str | None, bytes, bool]:
    """What a process says, until it has said the mark or all, or its time is over.

    Returns:
        Its first line, None if it did not come; the end of the rest; whether time was over.
    """
    kept, said, deadline = None, b"", time.monotonic() + STARTING
    heard = select.poll()
    heard.register(pipe, select.POLLIN)
    while mark not in said:
        if not heard.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            return kept, said, True
        more = os.read(pipe, 1 << 16)
        if not more:
            break
        said += more
        if kept is None:
            line, end, rest = said.partition(b"\n")
            if end:
                kept, said, deadline = line.decode(), rest, time.monotonic() + seconds + LATE
        said = said[-(1 << 12) :]
    return kept, said, False


def _reason(said: bytes, status: int, late: bool) -> str:
    if late or status in (-signal.SIGALRM, -signal.SIGXCPU):
        return "timed out"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    told = said.rpartition(b"\0")[2].decode(errors="replace")
    return told or f"left with status {status} before its end"
