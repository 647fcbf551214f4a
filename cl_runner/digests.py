"""One digest over every file that a run writes and reads back, so that a flipped bit or an edit is found, not believed.

- A JSON file that this program alone reads holds its own digest (`sealed`, `unsealed`).
- A file that people and other tools read stays as it is, and SHA256SUMS beside it has its line (`write`, `read`); so
  `sha256sum -c SHA256SUMS` checks a folder anywhere.
- A log that grows (metrics.jsonl) is hashed as it is written; each checkpoint holds the digest so far.
- Tensors that runs share hold the digest of what they hold (tensor_files.py); snapshots have their own (sparse/).

A line of SHA256SUMS is durable before its file is replaced, and the line before it stays until then: whenever a
process dies, the file is what one of its two lines says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cl_runner.distributed import once
from cl_runner.full_disk import room_for

SUMS = "SHA256SUMS"
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^\n]+)")
_OWN = "# of the lines above: "


class Damaged(ValueError):
    """A file is not what it was when it was written.

    Attributes:
        path: of the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path} {reason}")
        self.path, self.reason = path, reason


# files that hold their own digest
def sealed(content: Mapping[str, Any]) -> str:
    """JSON of an object, with the digest of the rest as its first entry; no other text has the same content."""
    text = json.dumps(content)
    own = json.dumps(digest_of(text.encode()))
    return f'{{"sha256": {own}{", " if content else ""}{text[1:]}'


def unsealed(path: Path) -> dict[str, Any]:
    """The object in a file of `sealed`.

    Raises:
        Damaged: a bit of the file is not what it was, or it cannot be read.
    """
    with readable(path):
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if not isinstance(content, dict) or not isinstance(content.pop("sha256", None), str):
            raise ValueError("it holds no digest of its own")
    if sealed(content) != text:
        raise Damaged(path, "is damaged: its SHA-256 is not the one it holds")
    return content


# files that SHA256SUMS tells of
@once
def write(path: Path, content: str | bytes) -> None:
    """Replace a file, and its line in SHA256SUMS, so that a reader, or a crash, sees the old file or the new one."""
    write_files(path.parent, {path.name: content})


@once
def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """The same of several files of a folder: SHA256SUMS and the folder are synced once for all of them."""
    data = {name: text.encode() if isinstance(text, str) else text for name, text in contents.items()}
    record(folder, {name: digest_of(each) for name, each in data.items()})
    for name, each in data.items():
        _replace(folder / name, each)
    sync_folder(folder)


@once
def record(folder: Path, digests: Mapping[str, str]) -> None:
    """The lines of files in SHA256SUMS, before the files are replaced, or of such as are complete now."""
    known = _read_sums(folder / SUMS)
    for name, digest in digests.items():
        path = folder / name
        held = digest_of(path.read_bytes()) if path.is_file() else digest
        stays = held != digest and held in known.get(name, [held])  # what it is, until it is replaced
        known[name] = [*([held] if stays else []), digest]
    replace_file(folder / SUMS, _sums_text(known))


@once
def settle(folder: Path) -> None:
    """Leave one line for each file in a folder of a finished run: the line of what the file is."""
    sums = folder / SUMS
    known = _read_sums(sums)
    for name, lines in known.items():
        if len(lines) > 1 and (folder / name).is_file():
            held = digest_of((folder / name).read_bytes())
            known[name] = [one for one in lines if one == held] or lines
    if known:
        replace_file(sums, _sums_text(known))


def read(path: Path) -> bytes:
    """A file's bytes; one that SHA256SUMS has no line for, as an older version left it, is taken as it is.

    Raises:
        Damaged: it is not what it was when it was written, or it cannot be read.
    """
    with readable(path):
        data = path.read_bytes()
    known = _read_sums(path.with_name(SUMS)).get(path.name)
    if known is not None and digest_of(data) not in known:
        raise Damaged(path, f"is not what it was when it was written: its SHA-256 is not the one in {SUMS}")
    return data


def read_text(path: Path) -> str:
    """The same as text.

    Raises:
        Damaged: as `read`.
    """
    data = read(path)
    with readable(path):
        return data.decode()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        Damaged: as `read`, or the file holds something else.
    """
    text = read_text(path)
    with readable(path):
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("a JSON object is expected")
    return found


def recorded(folder: Path) -> list[Path]:
    """The files that SHA256SUMS of a folder has lines for.

    Raises:
        Damaged: SHA256SUMS itself is.
    """
    return [folder / name for name in _read_sums(folder / SUMS)]


def sums_of(folder: Path) -> list[Path]:
    """Every SHA256SUMS in and below a folder."""
    return sorted(folder.rglob(SUMS))


def _read_sums(path: Path) -> dict[str, list[str]]:
    """Name -> one or two digests; empty where there is no such file."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from None
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-2]]
    found: dict[str, list[str]] = {}
    for line in lines:
        if line is not None:
            found.setdefault(line["name"], []).append(line["digest"])
    if _sums_text(found) != text:
        raise Damaged(path, "is damaged: its last line is not the SHA-256 of the others")
    return found


def _sums_text(known: Mapping[str, list[str]]) -> str:
    # sha256sum -c leaves out lines that begin with #.
    text = "".join(f"{digest}  {name}\n" for name in sorted(known) for digest in known[name])
    return f"{text}{_OWN}{digest_of(text.encode())}\n"


def digest_of(data: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Make one message of a file that cannot be read or does not hold what it should.

    Raises:
        Damaged: reading it raises an error, of the system or of what it holds.
    """
    try:
        yield
    except Damaged:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Damaged(path, f"cannot be read ({' '.join(reason.split())})") from None


# writing
@once
def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    _replace(path, content.encode() if isinstance(content, str) else content)
    sync_folder(path.parent)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with room_for(temporary, len(content)), temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def give_rights(path: Path) -> None:
    """Who may read a file is as of any other that is made here: writers of tensors keep theirs to their owner."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
