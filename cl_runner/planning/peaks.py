"""The peak memory of every phase: what stays there is added up, what a pass allocates is measured on an imitation.

Memory is what the process (on a GPU: its allocator) holds.
"""

from __future__ import annotations

from cl_runner.planning.alike import Cost
from cl_runner.planning.disk import kept_examples_bytes
from cl_runner.planning.imitation import Device
from cl_runner.planning.prices import Prices
from cl_runner.planning.setting import Setting, TaskNumbers

#: glibc's heap grows beyond what lives in it while a pass keeps and frees tensors by turns: 1.15 to 1.45 times where
#: that was measured, on MiniLM; language models that read prompts: 1.2 to 1.8.
HEAP_SHARE = 1.35
PROMPT_HEAP_SHARE = 1.75


def phases(s: Setting) -> list[str]:
    """The phases of a run that take memory of their own, training by stage."""
    training = [task for task in s.tasks if task.trains != "nothing"]
    return [
        "load",
        *(["importance"] if any(task.measured for task in s.tasks) else []),
        *(["queries", "keys"] if s.encoder is not None else []),
        *dict.fromkeys(f"train {task.stage}" for task in training),
        *(["select"] if any(task.validated for task in training) else []),
        *(["answers"] if s.asked else []),
        "evaluate",
        *(["probe"] if s.probes else []),
    ]


def held_bytes(prices: Prices, s: Setting, base_bytes: int) -> tuple[int, int]:
    """What is there between two steps of the task that holds most, whatever passes take beside it.

    Returns:
        All of it, and that of it which the methods hold.
    """
    entries = prices.architecture.parameters(s)
    fixed = base_bytes + (entries * s.dtype.itemsize + 4 * s.stored) * (2 if s.restart else 1)
    of_methods = s.needs.weight_bytes * entries // s.shards + s.memory_bytes
    tasks = [task for task in s.tasks if task.trains != "nothing"]
    found = [(_held(prices, s, task), _held_while_training(prices, s, task)) for task in tasks]
    held, own = max(found, default=(0, 0))
    return fixed + of_methods + held, of_methods + own


def peak_bytes(prices: Prices, s: Setting, phase: str, base_bytes: int) -> int:
    """Peak of one of `phases`.

    Args:
        base_bytes: of the process before there is a model; on a GPU 0, as its allocator counts.
    """
    architecture = prices.architecture
    entries = architecture.parameters(s)
    copies = 2 if s.restart else 1
    fixed = base_bytes + (entries * s.dtype.itemsize + 4 * s.stored) * copies
    whole = entries * s.dtype.itemsize
    part = whole // s.shards if s.shards > 1 else 0  # of one process, beside the whole
    fixed += part
    if s.always:
        if phase == "load" and s.device == "cpu":  # of the first process, which reads all of it
            return base_bytes + whole + s.dtype.itemsize * max(architecture.blocks(s))
        fixed += _sharded_weights(prices, s) - whole - part
    if phase == "load":
        return fixed + 4 * s.stored  # tasks' values, before they lie in one tensor
    if s.encoder is not None:
        fixed += 4 * (s.encoder.entries + (s.encoded * s.encoder.query if s.device == "cpu" else 0))
        if phase == "queries":
            return fixed + _held_by_pass(prices.encode(s, s.encoder), s.device)
        if phase == "keys":
            return fixed
    fixed += s.needs.weight_bytes * entries // s.shards + s.memory_bytes
    training = [task for task in s.tasks if task.trains != "nothing"]
    if phase.startswith("train "):
        if s.shards > 1 and not s.always:
            fixed -= part + whole - _sharded_weights(prices, s)
        return fixed + max(_training(prices, s, task) for task in training if phase == f"train {task.stage}")
    if phase == "select":
        return _between_epochs(prices, s, fixed)
    training_holds = _between_epochs(prices, s, fixed) if any(task.curve[0] for task in training) else 0
    # What the methods held for a task is there until they hold it for the next one.
    fixed += max((_held_by_methods(prices, s, task) for task in s.tasks), default=0)
    if phase == "evaluate":
        answers = fixed + kept_examples_bytes(s) + max(_evaluation(prices, s), _local(prices, s))
        return max(answers, training_holds)
    if phase == "answers":
        return fixed + _evaluation(prices, s.asking())
    if phase == "probe":
        costs = [cost for probe in s.probes for cost in prices.probe(s, probe)]
        return fixed + max(_held_by_pass(cost, s.device, PROMPT_HEAP_SHARE) for cost in costs)
    measured = architecture.measured(s)
    work = _held_by_pass(prices.importance(s), s.device)
    mean = s.needs.mean_bytes * sum(measured.values()) // (s.shards if s.always else 1)
    # The mean comes after the pass, whose memory only a GPU's allocator uses again for tensors of that size.
    if s.device == "cpu":
        return fixed + sums_bytes(prices, s) + work + mean
    # What lies in main memory is ranked tensor after tensor: its score, one of its sums, and what is made of that.
    return fixed + max(sums_bytes(prices, s) + max(work, mean), 12 * max(measured.values()))


def _held_by_pass(cost: Cost, device: Device, share: float = HEAP_SHARE) -> int:
    """Bytes that the process holds for what lives in a pass."""
    return round(share * cost.peak_bytes) if device == "cpu" else cost.peak_bytes


def _between_epochs(prices: Prices, s: Setting, fixed: int) -> int:
    """Bytes of an evaluation in the middle of a task."""
    holds = max(_held(prices, s, task) for task in s.tasks if task.trains != "nothing")
    return fixed + holds + _evaluation(prices, s)


def _evaluation(prices: Prices, s: Setting) -> int:
    """Bytes that the largest pass of an evaluation takes."""
    costs = [cost for stages in prices.evaluate(s).values() for cost in stages]
    share = HEAP_SHARE if s.answers is None else PROMPT_HEAP_SHARE
    return max(_held_by_pass(cost, s.device, share) for cost in costs)


def _local(prices: Prices, s: Setting) -> int:
    """Bytes that steps before an answer take: what is held of the weights that train, and a pass."""
    adapting, local = s.adapting(), s.needs.local
    if adapting is None or local is None:
        return 0
    adapted, task = adapting
    held = local.entry_bytes * prices.architecture.trained(s, task)
    return held + _held_by_pass(prices.train(adapted, task), s.device)


def sums_bytes(prices: Prices, s: Setting) -> int:
    """Bytes of the sums of the importance pass on the run's device (cl_runner/sparse/importance.py)."""
    sizes = prices.architecture.measured(s)
    of_a_weight = s.needs.sums * s.needs.sum_item
    if s.always:  # this process's rows of all, and in a pass all of the tensors that it is for
        entries = sum(sizes.values())
        return of_a_weight * (entries // s.shards + max(*sizes.values(), entries // max(s.passes, s.shards)))
    if s.device == "cpu" or (s.accumulate == "device" and s.passes == 1):
        return of_a_weight * sum(sizes.values())
    largest = max(sizes.values())
    if s.accumulate == "cpu":  # one tensor's at a time
        return of_a_weight * largest
    return of_a_weight * max(largest, sum(sizes.values()) // s.passes)


def in_main_memory(prices: Prices, s: Setting) -> int:
    """Bytes of a run on a GPU that lie in main memory: sums of importance, or what the optimizer holds."""
    sums = 0
    if s.device == "cuda" and not s.always and (s.accumulate == "cpu" or s.passes > 1):
        sums = s.needs.sums * s.needs.sum_item * sum(prices.architecture.measured(s).values())
    held = 0
    for task in s.tasks:
        if _apart(s, task):
            trained = prices.architecture.trained(s, task) // _processes(s, task)
            state = s.optimizer.state_bytes(prices.architecture.shapes(s, task)) // _processes(s, task)
            # Values before the task, copies, gradients, and the best epoch's.
            held = max(held, state + (_item(s, task) + 8 + 4 * s.selects_epoch) * trained)
    return max(sums, held)


def in_first_process(prices: Prices, s: Setting) -> int:
    """Bytes of main memory that the first of several processes takes for weights in parts, which it reads for all."""
    return prices.architecture.parameters(s) * s.dtype.itemsize


def _apart(s: Setting, task: TaskNumbers) -> bool:
    """Whether what the optimizer holds for a task lies in main memory."""
    return s.offload and task.trains in ("all", "listed")


def _sharded_weights(prices: Prices, s: Setting) -> int:
    """Bytes of the weights of one process of several, in a pass: its part, and what is whole for a while.

    Those are a block and the next one, and what lies outside of all blocks.
    """
    block, outside = prices.architecture.blocks(s)
    return s.dtype.itemsize * (prices.architecture.parameters(s) // s.shards + 2 * block + outside)


def _processes(s: Setting, task: TaskNumbers) -> int:
    """Over how many processes lies what belongs to the weights that train."""
    return s.shards if task.trains in ("all", "listed") else 1


def _held_by_methods(prices: Prices, s: Setting, task: TaskNumbers) -> int:
    """Bytes that the methods hold for a task, apart from those for all weights."""
    kept = prices.architecture.kept_bytes(s, task)
    if not task.later:
        return kept
    trained = prices.architecture.trained(s, task) // _processes(s, task)
    return kept + s.needs.entry_bytes * trained + s.needs.example_bytes * task.examples


def _held_while_training(prices: Prices, s: Setting, task: TaskNumbers) -> int:
    """The same, and what they hold until the task is over."""
    trained = prices.architecture.trained(s, task) // _processes(s, task)
    return _held_by_methods(prices, s, task) + s.needs.task_bytes * trained


def _held(prices: Prices, s: Setting, task: TaskNumbers) -> int:
    """What training a task adds to the weights and to what the methods hold for good, between two steps."""
    trained, item = prices.architecture.trained(s, task) // _processes(s, task), _item(s, task)
    if _apart(s, task):  # but for their values before the task, where rows of weights have them or a pass needs them
        before = _processes(s, task) > 1 or s.needs.teacher is not None
        return item * trained * before + _held_while_training(prices, s, task)
    held = item * trained  # their values before the task
    held += s.optimizer.state_bytes(prices.architecture.shapes(s, task)) // _processes(s, task)
    held += _held_while_training(prices, s, task)
    if s.selects_epoch:
        held += 4 * trained  # their best values so far
    if task.trains == "selected":
        return held + (4 + 8) * trained  # current values and positions
    return held + (4 * trained if item < 4 else 0)  # fp32 copies


def _item(s: Setting, task: TaskNumbers) -> int:
    """Bytes of an entry that trains, in the model."""
    return 4 if task.trains == "retrieved" else s.dtype.itemsize


def _training(prices: Prices, s: Setting, task: TaskNumbers) -> int:
    """What training a task adds at its peak: in a pass, or in a method's or the optimizer's work on gradients."""
    trained, largest = prices.architecture.trained(s, task), prices.architecture.largest(s, task)
    passes = [s, s.reciting()] if s.needs.recites else [s]
    step = max(_held_by_pass(prices.train(one, task), s.device) for one in passes)
    if _processes(s, task) > 1:  # of gradients a process keeps its part; those of a block are whole for a while
        block, outside = prices.architecture.blocks(s)
        whole = trained
        trained, largest = whole // s.shards, min(largest, -(-largest // s.shards))
        step = max(0, step - 4 * (whole - trained)) + (s.dtype.itemsize + 4) * max(block, outside)
    if task.trains == "selected":
        step += 4 * trained  # gradients of the values
    if _apart(s, task):
        return _held(prices, s, task) + step
    penalty = 4 * (trained + 3 * largest) if task.later and (s.needs.entry_bytes or s.needs.directions) else 0
    if s.needs.writes is not None:
        step = max(step, _evaluation(prices, s.writing()))
    update = 4 * trained + s.optimizer.room(trained, largest, on_gpu=s.device == "cuda")
    return _held(prices, s, task) + max(step, penalty, update)
