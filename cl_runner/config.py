"""The typed schema of every configuration group.

Values live in conf/*.yaml and nowhere else: the models below hold names, types, ranges and meanings, and defaults of
nothing but what came so late that older runs' files lack it.
Nothing here imports torch, so that composing and checking a configuration takes well under a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cl_runner.config_trackers import Mlflow, Trackers, Wandb
from cl_runner.read_if import NotGenerated, OfAdamW, OfClassifiers, OfFiles, OfHub, OfLanguageModels, ReadIf
from cl_runner.schema import Schema as Schema  # what other schemas are made of as well
from cl_runner.value_checks import Score as Score  # options of methods are typed by what stands here
from cl_runner.value_checks import (
    checked_character,
    checked_columns,
    checked_encoding,
    checked_file_name,
    checked_label_name,
    checked_places,
    known,
)

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
#: How long prompt and answer may be: each by itself, both as long as the two (TRACE), or each as long as both (PIECE).
TrainingLength = Literal["apart", "together", "sum"]
AnswerText = Literal["spoken", "piece", "raw"]  # of a generated text; cl_runner/families/tokens.py has the rules
OptimizerName = Literal["adamw", "adafactor", "sgd"]
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Asked = Annotated[str, Field(min_length=1, pattern=r"^[^\n\r]*$")]  # a line for another program
SpecialTokens = Literal["text", "read"]  # what `</s>`, `[SEP]` and the like are in users' texts: letters, or the token
FamilyKind = Literal["classifier", "causal", "seq2seq", "image_text"]  # what a family of models behaves as
MetricName = Annotated[str, known("metrics", "a metric")]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$"), AfterValidator(checked_file_name)]  # becomes part of file names


class Backbone(Schema):
    """conf/backbone: which model, where its weights come from, how text enters it."""

    name: str
    family: Annotated[str, known("families", "a family of models")]
    checkpoint: str | None  # hub name or local folder; null = random weights of `architecture`, unless there is a gguf
    gguf: str | None  # a file of llama.cpp in place of a checkpoint: its path, or its name in the package
    #: a classifier's: drawn from the seed, or the one that the checkpoint has of the same labels
    head: Annotated[Literal["new", "checkpoint"], OfClassifiers]
    revision: str | None  # hub commit or tag; null = the newest
    package: str | None  # an installed package that carries the same checkpoint in its folder `model`, or the gguf
    weights_sha256: str | None  # of model.safetensors or the gguf, checked once before it is loaded
    #: model_type and sizes: of the random model if checkpoint is null, else for `plan`
    architecture: dict[str, Any] | None
    tokenizer: Literal["words", "bytes"] | None  # of a random model; null = the checkpoint's own
    max_length: Annotated[int, Field(ge=3)]  # tokens of a text or prompt, special ones included; longer ones are cut
    max_answer_length: Annotated[Count | None, OfLanguageModels]  # tokens of an answer in training, its end included
    #: which of prompt and answer may be how long in training
    training_length: Annotated[TrainingLength, ReadIf("backbone.family", ("causal", "seq2seq"))]
    truncation: Literal["keep_start", "keep_end", "keep_both"]  # what stays of a text that is too long
    chat_template: Annotated[bool, OfLanguageModels]  # the prompt becomes a user's turn of the tokenizer's template
    dropout: Annotated[float, Field(ge=0, lt=1)] | None  # of hidden states and attention; null = the checkpoint's own
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    dtype: Literal["float32", "bfloat16"]  # of the weights in memory; selected ones train in fp32 either way
    frozen: list[str]  # name patterns of tensors that never train, such as a vision tower's
    special_tokens: SpecialTokens  # what `</s>` and the like are in texts and answers
    #: parts of the names in the checkpoint's files that wrappers of a model wrote: taken off
    key_prefixes: list[Annotated[str, Field(min_length=1)]]

    @property
    def pretrained(self) -> str | None:
        """The checkpoint or file that the weights come from; None = random ones."""
        return self.checkpoint if self.gguf is None else self.gguf

    @property
    def pretrained_key(self) -> str:
        """What names them in the configuration."""
        return "backbone.checkpoint" if self.gguf is None else "backbone.gguf"

    @property
    def local(self) -> bool:
        """Whether they lie in a folder or file that the user names, and not in a package or on the hub."""
        if self.gguf is not None:
            return self.package is None or "/" in self.gguf or self.gguf.startswith("~")
        return self.checkpoint is not None and self.checkpoint.startswith((".", "/", "~"))

    @property
    def longest_in_training(self) -> int:
        """Tokens of a prompt and its answer."""
        both = self.max_length + (self.max_answer_length or 0)
        return 2 * both if self.training_length == "sum" else both


class Encoder(Schema):
    """A frozen sentence encoder: where its weights come from, as a backbone's."""

    checkpoint: str  # hub name of a sentence-transformers model, or a local folder
    revision: str | None
    package: str | None  # an installed package that carries the same checkpoint in its folder `model`
    weights_sha256: str | None
    max_length: Count | None  # tokens of a text; null = the encoder's own


