"""What the sandbox lets through, and what it keeps out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cl_runner.probes import sandbox
from cl_runner.probes.sandbox import NotStarted, Verdict, execute

MEMORY = 512 << 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nassert x == 1", ""),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "left with status 0"),
        ("import os, signal; os.kill(os.getppid(), 9)", "os.kill is not allowed"),
        ("import ctypes; ctypes.string_at(0)", "PermissionError"),
        ("while True: pass", "timed out"),
        ("import time; time.sleep(60)", "timed out"),
        ("[0] * (1 << 40)", "MemoryError"),
        ("rows = []\nwhile True: rows.append(bytearray(1 << 24))", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "socket.getaddrinfo is not allowed"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        (
            "import asyncio, doctest, threading\nasync def f(): await asyncio.sleep(0)\nasyncio.run(f())\n"
            "doctest.testmod()\nthread = threading.Thread(target=f)\nthread.start()\nthread.join()",
            "",
        ),
        (
            "import os, pathlib, sqlite3, tempfile\nwith tempfile.TemporaryDirectory() as d:\n"
            " p = pathlib.Path(d, 'a')\n"
            " p.mkdir()\n p.joinpath('b').write_text('x')\n p.joinpath('b').rename(p / 'c').touch()\n"
            " sqlite3.connect(f'{d}/e').execute('create table f(g)')\nassert not os.path.exists(d)",
            "",
        ),
        ("with open('own', 'w') as f: f.write('x')\nassert open('own').read() == 'x'\nimport os; os.remove('own')", ""),
        ("with open('own', 'wb') as f:\n for _ in range(64): f.write(bytes(1 << 20))", "OSError: [Errno 27]"),
        ("print('x' * 10**7)\nimport sys; sys.stderr.write('y' * 10**7)", ""),
        ("input()", "OSError"),
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


@pytest.mark.parametrize(
    "program", ["signal.signal(signal.SIGALRM, signal.SIG_IGN)", "signal.setitimer(signal.ITIMER_REAL, 0)"]
)
def test_a_program_that_stops_its_alarm_is_killed_and_has_not_passed(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "LATE", 0.1)
    assert execute(f"import signal, time\n{program}\ntime.sleep(1.5)", 0.2, MEMORY) == Verdict(
        False, "timed out", execute("", 20.0, MEMORY).kept
    )


def test_an_interpreter_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotStarted, match="ended with status -?[0-9]+ before the program"):
        execute("", 20.0, 1_000_000)
    monkeypatch.setattr(sandbox, "STARTING", 0.0)
    with pytest.raises(NotStarted, match="did not begin within 0 s"):
        execute("", 20.0, MEMORY)


#: Ways to change VICTIM, a file, or OUTSIDE, its folder, from descriptors that are open for reading.
BY_DESCRIPTOR = """
os.fchmod(fd, 0)
os.chmod(fd, 0)
os.fchown(fd, 1, 1)
os.chown(fd, 1, 1)
os.utime(fd, (0, 0))
os.ftruncate(fd, 0)
os.truncate(fd, 0)
os.setxattr(fd, 'user.a', b'x')
os.removexattr(fd, 'user.a')
os.pwrite(fd, b'x', 0)
os.posix_fallocate(fd, 0, 100)
os.sendfile(fd, own, 0, 3)
os.copy_file_range(own, fd, 3)
mmap.mmap(fd, 0)[0:1] = b'x'
open(f'/proc/self/fd/{fd}', 'r+')
open(f'/dev/fd/{fd}', 'r+')
fcntl.ioctl(fd, 0x40086602, b'\\x10' + bytes(7))
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
os.chmod('victim', 0, dir_fd=outside())
os.chown('victim', 1, 1, dir_fd=outside())
os.utime('victim', (0, 0), dir_fd=outside())
os.open('victim', os.O_WRONLY | os.O_TRUNC, dir_fd=outside())
os.open('new', os.O_WRONLY | os.O_CREAT, dir_fd=outside())
os.remove('victim', dir_fd=outside())
os.rename('victim', 'new', src_dir_fd=outside(), dst_dir_fd=outside())
os.link('victim', 'mine', src_dir_fd=outside())
os.mkdir('new', dir_fd=outside())
os.symlink('new', 'new', dir_fd=outside())
os.mkfifo('new', dir_fd=outside())
"""
#: The same by paths.
BY_PATH = """
open(VICTIM, 'w')
os.open(VICTIM, os.O_RDONLY | os.O_TRUNC)
open(OUTSIDE + '/../' + OUTSIDE.split('/')[-1] + '/new', 'w')
os.symlink(OUTSIDE, 'link') or open('link/new', 'a')
os.link(VICTIM, 'mine') or open('mine', 'w')
os.remove(VICTIM)
os.rename(VICTIM, 'mine')
os.truncate(VICTIM, 0)
os.chmod(VICTIM, 0)
os.chown(VICTIM, 1, 1)
os.utime(VICTIM, (0, 0))
os.setxattr(VICTIM, 'user.a', b'x')
os.removexattr(VICTIM, 'user.a')
os.mkdir(OUTSIDE + '/new')
os.mkfifo(OUTSIDE + '/new')
io.FileIO(Twofold(), 'w')
open(Told(VICTIM), 'w')
sqlite3.connect(OUTSIDE + '/new').execute('create table a(b)')
sqlite3.connect('mine').execute(f"attach '{OUTSIDE}/new' as other").execute('create table other.a(b)')
_posixshmem.shm_open('/cl_runner', os.O_CREAT | os.O_RDWR, 0o600)
os.mknod('disk', 0o60600, os.makedev(8, 0))
os.chroot('.')
"""
#: What concerns other processes and the machine.
BEYOND = """
os.fork()
os.posix_spawn('/bin/true', ['true'], {})
os.system('false') == 0 or refuse()
os.kill(os.getppid(), 0)
signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)
os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)
os.sched_setaffinity(os.getppid(), {0})
resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1000000, 1000000))
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
time.clock_settime(time.CLOCK_REALTIME, time.time())
socket.socket()
socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'', '/dev/log')
open('/proc/self/mem', 'rb')
open(f'/proc/{os.getppid()}/mem', 'rb')
"""
TRY_ALL = """
import fcntl, io, mmap, os, resource, signal, socket, sqlite3, time, _posixshmem
VICTIM, OUTSIDE, ATTEMPTS = {victim!r}, {outside!r}, {attempts!r}
class Twofold:  # another path each time it is asked
    asked = 0
    def __fspath__(self):
        self.asked += 1
        return VICTIM if self.asked == 1 else 'mine'
