"""The work of every phase, and the time that it takes on a device of known speed."""

from __future__ import annotations

import dataclasses
from statistics import fmean

from cl_runner.needs import ProbePass
from cl_runner.planning.alike import Cost
from cl_runner.planning.prices import Prices
from cl_runner.planning.setting import Setting
from cl_runner.planning.speed import Speed
from cl_runner.retrieval.encoder import AT_ONCE

#: Bytes per second of a server's main memory, and of what joins it to a GPU: no calibration tells them.
MAIN_MEMORY, LINK = 5e10, 1.2e10
#: Examples that a task's importance costs beyond its own: one is measured in both ways, and both are compared.
COMPARED = 3
#: Bytes that are read and written to score an entry and to find out whether it is selected.
SELECTION = 160


def work(s: Setting) -> dict[str, tuple[int, float]]:
    """Examples of each phase, and the tokens they hold with their padding.

    Of a generated answer the tokens count that it is expected to have (`Answers.mean_generated`).
    """
    training = [task for task in s.tasks if task.trains != "nothing"]
    answered = s.mean_length + (0.0 if s.answers is None else s.answers.mean_generated)
    examples = {
        "importance": sum(task.measured for task in s.tasks),
        "train": sum(task.passed for task in training),
        "select": sum(task.validated for task in training),
        "evaluate": s.evaluated,
    }
    length = {
        "importance": s.measuring().mean_whole,
        "train": s.learning().mean_whole,
        "evaluate": answered,
        "select": answered,
    }
    if s.asked:
        of_answers = 0.0 if s.asked_answers is None else s.asked_answers.mean_generated
        examples["answers"], length["answers"] = s.asked, s.mean_length + of_answers
    if s.probes:
        times = {probe: 1 if probe.once else len(s.tasks) + 1 for probe in s.probes}
        read = {probe: s.mean_whole if probe.tokens is None else probe.tokens for probe in s.probes}
        texts = sum(probe.texts * number for probe, number in times.items())
        tokens = sum(probe.texts * number * (read[probe] + probe.generated) for probe, number in times.items())
        examples["probe"], length["probe"] = texts, tokens / max(1, texts)
    r = s.needs.retrieves
    if r is not None:
        examples |= {"queries": s.encoded, "keys": sum(r.key_epochs(task.examples) * task.examples for task in s.tasks)}
        length |= {"queries": min(s.mean_length, s.encoder_length), "keys": 0.0}  # of vectors
    return {phase: (number, number * length.get(phase, s.mean_whole)) for phase, number in examples.items()}