LabelName = Annotated[str, AfterValidator(checked_label_name)]


class TaskDefinition(Schema):
    """conf/task: where examples come from and how a row becomes text and label (node task.<name>)."""

    source: Literal["generated", "files", "hub"]
    #: raw value -> label name; null drops such rows. "schema": as the source's own schema names them. None: any text
    labels: dict[str, LabelName | None] | Literal["schema"] | None
    balance: bool  # draw equally many examples per label; false = as they come
    template: str | None  # the prompt: {text}, {options} (the label names) or {COLUMN}; null = the text alone
    metrics: Annotated[list[MetricName], Field(min_length=1)]  # the first one fills the matrix
    released_metrics: dict[str, Annotated[list[MetricName], Field(min_length=1)]]  # by evaluation.scoring
    max_new_tokens: Annotated[Count, OfLanguageModels]  # of a generated answer
    #: may hold {domain}, {split}, {variant} and *; of several places the first where there is something, each a
    #: list of paths that are read together
    path: Annotated[list[list[str]] | None, BeforeValidator(checked_places), OfFiles]
    delimiter: Annotated[str, AfterValidator(checked_character)] | None  # CSV and TSV: null = as the ending says
    quoting: Literal["none", "double", "backslash"] | None  # CSV and TSV: null = none in TSV, in CSV double
    header: Annotated[
        bool | list[str], AfterValidator(checked_columns)
    ]  # CSV and TSV: whether there is one, or column names
    encoding: Annotated[str, AfterValidator(checked_encoding)] | None  # of text files; null = UTF-8
    missing_fields: Literal["refuse", "empty"]  # a column that some rows lack
    convert: Annotated[str, known("converters", "a converter")] | None  # how records are read (data/converters.py)
    #: of `convert: chats`: learned are all turns of the assistant, the last, or each in an example of its own
    turns: Annotated[Literal["all", "last", "each"], ReadIf("convert", ("chats",))] = "all"
    download: Annotated[str | None, OfFiles]  # what to fetch and where to put it: said when a file is missing
    dataset: Annotated[str | None, OfHub]  # name
    configuration: Annotated[str | None, OfHub]  # may hold {domain}
    revision: Annotated[str | None, OfHub]  # commit or tag, required
    splits: dict[
        Literal["train", "validation", "test"], str | None
    ]  # our split -> the source's; one name twice = shared without overlap
    text: list[str]  # columns, joined by a space
    label: str  # column of the label or answer
    picture: Annotated[str | None, NotGenerated]  # FOLDER/{COLUMN}: what a row asks about; null = texts alone
    max_rows: Count | None  # rows drawn at most of each source, by task_order.data_seed; null = all
    label_noise: Share  # generated: share of training labels replaced at random
    grammar: Literal["full", "plain"] = "full"  # generated: how reviews are written; runs of before have none


class Counts(Schema):
    """Examples of one task, spread evenly over its domains; null = all there are, 0 = none."""

    train: Whole | None
    validation: Whole | None
    test: Whole | None


class StageChange(Schema):
    """What one task does otherwise than its stage says; null = as the stage."""

    epochs: Whole | None = None
    batch_size: Count | None = None
    learning_rate: Positive | None = None
    micro_batch: Count | None = None


class ImportanceChange(Schema):
    """What the importance pass of one task does otherwise than `importance` says; null = the same."""

    micro_batch: Count | None = None
    batch_size: Count | None = None


class OrderedTask(Schema):
    """One step of a task order."""

    name: Name
    domains: list[str] = Field(default_factory=list)  # empty: the domain of the same name
    task: str | None = None  # a definition other than the order's
    counts: Counts | None = None  # examples other than the order's
    training: StageChange | None = None  # as TRACE trains 5, 3, 7, 5, 3, 5, 5, 7 epochs
    importance: ImportanceChange | None = None  # as PIECE measures its four short tasks in micro-batches of 4