class Told(str):
    def __fspath__(self):
        return 'mine'
    def startswith(self, *_):
        return True
def outside():
    return os.open(OUTSIDE, os.O_RDONLY)
def refuse():
    raise PermissionError
os.path.realpath = lambda path, **_: os.getcwd() + '/mine'  # and modules that look up what was replaced
fd = os.open(VICTIM, os.O_RDONLY)
own = os.open('own', os.O_RDWR | os.O_CREAT)
os.write(own, b'abc')
went = []
for attempt in ATTEMPTS:
    try:
        exec(attempt)
    except (OSError, sqlite3.OperationalError, ValueError):
        pass
    else:
        went.append(attempt)
assert not went, went
"""


def try_all(attempts: str, tmp_path: Path) -> Verdict:
    """Try all these in one program; none may succeed or change a file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("whole")

    def state() -> tuple[Any, ...]:
        s = victim.stat()
        return s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns, victim.read_text(), os.listdir(outside)

    before = state()
    program = TRY_ALL.format(victim=str(victim), outside=str(outside), attempts=[a for a in attempts.splitlines() if a])
    verdict = execute(program, 20.0, MEMORY)
    assert state() == before
    return verdict


def test_nothing_outside_is_changed_by_path_or_by_a_descriptor_for_reading(tmp_path: Path) -> None:
    locks = "\nfcntl.flock(fd, fcntl.LOCK_SH)\nfcntl.lockf(fd, fcntl.LOCK_SH)\nos.lockf(fd, os.F_TEST, 0)"
    assert try_all(BY_DESCRIPTOR + BY_PATH + BEYOND + locks, tmp_path).reason == ""


