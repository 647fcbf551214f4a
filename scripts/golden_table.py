"""The rows of golden_rows.py: every method, family and way to train, each made tiny."""

from __future__ import annotations

#: What rows share: two tasks, batches that do not come out even, rates at which a few steps move weights and answers.
SMALL = (
    "backbone=tiny_bert",
    "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}]",
    "task_order.base.train=36",
    "task_order.base.test=12",
    "task_order.incremental.train=18",
    "task_order.incremental.test=6",
    "training.base.epochs=2",
    "training.incremental.epochs=2",
    "training.base.batch_size=8",
    "training.incremental.batch_size=8",
    "training.base.learning_rate=3e-3",
    "training.incremental.learning_rate=3e-3",
    "backbone.dropout=0.0",  # which entries fall out differs between processors
    "hardware.threads=1",
    "wandb=disabled",
    "snapshots.save=all",
)
#: Random weights large enough that texts differ in their answers.
SPREAD = ("++backbone.architecture={initializer_range: 0.2}",)
#: Instead of the reviews: two tasks of coloured pictures, written by `write_pictures`.
SEEING = (
    "task_order=vqa",
    "task_order.tasks=[{name: action}, {name: count}]",
    "task_order.base.train=18",
    "task_order.base.test=6",
    "backbone.dropout=null",
)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
#: Its learning rate is its own, and prompts need room before the text. The encoder is written by `write_encoder`.
RETRIEVAL = (
    "method.slm.encoder.checkpoint={encoder}",
    "method.slm.encoder.revision=null",
    "method.slm.encoder.package=null",
    "method.slm.encoder.weights_sha256=null",
    "method.slm.learning_rate=1e-2",
    "backbone.max_length=44",
    "method.slm.key_steps=0",  # the epochs and no more: a thousand steps are too many here
)
THREE = "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: software}]"
STRONG = ("method.ewc.strength=1e3",)
LARGEST = (*STRONG, "method.pe.keep=largest", "method.pe.fraction=0.01", "method.pe.learning_rate=1e-2")
MICRO = ("training.base.micro_batch=3", "training.incremental.micro_batch=3")
RECOMPUTED = ("hardware.gradient_checkpointing=true",)
DROPOUT = ("backbone.dropout=0.1",)
BF16 = ("hardware.precision=bf16",)

