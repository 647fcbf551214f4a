"""What a method or a probe needs, in numbers, as it says itself: what `plan` is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cl_runner.config import Encoder, OptimizerName
    from cl_runner.data.task import Task
    from cl_runner.layers.values import Values

#: All weights; selected entries; some tensors as a whole; values that texts retrieve; none.
Trains = Literal["all", "selected", "listed", "retrieved", "nothing"]
#: All data before a task; its own, of a task that selects; its own, when it is over.
Measures = Literal["old_tasks", "new_task", "last_task"]
#: Outputs of other weights, computed for every batch, or logits that were kept.
Teacher = Literal["logits", "probabilities", "log_probabilities", "kept"]


class Added(NamedTuple):
    """Examples and optimizer steps beside those of a task's batches."""

    examples: int
    steps: int = 0


class ProbePass(NamedTuple):
    """Texts that a probe lets the model read, or complete, in one measurement.

    Attributes:
        name: as its progress is called.
        tokens: of a text; None = as many as the tasks' examples have, answers included.
        generated: tokens that each text is completed by, at most; 0 = the text is read alone.
        batch_size: texts of one pass.
        once: only before the first task.
    """

    name: str
    texts: int
    tokens: int | None
    generated: int
    batch_size: int
    once: bool = False


class Lever(NamedTuple):
    """An option, by its whole key, and what of `Needs` is in proportion to it: with a smaller value less is held."""

    key: str
    value: int
    memory_bytes: int
    directions: int


class Asks(NamedTuple):
    """Prompts that the model answers when a task is over, before the next one.

    Attributes:
        texts: (training examples of each task so far, of the next one) -> how many prompts of each are answered.
        batch_size: prompts of one pass.
        reads: whether the answers are read once more, for their probability.
        writes: whether the answers are whole examples, of so many tokens at most; 0 = as long as in training.
            None = they are answers.
    """

    texts: Callable[[Sequence[int], int], Sequence[int]]
    batch_size: int
    reads: bool = False
    writes: int | None = None


class LocalSteps(NamedTuple):
    """Steps that are made before each answer to a question, from the weights as they are, and undone after it.

    Attributes:
        examples: of a step.
        pass_size: of them in one pass, at most.
        steps: before each answer.
        entry_bytes: held per entry that trains.
    """

    examples: int
    pass_size: int
    steps: int
    entry_bytes: int


class Writes(NamedTuple):
    """Answers that the model writes to the prompts of every batch, and learns in place of the data's.

    Attributes:
        tokens: of an answer, at most; None = as many as a test allows.
        batch_size: prompts that are answered at once.
        shown: tokens that the teacher reads beside the prompt.
    """

    tokens: int | None
    batch_size: int
    shown: int


#: (training examples of each task before, examples of each epoch) -> examples of each epoch.
Epochs = Callable[[Sequence[int], Sequence[int]], Sequence[int]]
#: (training examples of each task before, batches of the task, examples in all of them) -> what joins them.
Adds = Callable[[Sequence[int], int, int], Added]
#: Changes an architecture without weights.
Adapts = Callable[["PreTrainedModel"], object]
#: examples of a batch -> examples of the largest part of a step.
LargestPart = Callable[[int], int]


@dataclass(frozen=True)
class Outline:
    """A run, as far as a method may ask before anything is built.

    Attributes:
        tasks: their names and labels count, not their examples.
        restart: every task starts from the pretrained weights.
        one_target: whether an example has one target, or one per token of its answer.
        targets: of an example, at most.
        outputs: numbers of a target's logits: labels, or tokens of the vocabulary.
    """

    tasks: Sequence[Task]
    restart: bool
    one_target: bool
    targets: int
    outputs: int

    @property
    def logits_bytes(self) -> int:
        """Bytes of an example's logits in fp32, at most."""
        return 4 * self.targets * self.outputs


@dataclass(frozen=True)
class Retrieves:
    """Values that texts retrieve, by the vectors that a sentence encoder gives them: what "retrieved" trains.

    Attributes:
        make: how a slot's value enters an architecture.
        width: numbers of a slot's value.
        slots: of a task.
        given: slots that a text is given, at most.
        foreign: whether a text may be given slots of other tasks while a task trains.
        room: tokens that are put before each text.
        trained: entries that each task trains, by its name: values, and what else learns with them.
        encoder: of the texts.
        groups: parts of a vector that are compared by themselves.
        top_k: keys that a step pulls towards each text, in each group.
        key_epochs: of the keys' training, of a task with so many texts.
        key_batch_size: of the same.
    """

    make: Callable[[PreTrainedModel], Values]
    width: int
    slots: int
    given: int
    foreign: bool
    room: int
    trained: Mapping[str, int]
    encoder: Encoder
    groups: int
    top_k: int
    key_epochs: Callable[[int], int]
    key_batch_size: int


