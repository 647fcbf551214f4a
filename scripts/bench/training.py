r"""Training of a language model against transformers' Trainer: the same examples, batches, losses and AdamW, in fp32.

With the Trainer as well: all weights, or peft's LoRA (r = 8) of all linear layers.

A pass over all examples, every variant from the same weights and in the same order, shuffled, or shuffled and then
grouped by length as `training.group_by_length` does. The Trainer gets tokenised examples with -100 on the prompt and
pads each batch; it does not evaluate, save or log. The losses of seq_ft are the Trainer's. Aim: not slower, not larger.
Peak memory is what a process of its own needs beyond the model: activations, gradients, the optimizer.

    python scripts/bench/training.py --threads 2 --repeats 5 --output outputs/published/bench/training.json
    python scripts/bench/training.py --backbone smollm2_135m --variants Trainer,LoRA,seq_ft,piece_s --clock processor \
        --threads 1 --repeats 2 --examples 8 --size 4 --shortest-prompt 16 --longest-prompt 40 --longest-answer 16 \
        --learning-rate 1e-5 --output outputs/published/bench/training_smollm2.json
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable
from statistics import fmean as mean
from typing import Any

import torch
import transformers
from harness import arguments, interleaved, keep, now, own_process, pace_row, peak_rise, ratio, show, spread
from language import OPTIONS, examples, setting, task_of
from torch import nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from cl_runner.train import epoch_order, train_task

PEER = "Trainer"
LORA = "LoRA"
GROUPED = ", by length"


class Pass:
    """One pass over all examples: `ready` brings the model back to the start, `run` gives the mean of its losses."""

    def __init__(self, model: nn.Module, tokens: int, make: Callable[[], Callable[[], float]]):
        self.tokens = tokens
        self._model, self._make = model, make
        self._start = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.ready()

    @torch.no_grad()
    def ready(self) -> None:
        """The weights of the start, and what a pass needs beforehand."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(self._start[name])
        self.run = self._make()


def ours(given: Any, method_name: str, by_length: bool) -> Pass:
    """By cl_runner; importance and selection come before it."""
    overrides = (
        f"training.base={{epochs: 1, batch_size: {given.size}, learning_rate: {given.learning_rate}, "
        f"micro_batch: {given.micro_batch or given.size}}}",
        "training.schedule=constant",
        "training.warmup=0.0",
        f"training.group_by_length={str(by_length).lower()}",
        *(() if method_name == "seq_ft" else ("importance.micro_batch=8", "importance.max_examples=16")),
    )
    house = setting(given, f"method={method_name}", *overrides)
    task = task_of(examples(given, house.family, given.examples), (), 1)
    house.family.tokenize(task.train, None)
    learner, method = house.learner(task)
    method.select(learner, task)
    learner.measured.begin()

    def run() -> float:
        losses: list[float] = []
        learner.choose(task, method.trains(learner, task))
        learner.begin()
        stage, training = house.config.training.base, house.config.training
        train_task(learner, method, task, stage, training, None, lambda _, numbers: losses.append(numbers["loss"]))
        learner.finish()
        method.after_task(learner, task)
        return mean(losses)

    return Pass(learner.model, sum(house.family.lengths(task.train)), lambda: run)


class FirstStep(TrainerCallback):
    """When the Trainer began its first step, `at` in seconds of the benchmark's clock."""

    def on_train_begin(self, *state: Any, **more: Any) -> None:
        """Called by the Trainer."""
        self.at = now()