def seconds(prices: Prices, s: Setting, speed: Speed) -> dict[str, float]:
    """Seconds of each phase on a device as fast as `speed`.

    Where answers are generated, as if they had the tokens that they are expected to have (`Answers.mean_generated`).
    """
    evaluation = _evaluation(prices, s, speed)
    validated = work(s)["select"][0]
    found = {
        "train": _training(prices, s, speed),
        "importance": _importance(prices, s, speed),
        "evaluate": evaluation + _local(prices, s, speed),
        "select": evaluation * validated / s.evaluated if validated else 0.0,
    }
    if s.asked:
        asking = s.asking()
        found["answers"] = _evaluation(prices, asking, speed)
        if s.needs.asks is not None and s.needs.asks.reads:
            read = ProbePass("", s.asked, None, 0, asking.evaluation_batch)
            found["answers"] += _probe(prices, s, speed, read)
    if s.probes:
        found["probe"] = sum(
            _probe(prices, s, speed, probe) * (1 if probe.once else len(s.tasks) + 1) for probe in s.probes
        )
    r = s.needs.retrieves
    if r is not None and s.encoder is not None:
        share = min(1.0, s.mean_length / s.encoder_length)
        passes = s.encoded / min(AT_ONCE, s.encoded)
        found["queries"] = speed.seconds(prices.encode(s, s.encoder), share) * passes
        steps = sum(r.key_epochs(task.examples) * -(-task.examples // r.key_batch_size) for task in s.tasks)
        found["keys"] = speed.seconds(s.encoder.key_step) * steps
    return found


def _share(s: Setting) -> float:
    """Of the cost at the greatest length."""
    return s.mean_whole / s.max_whole


def _training(prices: Prices, s: Setting, speed: Speed) -> float:
    found = 0.0
    for task in s.tasks:
        if task.trains != "nothing":
            passes = [s, s.reciting()] if s.needs.recites else [s]
            of_a_pass = fmean(speed.seconds(prices.train(one, task), _share(one.learning()), "train") for one in passes)
            found += of_a_pass * task.passed / s.pass_size(task)
            trained = prices.architecture.trained(s, task)
            if s.offload and task.trains in ("all", "listed"):  # and every weight and gradient is sent
                found += task.steps * trained * (s.optimizer.traffic / MAIN_MEMORY + 2 * s.dtype.itemsize / LINK)
            else:
                found += task.steps * s.optimizer.traffic * trained / speed.streams
    return found if s.needs.writes is None else found + _evaluation(prices, s.writing(), speed)


def _importance(prices: Prices, s: Setting, speed: Speed) -> float:
    """Of the passes, and of what is selected by them."""
    examples = sum(task.measured for task in s.tasks)
    if not examples:
        return 0.0
    s, architecture = s.measuring(), prices.architecture
    measured = architecture.measured(s)
    size = s.importance_pass
    # Each example's (or micro-batch's) weight gradients are formed, squared and added by themselves.
    entries = architecture.in_products(s, measured) if s.per_example else sum(measured.values())
    products = 2 * entries * s.mean_whole if s.per_example else 0.0
    traffic = (4 + 2 * s.needs.sums * s.needs.sum_item) * entries / s.importance_micro_batch
    of_example = (
        speed.seconds(prices.importance(s), _share(s), "importance") / size
        + products / speed.flops_per_second / speed.share("importance")
        + traffic / speed.streams
    )
    # T5's table of positions has no rule for batches: the pass goes through single examples as well.
    if s.per_example and any(name.endswith("relative_attention_bias.weight") for name in measured):
        single = prices.importance(dataclasses.replace(s, importance_batch=1))
        of_example += speed.seconds(single, _share(s), "importance")
    measuring = sum(task.measured > 0 for task in s.tasks)
    found = s.passes * (examples + (COMPARED * measuring if size > 1 else 0)) * of_example
    selecting = sum(task.measured > 0 and task.trains == "selected" for task in s.tasks)
    return found + selecting * SELECTION * sum(s.needs.candidates.values()) / speed.streams


def _evaluation(prices: Prices, s: Setting, speed: Speed) -> float:
    share = s.mean_length / s.max_length
    ways = prices.evaluate(s)
    if s.answers is None:
        return speed.seconds(ways["forward"][0], share, "read") * s.evaluated / s.evaluation_batch
    found = 0.0
    if "generate" in ways:
        prompt, _, token = ways["generate"]
        written = s.evaluated - s.answers.by_label
        tokens = s.answers.mean_generated * s.evaluated / written
        found += speed.seconds(prompt, share, "read") * written / s.evaluation_batch
        batches = s.batches(written)
        found += tokens * _token(prices, s, speed, token, written / batches / s.evaluation_batch) * batches
    if "labels" in ways:
        prompt, *labels = ways["labels"]
        of_a_batch = speed.seconds(prompt, share, "read") + sum(speed.seconds(label, 1.0, "read") for label in labels)
        found += of_a_batch * s.answers.by_label / s.evaluation_batch
    return found


def _local(prices: Prices, s: Setting, speed: Speed) -> float:
    """Of the steps before answers."""
    adapting, local = s.adapting(), s.needs.local
    if adapting is None or local is None:
        return 0.0
    adapted, task = adapting
    passes = local.examples / adapted.pass_size(task)
    of_a_step = speed.seconds(prices.train(adapted, task), _share(s), "train") * passes
    of_a_step += local.entry_bytes * prices.architecture.trained(s, task) / speed.streams
    return s.adapted * local.steps * of_a_step


def _token(prices: Prices, s: Setting, speed: Speed, token: Cost, share: float = 1.0) -> float:
    """Seconds of one more token of each text of a batch: the pass, and the weights, which longer ones read beside.

    Args:
        share: of a full batch that there is.
    """
    read = s.dtype.itemsize * prices.architecture.parameters(s) / speed.streams
    return speed.seconds(token, share, "token") + read / speed.share("token") + speed.seconds_per_token


def _probe(prices: Prices, s: Setting, speed: Speed, probe: ProbePass) -> float:
    """Seconds of one measurement."""
    first, *rest = prices.probe(s, probe, at_mean=True)
    of_a_batch = speed.seconds(first, 1.0, "probe" if probe in s.probes and not rest else "read")
    if rest:
        of_a_batch += probe.generated * _token(prices, s, speed, rest[-1])
    return of_a_batch * probe.texts / probe.batch_size