class TaskOrder(Schema):
    """conf/task_order: the tasks in sequence, the first is the base task."""

    task: str  # the definition its tasks use
    tasks: list[OrderedTask]
    base: Counts
    incremental: Counts
    joint: bool  # upper bound: step t trains on the data of all tasks up to t
    restart: bool  # every task starts again from the pretrained weights: single-task bounds
    data_seed: Whole  # which examples are drawn; apart from `seed`, so that all seeds see the same data
    variant: str | int | None  # of a benchmark that comes in several cuts: fills {variant} in paths
    #: how long answers are generated: to their end, or until their metrics have read what they read
    answers_until: Annotated[Literal["end", "read"], OfLanguageModels]
    balanced: Whole | None  # which of the balanced orders of these tasks (`orders` lists them); null = as they stand
    fixed: Annotated[Whole, ReadIf("balanced", (None,), unless=True)]  # how many of the first tasks stay where they are


class Stage(Schema):
    """How long and how fast the base task, or every later task, is trained."""

    epochs: Whole
    batch_size: Count  # examples of one optimizer step
    learning_rate: Positive  # a method may bring its own (method.pe.learning_rate)
    micro_batch: Count | None  # examples of one forward and backward pass; null = the whole batch


class Budget(Schema):
    """What every task may cost, in one of these; all null = as long as its epochs say.

    Epochs are repeated, each in another order, until a step reaches it. Tokens and flops are those of training steps,
    with all that methods add; seconds those of all that is done for a task before it is evaluated, importance included.
    """

    steps: Count | None
    tokens: Count | None  # that training reads
    seconds: Positive | None
    flops: Positive | None  # products of the model, forward and backward, as `plan` prices a token of this method


class Training(Schema):
    """A fresh optimizer per task; no decay on biases and normalisation weights."""

    base: Stage
    incremental: Stage
    optimizer: OptimizerName
    weight_decay: NonNegative
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2), OfAdamW]
    epsilon: Annotated[Positive, OfAdamW]
    bias_correction: bool  # AdamW; UER's, in which PE was trained, has none
    momentum: Annotated[float, Field(ge=0, lt=1)]  # SGD
    rates: dict[str, Positive] | None  # peak rates by a pattern of names (* = anything), the first that fits
    select: Literal["last", "best_validation"]  # which weights a task ends with: of its last step, or of its best epoch
    select_after: Annotated[Whole, ReadIf("select", ("best_validation",))]  # epochs that are never the best
    schedule: Literal["linear", "constant"]  # after the warm-up
    warmup: Share | Annotated[int, Field(ge=2)]  # of a task's steps; from 2 on a number of steps, whatever its length
    clip: Positive | None  # norm of the gradient of what is trained; null = no clipping
    max_steps: Count | None  # optimizer steps of a task at most; null = as the epochs say
    budget: Budget  # what a task may cost, to compare methods at equal cost
    group_by_length: bool  # batches of texts of similar length: less padding, but another order of the examples


class Sampling(Schema):
    """Decoding by chance, as some releases did it; a run that samples says so beside every number."""

    temperature: Positive
    top_k: Count | None  # null = all tokens; where nothing is said, transformers' generate takes the first 50
    top_p: Fraction | None  # null = all tokens


class Bertscore(Schema):
    """The encoder of the metric `bertscore`."""

    checkpoint: str  # hub name or local folder
    layer: Count  # whose hidden states are compared


class Evaluation(Schema):
    """Every test set before the first and after every task."""

    batch_size: Count  # does not change a greedy answer in fp32; in bf16 other padding rounds differently
    split: Literal["test", "validation"]
    tasks: Literal["all", "seen"]  # seen: cells of tasks that are still to come stay empty
    every_epoch: bool = False  # and, of the tasks so far, at the end of every epoch: a curve, no row of the matrix
    labels: Annotated[Literal["generate", "likelihood"], OfLanguageModels]  # how one of a closed set is answered
    sampling: Annotated[Sampling | None, OfLanguageModels]  # null = greedy
    scoring: str  # standard, or a release whose metrics task definitions name in `released_metrics`
    answer_slice: Annotated[Literal["ids", "prefix"], OfLanguageModels]  # the prompt is cut off by ids, or as text
    answer_text: Annotated[AnswerText, OfLanguageModels]  # spoken: without thoughts and white space; raw: all of it
    max_new_tokens: Annotated[Count | None, OfLanguageModels]  # of every generated answer; null = as its task says
    bertscore: Bertscore

    def new_tokens(self, of_task: int) -> int:
        """Tokens that are generated at most for an answer of a task that says `of_task` itself."""
        return of_task if self.max_new_tokens is None else self.max_new_tokens


