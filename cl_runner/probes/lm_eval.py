"""Tasks of the lm-evaluation-harness on the live model, which is not loaded again. Gao et al., lm-eval 0.4.13."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from cl_runner.config import Count, Whole
from cl_runner.learner import Learner
from cl_runner.probes.base import Probe, at_rest, positions_of

#: Metrics of the harness that are shares of questions, which is what percent can say.
SHARES = ("acc", "acc_norm", "acc_mutual_info", "acc_all", "exact_match", "em", "f1")
#: What names of its tasks about pictures begin with, all that version 0.4.13 has.
SEEING = ("mmmu", "chartqa")


@dataclass
class LMEval(Probe):
    """`<task>/<metric>` in percent, of a group its mean as the harness defines it; no standard errors.

    Models that see are asked in words alone, without a picture and without their chat template.

    Seeds of the harness stay its own, so that questions and examples are those of everybody's numbers.
    """

    in_parts: ClassVar[bool] = False

    tasks: Annotated[list[str], Field(min_length=1)]
    num_fewshot: Whole | None
    limit: Count | None
    batch_size: Count
    include_path: str | None

    def check(self) -> None:
        """The package is installed and knows the tasks."""
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError("probe=lm_eval needs a package. Type: pip install 'cl-runner[lm-eval]'")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise ValueError(f"probe.{self.node}.include_path={self.include_path} is no folder of task definitions")
        known = self._manager.all_tasks
        for task in self.tasks:
            if task.startswith(SEEING):
                raise ValueError(
                    f"probe.{self.node}.tasks: {task} asks about pictures, which the harness shows to checkpoints that "
                    "it loads itself, not to a live model; its other tasks ask in words. Of pictures: probe=captioning"
                )
            if task not in known:
                close = difflib.get_close_matches(task, known, n=1)
                nearest = f" Nearest: {close[0]}." if close else ""
                raise ValueError(
                    f"probe.{self.node}.tasks: lm-eval knows no {task!r}.{nearest} See them all: lm-eval ls tasks"
                )

    @functools.cached_property
    def _manager(self) -> Any:
        """The harness's list of tasks; reading its own takes seconds, so that they are left out if they are not needed.

        In `include_path` definitions of the same name come first.
        """
        from lm_eval.tasks import TaskManager

        if self.include_path is not None:
            own = TaskManager(include_path=str(Path(self.include_path).expanduser()), include_defaults=False)
            if all(task in own.all_tasks for task in self.tasks):
                return own
            return TaskManager(include_path=str(Path(self.include_path).expanduser()))
        return TaskManager()

    def prepare(self, learner: Learner, folder: Path) -> None:
        """Fetch the data now, so that nothing is missing later."""
        with quiet(folder):
            try:
                self._manager.load(list(self.tasks))
            except Exception as error:  # of the hub client, the HTTP client, the data sets' library, and the harness
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"the data of the lm-eval tasks {', '.join(self.tasks)} cannot be read: {reason}. Run once with a "
                    f"network, which fills the cache, or name tasks whose data are here: probe.{self.node}.tasks=[...]"
                ) from error

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """`<task>/<metric>`, or `<task>/<metric>/<filter>` where a task reads its answers in several ways."""
        from lm_eval import simple_evaluate

        from cl_runner.probes.live_model import LiveModel

        causal = learner.family.kind != "seq2seq"
        # Of a model that sees the harness does not find how much its speaking part reads.
        sees = learner.family.kind == "image_text"
        positions = positions_of(learner.model) if sees else None
        with at_rest(learner.model), quiet(folder):
            model = LiveModel(
                learner,
                backend="causal" if causal else "seq2seq",
                tokenizer=copy.deepcopy(learner.family.tokenizer),  # it changes sides of padding
                batch_size=self.batch_size,
                max_length=positions,
                mixed_precision_dtype=torch.bfloat16 if learner.precision == "bf16" else None,
            )
            found = simple_evaluate(
                model,
                tasks=list(self.tasks),
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                bootstrap_iters=0,
                log_samples=False,
                task_manager=self._manager,
            )
        results, parts = found["results"], dict(found.get("group_subtasks", {}))
        # A tag is but a name for several tasks.
        parts |= {task: sorted(self._manager.task_index[task].tags) for task in self.tasks if task not in results}
        return percents(self.tasks, results, parts)


def percents(tasks: list[str], results: dict[str, dict[str, Any]], parts: dict[str, list[str]]) -> dict[str, float]:
    """The shares among the harness's results, in percent, for every task asked for.

    Args:
        results: of each task or group, by `<metric>,<filter>`.
        parts: the tasks of each group; they stand for a group, or a tag, that has no number of its own.

    Raises:
        ValueError: a task has no share among its metrics.
    """
    numbers: dict[str, float] = {}
    for task in tasks:
        named = [task] if _shares(results.get(task, {})) else parts.get(task, [])
        own = {name: _shares(results.get(name, {})) for name in named}
        if not any(own.values()):
            raise ValueError(f"the lm-eval task {task} has no metric that is a share: {', '.join(SHARES)}")
        numbers |= {f"{name}/{metric}": value for name, values in own.items() for metric, value in values.items()}
    return numbers


def _shares(result: dict[str, Any]) -> dict[str, float]:
    shares = {}
    for key, value in result.items():
        metric, _, way = key.partition(",")
        if metric in SHARES and isinstance(value, float):
            shares[metric if way in ("", "none") else f"{metric}/{way}"] = 100 * float(value)
    return shares


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """What the harness says and draws goes to lm_eval.log, not across the run's screen."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    with (folder / "lm_eval.log").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)
