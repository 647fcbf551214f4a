"""What tasks would score if a text's task were known: what is lost to retrieval, and what to the union of labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cl_runner.evaluate import evaluate, evaluation_examples
from cl_runner.learner import Learner, Told
from cl_runner.probes.base import Probe, at_rest

#: What each way of `tell` tells.
WAYS: dict[str, tuple[Told, ...]] = {"task": ("task",), "labels": ("labels",), "both": ("task", "labels")}


@dataclass
class Oracle(Probe):
    """Scores of every task as in the matrix, but that the method is told a text's task, or answers are of its labels.

    Separate models know both. So of what they are better by, retrieval costs "task" less the matrix, and the union of
    labels "labels" less the matrix; what is missing to them with "both" is learned less well together.
    """

    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq")
    tell: Annotated[list[Literal["task", "labels", "both"]], Field(min_length=1)]

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """Percent by task and in the mean, for each way: `task/kettles`, `task/mean`."""
        options = learner.evaluation
        assert options is not None
        found: dict[str, float] = {}
        with at_rest(learner.model):
            for way in self.tell:
                with learner.telling(WAYS[way]):
                    answers = evaluate(learner, learner.method, learner.tasks, options, after)
                means = {
                    task.name: mean(
                        learner.scores(
                            task,
                            [one.text for one in answers[task.name]],
                            evaluation_examples(task, options.split),
                        )
                    )
                    for task in learner.tasks
                }
                found |= {f"{way}/{name}": value for name, value in means.items()}
                found[f"{way}/mean"] = mean(means.values())
        return found
