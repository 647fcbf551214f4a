"""One process at a time in a run's folder: a lock of the system, or a file where the file system has no such locks."""

from __future__ import annotations

import json
import os
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: The file, in the folder of a run's state.
HELD = "lock.held"
#: Seconds between signs of life of who holds a file.
BEAT = 30.0


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a run's folder. The system releases its lock however the process ends; a file stays after a kill.

    Yields:
        whether the system locks it.

    Raises:
        ValueError: another process is running the same run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}. Choose another place: root=DIR") from None
    with file:
        if _locked_by_system(file, folder):
            yield True
        else:
            with _held(folder / HELD):
                yield False


def _locked_by_system(file: Any, folder: Path) -> bool:
    """Whether the system locked it; False where it cannot: Windows, some mounts of Lustre and NFS."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is running this very run: {folder}. Wait for it, or stop it") from None
    except OSError:
        return False
    return True


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a file that one process alone can make, and say in it who does.

    Raises:
        ValueError: another process holds it, or may: nobody knows of one on another machine.
    """
    own = json.dumps(_myself())
    while not _made(path, own):
        with suppress(FileNotFoundError):  # given back just now
            _take_over(path, path.read_text(encoding="utf-8", errors="replace"))
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == own:
                path.unlink()


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "started": _started(os.getpid()),
        "processes": _processes(),
        "boot": _boot(),
        "own": uuid.uuid4().hex,
    }


def _made(path: Path, content: str) -> bool:
    """Make a file with all its content in one step; False if it is there.

    A link is the one step that NFS of every version makes whole, and whose count tells when its answer was lost.
    """
    whole = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        whole.write_text(content, encoding="utf-8")
        try:
            os.link(whole, path)
        except FileExistsError:
            return whole.stat().st_nlink == 2
        except OSError:  # a file system without links
            return _made_exclusively(path, content)
        return True
    finally:
        with suppress(OSError):
            whole.unlink()


def _made_exclusively(path: Path, content: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _take_over(path: Path, content: str) -> None:
    """Put a file away whose holder is known to be dead.

    Raises:
        ValueError: it is not.
    """
    try:
        held = json.loads(content)
        who = f"process {held['pid']} on {held['host']}, since {held['since']}"
        gone = _gone(held)
    except (ValueError, KeyError, TypeError):
        who, gone = "a process that it does not name", False
    if not gone:
        seen = max(0, int(time.time() - path.stat().st_mtime))
        raise ValueError(
            f"another process is running this very run, as {path} says: {who}, last seen {seen} seconds ago (it tells "
            f"every {BEAT:.0f} seconds; this file system has no locks of its own). Wait for it, or stop it; if it is "
            f"gone, type: rm {shlex.quote(str(path))}"
        )
    away = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    os.rename(path, away)
    if away.read_text(encoding="utf-8", errors="replace") != content:
        with suppress(FileExistsError):
            os.link(away, path)  # somebody else took it over in between: it is theirs
    away.unlink()


def _gone(held: dict[str, Any]) -> bool:
    """Whether a holder is dead for sure: it was on this machine, and its process is there no more."""
    if os.name != "posix" or held["host"] != socket.gethostname():
        return False
    if held["boot"] != _boot():
        return held["boot"] is not None and _boot() is not None  # the machine was started again since
    if held["processes"] != _processes():
        return False  # in another container, whose numbers of processes are not ours
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return bool(held["started"] != _started(held["pid"]))  # its number is another process's now


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None where the system does not say."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _boot() -> str | None:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _processes() -> str | None:
    """The space of process numbers, which containers have of their own."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
