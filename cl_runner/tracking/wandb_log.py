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

import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

Mode = Literal["offline", "online", "disabled"]

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


def points(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as W&B's names and numbers: `step`, `train/loss`, `scores/<task>/<metric>`."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{key}/")
        else:
            found |= _numbers({key: value}, "" if key in ("step", "epoch") else f"{line['kind']}/")
    return found


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The finite numbers of nested mappings by their path."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[prefix + key] = value
    return found


class WandbLog:
    """One W&B run. A failure of W&B never ends the run: it is told once, then W&B is left alone.

    Args:
        mode: `disabled` imports and writes nothing; `offline` never uses the network.
        run_id: stable over interruptions and unique in the project.
        group: such as the sweep's name.
        config: the resolved configuration.
        folder: the run's folder, which holds metrics.jsonl and gets `wandb/`.
        warn: told of a failure in one line.

    Raises:
        ValueError: unknown mode.
    """

    def __init__(
        self,
        mode: str,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        run_id: str,
        name: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        folder: Path,
        warn: Callable[[str], None],
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"wandb.mode must be {', '.join(get_args(Mode))}, got {mode!r}. Type: wandb=offline")
        self._metrics = folder / "metrics.jsonl"
        self._warn = warn
        self._run: Any = None
        self._sent = 0  # W&B steps that are there already
        self._lines = 0  # lines of metrics.jsonl up to the last flush
        if mode == "disabled":
            return

        def start() -> None:
            import wandb

            if mode == "offline":
                self._sent = next_step(folder, run_id)
            self._run = wandb.init(
                mode=cast(Mode, mode),
                project=project,
                entity=entity,
                group=group,
                id=run_id,
                name=name,
                tags=list(tags),
                config=dict(config),
                dir=str(folder),
                resume="allow" if mode == "online" else None,
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
            if mode == "online":
                self._sent = self._run.starting_step
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")

        self._guard(start)

    def _guard(self, action: Callable[[], None]) -> None:
        """Do it, or warn and go on without W&B, whose errors (service, network, login) are of any type."""
        try:
            action()
        except Exception as error:
            self._run = None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._warn(f"W&B failed and is left out from here on ({reason}); metrics.jsonl has everything")

    def flush(self, lines_up_to: int | None = None) -> None:
        """Send lines [sent, lines_up_to) of metrics.jsonl, after a checkpoint that covers them; None: all."""
        if self._run is None:
            return

        def send() -> None:
            with self._metrics.open(encoding="utf-8") as file:
                for number, line in enumerate(islice(file, lines_up_to)):
                    if number >= self._sent:
                        self._run.log(points(json.loads(line)), step=number, commit=True)
                        self._sent = number + 1
                    self._lines = number + 1

        self._guard(send)

    def tables(
        self,
        columns: Sequence[str],
        accuracy: Sequence[Sequence[str | float | None]],
        forgetting: Sequence[Sequence[str | float | None]],
        images: Mapping[str, Path],
    ) -> None:
        """The rest of metrics.jsonl, then the matrices as tables and pictures, unless they are there already.

        Args:
            columns: `after`, then the T tasks.
            accuracy: rows (after, T percentages).
            forgetting: the same for the tasks' rows, None where empty.
            images: name -> PNG file.
        """
        self.flush()
        if self._run is None or self._sent > self._lines:
            return

        def send() -> None:
            import wandb

            content: dict[str, Any] = {
                "matrix/accuracy": wandb.Table(columns=list(columns), data=[list(row) for row in accuracy]),
                "matrix/forgetting": wandb.Table(columns=list(columns), data=[list(row) for row in forgetting]),
            }
            content |= {f"plots/{name}": wandb.Image(str(path)) for name, path in images.items()}
            self._run.log(content, step=self._sent, commit=True)
            self._sent += 1

        self._guard(send)

    def summary(self, values: Mapping[str, float | int | str | None]) -> None:
        """Numbers of the whole run by the name of their formula, such as {"forgetting/chaudhry18": 1.5}."""
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Close the W&B run with the exit status of the process: 0 done, 1 failed, 75 interrupted."""
        if self._run is None:
            return

        def end() -> None:
            import wandb

            self._run.finish(exit_code=exit_code)
            # After finish() the last records may still be on their way to the file; not after this.
            wandb.teardown(exit_code)

        self._guard(end)
        self._run = None