class Slurm(Schema):
    """What a job asks of a SLURM cluster, in the words of sbatch."""

    partition: Asked | None
    account: Asked | None
    qos: Asked | None
    constraint: Asked | None
    gres: Asked | None
    nodelist: Asked | None
    exclude: Asked | None
    dependency: Asked | None
    minutes: Count
    processes: Count = 1  # of one run, on all its nodes
    nodes: Count = 1
    gpus: Whole  # of a node
    cpus: Count  # of a process
    memory_gb: Count
    at_once: Count | None  # jobs of an array that run at the same time; null = as many as there is room for
    signal_seconds: Annotated[int, Field(ge=10, le=65535)]  # before the limit a job saves and goes back into the queue
    requeues: Whole  # how often it may; 0 = never
    setup: list[Asked]  # lines of the batch script before the program, such as: module load cuda
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], str]


class SweepOptions(Schema):
    """How the jobs of a multirun share a machine."""

    processes: Count | Literal["gpus"]  # at once on this machine; gpus = one for each GPU
    on_error: Literal["continue", "stop"]  # whether jobs begin after one has failed
    objective: str | None  # a number of summary.json that a searching sweeper is told; null = the first accuracy


Sharded = bool | Literal["always"]


class Hardware(Schema):
    """conf/hardware: where and how a run computes."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["fp32", "bf16"]  # of the forward and backward pass (autocast)
    threads: Count | None  # CPU threads; null = as torch decides
    deterministic: bool  # refuse operations whose result may differ between two runs
    gradient_checkpointing: bool  # recompute activations in backward: less memory, a third more time
    fit: bool = True  # options that change memory and no result are set by the plan where a run would not fit
    memory_gb: Positive | None = None  # 10^9 bytes that a run may take; null = what is free
    shard: Sharded = False  # of several processes each holds its part of the weights (FSDP2): while it trains; always
    offload: Literal["none", "optimizer"] = "none"  # optimizer: what it holds of whole weights lies in main memory
    slurm: Slurm | None = None


class Importance(Schema):
    """The offline pass over data that gives every weight its gradient and its Fisher."""

    micro_batch: Count  # examples whose mean gradient is squared: 1 = the exact per-example Fisher
    batch_size: Annotated[Count, ReadIf("micro_batch", (1,))]  # examples of one pass; changes memory and time only
    max_length: Annotated[int, Field(ge=3)] | None  # tokens of a text or prompt, and of its answer; null = as it trains
    max_examples: Count | None  # a seeded sample; null = all
    labels: Literal["data", "model"]  # of the data (empirical Fisher), or drawn from the model's answers
    answer_tokens: Annotated[Literal["mean", "sum"], OfLanguageModels]  # of an answer's losses; micro_batch > 1: mean
    accumulate: Literal["device", "cpu"]  # where the fp32 sums lie
    passes: Count  # layers are measured in so many groups, one pass over the data each
    cache_gb: NonNegative  # kept under <root>/cache up to this size, 10^9 bytes; 0 = neither these nor tokens

    def changed(self, change: ImportanceChange | None) -> Importance:
        """How it is measured in a task of which the order says `change`."""
        return self if change is None else self.model_copy(update=change.model_dump(exclude_none=True))


class Checkpoint(Schema):
    """How often a run's state is saved while a task trains (and always between phases)."""

    every_seconds: NonNegative
    after_tasks: bool = False  # what methods know after each task stays in the run's folder, for forks


class Snapshots(Schema):
    """Which tasks' changes are kept as snapshots."""

    save: Literal["all", "sparse", "none"]  # sparse: leave out later tasks that changed a tenth as whole tensors


class Fork(Schema):
    """Another run that this one goes on from: its first tasks are the other's."""

    run: str | None = None  # its folder
    at: Annotated[str | None, ReadIf("run", (None,), unless=True)] = None  # the last task that is the other's


class Config(Schema):
    """A whole run."""

    seed: Whole
    root: Annotated[str, Field(min_length=1)]
    data_root: str
    backbone: Backbone
    task: dict[str, TaskDefinition]
    task_order: TaskOrder
    training: Training
    importance: Importance
    evaluation: Evaluation
    method: dict[str, dict[str, Any]]
    probe: dict[str, dict[str, Any]]
    hardware: Hardware
    checkpoint: Checkpoint
    fork: Fork = Fork()
    snapshots: Snapshots
    reuse: Literal["none", "first_task", "prefix"] = "none"  # of runs below the same root that train alike
    resume: Literal["strict", "warn"]  # where versions, threads or device are others than a run began with
    sweep: SweepOptions
    wandb: Wandb
    trackers: Trackers = Field(default_factory=list)
    mlflow: Mlflow = Mlflow()
