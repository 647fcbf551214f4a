"""The importance of a model's weights for examples, as a method asks for it: measured, remembered, kept on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_runner import distributed
from cl_runner.batch import Batch, longest_first
from cl_runner.config import Importance as ImportanceOptions
from cl_runner.data.example import Example
from cl_runner.data.examples import content_hash
from cl_runner.learner import Learner
from cl_runner.shards import Shards
from cl_runner.sparse import importance_cache
from cl_runner.sparse.bits import combine, weights_hash
from cl_runner.sparse.importance import Importance, cap, draw_labels, measure
from cl_runner.sparse.importance_cache import named


def fisher(learner: Learner, examples: Sequence[Example], names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The diagonal Fisher of these parameters at the current weights, fp32, mean over the data (PE eq. 1)."""
    return importance(learner, examples, names=names).mean_fisher()


def importance(
    learner: Learner,
    examples: Sequence[Example],
    gradient: bool = False,
    dtype: torch.dtype = torch.float32,
    names: Collection[str] | None = None,
) -> Importance:
    """Sums of gradients and of squared gradients of parameters at the current weights. Offline time.

    Computed once per task and data, however many methods of a chain ask for it, and kept on disk for other runs that
    come to the same weights and data.

    Args:
        gradient: whether the sum of gradients is needed as well.
        dtype: of the sums.
        names: of the parameters to measure; None = all but frozen ones. What was measured of more of them serves as
            well.
    """
    measured = learner.measured
    options, shards = measured.now, _in_parts(learner)
    # Files hold whole sums, which no process has.
    cache = learner.cache / "importance" if learner.cache and shards is None else None
    wanted = [name for name in learner.measurable() if names is None or name in names]
    with learner.clock.phase("importance"):
        chosen = cap(examples, options.max_examples, learner.seed_of("importance", "examples"))
        now = learner.parameters()
        weights = weights_hash(now) if shards is None else combine(shards.digests(now))
        # What was computed with the sum of gradients serves without it as well.
        keys = {both: _key(learner, chosen, both, dtype, weights) for both in {gradient, True}}
        for key in keys.values():
            if key in measured.found and measured.found[key].fisher.keys() >= set(wanted):
                return measured.found[key]
        measured.found = {}  # of other data: as large as the model, and not needed any more
        for key in keys.values():
            kept = importance_cache.load(cache, named(key, wanted), learner.warn) if cache else None
            # Every process takes it from there, or none: one may have looked before another run wrote it.
            if not distributed.any_of(kept is None) and kept is not None:
                whole = options.accumulate == "device" and options.passes == 1
                measured.found[key] = kept.to(learner.device) if whole else kept
                measured.from_disk = True
                return measured.found[key]
        found = _measure(learner, chosen, gradient, dtype, wanted)
        measured.found[keys[gradient]] = found
        if cache and distributed.first():
            limit = int(options.cache_gb * 1e9)
            importance_cache.store(cache, named(keys[gradient], wanted), found, limit, learner.warn)
    return found


def _measure(
    learner: Learner, examples: Sequence[Example], gradient: bool, dtype: torch.dtype, names: Sequence[str]
) -> Importance:
    options, family, shards = learner.measured.now, learner.measuring, _in_parts(learner)
    exact = options.micro_batch == 1 and dtype == torch.float32
    size = _pass_size(options, dtype)
    # Sums of a pass are whole in each process: of so many passes they are as large as what each has of all in the end.
    passes = options.passes if shards is None else max(options.passes, distributed.size())
    places = (
        longest_first(family.lengths(examples), size)
        if exact  # else which examples share a unit matters, and in which order they are added: the data's own
        else (range(start, min(start + size, len(examples))) for start in range(0, len(examples), size))
    )
    parts = [[examples[i] for i in positions] for positions in places]

    def batches() -> Iterator[Batch]:
        for part in parts:
            batch = family.collate(part, True)
            if dtype == torch.bfloat16 and family.kind == "causal":
                batch = padded_as_released(batch, family.tokenizer.pad_token_id)
            yield batch.to(learner.device)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with learner.in_precision():
            given = learner.method.before_forward(learner, batch)
            if options.micro_batch == 1:
                return family.loss_sum(model, given, options.answer_tokens)
            return family.forward(model, given).loss

    def draw(batch: Batch, generator: torch.Generator) -> Batch:
        return family.relabel(batch, draw_labels(learner.forward(batch).logits, generator))

    return measure(
        learner.model,
        batches,
        loss,
        names,
        micro_batch=options.micro_batch,
        gradient=gradient,
        dtype=dtype,
        accumulate=options.accumulate,
        passes=passes,
        draw=draw if options.labels == "model" else None,
        seed=learner.seed_of("importance", "labels"),
        on_batch=lambda done: learner.progress("importance", done, passes * len(examples)),
        compared=_shortest(learner, examples) if exact and (size > 1 or shards is not None) else None,
        # Sums in bf16 round at every unit: parts of them are others.
        dealt=distributed.size() > 1 and dtype == torch.float32,
        shards=shards,
    )


def _in_parts(learner: Learner) -> Shards | None:
    """How the weights lie, where no process ever has all of them."""
    return learner.shards if learner.shards is not None and learner.shards.always else None


def _parts(dtype: torch.dtype) -> str:
    """Sums of how many processes the result is added up of, where it is of several."""
    return f"/{distributed.size()} processes" if distributed.size() > 1 and dtype == torch.float32 else ""


def _shortest(learner: Learner, examples: Sequence[Example]) -> Batch:
    """The example on which one pass for all examples is compared with single ones: which one does not matter."""
    lengths = learner.measuring.lengths(examples)
    return learner.measuring.collate([examples[lengths.index(min(lengths))]], True).to(learner.device)


def _pass_size(options: ImportanceOptions, dtype: torch.dtype) -> int:
    """Examples that go through the model together: where sums are rounded a unit stands alone, with its own padding."""
    return options.batch_size if options.micro_batch == 1 and dtype == torch.float32 else options.micro_batch


def padded_as_released(batch: Batch, pad: int) -> Batch:
    """A batch of a decoder in the shape that PIECE's release gives it, so that bf16 rounds alike.

    Rows have a multiple of 8 tokens, and padding counts in their positions: rotary angles differ, distances do not.
    """
    missing = -batch["input_ids"].shape[1] % 8
    ids = functional.pad(batch["input_ids"], (missing, 0), value=pad)
    mask = functional.pad(batch["attention_mask"], (missing, 0))
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return batch | {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _key(learner: Learner, examples: Sequence[Example], gradient: bool, dtype: torch.dtype, weights: str) -> str:
    """Everything the bits of the result depend on: weights, data, how they enter the model, options, machine."""
    options = learner.measured.now
    kind = torch.cuda.get_device_name() if learner.device.type == "cuda" else "cpu"
    return importance_cache.key(
        weights=weights,
        data={
            "examples": content_hash(examples),
            "family": learner.measuring.identity(),
            "batch_size": _pass_size(options, dtype),
            "answer_tokens": options.answer_tokens,
        },
        micro_batch=options.micro_batch,
        gradient=gradient,
        labels=options.labels,
        seed=learner.seed if options.labels == "model" else None,
        max_examples=options.max_examples,
        dtype=dtype,
        precision=learner.precision,
        # Another kind of device, or number of threads, may differ in the last bits; sums in main memory as well.
        device=f"{kind}/{torch.get_num_threads()} threads/{options.accumulate}{_parts(dtype)}",
    )
