"""What runs inside the sandbox: the program that it is given, and the hook that refuses what programs never need.

Standard library only. binding.py starts it, with its hands bound; sandbox.py says what holds and what does not.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import Any, NoReturn

#: Bytes of the mark that follows the program's text: only who came to the program's end can say it.
MARK = 32
#: Audit events (PEP 578) of what a program that computes never does.
FORBIDDEN = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system"),
        *("os.kill", "os.killpg", "os.setns", "os.unshare", "pty.spawn", "resource.prlimit", "resource.setrlimit"),
        *("signal.pthread_kill", "subprocess.Popen", "webbrowser.open", "syslog.openlog", "syslog.syslog"),
        # Mode, owner, times, attributes and locks of files, which a descriptor open for reading gives as well.
        *("os.chflags", "os.chmod", "os.chown", "os.lockf", "os.removexattr", "os.setxattr", "os.utime"),
        *("fcntl.flock", "fcntl.ioctl", "fcntl.lockf"),
        # What reaches the frames and objects of others, or steps over a test's lines.
        *("gc.get_objects", "gc.get_referents", "gc.get_referrers", "sys._current_exceptions", "sys._current_frames"),
        *("sys.addaudithook", "sys.monitoring.register_callback", "sqlite3.enable_load_extension"),
    )
)
FORBIDDEN_FAMILIES = ("ctypes.", "socket.")
#: Modules that reach past the events.
FORBIDDEN_MODULES = frozenset(
    ("_ctypes", "_interpreters", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "ctypes")
)
#: Events that change files: which arguments are paths, and which the descriptors of folders that those start from.
CHANGES = {
    "os.link": ((0, 1), (2, 3)),
    "os.mkdir": ((0,), (2,)),
    "os.remove": ((0,), (1,)),
    "os.rename": ((0, 1), (2, 3)),
    "os.rmdir": ((0,), (1,)),
    "os.symlink": ((0, 1), (2,)),
    "os.truncate": ((0,), ()),
    "sqlite3.connect": ((0,), ()),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(folder: str) -> None:
    """Refuse, from now on, what a program that computes never does.

    Everything the hook uses is held by its own variables: a program may write into modules, this one included.
    """
    real_path, is_folder, decode, stat = os.path.realpath, os.path.isdir, os.fsdecode, os.stat
    writes, changes, forbidden, families, modules = WRITES, CHANGES, FORBIDDEN, FORBIDDEN_FAMILIES, FORBIDDEN_MODULES
    unix, frame_of, refusal = 1, sys._getframe, PermissionError  # AF_UNIX
    below, own = folder + os.sep, stat(folder)
    libraries = tuple(real_path(place) + os.sep for place in sys.path)
    doctest = os.path.join(os.path.dirname(os.__file__), "doctest.py")

    def spelled(path: Any) -> str:
        # An object with methods of its own could say another path each time it is asked.
        if isinstance(path, str):
            return str.__str__(path)
        if type(path) is bytes:
            return decode(path)
        raise refusal("a file's path must be text here")

    def resolved(path: Any) -> str:
        return real_path(spelled(path))

    def inside(path: Any) -> bool:
        if type(path) is int:
            return True  # a file that is open for writing already
        real = resolved(path)
        return real == "/dev/null" or real.startswith(below)

    def folder_inside(descriptor: int) -> bool:
        place, before = ".", None
        while True:
            here = stat(place, dir_fd=descriptor)
            if (here.st_dev, here.st_ino) == (own.st_dev, own.st_ino):
                return True
            if before == (here.st_dev, here.st_ino):
                return False
            place, before = f"{place}/..", (here.st_dev, here.st_ino)

    def change_inside(event: str, arguments: tuple[Any, ...]) -> bool:
        paths, folders = changes[event]
        descriptors = [arguments[i] for i in folders if arguments[i] != -1]
        if not descriptors:
            return all(inside(arguments[i]) for i in paths)
        # From a descriptor, only a name within a folder of this place, as shutil.rmtree does it.
        names = [spelled(arguments[i]) for i in paths]
        plain = all("/" not in name and name != ".." for name in names)
        return event in ("os.remove", "os.rmdir", "os.mkdir") and plain and folder_inside(descriptors[0])

    def open_refused(path: Any, flags: int) -> bool:
        if type(path) is int:
            return False
        real = resolved(path)
        if real.startswith("/proc/"):
            return True  # memory and descriptors of processes
        # A folder's descriptor would be a way to open what is in it.
        return (bool(flags & writes) or is_folder(real)) and real != folder and not inside(path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        refused = event in forbidden or event.startswith(families)
        if event == "import":
            name, file = arguments[:2]
            foreign = file is not None and not resolved(file).startswith(libraries)
            refused = foreign or name.rpartition(".")[2] in modules
        elif event == "open":
            refused = open_refused(arguments[0], arguments[2])
        elif event in changes:
            refused = not change_inside(event, arguments)
        elif event == "socket.__new__":
            refused = arguments[1] != unix  # socketpair, by which asyncio wakes itself
        elif event == "sys.settrace":
            refused = frame_of(1).f_code.co_filename != doctest  # puts back what it found
        if refused:
            raise refusal(f"{event} is not allowed here")

    sys.addaudithook(hook)


def read_all(descriptor: int, size: int) -> bytes:
    """Exactly so many bytes of a pipe."""
    found = b""
    while len(found) < size:
        more = os.read(descriptor, size - len(found))
        if not more:
            raise EOFError
        found += more
    return found


def run(seconds: float, kept: str) -> NoReturn:
    """Run the program that standard input holds behind its length, and before the mark.

    What was standard output gets a line that says what holds the program; then the mark, or a zero byte and why not.
    """
    given, report = os.dup(0), os.dup(1)
    (size,) = struct.unpack("<Q", read_all(given, 8))
    text = read_all(given, size).decode("utf-8", "surrogatepass")
    nothing = os.open(os.devnull, os.O_WRONLY)  # to read from it is an error, as in the reference
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    # A module, so that what looks itself up by its module's name (dataclasses, pickle, typing) finds itself.
    module = type(sys)("program")
    sys.modules["__main__"] = sys.modules["program"] = module
    sys.argv = ["program"]
    folder = os.path.realpath(os.getcwd())
    read, write, leave = os.read, os.writev, os._exit
    execute: Any = exec  # returns None
    os.write(report, f"{kept}\n".encode())
    signal.setitimer(signal.ITIMER_REAL, seconds)  # ends the process
    guard(folder)
    try:
        code = compile(text, "program", "exec", dont_inherit=True)
        # The interpreter evaluates from left to right: while the program runs, the mark and the function that tells it
        # are on this frame's stack of values alone, no variable and no container has them, and the pipe is empty. An
        # exception drops them.
        write(report, (read(given, MARK), execute(code, vars(module)) or b""))
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:300].replace("\0", " ")
        write(report, (b"\0", reason.encode("utf-8", "backslashreplace")))
    leave(0)


if __name__ == "__main__":
    run(float(sys.argv[1]), sys.argv[2])
