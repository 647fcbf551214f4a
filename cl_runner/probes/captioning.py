"""Captioning: what a model that sees still says of pictures that no task asks about. PIECE, arXiv:2511.15375."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cl_runner.config import Count
from cl_runner.data.captions import captioned, of_split
from cl_runner.data.example import Example, Picture
from cl_runner.data.places import missing, nearest
from cl_runner.digests import read_text, write
from cl_runner.families.base import Answering
from cl_runner.git_lfs import is_pointer
from cl_runner.learner import Learner
from cl_runner.metrics.captions import METRICS, lacking
from cl_runner.needs import ProbePass
from cl_runner.probes.base import Probe, at_rest, positions_of

REFERENCES = "references.jsonl"


@dataclass
class Captioning(Probe):
    """Scores of greedy captions against several references of each picture, times 100; metrics/captions.py has them."""

    families: ClassVar[tuple[str, ...]] = ("image_text",)
    unit: ClassVar[str] = "points"
    annotations: str
    pictures: str
    split: str | None
    limit: Count | None
    prompt: Annotated[str, Field(min_length=1)]
    max_new_tokens: Count
    metrics: Annotated[
        list[Literal["bleu_1", "bleu_4", "rouge_l", "corpus_bleu_4", "cider_d", "meteor"]], Field(min_length=1)
    ]
    batch_size: Count
    download: str

    def check(self) -> None:
        """Captions and pictures are there, and what a metric needs."""
        if "meteor" in self.metrics and lacking():
            raise ValueError(f"probe.{self.node}.metrics: meteor needs {lacking()}")
        assert self._examples

    @functools.cached_property
    def _examples(self) -> list[tuple[Picture, tuple[str, ...]]]:
        """Pictures of the split and the references of each.

        Raises:
            ValueError: something of them is missing, with where to get it.
        """
        path, folder = Path(self.annotations).expanduser(), Path(self.pictures).expanduser()
        if not path.is_file():
            raise ValueError(f"probe {self.node}: {missing([path], self.download)}")
        if is_pointer(path):
            raise ValueError(f"{path} is a pointer of Git LFS, not the data. Type: git lfs pull, in that folder")
        found = of_split(captioned(path), self.split, path, f"probe.{self.node}.split")[: self.limit]
        if not folder.is_dir():
            raise ValueError(f"probe {self.node}: {missing([folder], self.download)}")
        examples = []
        for one in found:
            file = folder / one.file
            if not file.is_file():
                near = nearest(file.name, [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else [])
                raise ValueError(
                    f"probe {self.node}: {path} names the picture {one.file}, which is not below {folder}.{near} "
                    f"{self.download.strip().removesuffix('.')}."
                )
            examples.append((Picture(str(file), one.file, file.stat().st_size), one.references))
        return examples

    def _asked(self) -> list[Example]:
        return [Example(self.prompt, references[0], picture=picture) for picture, references in self._examples]

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass]:
        """Each picture is described."""
        return [ProbePass("describe pictures", len(self._examples), None, self.max_new_tokens, self.batch_size)]

    def names(self) -> Sequence[str]:
        """The metrics."""
        return list(self.metrics)

    def prepare(self, learner: Learner, folder: Path) -> None:
        """What is asked fits the model; the references that count from now on lie in the run's folder."""
        family, examples = learner.family, self._asked()
        longest = max(family.lengths(examples, answers=False))
        if longest > family.backbone.max_length:
            raise ValueError(
                f"probe {self.node}: the longest prompt has {longest} tokens, its picture included, and none is cut. "
                f"Type: backbone.max_length={longest}"
            )
        positions = positions_of(learner.model)
        if positions is not None and longest + self.max_new_tokens > positions:
            raise ValueError(
                f"{family.backbone.name} reads {positions} tokens, and a prompt of {longest} with a caption may have "
                f"{longest + self.max_new_tokens}. Type: probe.{self.node}.max_new_tokens={max(1, positions - longest)}"
            )
        lines = [json.dumps({"picture": p.name, "references": r}, ensure_ascii=False) for p, r in self._examples]
        write(folder / REFERENCES, "".join(line + "\n" for line in lines))

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """Each metric of all captions, which are kept in captions_<after>.json, in the order of references.jsonl."""
        kept = [json.loads(line) for line in read_text(folder / REFERENCES).split("\n")[:-1]]
        examples = self._asked()
        if [one["picture"] for one in kept] != [e.picture.name for e in examples if e.picture is not None]:
            raise ValueError(f"{self.annotations} names other pictures than when this run began. Put the old file back")
        captions = [""] * len(examples)
        how, done = Answering(self.max_new_tokens), 0
        with at_rest(learner.model):
            for places in learner.by_length(examples, self.batch_size, answers=False):
                batch = learner.collate([examples[i] for i in places], answers=False)
                for place, answer in zip(places, learner.answer(batch, how), strict=True):
                    captions[place] = answer.text
                done += len(places)
                learner.progress("describe pictures", done, len(examples))
        write(folder / f"captions_{after}.json", json.dumps(captions, ensure_ascii=False, indent=1) + "\n")
        references = [one["references"] for one in kept]
        return {name: METRICS[name](captions, references) for name in self.metrics}
