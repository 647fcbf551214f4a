"""Files of tensors that runs share: written whole or not at all, and believed only if they hold what was written."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cl_runner.digests import Damaged, give_rights, readable
from cl_runner.full_disk import room_for
from cl_runner.sparse.bits import weights_hash


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file so that a reader sees the old one or the new; several processes may write the same.

    Nothing is synced: what a crash of the machine takes is found when it is read.

    Raises:
        OSError, SafetensorError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = dict(metadata or {})
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name[:16], suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        with room_for(temporary, sum(tensor.nbytes for tensor in held.values())):
            save_file(held, temporary, {**told, "content": _content(path, held, told)})
        give_rights(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors in main memory, metadata) of a file of `write_tensors`.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    with readable(path):
        try:
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, AttributeError, TypeError) as error:  # of a header that makes no sense
            raise Damaged(path, f"is damaged ({error})") from None
    if metadata.pop("content", None) != _content(path, tensors, metadata):
        raise Damaged(path, "is damaged: its SHA-256 is not the one it holds")
    return tensors, metadata


def read_cached(
    path: Path, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The same, None if there is no such file; a damaged one is removed, and that is said in one line."""
    try:
        return read_tensors(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        say(f"Note: {error}. It is only a cache: it is made anew")
        with suppress(OSError):
            path.unlink()
        return None


def _content(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hash of the file's name, which is the key to what it holds, of what is said, and of the tensors."""
    said = json.dumps([path.name, sorted(metadata.items())])
    return hashlib.sha256(f"{said}\0{weights_hash(tensors)}".encode()).hexdigest()