@dataclass(frozen=True)
class Needs:
    """What a method trains if it chooses, what it holds, and the data that it passes over. Sizes are in bytes.

    Attributes:
        first, later: what trains in a task without old ones, and with; None = the method does not choose.
        candidates: entries that are selected from, by parameter name.
        fraction: of them that is selected.
        clustered: the largest scores lie in few input columns; others scatter.
        listed: entries of the tensors that train as a whole, by parameter name.
        retrieves: what trains "retrieved".
        adapts: changes an architecture into the one that trains the last task, which `listed` names parameters of.
        merged: entries of the tensors that what trains is merged into when a task is over, by parameter name.
        optimizer: what trains it; None = the training's.
        measures: data that importance is measured on.
        measured: entries of what it is measured of, by parameter name; None = of all weights, "selected" = of the
            candidates where the chain selects.
        one_by_one: whether it is a pass for each example, whatever `importance` says of batches.
        sums: numbers per weight that the importance pass fills: Fisher, or gradient and Fisher.
        sum_item: bytes of each.
        mean_bytes: per weight, of the mean that the method takes of those sums.
        entry_bytes: held per trained entry from a task with old ones on, apart from its values before.
        task_bytes: held per trained entry while a task trains, the first one included.
        weight_bytes: held per weight from the first task on.
        example_bytes: held per training example from a task with old ones on.
        kept_example_bytes: on disk while the run goes on, and read from there, per training example of all tasks.
        memory_bytes: held for a memory of old examples from the first task on.
        directions: examples of each task before, at most, of which a gradient in fp32 is held, of all entries of the
            tensors of which something trained in it.
        sized_by: the option, with its value, that `memory_bytes` and `directions` are in proportion to: examples, of
            which there may be fewer. None = no single one.
        levers: all such options of a chain, which alone has them.
        start_values: whether of everything that trains is held what it was before the first task.
        asks: what it lets the model answer between tasks; None = nothing.
        local: what it lets the model learn before each answer, once a task is over; None = nothing.
        writes: what the model writes itself in every batch; None = nothing.
        recites: whether every batch is passed once more with its texts among what is learned.
        shots: examples that stand before every question, as far as they fit.
        room: tokens that are put before each text, whatever it retrieves, in the last task.
        room_grows: tokens by which it grows with each task.
        queries: whether every text is read once more before a pass, without gradients, for a vector of it.
        teacher: what the outputs of training are compared with, if anything.
        teaches_first: whether they are in a task without old ones as well.
        epochs: how many examples each epoch goes through; None = the task's own.
        adds: what steps add to the batches; None = nothing.
        largest_part: of the steps of a task to which something is added, before a micro_batch cuts it; None = a batch.
        several_parts: whether such a step has several parts, so that the gradients of one are there in the next.
        unsaid: methods of the chain that do not say what they need; a chain's alone.
    """

    first: Trains | None = None
    later: Trains | None = None
    candidates: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fraction: float = 0.0
    clustered: bool = False
    listed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    retrieves: Retrieves | None = None
    adapts: Adapts | None = None
    merged: Mapping[str, int] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerName | None = None
    measures: frozenset[Measures] = frozenset()
    measured: Mapping[str, int] | Literal["selected"] | None = None
    one_by_one: bool = False
    sums: int = 1
    sum_item: int = 4
    mean_bytes: int = 0
    entry_bytes: int = 0
    task_bytes: int = 0
    weight_bytes: int = 0
    example_bytes: int = 0
    kept_example_bytes: int = 0
    memory_bytes: int = 0
    directions: int = 0
    sized_by: tuple[str, int] | None = None
    levers: tuple[Lever, ...] = ()
    start_values: bool = False
    asks: Asks | None = None
    local: LocalSteps | None = None
    writes: Writes | None = None
    recites: bool = False
    shots: int = 0
    room: int = 0
    room_grows: int = 0
    queries: bool = False
    teacher: Teacher | None = None
    teaches_first: bool = False
    epochs: Epochs | None = None
    adds: Adds | None = None
    largest_part: LargestPart | None = None
    several_parts: bool = False
    unsaid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert (self.first is None) == (self.later is None), "a method that chooses says both first and later"