def adapted(model: nn.Module) -> nn.Module:
    """The model with peft's LoRA on all linear layers but the output's."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def peer(given: Any, by_length: bool, folder: str, preparing: list[float], lora: bool = False) -> Pass:
    """By the Trainer; the seconds of each pass before its first step are added to `preparing`."""
    house = setting(given, "method=seq_ft")
    train = examples(given, house.family, given.examples)
    learner, _ = house.learner(task_of(train, (), 1))
    model = adapted(learner.model) if lora else learner.model
    rows = []
    lengths = house.family.lengths(train)
    for i in epoch_order(house.config.seed, 0, 0, len(train), lengths if by_length else None, given.size):
        row = house.family.collate([train[i]])
        ids, answer = row["input_ids"][0].tolist(), row["labels"][0].tolist()
        labels = [-100] * (len(ids) - len(answer)) + answer
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    micro = given.micro_batch or given.size
    wanted = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=math.ceil(given.size / micro),
        learning_rate=given.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=house.config.training.weight_decay,
        max_grad_norm=house.config.training.clip,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=given.device == "cpu",
        dataloader_pin_memory=given.device != "cpu",
    )
    collator = DataCollatorForSeq2Seq(house.family.tokenizer, label_pad_token_id=-100)

    def make() -> Callable[[], float]:
        trainer = Trainer(model, wanted, collator, train_dataset=rows)  # type: ignore[arg-type]
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        watch = FirstStep()
        trainer.add_callback(watch)

        def run() -> float:
            began = now()
            loss = float(trainer.train().training_loss)
            preparing.append(watch.at - began)
            return loss

        return run

    return Pass(model, sum(lengths), make)


def builders(given: Any, folder: str, preparing: list[float]) -> dict[str, Callable[[], Pass]]:
    """Every way to train."""
    return {
        PEER: lambda: peer(given, False, folder, preparing),
        "seq_ft": lambda: ours(given, "seq_ft", False),
        "piece_s": lambda: ours(given, "piece_s", False),
        LORA: lambda: peer(given, False, folder, preparing, lora=True),
        PEER + GROUPED: lambda: peer(given, True, folder, preparing),
        "seq_ft" + GROUPED: lambda: ours(given, "seq_ft", True),
        "piece_s" + GROUPED: lambda: ours(given, "piece_s", True),
    }


def main() -> None:
    given = arguments(__doc__ or "", examples=64, size=8, micro_batch=0, learning_rate=1e-4, variants="", **OPTIONS)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        preparing: list[float] = []
        made = builders(given, folder, preparing)
        if given.variants:
            made = {name: made[name] for name in given.variants.split(",")}
        if given.variant:  # one variant in a process of its own
            one = made[given.variant]()
            one.run()
            one.ready()
            gc.collect()
            print(peak_rise(one.run, given.device) / 2**20)
            return
        passes = {name: make() for name, make in made.items()}
        tokens = passes[PEER].tokens
        losses = {name: one.run() for name, one in passes.items()}
        pairs = [(losses[PEER + how], losses["seq_ft" + how]) for how in ("", GROUPED) if PEER + how in made]
        assert all(math.isclose(*pair, rel_tol=1e-4) for pair in pairs), f"mean losses, the Trainer's and ours: {pairs}"
        runs = {name: lambda one=one: one.run() for name, one in passes.items()}
        seconds = interleaved(runs, given.repeats, lambda name: passes[name].ready())
        results: dict[str, Any] = {
            "tokens": tokens,
            "seconds_before_the_trainers_first_step": spread(preparing),
        }
        rows = []
        for name in runs:
            same = PEER + GROUPED if name.endswith(GROUPED) else PEER
            middle, low, high = ratio(seconds[name], seconds[same])
            peak = own_process(name) if given.memory else None
            results[name] = {
                "mean_loss": losses[name],
                "seconds": spread(seconds[name]),
                "tokens_per_second": tokens / spread(seconds[name])["median"],
                "ratio_to_trainer_in_the_same_order": {"median": middle, "lower_quartile": low, "upper_quartile": high},
                "ratio_to_trainer": ratio(seconds[name], seconds[PEER])[0],
                "peak_mebibytes": peak,
            }
            rows.append(pace_row(name, seconds[name], tokens, (middle, low, high), peak))
    columns = ("way", "median", "tokens/s", "x Trainer in the same order [quartiles]", "peak rise")
    print(f"of each pass of the Trainer {spread(preparing)['median']:.2f} s lie before its first step")
    show(f"{given.examples} examples, batches of {given.size}, {given.threads} threads", columns, rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
