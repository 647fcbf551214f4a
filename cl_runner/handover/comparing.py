"""Whether an exported folder answers as the run did: loaded anew, asked some of the run's test examples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cl_runner.build import prepare_hardware
from cl_runner.config import Config
from cl_runner.data.task import Task, build_tasks, fingerprint
from cl_runner.digests import read_json
from cl_runner.evaluate import evaluation_examples
from cl_runner.families.base import Answering
from cl_runner.handover.loaded import Loaded, load
from cl_runner.intervals import read_predictions

#: Answers that differ, as far as they are listed.
LISTED = 5


@dataclass(frozen=True)
class Differing:
    """An answer of the folder that is not the run's."""

    task: str
    index: int
    run: str
    folder: str


@dataclass(frozen=True)
class Compared:
    """What was asked of a folder.

    Attributes:
        asked: examples.
        of: examples that the run kept answers to.
        differing: those with another answer.
        confidence: the largest difference of an answer's probability; None where there is none.
        where: device and precision.
        why_not: why nothing was compared; empty where it was.
    """

    asked: int = 0
    of: int = 0
    differing: Sequence[Differing] = ()
    confidence: float | None = None
    where: str = ""
    seconds: float = 0.0
    why_not: str = ""

    def said(self) -> str:
        """One sentence."""
        if self.why_not:
            return f"answers were not compared with the run's: {self.why_not}"
        same = self.asked - len(self.differing)
        verdict = "answers as the run did" if not self.differing else "does not answer all as the run did"
        sure = "" if self.confidence is None else f"; probabilities within {self.confidence:.1g}"
        if self.confidence == 0:
            sure = "; probabilities to the last bit"
        return (
            f"{verdict}: the same answer to {same} of {self.asked} test examples compared (of {self.of}), "
            f"on {self.where}{sure}"
        )

    def listed(self) -> list[str]:
        """The first answers that differ."""
        lines = [f"{d.task} {d.index}: the run {d.run!r}, the folder {d.folder!r}" for d in self.differing[:LISTED]]
        rest = len(self.differing) - len(lines)
        return [*lines, f"and {rest} more"] if rest else lines


def compare(folder: Path, run: Path, config: Config, row: int, count: int | None) -> Compared:
    """Load a folder and ask it what the run answered.

    Whole batches of the run's evaluation are asked, so that padding, and what texts are given together, is the same.

    Args:
        row: of the matrix.
        count: examples, rounded up to batches; None = all.
    """
    if not list((run / "predictions").glob(f"{row:02d}_*.jsonl")):
        return Compared(why_not="the run kept none after that task")
    kept = read_predictions(run, row)
    try:
        tasks = build_tasks(config.task_order, config.task)
    except ValueError as error:
        return Compared(why_not=f"the data are not here ({' '.join(str(error).split())[:200]})")
    known = read_json(run / "data.json").get("fingerprints", {})
    others = [task.name for task in tasks if task.name in kept and known.get(task.name) != fingerprint(task)]
    if others:
        return Compared(why_not=f"the data of {others[0]} are others now")
    started = time.perf_counter()
    missing = config.hardware.device == "cuda" and not torch.cuda.is_available()
    device = prepare_hardware(config.hardware.model_copy(update={"device": "cpu"}) if missing else config.hardware)
    loaded = load(folder, device=str(device))
    asked = [task for task in tasks if task.name in kept and task.name in loaded.tasks]
    asked = [dataclasses.replace(task, test=evaluation_examples(task, config.evaluation.split)) for task in asked]
    by_chance = config.evaluation.sampling is not None  # what is drawn depends on all that was asked before
    chosen = _chosen(loaded, asked, None if by_chance else count)
    some = [
        dataclasses.replace(task, test=tuple(task.test[i] for i in chosen[task.name]))
        for task in asked
        if chosen[task.name]
    ]
    found = loaded.evaluate(some)
    differing, gaps = [], [0.0]
    sure = True
    for name, answers in found.items():
        for index, answer in zip(chosen[name], answers, strict=True):
            text, confidence = kept[name][index]
            if answer.text != text:
                differing.append(Differing(name, index, text, answer.text))
            if confidence is None or answer.confidence is None:
                sure = False
            else:
                gaps.append(abs(confidence - answer.confidence))
    return Compared(
        asked=sum(map(len, found.values())),
        of=sum(len(task.test) for task in asked),
        differing=differing,
        confidence=max(gaps) if sure else None,
        where=f"{device.type} in {loaded.manifest.precision}",
        seconds=time.perf_counter() - started,
    )


def _chosen(loaded: Loaded, tasks: Sequence[Task], count: int | None) -> Mapping[str, list[int]]:
    """Which examples of each task are asked: batches of the run's evaluation, of the longest to the shortest texts."""
    groups: list[list[Task]] = [[task] for task in tasks]
    if not loaded.manifest.folders:
        ways: dict[Answering, list[Task]] = {}
        for task in tasks:
            ways.setdefault(loaded.learner.answering(task), []).append(task)
        groups = list(ways.values())
    found: dict[str, list[int]] = {task.name: [] for task in tasks}
    size = loaded.manifest.evaluation.batch_size
    for alike in groups:
        places = [(task.name, index) for task in alike for index in range(len(task.test))]
        union = [example for task in alike for example in task.test]
        batches = list(loaded.learner.by_length(union, size, answers=False))
        wanted = len(batches) if count is None else min(len(batches), max(1, -(-count // (len(groups) * size))))
        last = len(batches) - 1
        for number in sorted({round(place * last / max(wanted - 1, 1)) for place in range(wanted)}):
            for position in batches[number]:
                name, index = places[position]
                found[name].append(index)
    return {name: sorted(indices) for name, indices in found.items()}
