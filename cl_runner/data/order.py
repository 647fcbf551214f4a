"""The steps of a task order with their definitions, and how many examples of each split they want."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cl_runner.config import OrderedTask, TaskDefinition, TaskOrder
from cl_runner.data.places import nearest
from cl_runner.statistics.orders import arrangement

Split = Literal["train", "validation", "test"]
#: The order in which splits that share one source are drawn from it.
DRAWN: tuple[Split, ...] = ("test", "validation", "train")


@dataclass(frozen=True, slots=True)
class Plan:
    """One step of the order with its definition, and how many examples of each split it wants."""

    index: int
    listed: int  # its place where the configuration lists the tasks, which a balanced order changes
    task: OrderedTask
    name: str  # of the definition
    definition: TaskDefinition
    counts: dict[Split, int | None]
    data_seed: int
    variant: str | int | None

    @property
    def domains(self) -> list[str]:
        return self.task.domains or [self.task.name]

    def key(self, split: Split) -> str:
        """The configuration key of a count."""
        if self.task.counts is not None:
            return f"task_order.tasks.{self.listed}.counts.{split}"
        return f"task_order.{'incremental' if self.index else 'base'}.{split}"

    def shares(self, split: Split) -> list[int | None]:
        """The examples of each domain, as equal as possible, the remainder to the first ones; None = all."""
        count, domains = self.counts[split], len(self.domains)
        if count is None:
            return [None] * domains
        return [count // domains + (position < count % domains) for position in range(domains)]


def listed_place(order: TaskOrder, index: int) -> int:
    """Where the configuration lists the task that comes as number `index`: what is typed of one task names that."""
    return arrangement(len(order.tasks), order.balanced, order.fixed)[index]


def plans_of(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[Plan]:
    """The steps of an order, checked as far as they can be before data are read.

    Raises:
        ValueError: the first mistake, with what to type.
    """
    if not order.tasks:
        raise ValueError("the task order has no tasks. Choose one: task_order=reviews")
    names = [task.name for task in order.tasks]
    found = []
    for index, task in enumerate(order.tasks):
        if names.count(task.name) > 1:
            raise ValueError(
                f"the task order has two tasks named {task.name!r}; call one of them "
                f"{{name: {task.name}_2, domains: [{task.name}]}}"
            )
        for domain in task.domains:
            if task.domains.count(domain) > 1:
                raise ValueError(f"task {task.name!r} lists the domain {domain!r} twice; leave one out")
        name = task.task or order.task
        if name not in definitions:
            raise ValueError(
                f"task {task.name!r} uses the definition {name!r}, which is not loaded; "
                f"loaded: {', '.join(definitions) or 'none'}.{nearest(name, definitions)} "
                f"Type: task=[{','.join([*definitions, name])}]"
            )
        noise = definitions[name].label_noise
        if noise > 0 and definitions[name].source != "generated":
            raise ValueError(
                f"task.{name}.label_noise={noise:g}: label noise is for the generated benchmark only, and task.{name} "
                f"has source={definitions[name].source}. Type: task.{name}.label_noise=0"
            )
        _check_read(definitions[name], name)
        if definitions[name].balance and definitions[name].labels is None:
            raise ValueError(
                f"task.{name}.balance=true draws equally many examples of every label, but task.{name}.labels is null: "
                f"any text is an answer. Type: task.{name}.balance=false"
            )
        counts = task.counts or (order.incremental if index else order.base)
        wanted: dict[Split, int | None] = {
            "train": counts.train,
            "validation": counts.validation,
            "test": counts.test,
        }
        listed = listed_place(order, index)
        found.append(Plan(index, listed, task, name, definitions[name], wanted, order.data_seed, order.variant))
    return found


#: Options of a definition -> the sources that read them, and the value that says nothing.
_READ_BY: dict[str, tuple[tuple[str, ...], object]] = {
    "path": (("files", "hub"), None),  # a definition may serve both
    "grammar": (("generated",), "full"),
    "delimiter": (("files",), None),
    "quoting": (("files",), None),
    "header": (("files",), True),
    "encoding": (("files",), None),
    "missing_fields": (("files", "hub"), "refuse"),
    "convert": (("files", "hub"), None),
    "max_rows": (("files", "hub"), None),
}


def _check_read(definition: TaskDefinition, name: str) -> None:
    """Nothing is said of how a source is read that this source does not read."""
    for option, (sources, silent) in _READ_BY.items():
        value = getattr(definition, option)
        if definition.source not in sources and value != silent:
            nothing = "null" if silent is None else str(silent).lower()
            raise ValueError(
                f"task.{name}.{option} says something of source={' and '.join(sources)} alone, and task.{name} has "
                f"source={definition.source}. Type: task.{name}.{option}={nothing}"
            )


def origins_of(plan: Plan) -> dict[Split, str]:
    """Our split -> the source's own name for it, of the wanted splits in drawing order.

    Raises:
        ValueError: examples are wanted of a split that the definition does not have.
    """
    origins: dict[Split, str] = {}
    for split in DRAWN:
        count, origin = plan.counts[split], plan.definition.splits.get(split)
        if count != 0 and origin is not None:
            origins[split] = origin
        elif count or (count is None and split != "validation"):
            raise ValueError(
                f"task.{plan.name} has no {split} split, but {plan.key(split)} asks for {count or 'all'} "
                f"of it. Type: {plan.key(split)}=0, or say where to draw it from: "
                f"task.{plan.name}.splits.{split}=SPLIT"
            )
    return origins
