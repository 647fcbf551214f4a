"""Files that cannot be written or read: what is said of a full disk, a name that is too long, a missing permission."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)


class FullDiskError(OSError):
    """A file that found no room.

    Attributes:
        needed: bytes of the file.
    """

    def __init__(self, path: Path, needed: int):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self.needed = needed


@contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """A file is written inside; if the disk is full, what was begun of it goes, and the error knows its size.

    Args:
        needed: its bytes.

    Raises:
        FullDiskError: there is no room for it.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        path.unlink(missing_ok=True)
        raise FullDiskError(path, needed) from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk or a quota is full; safetensors says it in its text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if type(error).__name__ == "SafetensorError" and any(f"os error {number})" in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def room(folder: Path) -> str:
    """What is free where a folder lies, or would lie."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    return f"{free:,} bytes are free there"


def unusable(error: OSError) -> str:
    """One line of a file that cannot be written or read."""
    path = Path(os.fsdecode(error.filename)) if not isinstance(error.filename, int) else Path()
    if is_full(error):
        needed = f", which needs {error.needed:,} bytes" if isinstance(error, FullDiskError) else ""
        return f"the disk is full: no room for {path}{needed}; {room(path.parent)}"
    shown = str(path)
    if error.errno == errno.ENAMETOOLONG:
        shown = f"{shown[:100]}... ({len(shown):,} characters)" if len(shown) > 100 else shown
    return f"{shown}: {error.strerror}"
