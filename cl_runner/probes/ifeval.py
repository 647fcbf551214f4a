"""IFEval: does the model still do as a prompt says? Zhou et al. 2023, arXiv:2311.07911; checks of lm-eval 0.4.13."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

from cl_runner.batch import Batch
from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.digests import replace_file
from cl_runner.families.base import Answering
from cl_runner.families.encoding import Encoding
from cl_runner.families.tokens import padded
from cl_runner.learner import Learner
from cl_runner.needs import ProbePass
from cl_runner.overrides import nearest
from cl_runner.probes.base import Probe, at_rest, positions_of
from cl_runner.probes.lm_eval import quiet
from cl_runner.probes.published import published
from cl_runner.read_if import ReadIf

FILE = "input_data.jsonl of https://github.com/google-research/google-research, folder instruction_following_eval/data"
#: Prompts of the file, and about as many tokens as one has.
PROMPTS, PROMPT_TOKENS = 541, 60
#: What splits texts by nltk's punkt_tab; all other instructions need no file.
BY_PUNKT = ("change_case:capital_word_frequency", "length_constraints:number_sentences")
#: What is measured, as the harness calls it; a prompt counts where all of its instructions are followed.
NUMBERS = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")


@dataclass(frozen=True)
class Row:
    """A prompt, its instructions by name, and what each of them asks for."""

    key: str
    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]


@dataclass
class IFEval(Probe):
    """The four accuracies of IFEval in percent, of greedy answers; `backbone.chat_template` holds for its prompts too.

    `strict` judges an answer as it is, `loose` also without its first or last line and without asterisks. The language
    of an answer is guessed by chance, which the harness leaves open: here it begins from the same seed each time.
    """

    path: str | None
    dataset: Annotated[str, ReadIf("path", (None,))]
    revision: Annotated[str, ReadIf("path", (None,))]
    limit: Count | None
    max_new_tokens: Count
    batch_size: Count

    def check(self) -> None:
        """The package and the prompts are there, their instructions are known, and what they need is here."""
        if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "langdetect", "immutabledict", "nltk")):
            raise ValueError(f"probe={self.node} needs packages. Type: pip install 'cl-runner[ifeval]'")
        known = checks().instructions_registry.INSTRUCTION_DICT
        for row in self.rows:
            for name, asked in zip(row.instruction_id_list, row.kwargs, strict=True):
                if name not in known:
                    close = nearest(name, known)
                    raise ValueError(
                        f"{self._where}: prompt {row.key} has the instruction {name!r}, which lm-eval does not know"
                        + (f". Nearest: {close!r}" if close else f"; it knows {', '.join(known)}")
                    )
                try:
                    with same_chance():
                        known[name](name).build_description(**{key: value for key, value in asked.items() if value})
                except (TypeError, ValueError, AttributeError) as error:
                    raise ValueError(
                        f"{self._where}: prompt {row.key}, kwargs of {name} are {asked}, which lm-eval cannot read: "
                        f"{error}. Get {FILE}"
                    ) from None
        asked_for = {name for row in self.rows for name in row.instruction_id_list if name in BY_PUNKT}
        if asked_for and not has_punkt():
            raise ValueError(
                f"{' and '.join(sorted(asked_for))} split answers by nltk's punkt_tab, which is not on this machine. "
                "Type, where there is a network: python -m nltk.downloader punkt_tab"
            )

    @property
    def _where(self) -> str:
        return self.path or self.dataset

    @functools.cached_property
    def rows(self) -> list[Row]:
        """From the file or the hub.

        Raises:
            ValueError: they are not there, or they are something else.
        """
        records = published(self.node, self.path, self.dataset, "train", self.revision, FILE, "input_data.jsonl")
        found = []
        for number, record in enumerate(itertools.islice(records, self.limit), 1):
            prompt, names, asked = (record.get(key) for key in ("prompt", "instruction_id_list", "kwargs"))
            key = str(record.get("key", number))
            if not isinstance(prompt, str) or not isinstance(names, list) or not isinstance(asked, list) or not names:
                lacks = {"prompt": prompt, "instruction_id_list": names, "kwargs": asked}
                wrong = ", ".join(name for name, value in lacks.items() if not value)
                raise ValueError(f"{self._where}: row {number} lacks {wrong or 'what IFEval has'}. Get {FILE}")
            if len(names) != len(asked) or not all(isinstance(each, Mapping) for each in asked):
                raise ValueError(f"{self._where}: prompt {key} has {len(names)} instructions, but kwargs {asked!r}")
            found.append(Row(key, prompt, [str(name) for name in names], [dict(each) for each in asked]))
        if not found:
            raise ValueError(f"{self._where} holds no prompt. Get {FILE}")
        return found

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass]:
        """Every prompt is answered."""
        texts = PROMPTS if self.limit is None else min(PROMPTS, self.limit)
        return [ProbePass("follow instructions", texts, PROMPT_TOKENS, self.max_new_tokens, self.batch_size)]

    def names(self) -> Sequence[str]:
        """The four accuracies."""
        return NUMBERS

    def prepare(self, learner: Learner, folder: Path) -> None:
        """No prompt is cut: it may be its end that says what to do."""
        positions = positions_of(learner.model)
        longest = max(map(len, self._prompts(learner)))
        if positions is not None and longest + self.max_new_tokens > positions:
            most = positions - longest
            remedy = f"Type: probe.{self.node}.max_new_tokens={most}" if most > 0 else "Take a model that reads more"
            raise ValueError(
                f"{learner.family.backbone.name} reads {positions} tokens, and IFEval's longest prompt has {longest}, "
                f"its answer up to {self.max_new_tokens}. {remedy}"
            )

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """The four accuracies in percent; answers and what of them was followed are kept in <after>.jsonl."""
        with at_rest(learner.model):
            answers = self._answers(learner)
        with quiet(folder):
            judged = [judge(row, answer) for row, answer in zip(self.rows, answers, strict=True)]
        lines = [
            {"key": row.key, "instructions": row.instruction_id_list, "answer": answer, **found}
            for row, answer, found in zip(self.rows, answers, judged, strict=True)
        ]
        replace_file(folder / f"{after}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return accuracies(judged)

    def _prompts(self, learner: Learner) -> list[list[int]]:
        """Token ids of each prompt, whole, as the backbone's prompts are written."""
        family, tokenizer = learner.family, learner.family.tokenizer
        whole = family.backbone.model_copy(update={"max_length": 10**9})
        open_end = family.kind != "seq2seq"
        return Encoding(whole, tokenizer, tokenizer.eos_token_id, open_end=open_end).prompts(
            [row.prompt for row in self.rows]
        )

    def _answers(self, learner: Learner) -> list[str]:
        prompts, how = self._prompts(learner), Answering(self.max_new_tokens)
        pad = learner.family.tokenizer.pad_token_id
        side: Literal["left", "right"] = "right" if learner.family.kind == "seq2seq" else "left"
        order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
        found = [""] * len(prompts)
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            tensors = {
                "input_ids": padded([prompts[i] for i in chosen], pad, side).to(learner.device),
                "attention_mask": padded([[1] * len(prompts[i]) for i in chosen], 0, side).to(learner.device),
            }
            batch = Batch(tensors, [Example(self.rows[i].prompt, "") for i in chosen])
            for i, answer in zip(chosen, learner.answer(batch, how), strict=True):
                found[i] = answer.text
            learner.progress("follow instructions", first + len(chosen), len(order))
        return found


