"""Weight increments that every text retrieves for itself: the forward pass against the plain encoder and its peers.

A random BERT of MiniLM's sizes (`--size bert_base`: of BERT base's); increments in all attention output projections;
every text retrieves K slots of r by its query, which is given. Ours is the cost of everything else: cosines with all
keys, the K nearest, their rows of the bank, and the products in the pass. The sentence encoder that makes the queries
(`--encoder`: its sizes) reads each text once, in training for all epochs; beside a single pass it is the largest part,
and stands in a row of its own, with its share of both together. Aim: <= 1.15 x the plain pass at K=2, r=12, batch 32,
and the same time whatever the number of tasks in the bank. Beside it:

- one weight per text: the same retrieval, then W + dW is made for every text, a batch of d x d matrices, of one layer
  at a time;
- PEFT's mixed batch (`adapter_names`): it mixes whole adapters and cannot weigh several per text. So every text gets an
  adapter of rank K * r that holds its weighted slots, which gives the same numbers; or four such adapters serve all
  texts. They are made beforehand and stay: neither their time nor their memory is counted.

A training step is forward and backward, without optimizer: of the values of the bank's last task and the classifier;
by a frozen backbone's, which is led down to the same depth. Its texts retrieve slots of their own task, or every
second one those of another. LoRA is PEFT's, one adapter of rank K * r for all texts. Peak memory is what a pass needs
beyond what is there before it.

    python scripts/bench/retrieval.py --threads 2 --output outputs/published/bench/retrieval.json
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
import transformers
from harness import arguments, interleaved, keep, peak_rise, ratio, show, spread
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.layers.increments import Composed, Increments
from cl_runner.layers.targets import Target, find_targets
from cl_runner.layers.values import Retrieved
from cl_runner.retrieval.bank import Bank
from cl_runner.retrieval.keys import new_keys, retrieve, similarities

#: Layers, width and heads.
SIZES = {"minilm": (6, 384, 12), "bert_base": (12, 768, 12), "tiny": (2, 32, 4)}
SLOTS, GROUPS, KEY_WIDTH = 4, 6, 64
TOLERANCE = 1e-4  # of hidden states, which a norm has brought to a deviation of about 1
PLAIN, OURS, MATERIALISED = "plain", "ours", "one weight per text"
PEFT_ALL, PEFT_FOUR = "PEFT, an adapter per text", "PEFT, 4 adapters"
ENCODER = "sentence encoder, beside ours"
FROZEN, ELSEWHERE, LORA = "frozen backbone", "ours, half elsewhere", "PEFT LoRA"

Ways = dict[str, Callable[[], Tensor]]
Model = TypeVar("Model", bound=PreTrainedModel)


def encoder(size: str, length: int, kind: type[Model]) -> Model:
    """A BERT with random weights."""
    layers, width, heads = SIZES[size]
    torch.manual_seed(0)
    return kind(
        BertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=max(512, length),
            num_labels=5,
        )
    ).eval()


def sharing(model: Model) -> Model:
    """A copy with the same weights in the same memory."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def batch_of(size: int, length: int) -> dict[str, Tensor]:
    """Texts of random tokens."""
    ids = torch.randint(1000, 20000, (size, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def bank_of(width: int, tasks: int) -> Bank:
    """Orthonormal keys, and values that change what the encoder computes."""
    generator = torch.Generator().manual_seed(0)
    values = torch.empty(tasks * SLOTS, width).normal_(std=0.2, generator=generator)
    return Bank([str(task) for task in range(tasks)], new_keys(GROUPS, tasks * SLOTS, KEY_WIDTH, generator), values)


def queries_of(bank: Bank, owners: Sequence[int]) -> Tensor:
    """[texts, GROUPS * KEY_WIDTH]: each lies among the keys of the task that owns it."""
    among = torch.stack([bank.keys[str(task)].sum(1) for task in owners]).flatten(1)
    return among + 0.05 * torch.randn(among.shape, generator=torch.Generator().manual_seed(1))


def find(bank: Bank, queries: Tensor, top_k: int) -> Retrieved:
    """The slots of every text, as in a run."""
    return retrieve(similarities(queries, bank.units(0, len(bank.keys))), top_k)


class Materialised(nn.Module):
    """A target with the weight W + dW of each text."""

    def __init__(self, target: Target, composed: Composed):
        super().__init__()
        self.inner, self.composed = target.module, composed

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, width_in] to [B, T, width_out]."""
        weight, bias = (self.inner.get_parameter(name) for name in ("weight", "bias"))
        inward, outward = self.composed.inward, self.composed.outward
        assert inward is not None and outward is not None
        return torch.baddbmm(bias, hidden, torch.baddbmm(weight.t(), inward, outward))


def increments_in(model: PreTrainedModel, rank: int, materialise: bool = False) -> Increments:
    """Increments in all attention output projections; or the same factors for one weight per text."""
    increments = Increments(find_targets(model, ["attention_output"], False, option="targets"), rank)
    if not materialise:
        increments.attach(model)
        return increments
    for target, composed in zip(increments.targets, increments.composed, strict=True):
        model.set_submodule(target.name, Materialised(target, composed))
    return increments


def composing(
    model: Callable[[], Tensor], increments: Increments, bank: Bank, queries: Tensor, top_k: int
) -> Callable[[], Tensor]:
    """A pass with everything that retrieval adds to it."""

    def run() -> Tensor:
        found = find(bank, queries, top_k)
        increments.use(bank.rows(found.slots), found, Batch({}))
        output = model()
        increments.stop()
        return output

    return run


def mixed(model: BertModel, increments: Increments, bank: Bank, found: Retrieved, adapters: int) -> Callable[..., Any]:
    """PEFT's model, to be called with a batch, in which text i has adapter i % adapters, made of slots found."""
    from peft import LoraConfig, get_peft_model

    rank = found.slots.shape[1] * increments.rank
    # Full names: a module that a name only ends with is another layer's.
    names = [target.name for target in increments.targets]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, inference_mode=True)
    adapted = get_peft_model(model, config, adapter_name="0")
    for number in range(1, adapters):
        adapted.add_adapter(str(number), config)
    increments.use(bank.rows(found.slots), found, Batch({}))
    for name, composed in zip(names, increments.composed, strict=True):
        layer = adapted.base_model.model.get_submodule(name)
        assert composed.inward is not None and composed.outward is not None
        for number in range(adapters):
            layer.lora_A[str(number)].weight.data.copy_(composed.inward[number].t())
            layer.lora_B[str(number)].weight.data.copy_(composed.outward[number].t())
    increments.stop()
    texts = [str(i % adapters) for i in range(len(found.slots))]
    return lambda **batch: adapted.eval()(**batch, adapter_names=texts)


