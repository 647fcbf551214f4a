"""The only evaluation loop: every test set, each batch of similar lengths, greedy unless sampling is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import torch

from cl_runner import distributed
from cl_runner.batch import Batch
from cl_runner.config import Evaluation
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Answering, Prediction
from cl_runner.hooks import Hooks, Predict
from cl_runner.learner import Learner, Progress
from cl_runner.metrics.base import score
from cl_runner.metrics.classes import percents, tallies
from cl_runner.passes import idle_pass

Result = TypeVar("Result")


def evaluation_examples(task: Task, split: Literal["test", "validation"]) -> Sequence[Example]:
    """The examples a task is scored on."""
    return task.test if split == "test" else task.validation


@torch.no_grad()
def evaluate(
    learner: Learner,
    method: Hooks[Learner],
    tasks: Sequence[Task],
    options: Evaluation,
    after: str,
    progress: Progress | None = None,
) -> dict[str, list[Prediction]]:
    """Predictions for every example of every task, in the order of the examples.

    Tasks that are answered in the same way are evaluated together, sorted by length: little padding, and the cost of
    one pass.

    Args:
        after: the row of the matrix that this fills; sampled answers depend on it and on the run's seed.
        progress: in the place of the learner's.
    """
    learner.model.eval()
    ways: dict[Answering, list[Task]] = {}
    for task in tasks:
        ways.setdefault(learner.answering(task), []).append(task)
    total = sum(len(evaluation_examples(task, options.split)) for task in tasks)
    found: dict[str, list[Prediction]] = {}
    # A method that does more for an answer than ask the model may remember what it did.
    dealt = distributed.size() > 1 and not method.answering
    done = 0
    for number, (how, alike) in enumerate(ways.items()):
        union = [example for task in alike for example in evaluation_examples(task, options.split)]
        answers: dict[int, Prediction] = {}
        begun, shown = 0, done
        batches = list(learner.by_length(union, options.batch_size, answers=False))
        for place, positions in enumerate(batches):
            if not dealt or distributed.mine(place):
                torch.manual_seed(learner.seed_of("answers", after, number, begun))
                batch = learner.collate([union[i] for i in positions], answers=False)
                answers.update(zip(positions, method.predict(learner, batch, _asked(learner, how)), strict=True))
            begun += len(positions)
            if learner.shards is not None and (distributed.round_ends(place) or place + 1 == len(batches)):
                learner.shards.wait(idle_pass(learner, union[batches[-1][-1]]))
            if not dealt or distributed.round_ends(place):
                shown = done + begun
                (progress or learner.progress)("evaluate", shown, total)
        done += begun
        if dealt:
            answers = _gathered(answers)
            if shown < done:
                (progress or learner.progress)("evaluate", done, total)
        start = 0
        for task in alike:
            end = start + len(evaluation_examples(task, options.split))
            found[task.name] = [answers[i] for i in range(start, end)]
            start = end
    return {task.name: found[task.name] for task in tasks}


def by_first(learner: Learner, function: Callable[[], Result], example: Example) -> Result:
    """What the first process finds with passes of its own, in every process, as JSON gives it back.

    Args:
        example: for the passes of the others, where weights are in parts.
    """
    if learner.shards is None:
        return distributed.once(function)()
    return learner.shards.of_first(function, idle_pass(learner, example))


def first_scores(
    learner: Learner,
    method: Hooks[Learner],
    tasks: Sequence[Task],
    options: Evaluation,
    after: str,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Percent of every example of every task, by the metric that fills the matrix; arguments as of `evaluate`."""
    found = scores(tasks, evaluate(learner, method, tasks, options, after, progress), options)
    return {name: next(iter(of_task.values())) for name, of_task in found.items()}


def _gathered(answers: Mapping[int, Prediction]) -> dict[int, Prediction]:
    """The answers of every process."""
    own = [(place, text, sure, logits.hex()) for place, (text, sure, logits) in answers.items()]
    every = [row for rows in distributed.gathered(own) for row in rows]
    return {place: Prediction(text, sure, bytes.fromhex(logits)) for place, text, sure, logits in every}


def _asked(learner: Learner, how: Answering) -> Predict:
    def answer(batch: Batch) -> list[Prediction]:
        return learner.answer(batch, how)

    return answer


def told_apart(task: Task, scoring: str) -> tuple[str, ...]:
    """The labels of a task whose accuracy says how well they are told apart; none of one with other answers."""
    return task.labels if "accuracy" in task.scored_by(scoring) else ()


def scores_of_labels(
    tasks: Sequence[Task], predictions: Mapping[str, Sequence[Prediction]], options: Evaluation
) -> dict[str, dict[str, float]]:
    """What stands beside the accuracy of each task with given labels, in percent (cl_runner/metrics/classes.py)."""
    found = {}
    for task in tasks:
        labels = told_apart(task, options.scoring)
        if labels and task.name in predictions:
            answers = [example.answer for example in evaluation_examples(task, options.split)]
            counted = tallies(answers, [prediction.text for prediction in predictions[task.name]], labels)
            found[task.name] = percents(counted)
    return found


def scores(
    tasks: Sequence[Task], predictions: Mapping[str, Sequence[Prediction]], options: Evaluation
) -> dict[str, dict[str, list[float]]]:
    """Percent of every example by task and metric; the first metric of a task fills the matrix."""
    return {
        task.name: {
            name: score(
                name,
                [prediction.text for prediction in predictions[task.name]],
                evaluation_examples(task, options.split),
                options.bertscore,
            )
            for name in task.scored_by(options.scoring)
        }
        for task in tasks
        if task.name in predictions
    }
