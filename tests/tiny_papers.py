"""Commands of tables and figures of papers in a tiny form: a tiny backbone of the same family, few texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from programs import CHECK, TWICE
from tiny import run_command, tiny_encoder

from cl_runner.data.reviews import DOMAINS
from cl_runner.overrides import jobs_of, key_of
from cl_runner.papers import protocol
from cl_runner.papers.settings import configuration

TWINS = {"classifier": "bert", "causal": "llama", "seq2seq": "t5", "image_text": "llava"}
#: Tokens of a text.
LENGTHS = {"classifier": 40, "causal": 96, "seq2seq": 96, "image_text": 256}
#: Tasks of a long order that are kept.
MOST = 2
#: Options of methods that have something to do on a tiny model: node -> overrides below it.
FEW = {
    "lfpt5": ("max_new_tokens=8", "tries=2", "length=8"),
    "mbpa": ("neighbours=4",),
    "prog_prompt": ("length=3",),
    "prompt_tuning": ("length=3",),
}
#: Of the harness's tasks that the papers ask: a question each, in the place of their data.
HARNESS = ("arc_challenge", "arc_easy", "piqa", "winogrande")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


def write_data(folder: Path) -> None:
    """What runs read below a data root: drawn pictures, a problem of HumanEval, questions for the harness."""
    assert run_command(["draw", str(folder), "--train", "6", "--val", "3", "--test", "3"]) == 0
    problem = {"task_id": "0", "prompt": TWICE, "test": CHECK, "entry_point": "f", "canonical_solution": ""}
    (folder / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    (folder / "harness").mkdir()
    data = folder / "questions.jsonl"
    data.write_text(json.dumps({"question": "Why?", "choices": ["yes", "no"], "label": 0}) + "\n")
    for name in HARNESS:
        text = TASK.format(name=name, data=data, cache=folder / "cache")
        (folder / "harness" / f"{name}.yaml").write_text(text)


def each_value_once(line: Sequence[str]) -> list[list[str]]:
    """Runs of a multirun in which every value of it comes up, but one order alone."""
    jobs = jobs_of([text if key_of(text) != "task_order" else jobs_of([text])[0][0] for text in line])
    first = jobs[0]
    return [job for job in jobs if sum(one != other for one, other in zip(first, job, strict=True)) < 2]


def tiny_form(job: Sequence[str], root: Path, data: Path) -> list[str]:
    """A command's words, with the backbone, the texts and the probes' data of a tiny run in the place of its own."""
    config = configuration(tuple(job))
    family, names = config["backbone"]["family"], protocol.names(config)[:MOST]
    bounds = [option for option, key in (("joint", "joint"), ("single_task", "restart")) if config["task_order"][key]]
    sees = family == "image_text"
    domains = ("colour", "shape", "count") if sees else DOMAINS
    tasks = [f"{{name: {name}, domains: [{domains[place % len(domains)]}]}}" for place, name in enumerate(names)]
    ours = [f"task_order=[{','.join(['drawn' if sees else 'reviews', *bounds])}]"]
    ours += [f"task_order.tasks=[{', '.join(tasks)}]", f"backbone=tiny_{TWINS[family]}", "backbone.frozen=[]"]
    ours += ["hardware=cpu", "hardware.threads=1", "wandb=disabled", "evaluation.scoring=standard", "seed=0"]
    ours += [f"data_root={data}", f"root={root}", "training.max_steps=1", "evaluation.tasks=seen"]
    for stage in ("base", "incremental"):
        ours += [f"task_order.{stage}={{train: 3, validation: 3, test: 3}}"]
        ours += [f"training.{stage}.epochs={min(1, config['training'][stage]['epochs'])}"]
    ours += [f"backbone.max_length={LENGTHS[family]}"]
    ours += ["backbone.max_answer_length=8"] if family != "classifier" else ["backbone.head=new"]
    ours += [*_of_methods(config), *_of_probes(config, data)]
    said = {key_of(text) for text in ours}
    return [*(text for text in job if key_of(text) not in said), *ours]


def _of_methods(config: Mapping[str, Any]) -> list[str]:
    found = list(tiny_encoder()) if "slm" in config["method"] else []
    for node in config["method"]:
        found += [f"method.{node}.{few}" for few in FEW.get(node, ())]
    return found


def _of_probes(config: Mapping[str, Any], data: Path) -> list[str]:
    own = {
        "held_text": ("texts=2", "tokens=8"),
        "humaneval": (f"path={data / 'problems.jsonl'}", "max_new_tokens=4", "workers=1"),
        "lm_eval": (f"include_path={data / 'harness'}",),
        "representations": ("texts=16",),
        "captioning": (
            f"annotations={data / 'drawn' / 'dataset_drawn.json'}",
            f"pictures={data / 'drawn' / 'pictures'}",
            "max_new_tokens=4",
        ),
    }
    return [f"probe.{node}.{few}" for node in config["probe"] for few in own.get(node, ())]