def judge(row: Row, answer: str) -> dict[str, list[bool]]:
    """Which instructions of a prompt an answer follows, `strict` and `loose`, by the harness's own functions."""
    harness = checks()
    with same_chance():
        return {
            "strict": harness.test_instruction_following_strict(row, answer).follow_instruction_list,
            "loose": harness.test_instruction_following_loose(row, answer).follow_instruction_list,
        }


def accuracies(judged: Sequence[Mapping[str, Sequence[bool]]]) -> dict[str, float]:
    """Of what was followed of each prompt, the share of prompts followed in whole and of instructions, in percent."""
    found = {}
    for way in ("strict", "loose"):
        prompts = [all(each[way]) for each in judged]
        instructions = [followed for each in judged for followed in each[way]]
        found[f"prompt_level_{way}_acc"] = 100 * sum(prompts) / len(prompts)
        found[f"inst_level_{way}_acc"] = 100 * sum(instructions) / len(instructions)
    return found


@functools.cache
def checks() -> Any:
    """The harness's module of IFEval. Imported, it would fetch what it misses of nltk: it is kept from that."""
    with mock.patch("nltk.download", return_value=False):
        return importlib.import_module("lm_eval.tasks.ifeval.utils")


def has_punkt() -> bool:
    """Whether nltk's punkt_tab for English is on this machine."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


@contextlib.contextmanager
def same_chance() -> Iterator[None]:
    """Inside, the harness and what guesses languages draw the same each time; what a run draws is left alone."""
    from langdetect import DetectorFactory

    seed, state = DetectorFactory.seed, random.getstate()
    DetectorFactory.seed = 0
    random.seed(0)
    try:
        yield
    finally:
        DetectorFactory.seed = seed
        random.setstate(state)
