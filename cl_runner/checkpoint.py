"""A run's state on disk: saved atomically, loaded exactly, in safetensors and JSON.

`state/checkpoint.json` names the files of tensors that belong to it, with their digests, and holds its own. All are
written under new names and synced before the JSON replaces its predecessor in one step, so whenever the process dies,
the last complete state is there; and whatever bit of it changes, it is refused.

What lies in parts over the processes of a run each of them writes, and reads, by itself: a file for each, of its rows.
Any number of processes, or one, goes on from these, as from one file.

Of a list that only grows, such as the rows of a matrix, what is final is written once: `Final` adds it to
`state/final.jsonl`, of which the JSON has the number of lines and their digest.

The model's weights are not part of it: they are the chain of the finished tasks' snapshots on top of the starting
model. Inside a task only what the optimizer owns has changed, and that is saved.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_runner import distributed
from cl_runner.digests import Damaged, readable, replace_file, sealed, unsealed
from cl_runner.full_disk import room_for
from cl_runner.shards import in_parts, local
from cl_runner.stored import Stored, stored
from cl_runner.tracking.metrics import MetricsLog, first_lines

MANIFEST = "checkpoint.json"
FINAL = "final.jsonl"
PARTS = "parts"


_PLAIN = frozenset({type(None), bool, int, float, str})


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "t") -> Any:
    """A JSON tree in which every tensor of `tree` is replaced by its name in `tensors`, which is filled with them.

    Dictionaries keep the type of their keys (text or whole numbers).
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach()
        return {"tensor": path}  # of such as lie in parts as well
    if isinstance(tree, dict):
        return {"items": [[key, pack(value, tensors, f"{path}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        # Rows of a matrix as they are: of all tasks they are packed after every task.
        if all(type(value) in _PLAIN for value in tree):
            return {"value": list(tree)}
        return {"list": [pack(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]}
    assert tree is None or isinstance(tree, (bool, int, float, str)), f"{path}: {type(tree)} cannot be saved"
    return {"value": tree}


def size(tree: Any) -> int:
    """Bytes of what `pack` takes: of tensors and texts as they are, 8 of a number."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, dict):
        return sum(map(size, tree.values()))
    if isinstance(tree, (list, tuple)):
        return sum(map(size, tree))
    return len(tree.encode()) if isinstance(tree, str) else 0 if tree is None else 8


def unpack(tree: Any, tensors: Mapping[str, Any]) -> Any:
    """The counterpart of `pack`; tuples come back as lists."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unpack(value, tensors) for key, value in content}
    if kind == "list":
        return [unpack(value, tensors) for value in content]
    return content


def save(folder: Path, state: dict[str, Any]) -> None:
    """Save `state`, a tree of tensors, numbers and text, as the latest; by the first process.

    Of what of it lies in parts it has the files, as `PARTS`, as `save_parts` wrote them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tree = pack(state, tensors)
    kept = {name: tensor for name, tensor in tensors.items() if not in_parts(tensor)}
    whole = _written(folder, f"tensors-{_next(folder):06d}.safetensors", kept)
    replace_file(folder / MANIFEST, sealed({"tensors": whole, "tree": tree}))
    names = {file["file"] for file in (whole, *state.get(PARTS, ()))}
    for old in folder.glob("tensors-*.safetensors"):
        if old.name not in names:
            old.unlink()


def save_parts(folder: Path, state: dict[str, Any]) -> list[dict[str, str]]:
    """Each process writes its rows of what of a state lies in parts; all of them call this.

    Args:
        state: what `save` gets then, or those of its items in which something may lie in parts.

    Returns:
        The files and their digests, which a state has as `PARTS`.

    Raises:
        ValueError: this process does not see the folder.
    """
    tensors: dict[str, Tensor] = {}
    pack(state, tensors)
    rows = {name: local(tensor) for name, tensor in tensors.items() if in_parts(tensor)}
    if not rows:
        return []
    number = distributed.shared(_next(folder) if distributed.first() else 0)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not there for process {distributed.rank() + 1}: of weights in parts (hardware.shard) each "
            "process saves its own, in a folder that all machines of the run see. Type: root=FOLDER"
        )
    name = f"tensors-{number:06d}-{distributed.rank() + 1}-of-{distributed.size()}.safetensors"
    return distributed.gathered(_written(folder, name, rows))


def _next(folder: Path) -> int:
    """The number of the next state's files."""
    return 1 + max((int(path.stem.split("-")[1]) for path in folder.glob("tensors-*.safetensors")), default=0)


def _written(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    with room_for(folder / name, sum(tensor.nbytes for tensor in tensors.values())):
        return {"file": name, "sha256": _write(folder / name, tensors)}


class Final:
    """The items of growing lists that no later state changes, a line each.

    Args:
        saved: the state that a run goes on from, as `load` gave it; None = from the beginning.
    """

    def __init__(self, folder: Path, saved: Mapping[str, Any] | None):
        folder.mkdir(parents=True, exist_ok=True)
        log, self._written = saved.get(FINAL, ((0, None), {})) if saved else ((0, None), {})
        self._log = MetricsLog(folder / FINAL, *log)
        self.close = self._log.close

    def add(self, **lists: Sequence[Any]) -> Any:
        """Write the new items of lists, all of which are final; what a state holds of them, as `FINAL`."""
        for name, items in lists.items():
            for item in items[self._written.get(name, 0) :]:
                self._log.write(**{name: pack(item, {})})
        self._written = {name: len(items) for name, items in lists.items()}
        return self._log.sync(), self._written


def _with_final(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """A state with its lists whole: what is final of them, and then what is in the state."""
    if FINAL not in state:  # of a version that wrote whole lists each time
        return state
    (lines, digest), lengths = state[FINAL]
    found: dict[str, list[Any]] = {name: [] for name in lengths}
    for text in list(first_lines(folder / FINAL, lines, digest)):  # all are read, and checked, before one is parsed
        ((name, item),) = json.loads(text).items()
        found[name].append(unpack(item, {}))
    return state | {name: [*items, *state.get(name, [])] for name, items in found.items()}


#: What safetensors calls the types.
_TYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    torch.bool: "BOOL",
}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """A file of safetensors, synced, one tensor after the other: its SHA-256.

    The library's own writer wants all of them in main memory at once, three times the model where all weights train.
    """
    # The widest first, so that each begins at a multiple of its width.
    ordered = dict(sorted(tensors.items(), key=lambda named: -named[1].element_size()))
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(data: Any) -> None:
            digest.update(data)
            file.write(data)

        write(len(head).to_bytes(8, "little") + head)
        for tensor in ordered.values():
            write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


#: Of a run's state what its methods know, and what training goes on from, which takes it to where each tensor belongs.
METHOD, TRAINING = "method", "training"


def load(folder: Path, device: str | None) -> dict[str, Any] | None:
    """The latest state, or None if none was saved; all processes of a run call this.

    Args:
        device: of its tensors, but of training's, which come in main memory; None = those of methods and training stay
            where they are (`Stored`).

    Raises:
        Damaged: a file of the state is missing, or a bit of it is not what it was.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    content = unsealed(manifest)
    whole = content["tensors"]
    parts = unpack(dict(content["tree"]["items"]).get(PARTS, {"list": []}), {})
    _check(folder, [whole, *parts])
    found: Mapping[str, Stored] = stored([folder / whole["file"]]) | stored([folder / part["file"] for part in parts])
    state = unpack(content["tree"], {key: _at(key, tensor, device) for key, tensor in found.items()})
    assert isinstance(state, dict)
    return _with_final(folder, state)


def _at(key: str, tensor: Stored, device: str | None) -> Tensor | Stored:
    of_training = key.startswith(f"t.{TRAINING}.")
    if device is None:
        return tensor if of_training or key.startswith(f"t.{METHOD}.") else tensor.whole()
    return tensor.whole().to("cpu" if of_training else device)


def _check(folder: Path, files: Sequence[Mapping[str, str]]) -> None:
    """Each file is what was written: each is read by one process of the run."""
    wrong: list[tuple[str, str]] = []
    for file in [file for number, file in enumerate(files) if distributed.mine(number)]:
        path = folder / file["file"]
        try:
            with readable(path), path.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                    raise Damaged(path, f"its SHA-256 is not the one in {MANIFEST}")
        except Damaged as error:
            wrong.append((file["file"], error.reason))
    for found in distributed.gathered(wrong):
        for name, reason in found:
            raise Damaged(folder / name, reason)


def reached(folder: Path) -> tuple[str, int, int] | None:
    """Stage, task and steps of the task that the latest state is of; None if none was saved, or it cannot be read."""
    try:
        items = dict(unsealed(folder / MANIFEST)["tree"]["items"])
        training = dict(items["training"].get("items", ()))
        steps = unpack(training["step"], {}) if "step" in training else 0
        return unpack(items["stage"], {}), unpack(items["task"], {}), steps
    except (Damaged, KeyError, TypeError):
        return None


def remove(folder: Path) -> None:
    """Delete the state of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)
