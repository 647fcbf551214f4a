"""What a task changed: its snapshot, the proof that it changed nothing else, and the numbers of PE table 3."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_runner import distributed
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.record import write_masks
from cl_runner.shards import whole
from cl_runner.sparse.atlas import describe_masks
from cl_runner.sparse.bits import combine, tensor_digests
from cl_runner.sparse.certificate import certify, rest_digests
from cl_runner.sparse.snapshots import Change, describe_snapshot, read_snapshot, write_snapshot

#: Of a model: what a task changed as whole tensors is large from there on, and left out by snapshots.save=sparse.
LARGE_SHARE = 0.1


class Changes:
    """The chain of snapshots that leads from the starting model to the model as it is now.

    Args:
        folder: of the run.
        keep: `snapshots.save`.
        methods: of the configuration, for the snapshots' own description.

    Attributes:
        chain: snapshots as names in the folder.
        base, weights: hashes of all weights at the start and now.
    """

    def __init__(self, learner: Learner, folder: Path, keep: str, methods: Mapping[str, Any]):
        self._learner, self._folder, self._keep, self._methods = learner, folder, keep, methods
        self.chain: list[str] = []
        self.base = self.weights = combine(self._digests(learner.parameters()))
        self._first = frozenset(learner.parameters())  # names at the start
        self._rest: dict[str, str] = {}

    def restart(self) -> None:
        """The model is the starting model again."""
        self.chain, self.weights = [], self.base

    def begins(self) -> None:
        """A task begins to train: digests of what it must leave as it is."""
        self._rest = self._rest_digests(self._fixed())

    def _digests(self, weights: Mapping[str, Tensor], without: Mapping[str, Tensor] | None = None) -> dict[str, str]:
        shards = self._learner.shards
        if shards is not None and not shards.gathered:
            return shards.digests(weights, without)
        return rest_digests(weights, without) if without else tensor_digests(weights)

    def _rest_digests(self, weights: Mapping[str, Tensor]) -> dict[str, str]:
        """Of each tensor without what is selected, if something is."""
        return self._digests(weights, self._learner.selected)

    def agree(self, task: Task) -> None:
        """Every process of the run has the same weights.

        Raises:
            RuntimeError: they have not.
        """
        found = distributed.gathered(self.weights)
        if len(set(found)) > 1:
            raise RuntimeError(
                f"the processes of this run learned {task.name} to different weights, which must not be: is one of "
                "them on another kind of device? hardware=deterministic makes sums of a GPU repeat"
            )

    def _fixed(self) -> dict[str, Tensor]:
        """Tensors of which something must stay what it is while the task trains; none where all of the model learns."""
        everything: dict[str, Tensor] = dict(self._learner.parameters())
        whole = {*self._learner.before, *self._learner.what.merged}
        if self._learner.selected:
            return everything  # whose selected entries are left out
        return {name: p for name, p in everything.items() if name not in whole} if whole else {}

    def keep(self, task: Task, entries: int) -> dict[str, Any]:
        """The finished task's snapshot and its part of summary.json.

        Raises:
            Untouched: something changed that the task must not touch.
        """
        learner = self._learner
        now, before, selected = learner.parameters(), learner.before, learner.selected
        changes: dict[str, Change] = {}
        changed = 0
        names = dict.fromkeys([*learner.params(), *learner.what.written, *learner.what.merged])
        everything = not selected and len(names) == len(now)  # what a file of all weights needs no values before for
        for name in names:
            values, old = learner.chosen(name, whole(now[name].detach())), whole(before[name])
            changed += int((values.to(old.device) != old).sum())
            kept: Tensor | None = old
            if learner.shards is not None:  # brought together for the process that writes
                writes = distributed.first()
                kept = old.cpu() if writes and not everything else None
                values = values if learner.shards.gathered else values.cpu() if writes else values.to("meta")
            changes[name] = Change(values, selected.get(name), kept)
        if changed == 0 < entries:
            learner.warn(
                f"Note: {entries} weights trained in {task.name} and none changed. In bfloat16 small steps round away: "
                "raise the learning rate, or type backbone.dtype=float32"
            )
        detail: dict[str, Any] = {}
        untouched = self._rest_digests({name: now[name] for name in self._rest})
        if self._rest:
            trained = sum(change.values.numel() for change in changes.values())
            total = sum(p.numel() for p in now.values())
            detail["certificate"] = certify(self._rest, untouched, trained, total, changed)
        if selected:
            self._describe_masks(task)
        # Of a tensor without selected entries the certificate's digest is the whole tensor's.
        digested = {name: digest for name, digest in untouched.items() if name not in selected}
        after = combine(digested | self._digests({n: p for n, p in now.items() if n not in digested}))
        stored = self._write(task, self._from_nothing(changes), after)
        added = learner.added
        backbone = [p for name, p in now.items() if name not in added]
        model_bytes = sum(p.numel() * p.element_size() for p in backbone)
        return detail | {
            "trainable": entries,
            "changed": changed,
            "stored": sum(change.values.numel() for change in changes.values()),
            "stored_bytes": stored,
            "model_parameters": sum(p.numel() for p in backbone),
            "model_bytes": model_bytes,
            "stored_share_percent": 100 * stored / model_bytes,
        }

    def _from_nothing(self, changes: Mapping[str, Change]) -> dict[str, Change]:
        """Changes; of parameters that exist since this task from zeros, so that the snapshot holds their values."""
        earlier = describe_snapshot(self.files()[-1]).shapes if self.chain else self._first
        return {
            name: change if name in earlier else dataclasses.replace(change, old=torch.zeros_like(change.values))
            for name, change in changes.items()
        }

    def _write(self, task: Task, changes: Mapping[str, Change], after: str) -> int:
        """Bytes of the snapshot, which joins the chain."""
        now = self._learner.parameters()
        added = self._learner.added
        dense = sum(c.values.numel() for name, c in changes.items() if c.index is None and name not in added)
        large = dense > LARGE_SHARE * sum(p.numel() for name, p in now.items() if name not in added)
        kept = self._keep == "all" or (self._keep == "sparse" and not (large and task.index))
        path = self._folder / ("snapshots" if kept else "state") / f"{task.index:02d}_{task.name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        stored = write_snapshot(
            path,
            changes,
            model=now,
            task=task.name,
            index=task.index,
            base=self.base,
            parent=self.weights,
            weights=after,
            method=self._methods,
        )
        self.weights = after
        everything = len(changes) == len(now) and all(change.index is None for change in changes.values())
        self.chain = [*([] if everything else self.chain), str(path.relative_to(self._folder))]
        return stored

    def _describe_masks(self, task: Task) -> None:
        """masks.json for the report: where the selected entries lie, and what they share with earlier tasks'."""
        earlier = {}
        for path in self.files():
            if describe_snapshot(path).whole:
                continue  # as large as the model, and no positions in it
            snapshot = read_snapshot(path)
            sparse = {n: change.index for n, change in snapshot.changes.items() if change.index is not None}
            if sparse:
                earlier[snapshot.header.task] = sparse
        selected = {name: index.cpu() for name, index in self._learner.selected.items()}
        write_masks(self._folder, describe_masks(task.name, selected, self._learner.what.selectable, earlier))

    def files(self) -> Sequence[Path]:
        """The snapshots of the chain."""
        return [self._folder / name for name in self.chain]
