"""One process at a time in a run's folder, also where the file system has no locks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cl_runner import lock


def refused(folder: Path, said: str) -> None:
    with pytest.raises(ValueError, match=said), lock.locked(folder):
        pass


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP", "no module"])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that was mounted without locks, or Windows."""

    def refuse(*given: object) -> None:
        raise OSError(getattr(errno, request.param), "no locks here")

    module = None if request.param == "no module" else SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(lock, "fcntl", module)


@pytest.mark.usefixtures("without_locks")
def test_where_there_are_no_locks_a_file_holds_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / lock.HELD
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with lock.locked(tmp_path) as by_system:
        assert not by_system and json.loads(file.read_text())["pid"] == os.getpid()
        os.utime(file, (0, 0))
        refused(tmp_path, r"process \d+ on .*last seen .* type: rm .*lock.held")
        for _ in range(500):
            if file.stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert file.stat().st_mtime > 0, "it tells that it lives"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("other", "free"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),  # there is no such process
        ({"started": "1"}, True),  # another one has its number now
        ({"boot": "before"}, True),
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),
        ({"processes": "of another container", "pid": 2**22 + 1}, False),
    ],
)
def test_a_file_of_a_dead_process_of_this_machine_is_taken_over(
    other: dict[str, object], free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("nothing tells when a process began")
    monkeypatch.setattr(lock, "fcntl", None)
    (tmp_path / lock.HELD).write_text(json.dumps(lock._myself() | other))
    if free:
        with lock.locked(tmp_path):
            assert json.loads((tmp_path / lock.HELD).read_text())["pid"] == os.getpid()
    else:
        refused(tmp_path, "another process is running this very run")
    assert (tmp_path / lock.HELD).is_file() is not free


def test_of_many_processes_one_holds_the_file(tmp_path: Path) -> None:
    """Also where all of them find a file that a dead one left."""
    (tmp_path / lock.HELD).write_text(json.dumps(lock._myself() | {"pid": 2**22 + 1}))
    code = (
        "import pathlib, sys; from cl_runner import lock; lock.fcntl = None; sys.stdin.readline()\n"
        "try:\n"
        "    with lock.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()\n"
        "except ValueError: print('refused', flush=True)"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = []
    for one in several:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    for one in several:
        assert one.stdout is not None
        said.append(one.stdout.readline().strip())
    for one in several:
        one.communicate("\n")
    assert sorted(said) == ["held", "refused", "refused", "refused"]
