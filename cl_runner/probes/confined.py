"""What runs inside the sandbox: it binds its own hands, then runs the program it is given. Standard library only.

It is started twice in one process, `confine` then `run`: whatever the first part needs to talk to the kernel is out of
the second one's memory. sandbox.py says what holds and what does not.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
import sys
from typing import Any, NoReturn

#: Audit events (PEP 578) of what a program that computes never does.
FORBIDDEN = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system"),
        *("os.kill", "os.killpg", "os.setns", "os.unshare", "pty.spawn", "resource.prlimit", "resource.setrlimit"),
        *("signal.pthread_kill", "subprocess.Popen", "webbrowser.open"),
    )
)
FORBIDDEN_FAMILIES = ("socket.", "ctypes.")
#: Modules that reach past the events.
FORBIDDEN_MODULES = ("_ctypes", "_posixsubprocess", "ctypes")
#: Events that change files, whose arguments are paths.
CHANGES = frozenset(
    (
        *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
        *("os.setxattr", "os.symlink", "os.truncate", "os.utime"),
    )
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FILE_BYTES = 16 << 20


def limit(kind: int, most: int) -> None:
    """No more than `most` of a resource, and no more than was allowed before."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def leave_network() -> bool:
    """Move this process into a network namespace of its own, where nothing is connected, if the system permits it."""
    if sys.platform != "linux":
        return False
    import ctypes

    user, network = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET of linux/sched.h
    unshare = ctypes.CDLL(None).unshare
    if unshare(network) == 0:
        return True
    own, group = os.getuid(), os.getgid()
    if unshare(user | network) != 0:
        return False
    # Without a name in its new user namespace the process could create no file.
    for path, text in (("setgroups", "deny"), ("uid_map", f"{own} {own} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{path}", "w", encoding="ascii") as file:
            file.write(text)
    return True


def write_only_here() -> bool:
    """Let the kernel (Landlock) refuse writing outside this folder, TCP and signals to others, as far as it can."""
    if sys.platform != "linux":
        return False
    import ctypes

    create, add, restrict = 444, 445, 446  # the system calls landlock_*, with the same numbers on all machines
    call = ctypes.CDLL(None).syscall
    version = call(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    # Of LANDLOCK_ACCESS_FS: write a file (bit 1); remove and make files, folders and links (4 to 12); move between
    # folders (13, since version 2); truncate (14, since 3). Then TCP (since 4), abstract sockets and signals (since 6).
    write = 1 << 1
    change = write | sum(1 << bit for bit in range(4, 13)) | (version >= 2) << 13 | (version >= 3) << 14
    rules = struct.pack("=QQQ", change, 3, 3)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = call(create, rules, ctypes.c_size_t(len(rules)), 0)
    for path, allowed in ((".", change), (os.devnull, write)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(add, ruleset, 1, struct.pack("=Qi", allowed, place), 0)
    no_new_privileges = 38
    ctypes.CDLL(None).prctl(no_new_privileges, 1, 0, 0, 0)
    return bool(call(restrict, ruleset, 0) == 0)


def confine(seconds: float, memory: int) -> NoReturn:
    """Leave the network, take limits on, and start again as `run`."""
    alone = leave_network()
    walled = write_only_here()
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_CPU, math.ceil(seconds) + 1)
    if sys.platform != "darwin":  # refuses it
        limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_NPROC, 0)  # the superuser is exempt
    kept = f"network {'namespace' if alone else 'hook'}, files {'landlock' if walled else 'hook'}"
    os.execv(sys.executable, [sys.executable, *ISOLATED, __file__, "run", str(seconds), kept])


#: Options of the interpreter: no site packages, no variables, no byte code written.
ISOLATED = ("-I", "-S", "-B", "-X", "utf8")


def guard(folder: str) -> None:
    """Refuse, from now on, what a program that computes never does."""

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True  # a file that is open already
        real = os.path.realpath(os.fsdecode(path))
        return real == "/dev/null" or real.startswith(folder + os.sep)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        refused = event in FORBIDDEN or event.startswith(FORBIDDEN_FAMILIES)
        if event == "import":
            refused = arguments[0] in FORBIDDEN_MODULES
        elif event == "open":
            path, _, flags = arguments
            refused = bool(flags & WRITES) and not inside(path)
        elif event in CHANGES:
            refused = not all(inside(path) for path in arguments if isinstance(path, str | bytes))
        if refused:
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


def run(seconds: float, kept: str) -> NoReturn:
    """Run the program from standard input; two lines go to what was standard output: what holds it, how it ended."""
    given = json.load(sys.stdin)
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.write(report, f"{kept}\n".encode())
    said = {"mark": "", "reason": ""}
    sys.argv = ["program"]
    folder = os.path.realpath(os.getcwd())
    signal.setitimer(signal.ITIMER_REAL, seconds)  # ends the process
    guard(folder)
    try:
        exec(compile(given["program"], "program", "exec"), {"__name__": "program"})
        said["mark"] = given["mark"]  # only who came to the end can say it
    except BaseException as error:
        said["reason"] = f"{type(error).__name__}: {error}"[:300]
    os.write(report, json.dumps(said).encode())
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "confine":
        confine(float(sys.argv[2]), int(sys.argv[3]))
    run(float(sys.argv[2]), sys.argv[3])
