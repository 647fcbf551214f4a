"""The story of a run, in order: build, then for each task measure importance, train, store the change, evaluate.

The run's folder is its identity. A finished run says so; an interrupted one goes on from its last checkpoint and ends
with the same bits as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from cl_runner import checkpoint
from cl_runner.build import (
    build_family,
    build_method,
    build_probes,
    check_pictures,
    prepare_hardware,
    recompute_activations,
)
from cl_runner.compose import Request
from cl_runner.config import Stage
from cl_runner.data.task import Task, label_union
from cl_runner.evaluate import evaluate, evaluation_examples, scores
from cl_runner.interrupt import Interrupted, Stop
from cl_runner.learner import Learner
from cl_runner.matrix import START, headline_column
from cl_runner.planning.command import advise, plan_run
from cl_runner.planning.memory import is_out_of_memory
from cl_runner.planning.planner import write_plan
from cl_runner.record import (
    tables,
    throughput,
    write_ability,
    write_fisher,
    write_masks,
    write_matrices,
    write_predictions,
    write_request,
    write_summary,
)
from cl_runner.sparse.atlas import describe_masks
from cl_runner.sparse.bits import combine, tensor_digests, weights_hash
from cl_runner.sparse.certificate import Untouched, certify, rest_digests
from cl_runner.sparse.snapshots import Change, apply_chain, describe_snapshot, read_snapshot, write_snapshot
from cl_runner.sparse.summary import fisher_map, zero_fractions
from cl_runner.tracking.clock import Clock
from cl_runner.tracking.console import Console, duration
from cl_runner.tracking.metrics import MetricsLog
from cl_runner.tracking.progress import Shown
from cl_runner.tracking.wandb_log import WandbLog
from cl_runner.train import Progress, number_of_steps, train_task


def execute(request: Request, tasks: Sequence[Task]) -> int:
    """Run a checked request to its end and return the exit status.

    0 done (also if it was done before), 1 failed, 2 the request does not fit model, data or folder, 75 interrupted.
    """
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        run = Run(request, tasks)
        with checkpoint.locked(request.folder / "state"):
            if (request.folder / "COMPLETED").is_file():
                print(f"Another process has just completed this run: {request.folder}")
                return 0
            saved = checkpoint.load(request.folder / "state", str(run.device))
            return run.guarded(saved)
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2


class Run:
    """One run under way. Making it checks that methods, model and data fit, and loads no weights."""

    def __init__(self, request: Request, tasks: Sequence[Task]):
        config = self.config = request.config
        self.request, self.folder = request, request.folder
        empty = [task.name for task in tasks if not evaluation_examples(task, config.evaluation.split)]
        if empty:
            raise ValueError(
                f"task {empty[0]} has no {config.evaluation.split} examples to be scored on; raise "
                f"task_order.incremental.{config.evaluation.split} or choose another evaluation.split"
            )
        untrained = [task.name for task in tasks if not task.train]
        if untrained:
            raise ValueError(f"task {untrained[0]} has no training examples; raise task_order.incremental.train")
        # Joint training is an order: the same tasks, each with all data so far.
        self.tasks = [
            dataclasses.replace(task, train=tuple(e for seen in tasks[: i + 1] for e in seen.train))
            if config.task_order.joint
            else task
            for i, task in enumerate(tasks)
        ]
        self.own_tasks = list(tasks)
        check_pictures(config.backbone, tasks)
        self.device = prepare_hardware(config.hardware)
        self.family = build_family(config.backbone, label_union(tasks))
        generated = max(task.max_new_tokens for task in tasks)
        self.family.check([task.labels for task in tasks], generated)
        self.probes = build_probes(config.probe)
        for probe in self.probes.values():
            probe.check()
        self.method = build_method(config.method)
        answers = max(config.backbone.max_answer_length or 0, generated) if self.family.kind == "causal" else 0
        self.method.check(self.family.skeleton(), config.backbone.max_length + answers)
        self.cache = Path(config.root) / "cache" if config.importance.cache_gb else None
        self.clock = Clock()
        self.stop = Stop()
        # What a checkpoint holds; the initial values are those of a fresh run.
        self.rows: list[list[float]] = []
        self.ability: list[dict[str, float]] = []  # what the probes measured, row by row as `rows`
        self.details: list[dict[str, Any]] = []
        self.chain: list[str] = []  # snapshots, in the run's folder, that lead from the starting model to here
        self.step = 0

    def guarded(self, saved: dict[str, Any] | None) -> int:
        """The story, with its ends: done, failed, interrupted. Call it holding the run's lock."""
        (self.folder / "FAILED").unlink(missing_ok=True)
        with Console(self.folder / "log.txt") as self.console, self.stop, ExitStack() as self.closing:
            self.shown = Shown(self.console, self.stop.check)
            self.wandb: WandbLog | None = None
            status = 1
            try:
                self.story(saved)
                status = 0
            except (Interrupted, KeyboardInterrupt):
                status = 75
                self.shown.close()
                self.console.line(f"Interrupted, and saved. The same command goes on: {self.request.command}")
            except Exception as error:
                self.shown.close()
                text = traceback.format_exc()
                with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
                    log.write(text)
                checkpoint.replace_file(self.folder / "FAILED", text)
                self.console.error(f"{type(error).__name__}: {error}")
                if is_out_of_memory(error):
                    self.console.line(self._memory_advice())
                else:
                    self.console.line("\n".join(text.splitlines()[-7:-1]))
                self.console.line(f"The whole trace is in {self.folder}/log.txt. The same command tries again.")
            finally:
                if self.wandb is not None:
                    self.wandb.finish(status)
            return status

    def _memory_advice(self) -> str:
        """What to type after memory ran out."""
        try:
            planner, setting, _ = plan_run(self.request, self.own_tasks, self.family, calibrates=False)
        except ValueError as error:
            return f"Out of memory, and no advice: {error}"
        failed = self.clock.failed
        if failed == "train":
            failed = "train incremental" if self.clock.current > 0 else "train base"
        return advise(self.request, planner, setting, failed)

    def story(self, saved: dict[str, Any] | None) -> None:
        """Build, learn task after task, report."""
        with self.clock.phase("load"):
            self._describe()
            everything = [e for t in self.own_tasks for split in (t.train, t.validation, t.test) for e in split]
            self.family.tokenize(everything, self.cache / "tokens" if self.cache else None)
            if not (self.folder / "plan.json").is_file():
                self.console.line("Planning memory and time (of billions of weights this takes some seconds)")
                try:
                    write_plan(self.folder, plan_run(self.request, self.own_tasks, self.family)[2])
                except ValueError as error:  # what cannot be planned can be run
                    self.console.line(f"No plan of this run: {error}")
            self._build(saved)
            self._track(saved)
        if not self.rows:
            self._evaluate(START)
            self._save("begin", 0)
        first = saved["task"] if saved else 0
        for task in self.tasks[first:]:
            resumed = saved if saved and saved["task"] == task.index and saved["stage"] != "begin" else None
            self._learn(task, resumed)
        self._finish()

    # the parts of the story, in order

    def _describe(self) -> None:
        """Say and write what this run is."""
        request = self.request
        write_request(request, self.own_tasks, self.device.type)
        self.console.header(
            "cl_runner",
            [
                ("method", f"{request.method} = {' + '.join(self.config.method)}"),
                ("backbone", f"{request.backbone} on {self.device}"),
                ("tasks", f"{request.task_order}: {', '.join(task.name for task in self.tasks)}"),
                *self._batches(),
                ("folder", str(self.folder)),
            ],
        )

    def _batches(self) -> list[tuple[str, str]]:
        """How a batch is cut into passes, where it is: the batch is the only number that changes results."""
        said = []
        for name, stage in (("base", self.config.training.base), ("later", self.config.training.incremental)):
            size = stage.micro_batch or stage.batch_size
            if size < stage.batch_size:
                passes = math.ceil(stage.batch_size / size)
                said.append((f"batch, {name}", f"{stage.batch_size} examples a step, in {passes} passes of {size}"))
        return said

    def _build(self, saved: dict[str, Any] | None) -> None:
        """The starting model, brought to where the checkpoint was."""
        model, _ = self.family.build(self.config.seed)
        if self.config.hardware.gradient_checkpointing:
            recompute_activations(model)
        self.learner = Learner(
            model,
            self.family,
            self.tasks,
            self.config.seed,
            self.device,
            self.config.hardware.precision,
            self.config.task_order,
            self.clock,
            self.shown,
            self.config.importance,
            self.cache,
            self.console.line,
            self.method,
            self.config.evaluation,
        )
        self.base_hash = self.weights = weights_hash(self.learner.parameters())
        self.kept = self.learner.weights() if self.learner.restart else {}
        if saved is not None:
            self.rows, self.details, self.chain = saved["rows"], saved["details"], saved["chain"]
            self.ability = saved["ability"]
            self.step = saved["step"]
            self.clock.load_state_dict(saved["clock"])
            self.method.load_state_dict(saved["method"])
            if self.chain:
                files = [self.folder / name for name in self.chain]
                apply_chain(self.learner.parameters(), files)
                self.weights = describe_snapshot(files[-1]).weights
            where = "" if saved["stage"] != "training" else f" after step {saved['training']['step']}"
            at = f"Going on with task {saved['task'] + 1}/{len(self.tasks)}{where}."
            done = saved["task"] == len(self.tasks)
            self.console.line("All tasks are learned; what is left is the report." if done else at)

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.learner.parameters().items():
            parameter.copy_(weights[name])

    def _track(self, saved: dict[str, Any] | None) -> None:
        """Open metrics.jsonl and W&B where the checkpoint left them, and announce the work for the time left."""
        request, config = self.request, self.config.wandb
        self.metrics = MetricsLog(self.folder / "metrics.jsonl", saved["lines"] if saved else 0)
        self.closing.callback(self.metrics.close)
        self.wandb = WandbLog(
            mode=config.mode,
            project=config.project,
            entity=config.entity,
            group=config.group or request.sweep,
            run_id=request.run_id,
            name=f"{request.method}/{request.backbone}/{request.task_order}/seed{self.config.seed}",
            tags=config.tags,
            config=request.resolved,
            folder=self.folder,
            warn=self.console.line,
        )
        union = sum(len(evaluation_examples(task, self.config.evaluation.split)) for task in self.tasks)
        units: dict[str, float] = {"evaluate": union / 3}  # a forward pass costs a third of a training step's
        for task in self.tasks:
            stage = self._stage(task)
            if self.learner.has_old_tasks(task) and self.method.reviews_old_data():
                units[f"{task.name}/importance"] = 1.2 * len(self.learner.old_examples(task))
            steps = number_of_steps(len(task.train), stage, self.config.training.max_steps)
            units[f"{task.name}/train"] = steps * min(stage.batch_size, len(task.train))
            units[f"{task.name}/evaluate"] = union / 3
        self.console.plan(units)
        self.console.order(len(self.tasks))

    def _stage(self, task: Task) -> Stage:
        return self.config.training.incremental if task.index else self.config.training.base

    def _learn(self, task: Task, resumed: dict[str, Any] | None) -> None:
        """One task: what matters (offline), training (online), what changed, and every test set."""
        learner, method = self.learner, self.method
        self.clock.current = task.index
        self.console.task(task.index, task.name)
        if learner.restart and task.index:
            self._load(self.kept)
            self.chain, self.weights = [], self.base_hash
        if resumed is None:
            learner.measured, learner.measured_on_new_data, learner.importance_cached = {}, False, False
            with self.clock.phase("prepare"):
                method.before_task(learner, task)
            self.shown.close()
            self._describe_importance(task)
            self._save("prepared", task.index)
        method.activate(learner, task)
        with self.clock.phase("snapshot"):
            before = {n: learner.part(n, p.detach()).clone() for n, p in learner.params().items()} | learner.written
            rest = rest_digests(self._fixed(), learner.selected)
        self._saved_at = time.monotonic()

        def on_step(progress: Progress, numbers: dict[str, float]) -> None:
            self.step += 1
            self.metrics.write(kind="train", task=task.name, task_index=task.index, step=self.step, **numbers)
            due = time.monotonic() - self._saved_at >= self.config.checkpoint.every_seconds
            if due or self.stop.asked or progress.step == progress.steps:
                self._save("training", task.index, progress)
            self.shown("train", progress.step, progress.steps, loss=numbers["loss"])

        with self.clock.phase("train"):
            training = resumed["training"] if resumed else None
            entries = train_task(learner, method, task, self._stage(task), self.config.training, training, on_step)
        self.shown.close()
        with self.clock.phase("snapshot"):
            try:
                self._keep_change(task, entries, before, rest)
            except Untouched:
                # What the task trained is worth nothing: the next try begins it anew, and does not go on from its end.
                self._save("begin", task.index)
                raise
        del before  # a second model's worth, if all weights train
        method.after_task(learner, task)
        learner.measured = {}
        learner.trained, learner.selected, learner.selectable, learner.written = {}, {}, {}, {}
        self._evaluate(task.name)
        with self.clock.phase("describe"):
            self.details[task.index]["method"] = method.describe(learner, task, self.folder)
        self._save("begin", task.index + 1)

    def _fixed(self) -> dict[str, Tensor]:
        """Tensors of which something must stay what it is while the task trains; none where all of the model learns."""
        everything: dict[str, Tensor] = dict(self.learner.parameters())
        whole = {*self.learner.params(), *self.learner.written}
        if self.learner.selected:
            return everything  # whose selected entries are left out
        return {name: p for name, p in everything.items() if name not in whole} if whole else {}

    def _describe_importance(self, task: Task) -> None:
        """fisher.json for the report, and the share of zeros by layer."""
        detail: dict[str, Any] = {
            "name": task.name,
            "zero_fisher_fraction": None,
            "measured_on_new_data": self.learner.measured_on_new_data,
            "importance_cached": self.learner.importance_cached,
        }
        if self.learner.measured:
            found = next(iter(self.learner.measured.values()))
            layers = fisher_map(found.fisher, found.units)
            detail["zero_fisher_fraction"] = zero_fractions(found.fisher)
            write_fisher(self.folder, task.name, layers)
            entries = sum(row["parameters"] for row in layers)
            zero = sum(row["zero_fraction"] * row["parameters"] for row in layers) / entries
            self.console.line(f"{task.name}: {100 * zero:.1f} % of the weights have a Fisher of exactly 0")
        self.learner.measured = {}
        self.details = [*self.details[: task.index], detail]

    def _keep_change(self, task: Task, entries: int, before: dict[str, Tensor], rest: dict[str, str]) -> None:
        """The task's snapshot, the proof that it changed nothing else, and the numbers of PE table 3.

        Args:
            before: what may train, as it was before the task.
            rest: digests of all tensors without the selected entries, before the task; empty if whole tensors train.
        """
        now = self.learner.parameters()
        selected = self.learner.selected
        changes = {
            name: Change(self.learner.part(name, now[name].detach()), selected.get(name), before[name])
            for name in [*self.learner.trained, *self.learner.written]
        }
        changed = sum(int((changes[name].values != before[name]).sum()) for name in changes)
        backbone = {name: p for name, p in now.items() if name not in self.learner.added}
        parameters = sum(p.numel() for p in backbone.values())
        if changed == 0 < entries:
            self.console.line(
                f"Note: {entries} weights trained in {task.name} and none changed. In bfloat16 small steps round away: "
                "raise the learning rate, or type backbone.dtype=float32"
            )
        untouched = rest_digests({name: now[name] for name in rest}, selected)
        if rest:
            trained = sum(change.values.numel() for change in changes.values())
            total = sum(p.numel() for p in now.values())
            self.details[task.index]["certificate"] = certify(rest, untouched, trained, total, changed)
        if selected:
            self._describe_masks(task)
        keep = self.config.snapshots.save
        whole = any(change.index is None for name, change in changes.items() if name in backbone)
        kept = keep == "all" or (keep == "sparse" and not (whole and task.index))
        path = self.folder / ("snapshots" if kept else "state") / f"{task.index:02d}_{task.name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        # Of a tensor without selected entries the certificate's digest is the whole tensor's.
        digested = {name: digest for name, digest in untouched.items() if name not in selected}
        after = combine(digested | tensor_digests({n: p for n, p in now.items() if n not in digested}))
        stored = write_snapshot(
            path,
            changes,
            model=now,
            task=task.name,
            index=task.index,
            base=self.base_hash,
            parent=self.weights,
            weights=after,
            method=self.config.method,
        )
        self.weights = after
        everything = len(changes) == len(now) and all(change.index is None for change in changes.values())
        self.chain = [*([] if everything else self.chain), str(path.relative_to(self.folder))]
        model_bytes = sum(p.numel() * p.element_size() for p in backbone.values())
        self.details[task.index].update(
            trainable=entries,
            changed=changed,
            stored=sum(change.values.numel() for change in changes.values()),
            stored_bytes=stored,
            model_parameters=parameters,
            model_bytes=model_bytes,
            stored_share_percent=100 * stored / model_bytes,
            train_examples=len(task.train),
            **throughput(self.folder, task.name, task.index),
            steps=number_of_steps(len(task.train), self._stage(task), self.config.training.max_steps) if entries else 0,
        )

    def _describe_masks(self, task: Task) -> None:
        """masks.json for the report: where the selected entries lie, and what they share with earlier tasks'."""
        earlier = {}
        for name in self.chain:
            if describe_snapshot(self.folder / name).whole:
                continue  # as large as the model, and no positions in it
            snapshot = read_snapshot(self.folder / name)
            sparse = {n: change.index for n, change in snapshot.changes.items() if change.index is not None}
            if sparse:
                earlier[snapshot.header.task] = sparse
        selected = {name: index.cpu() for name, index in self.learner.selected.items()}
        write_masks(self.folder, describe_masks(task.name, selected, self.learner.selectable, earlier))

    def _evaluate(self, after: str) -> None:
        """A row of the matrix, with the predictions it was counted from."""
        options = self.config.evaluation
        seen = self.tasks if options.tasks == "all" else self.tasks[: len(self.rows)]
        with self.clock.phase("evaluate"):
            found = evaluate(self.learner, self.method, seen, options, after) if seen else {}
            self.shown.close()
            scored = scores(seen, found, options)
        examples = {task.name: evaluation_examples(task, options.split) for task in seen}
        first = {name: next(iter(values.values())) for name, values in scored.items()}
        write_predictions(self.folder, len(self.rows), after, examples, found, first)
        row = {task.name: mean(first[task.name]) if task.name in first else math.nan for task in self.tasks}
        self.rows = [*self.rows, list(row.values())]
        means = {name: {metric: mean(each) for metric, each in values.items()} for name, values in scored.items()}
        shown = {name: value for name, value in row.items() if not math.isnan(value)}
        self.metrics.write(kind="evaluation", after=after, step=self.step, accuracy=shown, scores=means)
        write_matrices(self.folder, [task.name for task in self.tasks], self.rows)
        self.console.row(after, shown)
        self._probe(after)

    def _probe(self, after: str) -> None:
        """A row of general ability: what the model could do before, it should still do."""
        if not self.probes:
            return
        numbers: dict[str, float] = {}
        with self.clock.phase("probe"):
            for name, probe in self.probes.items():
                folder = self.folder / "probes" / name
                folder.mkdir(parents=True, exist_ok=True)
                if after == START:
                    probe.prepare(self.learner, folder)
                found = probe.measure(self.learner, folder, after)
                numbers |= {f"{name}/{key}": value for key, value in found.items()}
        self.shown.close()
        self.ability = [*self.ability, numbers]
        self.metrics.write(kind="ability", after=after, step=self.step, ability=numbers)
        write_ability(self.folder, [START, *(task.name for task in self.tasks)], self.ability)
        self.console.line(f"general ability after {after}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))

    def _save(self, stage: str, task: int, progress: Progress | None = None) -> None:
        """A checkpoint; what W&B is told never runs ahead of it."""
        with self.clock.phase("checkpoint"):
            lines = self.metrics.sync()
            training = None
            if progress is not None:
                training = {
                    "step": progress.step,
                    "owned": dict(progress.owned),
                    "optimizer": progress.optimizer.state_dict(),
                }
            state = {
                "stage": stage,
                "task": task,
                "rows": self.rows,
                "ability": self.ability,
                "details": self.details,
                "chain": self.chain,
                "step": self.step,
                "lines": lines,
                "clock": self.clock.state_dict(),
                "method": self.method.state_dict(),
                "training": training,
            }
            checkpoint.save(self.folder / "state", state)
            self._saved_at = time.monotonic()
            for change in (self.folder / "state").glob("[0-9]*_*.safetensors"):
                if str(change.relative_to(self.folder)) not in self.chain:
                    change.unlink()
            if self.wandb is not None:
                self.wandb.flush(lines)
        self.stop.check()

    def _finish(self) -> None:
        """Derived numbers, pictures, W&B, and the mark that the run is done."""
        from cl_runner.report.page import write_run_report  # matplotlib: only when there is something to draw

        names = [task.name for task in self.tasks]
        sizes = {task.name: len(evaluation_examples(task, self.config.evaluation.split)) for task in self.tasks}
        scored_by = {task.name: task.scored_by(self.config.evaluation.scoring) for task in self.tasks}
        summary = write_summary(
            self.request, sizes, scored_by, self.rows, self.details, self.clock, self.weights, self.ability
        )
        page = write_run_report(self.folder)
        if self.wandb is not None:
            self.wandb.summary({**summary["metrics"], "online_seconds": summary["online_seconds"]})
            images = {path.stem: path for path in sorted((self.folder / "plots").glob("*.png"))}
            self.wandb.tables(["after", *names], *tables(names, self.rows), images)
        shown = [
            (after, [None if math.isnan(cell) else cell for cell in row])
            for after, row in zip([START, *names], self.rows, strict=True)
        ]
        weights = list(sizes.values()) if "union_accuracy" in summary["metrics"] else None
        self.console.matrix(names, shown, headline_column(np.array(self.rows), weights))
        for name, value in summary["metrics"].items():
            self.console.line(f"{name} {value:.2f}")
        online = [d["online_seconds"] for d in summary["tasks_detail"][1:]]
        self.console.line(
            f"offline {duration(summary['offline_seconds'])}, online {duration(summary['online_seconds'])}"
            + (f" (each later task at most {duration(max(online))})" if online else "")
        )
        self.console.line(f"report: {page}")
        checkpoint.replace_file(self.folder / "COMPLETED", "")
        checkpoint.remove(self.folder / "state")
