"""Pointers of Git LFS: small texts that stand in the place of large files until these are fetched."""

from __future__ import annotations

from pathlib import Path

_BEGINNING = b"version https://git-lfs"


def is_pointer(path: Path) -> bool:
    """Whether a file is one."""
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING
