"""What a run does otherwise than the cell of a published table: data, cut, order, metric, epochs, backbone, options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_runner.overrides import written
from cl_runner.papers.published import Protocol
from cl_runner.papers.settings import defaults, said
from cl_runner.report.folder import Run

#: Before a key that a run does not say.
UNSAID = "not said by the run: "
#: Keys of a backbone that its name tells, or that change no number.
_NAMED = ("name", "family", "checkpoint", "revision", "package", "weights_sha256", "architecture", "tokenizer")
#: Keys of an evaluation and of training that change no number of the last row.
_IDLE = ("evaluation.batch_size", "evaluation.tasks", "evaluation.bertscore")
_EPOCHS = ("training.base.epochs", "training.incremental.epochs", "training.select")
#: Keys of a task's definition that say how its answers are scored.
_SCORING = ("metrics", "released_metrics", "download")


def differences(
    runs: Sequence[Run], setting: Mapping[str, Any], protocol: Protocol, measure: str, among: bool = True
) -> tuple[str, ...]:
    """What sets runs apart from a cell, in words; empty where nothing does.

    Args:
        runs: that differ in nothing but the seed.
        setting: what the cell's command composes.
        protocol: of the cell; its numbers come before those of the setting.
        among: whether the order of the runs is one of the table's.
    """
    run = runs[0]
    found = [
        *_backbone(run, setting),
        *_data(run, setting),
        *_cut(run, setting, protocol),
        *_order(run, setting, among),
        *_metric(run, setting, protocol),
        *_epochs(run, setting, protocol),
        *_of_tasks(run, setting),
        *_selection(run, setting, protocol),
        *_keys(run, setting, "evaluation", _IDLE),
        *_keys(run, setting, "training", (*_EPOCHS, "training.base.micro_batch", "training.incremental.micro_batch")),
        *_keys(run, setting, "method", ()),
        *_keys(run, setting, "importance", ("importance.cache_gb",)),
    ]
    precision = [_value(each, "hardware", "precision") for each in (run.config, setting)]
    if None not in precision and precision[0] != precision[1]:
        found.append(f"hardware.precision {precision[0]}, not {precision[1]}")
    if measure.startswith("ability/"):
        probe = measure.split("/")[1]
        found += [text for text in _keys(run, setting, "probe", ()) if f"probe.{probe}." in text]
    if protocol.seeds is not None and len(runs) < protocol.seeds:
        found.append(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, not {protocol.seeds}")
    silent = [text.removeprefix(UNSAID) for text in found if text.startswith(UNSAID)]
    plain = [text for text in found if not text.startswith(UNSAID)]
    return (*plain, UNSAID + ", ".join(silent)) if silent else tuple(plain)


def distance(run: Run, setting: Mapping[str, Any]) -> tuple[int, int, int]:
    """How far a run is from a setting: parts of methods that only one of them has, options that differ, all that does.

    A part is there or not as its option is anything or nothing (0, false, null, empty): without its local steps
    `mbpa` is replay.
    """
    ours, theirs = said(run.config, "method"), said(setting, "method")
    parts = sum(bool(ours[key]) != bool(theirs[key]) for key in ours if key in theirs)
    of_methods = len(list(_keys(run, setting, "method", ())))
    others = sum(len(list(_keys(run, setting, part, _IDLE))) for part in ("training", "evaluation", "importance"))
    return parts, of_methods, others + len(list(_backbone(run, setting)))


def names(config: Mapping[str, Any]) -> list[str]:
    """The tasks of an order."""
    return [str(task["name"]) for task in config["task_order"]["tasks"]]


def _value(config: Mapping[str, Any], part: str, key: str) -> Any:
    node = config.get(part)
    return node.get(key) if isinstance(node, Mapping) else None


def _keys(run: Run, setting: Mapping[str, Any], part: str, idle: Sequence[str]) -> Iterator[str]:
    """Keys of a part that have other values. What a run of an earlier version does not say is as it was by default."""
    ours, theirs = said(run.config, part), said(setting, part)
    for key in dict.fromkeys([*theirs, *ours]):
        if any(key == each or key.startswith(f"{each}.") for each in idle):
            continue
        if key not in ours:
            if theirs[key] and theirs[key] != defaults().get(key):
                yield f"{UNSAID}{key}"
        elif key not in theirs:
            if ours[key] and ours[key] != defaults().get(key):
                yield f"{key} {_short(ours[key])}"
        elif not _same(ours[key], theirs[key]):
            yield f"{key} {_short(ours[key])}, not {_short(theirs[key])}"


def _same(one: Any, other: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    return float(one) == float(other) if numbers else bool(one == other)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else written(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _backbone(run: Run, setting: Mapping[str, Any]) -> Iterator[str]:
    ours, theirs = run.config["backbone"], setting["backbone"]
    if ours["name"] != theirs["name"]:
        yield f"backbone {run.backbone}, not {theirs['name']}"
    elif ours.get("checkpoint", theirs["checkpoint"]) != theirs["checkpoint"]:
        yield f"backbone.checkpoint {ours['checkpoint']}, not {theirs['checkpoint']}"
    yield from _keys(run, setting, "backbone", [f"backbone.{key}" for key in _NAMED])


def _definitions(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Task -> its definition, wherever the data lie."""
    order, flat = config["task_order"], said(config, "task")
    found = {}
    for task in order["tasks"]:
        start = f"task.{task.get('task') or order.get('task')}."
        content = {key.removeprefix(start): value for key, value in flat.items() if key.startswith(start)}
        found[str(task["name"])] = content | {"domains": task.get("domains")}
    return found


def _data(run: Run, setting: Mapping[str, Any]) -> Iterator[str]:
    ours, theirs = _definitions(run.config), _definitions(setting)
    differ: dict[str, list[str]] = {}
    for task in ours:
        if task not in theirs:
            continue
        for key in ("source", "dataset", "path"):
            one, other = ours[task].get(key), theirs[task].get(key)
            if one != other and (one or other):
                differ.setdefault(f"{key} {_short(one)}, not {_short(other)}", []).append(task)
                break
        else:
            for key in theirs[task]:
                told = key in ours[task] or theirs[task][key]
                if told and key.partition(".")[0] not in _SCORING and ours[task].get(key) != theirs[task][key]:
                    text = f"{key} {_short(ours[task].get(key))}, not {_short(theirs[task][key])}"
                    differ.setdefault(text, []).append(task)
    for text, tasks in list(differ.items())[:4]:
        yield f"data of {_few(tasks)}: {text}"
    if len(differ) > 4:
        yield f"data: {len(differ) - 4} more keys of the definitions"
    both = [_value(config, "task_order", "variant") for config in (run.config, setting)]
    if both[0] != both[1]:
        yield f"task_order.variant {_short(both[0])}, not {_short(both[1])}"


def _few(tasks: Sequence[str]) -> str:
    return ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")


def _cut(run: Run, setting: Mapping[str, Any], protocol: Protocol) -> Iterator[str]:
    trained = {str(task.get("name")): task.get("train_examples") for task in run.details}
    for key, words, found, published in (
        ("train", "training", trained, protocol.train),
        ("test", "test", dict(run.summary.get("test_examples", {})), protocol.test),
    ):
        wanted = _counts(setting, key, published, run.tasks)
        pairs = [(count, wanted.get(task)) for task, count in found.items()]
        known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        if any(ours != theirs for ours, theirs in known):
            ours_text, theirs_text = (_amounts([pair[place] for pair in known]) for place in (0, 1))
            yield f"cut: {words} examples {ours_text}, not {theirs_text}"
    draws = [_value(config, "task_order", "data_seed") for config in (run.config, setting)]
    if None not in draws and draws[0] != draws[1]:
        yield f"task_order.data_seed {draws[0]}, not {draws[1]}"


def _counts(setting: Mapping[str, Any], key: str, published: Any, tasks: Sequence[str]) -> dict[str, int | None]:
    """Examples of each task: as published, or else as the setting asks for; None where neither says it."""
    found: dict[str, int | None] = {}
    asked = {str(task["name"]): task.get("counts") for task in setting["task_order"]["tasks"]}
    for place, task in enumerate(tasks):
        part = "incremental" if place else "base"
        if isinstance(published, Mapping) and published:
            found[task] = published.get(task, published.get(part))
        elif isinstance(published, int):
            found[task] = published
        else:
            found[task] = (asked.get(task) or setting["task_order"].get(part) or {}).get(key)
    return found


def _amounts(counts: Sequence[int]) -> str:
    """Numbers of examples of tasks in their order, in short."""
    if len(set(counts)) == 1:
        return f"{counts[0]:,} a task"
    if len(set(counts[1:])) == 1:
        return f"{counts[0]:,} and then {counts[1]:,} a task"
    return " ".join(f"{count:,}" for count in counts)


def _order(run: Run, setting: Mapping[str, Any], among: bool) -> Iterator[str]:
    ours, theirs = names(run.config), names(setting)
    if ours != theirs:
        yield (
            f"order {' '.join(ours)}, not {' '.join(theirs)}"
            if among
            else f"order {' '.join(ours)}, none of the table's"
        )
    for key, words in (("joint", "jointly"), ("restart", "each task alone")):
        flags = [bool(config["task_order"].get(key)) for config in (run.config, setting)]
        if flags[0] != flags[1]:
            yield f"{'' if flags[0] else 'not '}{words}"


def scored_by(config: Mapping[str, Any]) -> dict[str, str]:
    """The metric of each task, by a configuration."""
    scoring = (config.get("evaluation") or {}).get("scoring", "standard")
    order = config["task_order"]
    found = {}
    for task in order["tasks"]:
        definition = config["task"].get(task.get("task") or order.get("task")) or {}
        metrics = (definition.get("released_metrics") or {}).get(scoring) or definition.get("metrics") or ["accuracy"]
        found[str(task["name"])] = str(metrics[0])
    return found


def _metric(run: Run, setting: Mapping[str, Any], protocol: Protocol) -> Iterator[str]:
    theirs = scored_by(setting)
    ours = run.scored_by
    known = set(theirs.values())
    published = protocol.metric if protocol.metric in known else ""
    differ = {task: (ours[task], published or theirs[task]) for task in ours if task in theirs}
    differ = {task: pair for task, pair in differ.items() if pair[0] != pair[1]}
    for pair in dict.fromkeys(differ.values()):
        tasks = [task for task, each in differ.items() if each == pair]
        yield f"metric {pair[0]}, not {pair[1]}" + ("" if len(tasks) == len(ours) else f" (of {_few(tasks)})")
    others = set(ours) - set(theirs)
    if others and len(others) == len(ours) and not set(ours.values()) <= known:
        yield f"metric {', '.join(sorted(set(ours.values())))}, not {', '.join(sorted(known))}"


def _by_task(config: Mapping[str, Any]) -> list[Any]:
    """Epochs of each task; None where a configuration does not say them."""
    training = config.get("training") or {}
    found = []
    for place, task in enumerate(config["task_order"]["tasks"]):
        own = (task.get("training") or {}).get("epochs")
        part = training.get("incremental" if place else "base") or {}
        found.append(part.get("epochs") if own is None else own)
    return found


def _epochs(run: Run, setting: Mapping[str, Any], protocol: Protocol) -> Iterator[str]:
    ours = [number for number in _by_task(run.config) if number is not None]
    theirs = [protocol.epochs] * len(ours) if isinstance(protocol.epochs, int) else _by_task(setting)
    if ours != theirs and not (set(ours) == set(theirs) and len(set(ours)) == 1):
        yield f"epochs {_numbers(ours)}, not {_numbers(theirs)}"


def _of_tasks(run: Run, setting: Mapping[str, Any]) -> Iterator[str]:
    """What single tasks do otherwise than the others, but for their epochs."""
    theirs = {str(task["name"]): task for task in setting["task_order"]["tasks"]}
    for task in run.config["task_order"]["tasks"]:
        for part in ("training", "importance"):
            own, wanted = ((each or {}).get(part) or {} for each in (task, theirs.get(task["name"])))
            keys = [key for key in {**own, **wanted} if key != "epochs" and own.get(key) != wanted.get(key)]
            for key in keys:
                yield f"{part}.{key} of {task['name']} {_short(own.get(key))}, not {_short(wanted.get(key))}"


def _numbers(values: Sequence[Any]) -> str:
    return " ".join(map(str, values if len(set(values)) > 1 else values[:1])) or "not said"


def _selection(run: Run, setting: Mapping[str, Any], protocol: Protocol) -> Iterator[str]:
    ours = _value(run.config, "training", "select") or "last"
    theirs = protocol.selection if protocol.selection in ("last", "best_validation") else setting["training"]["select"]
    if ours != theirs:
        yield f"selection {ours}, not {theirs}"