#: Looks wherever a program can look, says to every descriptor what is there, and fails.
FORGERIES = [
    "f = sys._getframe()\nwhile f:\n"
    " say(*f.f_locals.values(), *f.f_globals.values(), *f.f_code.co_consts)\n f = f.f_back",
    "import inspect\nfor each in inspect.stack(): say(*each.frame.f_locals.values())",
    "try: 1 / 0\nexcept Exception as error: say(*error.__traceback__.tb_frame.f_back.f_locals.values())",
    "for n in range(64):\n try: os.set_blocking(n, False); say(os.read(n, 99))\n except OSError: pass",
    "for each in list(sys.modules.values()): say(*vars(each).values())",
    "import atexit\natexit.register(os._exit, 0)\natexit.register(say, b'x' * 32)",
    "import threading, time\ndef f():\n while True: say(b'x' * 32)\n"
    "threading.Thread(target=f, daemon=True).start()\ntime.sleep(0.1)",
    "os.write = os.writev = lambda *_: 0\nimport builtins\nbuiltins.exec = lambda *_: None\n"
    "builtins.BaseException = ValueError",
    "sys._getframe(1).f_locals.update(write=lambda *_: 0, leave=lambda *_: 0, MARK=0)\nsys.modules.clear()",
    "class E(AssertionError):\n def __str__(self):\n  say(*sys._getframe(1).f_locals.values())\n"
    "  return 'passed'\nraise E",
]


@pytest.mark.parametrize("text", FORGERIES)
def test_the_mark_of_a_program_that_passed_is_out_of_a_program_s_reach(text: str) -> None:
    say = (
        "import os, sys\nw = os.write\ndef say(*values):\n for value in values:\n  for n in range(12):\n"
        "   for form in (value, str(value).encode()) if type(value) in (str, bytes, int, list, tuple) else ():\n"
        "    try: w(n, form)\n    except (OSError, TypeError): pass\n"
    )
    verdict = execute(f"{say}{text}\nassert False, 'the end'", 20.0, MEMORY)
    assert not verdict.passed


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("import gc\nassert not gc.get_objects()", "gc.get_objects"),
        ("import gc, sys\nassert not gc.get_referents(sys._getframe(1))", "gc.get_referents"),
        ("import sys, threading\nsys._current_frames()", "sys._current_frames"),
        ("import sys\nsys.settrace(lambda *_: None)", "sys.settrace"),
        ("import importlib\nimportlib.import_module('ctypes')", "import"),
    ],
)
def test_what_reaches_the_frames_and_memory_of_others_is_refused(text: str, event: str) -> None:
    assert f"{event} is not allowed here" in execute(text, 20.0, MEMORY).reason


def without_hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Switch the interpreter's hook off; what is left is the kernel."""
    source = sandbox.CONFINED.read_text(encoding="utf-8")
    assert source.count("    guard(folder)\n") == 1
    confined = tmp_path / "confined.py"
    confined.write_text(source.replace("    guard(folder)\n", ""), encoding="utf-8")
    monkeypatch.setattr(sandbox, "CONFINED", confined)
    return execute("", 20.0, MEMORY).kept


def test_the_kernel_alone_keeps_a_program_from_files_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = without_hook(monkeypatch, tmp_path)
    if kept != "network namespace, files landlock, calls seccomp":
        pytest.skip(f"this kernel offers less: {kept}")
    assert try_all(BY_DESCRIPTOR + BY_PATH + BEYOND, tmp_path).reason == ""
    assert execute(
        "import os\nos.mkdir('a')\nopen('a/b', 'w')\nos.rename('a/b', 'c')\nos.remove('c')", 20.0, MEMORY
    ).passed


def test_the_kernel_alone_keeps_a_program_from_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "network namespace" not in without_hook(monkeypatch, tmp_path):
        pytest.skip("this system permits no network namespaces")
    devices = execute("import socket\nassert [name for _, name in socket.if_nameindex()] == ['lo']", 20.0, MEMORY)
    assert devices.passed or "Operation not permitted" in devices.reason, devices  # seccomp refuses the question
    away = execute(
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))", 20.0, MEMORY
    )
    assert "[Errno 101]" in away.reason or "[Errno 1]" in away.reason, away
