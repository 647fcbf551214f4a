"""Weights & Biases from the durable truth: it gets the lines of metrics.jsonl that a checkpoint covers.

Line n (from 0) is W&B step n, so no point can be logged twice. Charts are drawn over the training step, which
the lines hold as `step`.

An offline run cannot be resumed in place. An interrupted run therefore leaves several fragments of one id,
`wandb/offline-run-<time>-<id>`, each of which goes on where the one before ended. Upload them together; W&B
takes the fragments of one id in order of their start::

    wandb sync RUN_FOLDER/wandb/offline-run-*

A run that begins offline should not go on online, or points would reach W&B twice.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from cl_runner.tracking.tracker import Cell, Told, Tracker

Mode = Literal["offline", "online"]

#: Characters that W&B takes.
LONGEST_TAG = 64

# A .wandb file is a LevelDB log: a file header, then blocks of fixed size with checksummed pieces of records.
_FILE_HEADER = 7
_BLOCK = 32768
_PIECE = struct.Struct("<IHB")  # checksum, length, kind
_WHOLE, _FIRST, _LAST = 1, 2, 4  # kinds of a piece; 3 is a middle one


def _records(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records of a .wandb file and where each ends; stops at a truncated or damaged tail."""
    position, record = _FILE_HEADER, b""
    while position + _PIECE.size <= len(content):
        rest_of_block = _BLOCK - position % _BLOCK
        if rest_of_block < _PIECE.size:
            position += rest_of_block
            continue
        checksum, length, kind = _PIECE.unpack_from(content, position)
        position += _PIECE.size
        piece = content[position : position + length]
        if len(piece) < length or zlib.crc32(bytes([kind]) + piece) != checksum:
            return
        position += length
        record = piece if kind in (_WHOLE, _FIRST) else record + piece
        if kind in (_WHOLE, _LAST):
            yield record, position


def _last_step(fragment: Path) -> int | None:
    """The last W&B step in a .wandb file, None if it holds none.

    The file is cut after its last whole record and put in place anew: W&B's service may outlive a killed run
    for some seconds and write on, which then no longer reaches the file that is uploaded.
    """
    from wandb.proto import wandb_internal_pb2

    content = fragment.read_bytes()
    last, end = None, _FILE_HEADER
    for data, end in _records(content):  # noqa: B007 - `end` is used after the loop
        record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined] # made at import
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                if item.key == "_step" or list(item.nested_key) == ["_step"]:
                    last = int(item.value_json)
    partial = fragment.with_suffix(".partial")
    partial.write_bytes(content[:end])
    os.replace(partial, fragment)
    return last


def next_step(folder: Path, run_id: str) -> int:
    """The first W&B step that the fragments of an earlier, interrupted process do not hold.

    A fragment without any point is removed, as W&B cannot upload it.

    Args:
        folder: the run's folder, in which `wandb/` lies.
    """
    following = 0
    # Not by the id at the end of the folder: W&B adds a suffix where two fragments begin in one second.
    for fragment in sorted(folder.glob(f"wandb/*run-*/run-{run_id}.wandb")):
        last = _last_step(fragment)
        if last is None:
            shutil.rmtree(fragment.parent, ignore_errors=True)
        else:
            following = max(following, last + 1)
    return following


class WandbLog(Tracker):
    """One W&B run.

    Args:
        mode: `offline` never uses the network.
        notes, job_type: as W&B shows them, None for none.

    Raises:
        ValueError: unknown mode.
    """

    title = "W&B"

    def __init__(
        self,
        told: Told,
        mode: str,
        *,
        project: str,
        entity: str | None = None,
        notes: str | None = None,
        job_type: str | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"wandb.mode must be {', '.join(get_args(Mode))}, got {mode!r}. Type: wandb=offline")
        self._mode = cast(Mode, mode)
        self._project, self._entity, self._notes, self._job_type = project, entity, notes, job_type
        self._run: Any = None
        super().__init__(told)

    def open(self) -> int:
        import wandb

        told, online = self.told, self._mode == "online"
        held = 0 if online else next_step(told.folder, told.run_id)
        self._run = wandb.init(
            mode=self._mode,
            project=self._project,
            entity=self._entity,
            notes=self._notes,
            job_type=self._job_type,
            group=told.group,
            id=told.run_id,
            name=told.name,
            tags=[tag[:LONGEST_TAG] for tag in told.tags],
            config=dict(told.config),
            dir=str(told.folder),
            resume="allow" if online else None,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                symlink=False,
                x_save_requirements=False,  # environment.json holds what matters
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return int(self._run.starting_step) if online else held

    def point(self, number: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=number, commit=True)

    def matrices(
        self,
        number: int,
        columns: Sequence[str],
        tables: Mapping[str, Sequence[Sequence[Cell]]],
        images: Mapping[str, Path],
    ) -> None:
        import wandb

        content: dict[str, Any] = {
            f"matrix/{name}": wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            for name, rows in tables.items()
        }
        content |= {f"plots/{name}": wandb.Image(str(path)) for name, path in images.items()}
        self._run.log(content, step=number, commit=True)

    def numbers(self, values: Mapping[str, float | int | str | None]) -> None:
        self._run.summary.update(dict(values))

    def keep(self, kind: str, files: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self.told.run_id}", type=kind)
        for path in files:
            # They stay as they are: no copy is made, and `wandb sync` reads them where they lie.
            artifact.add_file(str(path), name=path.name, policy="immutable")
        self._run.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        import wandb

        self._run.finish(exit_code=exit_code)
        # After finish() the last records may still be on their way to the file; not after this.
        wandb.teardown(exit_code)