def forward_ways(given: Any, size: int, top_k: int, rank: int) -> Ways:
    """Every way to give a batch its increments: the last hidden states."""
    plain = encoder(given.size, given.length, BertModel)
    ours, materialised = sharing(plain), sharing(plain)
    batch = batch_of(size, given.length)
    increments, same = increments_in(ours, rank), increments_in(materialised, rank, materialise=True)
    bank = bank_of(increments.width, numbers(given.tasks)[0])
    queries = queries_of(bank, [i % len(bank.keys) for i in range(size)])
    found = find(bank, queries, top_k)
    ways: Ways = {
        PLAIN: lambda: plain(**batch).last_hidden_state,
        OURS: composing(lambda: ours(**batch).last_hidden_state, increments, bank, queries, top_k),
        MATERIALISED: composing(lambda: materialised(**batch).last_hidden_state, same, bank, queries, top_k),
    }
    asked = encoder(given.encoder, given.length, BertModel)
    ways[ENCODER] = lambda: asked(**batch).last_hidden_state
    if given.peft:
        for name, count in {PEFT_ALL: size, **({PEFT_FOUR: 4} if size > 4 else {})}.items():
            adapted = mixed(sharing(plain), increments, bank, found, count)
            ways[name] = lambda adapted=adapted: adapted(**batch).last_hidden_state
    return {name: torch.no_grad()(way) for name, way in ways.items()}