ALL = ("bert", "llama", "t5")
#: method -> families
METHODS: dict[str, tuple[str, ...]] = {
    "seq_ft": (*ALL, "gpt2", "llava"),
    "frozen": ALL,
    "ewc": (*ALL, "gpt2"),
    "lwf": (*ALL, "gpt2"),
    "ewc_lwf": ALL,
    "pe": (*ALL, "gpt2"),
    "pe_rand": ALL,
    "pe_select": ALL,
    "pe_main": ALL,
    "pe_0.1": ALL,
    "pe_qkv": ("bert",),  # names of BERT's matrices
    "layer_norm": ALL,
    "piece_f": ALL,
    "piece_s": (*ALL, "gpt2", "llava"),
    "piece_f_1": ALL,
    "piece_s_1": ALL,
    "piece_rand": ALL,
    "piece_rand_1": ALL,
    "[ewc,lwf,pe_select]": ALL,
    "slm": (*ALL, "gpt2"),
    "slm_ti": ("bert", "llama"),
    "slm_prompt": ALL,
    "slm_adapter": ALL,
    "slm_release": ("bert",),
    "slm_bert": ("bert",),
    "slm_t5": ("t5",),
    "slm_llama": ("llama",),
    "slm_llama_release": ("llama",),
}
#: (method, family, what is different, overrides)
VARIANTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("seq_ft", "bert", "micro_batch", MICRO),
    ("pe", "bert", "micro_batch", MICRO),
    ("piece_s", "llama", "micro_batch", MICRO),
    ("lwf", "t5", "micro_batch", MICRO),
    ("slm", "bert", "micro_batch", MICRO),
    ("seq_ft", "llama", "gradient_checkpointing", RECOMPUTED),
    ("piece_s", "llama", "gradient_checkpointing", RECOMPUTED),
    ("seq_ft", "bert", "bf16", BF16),
    ("piece_s", "llama", "bf16", BF16),
    ("seq_ft", "llama", "bfloat16_weights", ("backbone.dtype=bfloat16",)),
    ("piece_s", "llama", "bfloat16_weights", ("backbone.dtype=bfloat16",)),
    *((method, "bert", "dropout", DROPOUT) for method in ("seq_ft", "ewc", "lwf", "pe", "piece_s", "slm")),
    ("pe", "bert", "dropout_micro_batch", (*DROPOUT, *MICRO)),
    ("lwf", "t5", "dropout_micro_batch", (*DROPOUT, *MICRO)),
    ("seq_ft", "t5", "dropout_gradient_checkpointing", (*DROPOUT, *RECOMPUTED)),
    ("seq_ft", "gpt2", "own_dropout", ("backbone.dropout=null",)),
    *((method, "bert", "joint", ("task_order=[reviews,joint]",)) for method in ("seq_ft", "ewc", "lwf")),
    *((method, "bert", "single_task", ("task_order=[reviews,single_task]",)) for method in ("seq_ft", "slm")),
    ("seq_ft", "bert", "group_by_length", ("training.group_by_length=true",)),
    ("piece_s", "llama", "group_by_length", ("training.group_by_length=true", *MICRO)),
    ("seq_ft", "llama", "no_clip", ("training.clip=null",)),
    ("pe", "bert", "no_clip", ("training.clip=null",)),
    ("pe", "bert", "clip", ("training.clip=0.1",)),
    ("seq_ft", "t5", "constant", ("training.schedule=constant", "training.warmup=2", "training.max_steps=4")),
    ("seq_ft", "llama", "likelihood", ("evaluation.labels=likelihood",)),
    ("seq_ft", "llama", "trace", ("protocol=trace", "evaluation.scoring=standard", "evaluation.tasks=seen")),
    ("ewc", "bert", "strong", STRONG),
    ("ewc", "bert", "online", (*STRONG, "method.ewc.fisher_data=last_task", THREE)),
    ("pe", "bert", "three", (THREE,)),
    ("lwf", "bert", "probabilities", ("method.lwf.outputs=probabilities", "method.lwf.strength=10")),
    (
        "pe",
        "bert",
        "selected",
        ("method.pe.first_task=selected", "method.pe.score_data=new_task", "importance.micro_batch=2"),
    ),
    ("pe", "llama", "largest", LARGEST),
    ("pe", "llama", "drawn_labels", ("importance.labels=model", "importance.max_examples=20", "importance.passes=2")),
    ("piece_s", "bert", "whole", ("method.piece.first_task=whole", "method.piece.learning_rate=1e-2")),
    ("piece_s", "llama", "release", ("method.piece.compat=[missing_mask,bf16_accumulation,count_excluded]",)),
    ("[lwf,piece_s]", "llama", "", ()),
    ("[ewc,lwf,pe_select]", "bert", "largest", LARGEST),
    ("[ewc,lwf,pe_select]", "bert", "largest_micro_batch", (*LARGEST, *MICRO)),
    ("[ewc,lwf,pe_select]", "gpt2", "largest", LARGEST),
)
#: Rows of tests/golden. EWC's are strong: as weak as the preset it changes less than the test tolerates.
KEPT = (
    "seq_ft-bert-micro_batch",
    "seq_ft-llama-gradient_checkpointing",
    "seq_ft-t5",
    "ewc-bert-strong",
    "lwf-t5-micro_batch",
    "ewc+lwf+pe_select-bert-largest",
    "pe-llama-largest",
    "pe-gpt2",
    "pe_rand-bert",
    "piece_f-llama",
    "piece_s-t5",
    "piece_rand-llama",
    "layer_norm-bert",
    "slm-bert",
    "slm_prompt-llama",
)