#: Of a chain in which no method chooses.
EVERYTHING = Needs(first="all", later="all")


def combine(said: Mapping[str, Needs | None], chooser: str | None) -> Needs:
    """The needs of a chain of methods.

    Args:
        said: by each of them, by its name, in the chain's order.
        chooser: the one that decides what trains; None = all weights do.

    Returns:
        What trains, as the chooser says (`first` is None if it does not say), and sums or the most of the rest.
    """
    known = [needs for needs in said.values() if needs is not None]
    chosen = EVERYTHING if chooser is None else said[chooser] or Needs()
    measuring = [needs for needs in known if needs.measures]
    teachers = [needs.teacher for needs in known if needs.teacher is not None]
    return dataclasses.replace(
        chosen,
        measures=frozenset().union(*(needs.measures for needs in measuring)),
        measured=_measured(measuring, chosen),
        one_by_one=bool(measuring) and all(needs.one_by_one for needs in measuring),
        sums=max((needs.sums for needs in measuring), default=1),
        sum_item=max((needs.sum_item for needs in measuring), default=4),
        mean_bytes=max((needs.mean_bytes for needs in known), default=0),
        entry_bytes=sum(needs.entry_bytes for needs in known),
        task_bytes=sum(needs.task_bytes for needs in known),
        weight_bytes=sum(needs.weight_bytes for needs in known),
        example_bytes=sum(needs.example_bytes for needs in known),
        kept_example_bytes=sum(needs.kept_example_bytes for needs in known),
        memory_bytes=sum(needs.memory_bytes for needs in known),
        directions=sum(needs.directions for needs in known),
        sized_by=None,
        levers=tuple(
            Lever(f"method.{name}.{needs.sized_by[0]}", needs.sized_by[1], needs.memory_bytes, needs.directions)
            for name, needs in said.items()
            if needs is not None and needs.sized_by is not None
        ),
        start_values=any(needs.start_values for needs in known),
        asks=next((needs.asks for needs in known if needs.asks is not None), None),
        local=next((needs.local for needs in known if needs.local is not None), None),
        writes=next((needs.writes for needs in known if needs.writes is not None), None),
        recites=any(needs.recites for needs in known),
        shots=max((needs.shots for needs in known), default=0),
        teacher=min(teachers, key=lambda teacher: teacher == "kept", default=None),
        teaches_first=any(needs.teaches_first for needs in known),
        epochs=_epochs([needs.epochs for needs in known if needs.epochs is not None]),
        adds=_adds([needs.adds for needs in known if needs.adds is not None]),
        largest_part=_largest_part([needs.largest_part for needs in known if needs.largest_part is not None]),
        several_parts=any(needs.several_parts for needs in known),
        unsaid=tuple(name for name, needs in said.items() if needs is None),
    )


def with_lever(needs: Needs, key: str, value: int) -> Needs:
    """A chain's needs with another value of one of its levers."""
    old = next(lever for lever in needs.levers if lever.key == key)
    new = Lever(key, value, old.memory_bytes * value // old.value, old.directions * value // old.value)
    return dataclasses.replace(
        needs,
        memory_bytes=needs.memory_bytes + new.memory_bytes - old.memory_bytes,
        directions=needs.directions + new.directions - old.directions,
        levers=tuple(new if lever is old else lever for lever in needs.levers),
    )


def _measured(measuring: Sequence[Needs], chosen: Needs) -> Mapping[str, int] | None:
    """Entries of all that some method wants measured; None = one of them wants all weights."""
    found: dict[str, int] = {}
    for needs in measuring:
        entries = needs.measured
        if entries == "selected":
            entries = chosen.candidates if "selected" in (chosen.first, chosen.later) else None
        if entries is None:
            return None
        found |= entries
    return found if measuring else None


def _epochs(changes: Sequence[Epochs]) -> Epochs:
    """One change after another."""

    def changed(earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
        for change in changes:
            epochs = change(earlier, epochs)
        return epochs

    return changed


def _adds(added: Sequence[Adds]) -> Adds:
    """All of it."""

    def together(earlier: Sequence[int], batches: int, examples: int) -> Added:
        each = [adds(earlier, batches, examples) for adds in added]
        return Added(sum(one.examples for one in each), sum(one.steps for one in each))

    return together


def _largest_part(parts: Sequence[LargestPart]) -> LargestPart:
    """One change after another."""

    def largest(batch: int) -> int:
        for part in parts:
            batch = part(batch)
        return batch

    return largest
