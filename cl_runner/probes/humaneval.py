"""HumanEval: does the model still complete functions that pass their tests? Chen et al. 2021, arXiv:2107.03374."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from cl_runner.batch import Batch
from cl_runner.config import Count, Positive, Sampling
from cl_runner.digests import replace_file
from cl_runner.families.base import Answering
from cl_runner.families.encoding import Encoding
from cl_runner.families.tokens import padded
from cl_runner.learner import Learner
from cl_runner.needs import ProbePass
from cl_runner.probes.base import Probe, at_rest, positions_of
from cl_runner.probes.published import published
from cl_runner.probes.sandbox import NotStarted, execute
from cl_runner.read_if import ReadIf

FILE = "HumanEval.jsonl.gz of https://github.com/openai/human-eval, folder data"
#: Problems of the file, and about as many tokens as their prompts have in a batch.
PROBLEMS, PROMPT_TOKENS = 164, 200
PIECE_SAMPLING = Sampling(temperature=0.3, top_k=10, top_p=0.95)  # released code of arXiv:2511.15375


@dataclass(frozen=True)
class Problem:
    """A function to complete."""

    task_id: str
    prompt: str  # imports, signature, docstring
    test: str  # defines check(candidate)
    entry_point: str  # the function's name


@dataclass
class HumanEval(Probe):
    """pass@k in percent. The prompt is raw, without a chat template, and keeps its end if it is too long."""

    path: str | None
    dataset: Annotated[str, ReadIf("path", (None,))]
    revision: Annotated[str, ReadIf("path", (None,))]
    limit: Count | None
    decoding: Literal["greedy", "piece"]
    samples: Count
    k: Annotated[list[Count], Field(min_length=1)]
    max_new_tokens: Count
    batch_size: Count
    seconds: Positive
    memory_gb: Positive
    workers: Count

    def check(self) -> None:
        """The problems are there, there are samples enough, and programs can run."""
        if max(self.k) > self.samples:
            raise ValueError(f"pass@{max(self.k)} needs as many samples. Type: probe.{self.node}.samples={max(self.k)}")
        if self.samples > 1 and self.decoding == "greedy":
            raise ValueError(f"all greedy samples are the same. Type: probe.{self.node}.decoding=piece")
        assert self.problems
        try:
            empty = execute("", self.seconds, self._memory_bytes).reason
        except NotStarted as error:
            empty = str(error)
        if empty:  # every completion would count as wrong
            raise ValueError(
                f"no program can run within memory_gb={self.memory_gb:g} and seconds={self.seconds:g} here: {empty}. "
                f"Type: probe.{self.node}.memory_gb=1.0 probe.{self.node}.seconds=5.0"
            )

    @property
    def _memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    @functools.cached_property
    def problems(self) -> list[Problem]:
        """From the file or the hub.

        Raises:
            ValueError: they are not there, or they are other problems.
        """
        records = published(self.node, self.path, self.dataset, "test", self.revision, FILE, "HumanEval.jsonl.gz")
        names = tuple(Problem.__dataclass_fields__)
        problems = []
        for record in itertools.islice(records, self.limit):
            missing = [name for name in names if not isinstance(record.get(name), str)]
            if missing:
                raise ValueError(f"{self.path or self.dataset}: a problem without the text {missing[0]!r}. Get {FILE}")
            problems.append(Problem(**{name: record[name] for name in names}))
        if not problems:
            raise ValueError(f"{self.path or self.dataset} holds no problem. Get {FILE}")
        return problems

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass]:
        """Every problem is completed; that the programs run is not a pass of the model."""
        texts = self.samples * (PROBLEMS if self.limit is None else min(PROBLEMS, self.limit))
        return [ProbePass("write completions", texts, PROMPT_TOKENS, self.max_new_tokens, self.batch_size)]

    def names(self) -> Sequence[str]:
        """pass@k for every k."""
        return [f"pass@{k}" for k in self.k]

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """pass@k in percent, the mean over the problems. What the model wrote is kept in <after>.jsonl."""
        problems = self.problems
        with at_rest(learner.model):
            written = self._completions(learner)
        tries = [(problem, completion) for problem, each in zip(problems, written, strict=True) for completion in each]
        passed: Counter[str] = Counter()
        lines = []

        def judge(one: tuple[Problem, str]) -> Any:
            return execute(program(*one), self.seconds, self._memory_bytes)

        with ThreadPoolExecutor(self.workers) as pool:
            for done, ((problem, completion), verdict) in enumerate(zip(tries, pool.map(judge, tries), strict=True), 1):
                passed[problem.task_id] += verdict.passed
                lines.append(
                    {
                        "task_id": problem.task_id,
                        "completion": completion,
                        "passed": verdict.passed,
                        "reason": verdict.reason,
                        "kept": verdict.kept,
                    }
                )
                learner.progress("run completions", done, len(tries))
        replace_file(folder / f"{after}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return {
            f"pass@{k}": 100 * math.fsum(pass_at(k, self.samples, passed[p.task_id]) for p in problems) / len(problems)
            for k in self.k
        }

    def _completions(self, learner: Learner) -> list[list[str]]:
        """`samples` completions of each problem."""
        family, tokenizer = learner.family, learner.family.tokenizer
        causal = family.kind != "seq2seq"
        positions = positions_of(learner.model)
        room = max(3, positions - self.max_new_tokens) if positions is not None else 4096
        raw = family.backbone.model_copy(update={"chat_template": False, "max_length": room, "truncation": "keep_end"})
        prompts = Encoding(raw, tokenizer, tokenizer.eos_token_id, open_end=causal).prompts(
            [problem.prompt for problem in self.problems]
        )
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        how = Answering(self.max_new_tokens, sampling=PIECE_SAMPLING if self.decoding == "piece" else None, raw=True)
        found: list[list[str]] = [[] for _ in prompts]
        side: Literal["left", "right"] = "left" if causal else "right"
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            tensors = {
                "input_ids": padded([prompts[i] for i in chosen], tokenizer.pad_token_id, side).to(learner.device),
                "attention_mask": padded([[1] * len(prompts[i]) for i in chosen], 0, side).to(learner.device),
            }
            batch = Batch(tensors)
            for sample in range(self.samples):
                torch.manual_seed(learner.seed_of("probe", self.node, first, sample))
                for i, answer in zip(chosen, learner.answer(batch, how), strict=True):
                    found[i].append(first_paragraph(answer.text))
            learner.progress("write completions", first + len(chosen), len(order))
        return found


def first_paragraph(text: str) -> str:
    """What is generated up to the first blank line, line breaks at its beginning aside (PIECE's release)."""
    return text.lstrip("\n").partition("\n\n")[0]


def program(problem: Problem, completion: str) -> str:
    """The program that passes if the completion does."""
    return f"{problem.prompt}{completion}\n{problem.test}\ncheck({problem.entry_point})\n"


def pass_at(k: int, samples: int, passed: int) -> float:
    """Chance that of k samples, drawn from `samples`, one or more is among the `passed` (Chen et al. 2021, eq. 1)."""
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)