def check(ways: Ways) -> float:
    """The greatest difference between hidden states of the ways that compute the same.

    Raises:
        AssertionError: they differ, or the increments change nothing.
    """
    found = {name: way() for name, way in ways.items() if name not in (PEFT_FOUR, ENCODER)}
    differences = {name: float((found[OURS] - states).abs().max()) for name, states in found.items()}
    assert differences.pop(PLAIN) > 100 * TOLERANCE, "the increments change nothing"
    assert all(difference < TOLERANCE for difference in differences.values()), differences
    return max(differences.values())


def task_ways(given: Any, size: int, top_k: int, rank: int) -> Ways:
    """Passes with banks of several numbers of tasks, and what retrieval and fetching take of them."""
    model = encoder(given.size, given.length, BertModel)
    batch = batch_of(size, given.length)
    increments = increments_in(model, rank)
    ways: Ways = {}
    for tasks in numbers(given.tasks):
        bank = bank_of(increments.width, tasks)
        queries = queries_of(bank, [i * tasks // size for i in range(size)])
        found = find(bank, queries, top_k)
        ways[f"{tasks} tasks"] = composing(lambda: model(**batch).last_hidden_state, increments, bank, queries, top_k)
        ways[f"{tasks} tasks, retrieval"] = lambda bank=bank, queries=queries: find(bank, queries, top_k).weights
        ways[f"{tasks} tasks, retrieval and fetching"] = composing(
            lambda found=found: found.weights, increments, bank, queries, top_k
        )
    return {name: torch.no_grad()(way) for name, way in ways.items()}


def training_ways(given: Any, size: int, top_k: int, rank: int) -> Ways:
    """Training steps: the loss, after its backward pass."""
    batch = {**batch_of(size, given.length), "labels": torch.arange(size) % 5}
    tasks = numbers(given.tasks)[0]

    def fresh() -> BertForSequenceClassification:
        model = encoder(given.size, given.length, BertForSequenceClassification).train().requires_grad_(False)
        model.classifier.requires_grad_(True)
        return model

    def step(model: nn.Module, loss: Callable[[], Tensor], values: Sequence[nn.Parameter] = ()) -> Callable[[], Tensor]:
        trained = [*(p for p in model.parameters() if p.requires_grad), *values]

        def run() -> Tensor:
            for parameter in trained:
                parameter.grad = None
            found = loss()
            found.backward()
            return found.detach()

        return run

    def ours(owners: Sequence[int], materialise: bool = False) -> Callable[[], Tensor]:
        model = fresh()
        increments = increments_in(model, rank, materialise)
        bank = bank_of(increments.width, tasks)
        learned = bank.values[str(tasks - 1)].requires_grad_(True)
        queries = queries_of(bank, owners)
        return step(model, composing(lambda: model(**batch).loss, increments, bank, queries, top_k), [learned])

    frozen = fresh()
    first = find_targets(frozen, ["attention_output"], False, option="targets")[0]
    first.module.get_parameter("bias").requires_grad_(True)
    own = [tasks - 1] * size
    ways: Ways = {
        FROZEN: step(frozen, lambda: frozen(**batch).loss),
        OURS: ours(own),
        ELSEWHERE: ours([tasks - 1 if i % 2 else i % tasks for i in range(size)]),
        MATERIALISED: ours(own, materialise=True),
    }
    if given.peft:
        from peft import LoraConfig, get_peft_model

        names = [target.name for target in find_targets(frozen, ["attention_output"], False, option="targets")]
        config = LoraConfig(r=top_k * rank, target_modules=names, modules_to_save=["classifier"])
        lora = get_peft_model(fresh(), config)
        ways[LORA] = step(lora, lambda: lora(**batch).loss)
    return ways


def numbers(text: str) -> list[int]:
    """Of an option with commas."""
    return [int(part) for part in text.split(",")]


def cells(given: Any) -> dict[str, Callable[[], Ways]]:
    """What is measured side by side, by table and setting."""
    sizes, counts, ranks = numbers(given.batches), numbers(given.top_k), numbers(given.ranks)
    found: dict[str, Callable[[], Ways]] = {}
    for size in sizes:
        for top_k in counts:
            for rank in ranks:
                found[f"forward/{size}/{top_k}/{rank}"] = lambda n=(size, top_k, rank): forward_ways(given, *n)
    chosen = 2 if 2 in counts else counts[0], ranks[-1]
    for size in dict.fromkeys((sizes[0], sizes[-1])):  # beside a pass of one text retrieval weighs most
        found[f"tasks/{size}/{chosen[0]}/{chosen[1]}"] = lambda n=(size, *chosen): task_ways(given, *n)
    if given.training:
        most = sizes[-1], *chosen
        found["training/" + "/".join(map(str, most))] = lambda: training_ways(given, *most)
    return found


def peaks(made: dict[str, Callable[[], Ways]]) -> dict[str, dict[str, float]]:
    """MiB of every way, after a first time that allocates what stays."""
    found: dict[str, dict[str, float]] = {}
    for cell, make in made.items():
        found[cell] = {}
        for name, way in make().items():
            way()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            found[cell][name] = peak_rise(way) / 2**20
    return found


def peaks_of_own_process() -> dict[str, dict[str, float]]:
    """`peaks` where freed blocks go back to the system at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, *sys.argv, "--variant", "peaks"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    measured: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(ways: Ways, floor: str, repeats: int, peak: dict[str, float]) -> dict[str, Any]:
    """Seconds, ratios and memory of ways side by side."""
    seconds = interleaved(ways, repeats)
    results = {}
    for name in ways:
        middle, low, high = ratio(seconds[name], seconds[floor])
        results[name] = {
            "seconds": spread(seconds[name]),
            f"ratio_to_{floor.replace(' ', '_')}": {"median": middle, "lower_quartile": low, "upper_quartile": high},
            "peak_mebibytes": peak.get(name),
        }
        if name == ENCODER:
            results[name]["share_with_ours"] = encoder_share(seconds[ENCODER], seconds[OURS])
        if OURS in ways:
            results[name]["ours_by_this"] = ratio(seconds[OURS], seconds[name])[0]
    return results


def encoder_share(encoding: Sequence[float], ours: Sequence[float]) -> float:
    """The median share of the encoder in the time from a text to its answer."""
    return median(each / (each + other) for each, other in zip(encoding, ours, strict=True))


def row(name: str, found: dict[str, Any]) -> list[str]:
    """A line of `show`."""
    times = next(value for key, value in found.items() if key.startswith("ratio_to_"))
    peak = found["peak_mebibytes"]
    return [
        name + (f" ({100 * found['share_with_ours']:.0f} % of both)" if "share_with_ours" in found else ""),
        f"{1000 * found['seconds']['median']:.2f} ms",
        f"{times['median']:.3f} [{times['lower_quartile']:.3f}, {times['upper_quartile']:.3f}]",
        f"{found['ours_by_this']:.3f}" if "ours_by_this" in found else "",
        "" if peak is None else f"{peak:.1f} MiB",
    ]


def main() -> None:
    given = arguments(
        __doc__ or "",
        size="minilm",
        encoder="minilm",
        length=64,
        batches="1,8,32",
        top_k="1,2,4",
        ranks="4,12",
        tasks="5,50,500",
        peft=True,
        training=True,
        memory=True,
        variant="",
    )
    transformers.logging.set_verbosity_error()
    made = cells(given)
    if given.variant:  # all ways once more, in a process of its own
        print(json.dumps(peaks(made)))
        return
    peak = peaks_of_own_process() if given.memory and sys.platform == "linux" else {}
    results: dict[str, Any] = {}
    tables: dict[str, list[list[str]]] = {}
    for cell, make in made.items():
        table, *setting = cell.split("/")
        ways = make()
        floor = next(iter(ways))
        equal = {"greatest_difference_of_equal_ways": check(ways)} if table == "forward" else {}
        found = measure(ways, floor, given.repeats, peak.get(cell, {})) | equal
        results.setdefault(table, {})["batch {}, K {}, r {}".format(*setting)] = found
        mark = "batch {}, K {}, r {}: ".format(*setting)
        tables.setdefault(table, []).extend(row(mark + name, found[name]) for name in ways)
    for table, rows in tables.items():
        columns = (table, "median", "x first [quartiles]", "ours / this", "peak rise")
        show(f"{given.size}, {given.length} tokens, {given.threads} threads", columns, rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
