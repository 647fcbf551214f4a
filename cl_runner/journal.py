"""What a run has found out so far: kept for a resume, written to its folder, told to the console and to trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from torch import Tensor

from cl_runner import checkpoint, distributed, outputs
from cl_runner.beginnings import Kept
from cl_runner.change import Changes
from cl_runner.compose import Request
from cl_runner.data.task import Task
from cl_runner.evaluate import by_first, evaluate, evaluation_examples, first_scores, scores, scores_of_labels
from cl_runner.families.base import Prediction
from cl_runner.interrupt import Interrupted, Stop
from cl_runner.intervals import read_predictions
from cl_runner.learn import Watch
from cl_runner.learner import Learner
from cl_runner.matrix import START, MatrixTexts
from cl_runner.methods.base import Method
from cl_runner.probes.base import Probe
from cl_runner.rate_advice import loss_note
from cl_runner.record import steps_of, throughput, write_ability, write_fisher, write_matrices, write_predictions
from cl_runner.shards import collected, placed
from cl_runner.sparse.certificate import Untouched
from cl_runner.sparse.chain import apply_chain
from cl_runner.sparse.snapshots import describe_snapshot
from cl_runner.sparse.summary import fisher_map, zero_fractions
from cl_runner.tracked import opened
from cl_runner.tracking.clock import Clock
from cl_runner.tracking.console import Console
from cl_runner.tracking.metrics import MetricsLog
from cl_runner.tracking.progress import Shown
from cl_runner.tracking.tracker import INTERRUPTED, Trackers
from cl_runner.train import Best, Progress, stage_of

#: Numbers of general ability that the console has.
SAID = 12


@dataclass(frozen=True)
class Scene:
    """What a run under way is seen and stopped by.

    Attributes:
        closing: is closed at the end, whatever it is.
    """

    console: Console
    shown: Shown
    stop: Stop
    clock: Clock
    closing: ExitStack


class Journal(Watch):
    """The run's record, and what a checkpoint holds of it.

    Attributes:
        rows: of the accuracy matrix, in percent.
        ability: what the probes measured, row by row as `rows`.
        details: what is noted of each task.
        step: batches trained in all tasks.
        trackers: none until it is opened.
    """

    def __init__(
        self,
        request: Request,
        learner: Learner,
        method: Method,
        probes: Mapping[str, Probe],
        scene: Scene,
    ):
        self._request, self._learner, self._method, self._probes = request, learner, method, probes
        self._scene, self._console, self._shown, self._stop = scene, scene.console, scene.shown, scene.stop
        self._folder, self._config = request.folder, request.config
        self._names = [task.name for task in learner.tasks]
        self._saved_at = time.monotonic()
        self.changes = Changes(learner, request.folder, request.config.snapshots.save, request.config.method)
        self.rows: list[list[float]] = []
        self._matrices = MatrixTexts(self._names)
        self.ability: list[dict[str, float]] = []
        self.details: list[dict[str, Any]] = []
        self.step = 0
        self._outputs: dict[str, outputs.Recorded] = {}  # of every test set, before the task under way
        self._moved: dict[str, dict[str, Any]] = {}  # since then
        self._reused: Kept | None = None  # the task under way was trained by another run
        self._sent, self._sent_from = 0, 0  # bytes that were sent before the task's training went on, and its step
        self._milliseconds: float | None = None  # of an example of the last evaluation
        self.trackers = Trackers([])
        self._metrics: MetricsLog | None = None
        self._final: checkpoint.Final | None = None
        self.every_epoch = request.config.evaluation.every_epoch

    # resume
    def load(self, saved: dict[str, Any]) -> None:
        """Bring model, methods and record to where a checkpoint left them."""
        self.rows, self.details, self.ability = saved["rows"], saved["details"], saved["ability"]
        self.step, self.changes.chain, self._outputs = saved["step"], saved["chain"], saved["outputs"]
        self._learner.clock.load_state_dict(saved["clock"])
        self._method.load_state_dict(placed(self._learner.shards, saved["method"]))
        for task in self._learner.tasks[: saved["task"]]:
            self._learner.grow(task)
        if self.changes.chain:
            files = list(self.changes.files())
            self._apply(files)
            self.changes.weights = describe_snapshot(files[-1]).weights
        if self.rows:  # what a file lost that nothing reads back
            write_matrices(self._folder, self._matrices, self.rows)
        if self.ability:
            self._write_ability()
        where = "" if saved["stage"] != "training" else f" after step {saved['training']['step']}"
        at = f"Going on with task {saved['task'] + 1}/{len(self._names)}{where}."
        done = saved["task"] == len(self._names)
        self._console.line("All tasks are learned; what is left is the report." if done else at)

    def _apply(self, files: Sequence[Path]) -> None:
        """Lead the weights through snapshots; where no process has all of them, in the first one's main memory."""
        weights: dict[str, Tensor] = dict(self._learner.parameters())
        shards = self._learner.shards
        if shards is None or shards.gathered:
            return apply_chain(weights, files)
        weights = collected(weights)
        distributed.once(apply_chain)(weights, files)
        shards.fill(weights)

    def open(self, saved: Mapping[str, Any] | None) -> None:
        """metrics.jsonl, what is final of the record and the trackers, where the checkpoint left them."""
        if not distributed.first():
            return
        self._metrics = MetricsLog(self._folder / "metrics.jsonl", *(saved["log"] if saved else (0, None)))
        self._final = checkpoint.Final(self._folder / "state", saved)
        for opened_file in (self._metrics, self._final):
            self._scene.closing.callback(opened_file.close)
        trackers = self.trackers = opened(self._request, self._console.line)

        def end(kind: type[BaseException] | None, *_: object) -> None:
            interrupted = kind is not None and issubclass(kind, (Interrupted, KeyboardInterrupt))
            trackers.finish(INTERRUPTED if interrupted else 0 if kind is None else 1)

        self._scene.closing.push(end)

    def log_digest(self) -> str:
        """SHA-256 of metrics.jsonl as it is now."""
        assert self._metrics is not None, "the journal is not open"
        return self._metrics.sync()[1]

    def _write(self, **line: Any) -> None:
        if distributed.first():
            assert self._metrics is not None, "the journal is not open"
            self._metrics.write(**line)

    def save(self, stage: str, task: int, progress: Progress | None = None) -> None:
        """A checkpoint; what trackers are told never runs ahead of it."""
        with self._learner.clock.phase("checkpoint"):
            trained = None if progress is None else progress.state_dict()
            found = {checkpoint.METHOD: self._method.state_dict(), checkpoint.TRAINING: trained}
            whole = self._learner.shards is None
            self._save(stage, task, found, [] if whole else checkpoint.save_parts(self._folder / "state", found))
        self._saved_at = time.monotonic()
        self._stop.check()

    @distributed.once
    def _save(self, stage: str, task: int, found: dict[str, Any], parts: list[dict[str, str]]) -> None:
        assert self._metrics is not None and self._final is not None, "the journal is not open"
        log = self._metrics.sync()
        state = {
            "stage": stage,
            "task": task,
            checkpoint.FINAL: self._final.add(rows=self.rows, ability=self.ability, details=self.details[:task]),
            "details": self.details[task:],
            "chain": self.changes.chain,
            "step": self.step,
            "outputs": self._outputs,
            "log": log,
            "clock": self._learner.clock.state_dict(),
            checkpoint.PARTS: parts,
            **found,
        }
        checkpoint.save(self._folder / "state", state)
        for change in (self._folder / "state").glob("[0-9]*_*.safetensors"):
            if str(change.relative_to(self._folder)) not in self.changes.chain:
                change.unlink()
        self.trackers.flush(log[0])

    # a task, as it goes on
    def on_prepared(self, task: Task) -> None:
        self._shown.close()
        self._note_importance(task)
        self.save("prepared", task.index)

    def on_begin(self, task: Task) -> None:
        self.changes.begins()
        self._sent, self._sent_from = distributed.sent_bytes(), self.step
        self._saved_at = time.monotonic()

    def on_step(self, task: Task, progress: Progress, numbers: dict[str, float]) -> None:
        self._log_step(task, numbers)
        due = time.monotonic() - self._saved_at >= self._config.checkpoint.every_seconds
        if distributed.any_of(due or self._stop.asked or progress.done):
            self.save("training", task.index, progress)
        self._shown("train", progress.step, progress.steps, loss=numbers["loss"])

    def _log_step(self, task: Task, numbers: Mapping[str, Any]) -> None:
        self.step += 1
        self._write(kind="train", task=task.name, task_index=task.index, step=self.step, **numbers)

    def on_reused(self, task: Task, kept: Kept) -> None:
        for numbers in kept.lines:
            self._log_step(task, numbers)
        self._reused = kept
        self._console.line(
            f"{task.name}: trained by {kept.run} ({kept.by}), whose {len(kept.lines)} steps are this run's record"
        )

    def steps_of(self, task: Task) -> list[dict[str, Any]]:
        return steps_of(self._folder, task.index)

    def on_trained(self, task: Task, entries: int, best: Best) -> None:
        self._shown.close()
        with self._learner.clock.phase("snapshot"):
            try:
                kept = self.changes.keep(task, entries)
                self.changes.agree(task)
            except Untouched:
                # What the task trained is worth nothing: the next try begins it anew, and does not go on from its end.
                self.save("begin", task.index)
                raise
        detail = self.details[task.index]
        detail |= kept | distributed.once(throughput)(self._folder, task, entries)
        detail |= self._reused.told() if self._reused is not None else {}
        self._reused = None
        if distributed.size() > 1:
            sent = (distributed.sent_bytes() - self._sent) / max(1, self.step - self._sent_from)
            detail["processes"] = {"number": distributed.size(), "sent_bytes_per_step": sent}
        rate = stage_of(self._config.training, task).learning_rate
        detail["loss_note"] = loss_note(detail, task, self._method, self._learner.what, rate, self._config.method)
        if best.evaluations:
            self.details[task.index]["selected_epoch"] = {"step": best.step, "evaluations": best.evaluations}

    def learned(self, task: Task) -> None:
        """The task is done: every test set, and what the methods say of it."""
        self.evaluate(task.name)
        self._say_changes(self.details[task.index])
        with self._learner.clock.phase("describe"):
            describe = distributed.once(self._method.describe)
            self.details[task.index]["method"] = describe(self._learner, task, self._folder)
        self.details[task.index]["method_bytes"] = checkpoint.size(self._method.state_dict()) + self._stored()
        self.details[task.index]["milliseconds_per_example"] = self._milliseconds
        self.save("begin", task.index + 1)

    def _say_changes(self, detail: dict[str, Any]) -> None:
        """What came of a task's training: weights and answers that are other ones now."""
        detail["answers"] = self._moved
        name, entries = detail["name"], detail["trainable"]
        written = detail["stored"] - entries  # such as keys, which are trained apart
        others = f" and {written} written by the method" if written else ""
        self._console.line(f"{name}: {entries} weights trained{others}, {detail['changed']} changed")
        self._console.line(outputs.text(self._moved, name))
        if detail["loss_note"] is not None:
            self._console.line(detail["loss_note"])
        own = self._moved.get("own")
        if own is not None and own["changed"] == 0 < entries:
            self._console.line(
                f"Note: {entries} weights trained in {name}, and not one of the answers to its own test set is another "
                "one. Either it knew them all, or what trained changes too little: more weights, or a higher rate"
            )

    def _note_importance(self, task: Task) -> None:
        """fisher.json for the report, and the share of zeros by layer."""
        measured = self._learner.measured
        detail: dict[str, Any] = {
            "name": task.name,
            "zero_fisher_fraction": None,
            "measured_on_new_data": measured.on_new_data,
            "importance_cached": measured.from_disk,
        }
        if measured.found:
            found = next(iter(measured.found.values())).on(self._learner.device)
            layers = fisher_map(found.fisher, found.units)
            detail["zero_fisher_fraction"] = zero_fractions(found.fisher)
            write_fisher(self._folder, task.name, layers)
            entries = sum(row["parameters"] for row in layers)
            zero = sum(row["zero_fraction"] * row["parameters"] for row in layers) / entries
            self._console.line(f"{task.name}: {100 * zero:.1f} % of the weights have a Fisher of exactly 0")
        self.details = [*self.details[: task.index], detail]

    # the matrix
    def evaluate(self, after: str) -> None:
        """A row of the matrix, with the predictions it was counted from, and what the probes measure.

        Where every task begins anew, those before it keep the answers of their own models, which nothing changes.
        """
        options = self._config.evaluation
        tasks = list(self._learner.tasks)
        seen = tasks if options.tasks == "all" else tasks[: len(self.rows)]
        kept = tasks[: max(0, len(self.rows) - 1)] if self._learner.restart else []
        with self._learner.clock.phase("evaluate"):
            asked = [task for task in seen if task not in kept]
            started = time.perf_counter()
            found = evaluate(self._learner, self._method, asked, options, after) if asked else {}
            self._answered(time.perf_counter() - started, asked)
            self._shown.close()
            recorded = {name: outputs.record(answers) for name, answers in found.items()}
            if kept:
                before = read_predictions(self._folder, len(self.rows) - 1)
                found = {task.name: [Prediction(*one) for one in before[task.name]] for task in kept} | found
            scored = scores(seen, found, options)
            beside = scores_of_labels(seen, found, options)
        self._moved = outputs.changes(self._outputs, recorded, after)
        if after == START or not self._learner.restart:  # where every task begins anew, the start is what was before it
            self._outputs = recorded
        examples = {task.name: evaluation_examples(task, options.split) for task in seen}
        first = {name: next(iter(values.values())) for name, values in scored.items()}
        write_predictions(self._folder, len(self.rows), after, examples, found, first)
        row = {name: mean(first[name]) if name in first else math.nan for name in self._names}
        self.rows = [*self.rows, list(row.values())]
        means = {
            name: {metric: mean(each) for metric, each in values.items()} | beside.get(name, {})
            for name, values in scored.items()
        }
        shown = {name: value for name, value in row.items() if not math.isnan(value)}
        self._write(kind="evaluation", after=after, step=self.step, accuracy=shown, scores=means)
        write_matrices(self._folder, self._matrices, self.rows)
        self._console.row(after, shown)
        self._probe(after)

    def _answered(self, seconds: float, tasks: Sequence[Task]) -> None:
        """Test sets were answered in so many seconds: what an example took, with all that was done for it before."""
        examples = [e for task in tasks for e in evaluation_examples(task, self._config.evaluation.split)]
        if examples:
            seconds += self._method.ahead(self._learner, examples)
            self._milliseconds = 1000 * seconds / len(examples)

    def _stored(self) -> int:
        """Bytes of what methods keep outside of checkpoints."""
        store = self._learner.store
        return sum(path.stat().st_size for path in store.iterdir()) if store is not None and store.is_dir() else 0

    def validate(self, task: Task) -> float:
        with self._learner.clock.phase("select"):
            tasks = self._method.validation(self._learner, task, [task])
            scored = self._scored(tasks, f"{task.name}/validation", split="validation")
            return mean(value for of_task in scored.values() for value in of_task)

    def on_epoch(self, task: Task, epoch: int) -> None:
        # Before the step's own line, so that a checkpoint has both or none of them.
        tasks = [task] if self._learner.restart else self._learner.tasks[: task.index + 1]
        with self._learner.clock.phase("evaluate"):
            scored = self._scored(tasks, f"{task.name}/epoch {epoch}")
        said = {name: mean(each) for name, each in scored.items()}
        placed = {"task": task.name, "task_index": task.index, "step": self.step + 1}
        self._write(kind="epoch", **placed, epoch=epoch, epoch_scores=said)

    def _scored(self, tasks: Sequence[Task], after: str, **changed: str) -> dict[str, list[float]]:
        """Scores of examples while a task trains, whose progress is what is shown."""
        options = self._config.evaluation.model_copy(update=changed)
        return first_scores(self._learner, self._method, tasks, options, after, lambda *_: self._stop.check())

    def _write_ability(self) -> None:
        write_ability(self._folder, [START, *self._names], self.ability)

    def _probe(self, after: str) -> None:
        """A row of general ability: what the model could do before, it should still do."""
        if not self._probes:
            return
        numbers = self._probed(after)
        self._shown.close()
        self.ability = [*self.ability, numbers]
        self._write(kind="ability", after=after, step=self.step, ability=numbers)
        self._write_ability()
        said = [f"{name} {value:.4g}" for name, value in numbers.items()]
        if len(said) > SAID + 1:
            said[SAID:] = [f"and {len(said) - SAID} more in ability.csv"]
        self._console.line(f"general ability after {after}: {', '.join(said)}")

    def _probed(self, after: str) -> dict[str, float]:
        asked = evaluation_examples(self._learner.tasks[0], self._config.evaluation.split)
        return by_first(self._learner, lambda: self._measured(after), asked[0])

    def _measured(self, after: str) -> dict[str, float]:
        numbers: dict[str, float] = {}
        with self._learner.clock.phase("probe"):
            for name, probe in self._probes.items():
                folder = self._folder / "probes" / name
                folder.mkdir(parents=True, exist_ok=True)
                if after == START:
                    probe.prepare(self._learner, folder)
                found = probe.measure(self._learner, folder, after)
                numbers |= {f"{name}/{key}": value for key, value in found.items()}
        return numbers
