"""Measures of general ability. Each probe is a dataclass in a file of its own; its options stand under probe.<node>."""

#: Node of the configuration -> file:class.
PROBES = {
    "held_text": "held_text:HeldText",
    "humaneval": "humaneval:HumanEval",
    "lm_eval": "lm_eval:LMEval",
    "task_loss": "task_loss:TaskLoss",
}
