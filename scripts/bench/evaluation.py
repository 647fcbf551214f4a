"""Evaluation of a language model against plain transformers loops: answers that are written, labels that are scored.

Written: cl_runner's evaluation (sorted by length, cached, greedy) by a loop over the same prompts in their given order
through tokenizer and `generate`, with the same batch size and one by one. Scored: the most probable of a closed set of
labels by a pass over each prompt with each label, in batches and one by one, with no more logits than it needs. All of
a kind give the same answers. Aim: not slower, not larger. Peak memory is what a process of its own needs beyond the
model.

    python scripts/bench/evaluation.py --threads 2 --repeats 5 --output outputs/published/bench/evaluation.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from harness import arguments, interleaved, keep, own_process, pace_row, peak_rise, ratio, show, spread
from language import OPTIONS, examples, setting, task_of
from torch.nn import functional

from cl_runner.evaluate import evaluate

LABELS = ("good", "bad", "neither of both", "very good indeed")
WRITTEN, SCORED = "cl_runner", "cl_runner, labels"


def variants(given: Any) -> tuple[dict[str, Callable[[], list[str]]], int, Callable[[list[str]], int]]:
    """Every way to answer all prompts by name; the tokens of all prompts; a function that counts those of answers."""
    house = setting(given, "method=seq_ft")
    test = examples(given, house.family, given.examples)
    task = task_of((), test, given.max_new_tokens, LABELS)
    house.family.tokenize(test, None)
    learner, method = house.learner(task)
    model, tokenizer = learner.model.eval(), house.family.tokenizer
    assert isinstance(model, transformers.PreTrainedModel)
    prompts = [example.prompt for example in test]

    def ours(labels: str) -> list[str]:
        options = house.config.evaluation.model_copy(update={"batch_size": given.size, "labels": labels})
        return [found.text for found in evaluate(learner, method, [task], options, "start")[task.name]]

    def encoded(texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        limit = given.longest_prompt
        found = tokenizer(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt", **options)
        return {name: found[name].to(house.device) for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def written(size: int) -> list[str]:
        answers = []
        for start in range(0, len(prompts), size):
            batch = encoded(prompts[start : start + size], padding_side="left")
            pad = tokenizer.pad_token_id
            ids = model.generate(**batch, max_new_tokens=given.max_new_tokens, do_sample=False, pad_token_id=pad)
            new = ids[:, batch["input_ids"].shape[1] :]
            answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers

    @torch.no_grad()
    def scored(size: int) -> list[str]:
        answers = []
        for start in range(0, len(prompts), size):
            read = encoded(prompts[start : start + size], padding_side="left")
            scores = []
            for label in LABELS:
                end = [*tokenizer(label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                ends = torch.tensor([end], device=house.device).expand(len(read["input_ids"]), -1)
                ids = torch.cat([read["input_ids"], ends], 1)
                mask = torch.cat([read["attention_mask"], torch.ones_like(ends)], 1)
                places = (mask.cumsum(1) - 1).clamp(min=0)
                inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
                logits = model(**inputs, logits_to_keep=len(end) + 1, use_cache=False).logits
                of_label = logits[:, :-1].transpose(1, 2)
                scores.append(-functional.cross_entropy(of_label, ends, reduction="none").sum(1))
            answers += [LABELS[i] for i in torch.stack(scores, 1).argmax(1).tolist()]
        return answers

    ways: dict[str, Callable[[], list[str]]] = {
        WRITTEN: lambda: ours("generate"),
        "generate": lambda: written(given.size),
        "generate, one by one": lambda: written(1),
        SCORED: lambda: ours("likelihood"),
        "a pass per label": lambda: scored(given.size),
        "a pass per prompt and label": lambda: scored(1),
    }
    read = sum(house.family.lengths(test, answers=False))

    def count(answers: list[str]) -> int:
        return sum(len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"])

    return ways, read, count


def main() -> None:
    given = arguments(__doc__ or "", examples=96, size=16, max_new_tokens=32, **OPTIONS)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ways, read, count = variants(given)
    if given.variant:  # one variant in a process of its own
        ways[given.variant]()
        print(peak_rise(ways[given.variant], given.device) / 2**20)
        return
    answers = {name: way() for name, way in ways.items()}
    seconds = interleaved(ways, given.repeats)
    results: dict[str, Any] = {"read_tokens": read}
    rows = []
    for name in ways:
        ours = WRITTEN if list(ways).index(name) < list(ways).index(SCORED) else SCORED
        different = sum(a != b for a, b in zip(answers[name], answers[ours], strict=True))
        assert not different, f"{name}: {different} of {len(answers[ours])} answers are not those of {ours}"
        tokens = read + (count(answers[ours]) if ours == WRITTEN else 0)
        middle, low, high = ratio(seconds[ours], seconds[name])
        peak = own_process(name) if given.memory else None
        results[name] = {
            "seconds": spread(seconds[name]),
            "tokens_read_and_written": tokens,
            "tokens_per_second": tokens / spread(seconds[name])["median"],
            "ours_by_this": {"median": middle, "lower_quartile": low, "upper_quartile": high},
            "peak_mebibytes": peak,
        }
        rows.append(pace_row(name, seconds[name], tokens, (middle, low, high), peak))
    columns = ("way", "median", "tokens/s", "cl_runner / this [quartiles]", "peak rise")
    show(f"{given.examples} prompts, batches of {given.size}, {given.threads} threads", columns, rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
