"""The story of a run, in order: build, then learn and evaluate task after task, then report.

The run's folder is its identity. A finished run says so; an interrupted one goes on from its last checkpoint and ends
with the same bits as if nothing had happened.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import transformers
from torch import Tensor

from cl_runner import checkpoint
from cl_runner.build import recompute_activations
from cl_runner.compose import Request
from cl_runner.data.task import Task
from cl_runner.ends import finish
from cl_runner.interrupt import Interrupted, Stop
from cl_runner.journal import Journal
from cl_runner.learn import learn_task
from cl_runner.learner import Learner
from cl_runner.matrix import START
from cl_runner.planning.begun import memory_advice, plan_once
from cl_runner.planning.memory import is_out_of_memory
from cl_runner.planning.work import units
from cl_runner.prepared import prepare
from cl_runner.record import header, write_request
from cl_runner.sparse.measured import Measured
from cl_runner.tracking.clock import Clock
from cl_runner.tracking.console import Console
from cl_runner.tracking.progress import Shown


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
            saved = checkpoint.load(request.folder / "state", str(run.parts.device))
            return run.guarded(saved)
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2


class Run:
    """One run under way. Making it checks that methods, model and data fit, and loads no weights."""

    def __init__(self, request: Request, tasks: Sequence[Task]):
        self.request, self.config, self.folder = request, request.config, request.folder
        self.parts = prepare(request.config, tasks)
        self.clock, self.stop = Clock(), Stop()

    def guarded(self, saved: dict[str, Any] | None) -> int:
        """The story, with its ends: done, failed, interrupted. Call it holding the run's lock."""
        (self.folder / "FAILED").unlink(missing_ok=True)
        with Console(self.folder / "log.txt") as self.console, self.stop, ExitStack() as self.closing:
            self.shown = Shown(self.console, self.stop.check)
            self.journal: Journal | None = None
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
                self._failed(error)
            finally:
                if self.journal is not None and self.journal.wandb is not None:
                    self.journal.wandb.finish(status)
            return status

    def _failed(self, error: Exception) -> None:
        """Write down what went wrong, and say what helps."""
        text = traceback.format_exc()
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text)
        checkpoint.replace_file(self.folder / "FAILED", text)
        self.console.error(f"{type(error).__name__}: {error}")
        if is_out_of_memory(error):
            self.console.line(memory_advice(self.request, self.parts, self.clock))
        else:
            self.console.line("\n".join(text.splitlines()[-7:-1]))
        self.console.line(f"The whole trace is in {self.folder}/log.txt. The same command tries again.")

    def story(self, saved: dict[str, Any] | None) -> None:
        """Build, learn task after task, report."""
        with self.clock.phase("load"):
            learner = self._build()
            journal = self.journal = Journal(
                self.request, learner, self.parts.method, self.parts.probes, self.console, self.shown, self.stop
            )
            kept = learner.weights() if learner.restart else {}
            if saved is not None:
                journal.load(saved)
            journal.open(saved["lines"] if saved else 0, self.closing)
            self.console.plan(units(self.config, self.parts))
            self.console.order(len(self.parts.tasks))
        if not journal.rows:
            journal.evaluate(START)
            journal.save("begin", 0)
        for task in self.parts.tasks[saved["task"] if saved else 0 :]:
            resumed = saved if saved and saved["task"] == task.index and saved["stage"] != "begin" else None
            self._learn(learner, journal, task, kept, resumed)
        finish(self.request, self.parts, journal, learner, self.console)

    def _build(self) -> Learner:
        """Say what this run is, and make the starting model."""
        config, parts = self.config, self.parts
        write_request(self.request, parts.own_tasks, parts.device.type)
        self.console.header("cl_runner", header(self.request, parts.tasks, str(parts.device)))
        everything = [e for t in parts.own_tasks for split in (t.train, t.validation, t.test) for e in split]
        parts.family.tokenize(everything, parts.cache / "tokens" if parts.cache else None)
        plan_once(self.request, parts, self.console.line)
        model, _ = parts.family.build(config.seed)
        if config.hardware.gradient_checkpointing:
            recompute_activations(model)
        return Learner(
            model,
            parts.family,
            parts.tasks,
            config.seed,
            parts.device,
            parts.method,
            precision=config.hardware.precision,
            order=config.task_order,
            evaluation=config.evaluation,
            measured=Measured(config.importance),
            cache=parts.cache,
            clock=self.clock,
            progress=self.shown,
            warn=self.console.line,
        )

    def _learn(
        self, learner: Learner, journal: Journal, task: Task, kept: dict[str, Tensor], resumed: dict[str, Any] | None
    ) -> None:
        """One task: what matters (offline), training (online), what changed, and every test set."""
        self.clock.current = task.index
        self.console.task(task.index, task.name)
        if learner.restart and task.index:
            with torch.no_grad():
                for name, parameter in learner.parameters().items():
                    parameter.copy_(kept[name])
            journal.changes.restart()
        selects = self.config.training.select == "best_validation"
        learn_task(
            learner,
            self.parts.method,
            task,
            self.config.training,
            journal,
            resume=resumed["training"] if resumed else None,
            fresh=resumed is None,
            validate=(lambda: journal.validation_score(task)) if selects else None,
        )
        journal.learned(task)
