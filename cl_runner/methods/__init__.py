"""Continual-learning methods, one file each. The table maps a node of the configuration to its class."""

#: node under `method` -> "<file>:<class>". Plain text: importing a method imports torch.
METHODS = {
    "seq_ft": "seq_ft:SeqFT",
    "frozen": "frozen:Frozen",
    "ewc": "ewc:EWC",
    "lwf": "lwf:LwF",
    "pe": "selector:Selector",
    "piece": "selector:Selector",
    "layer_norm": "layer_norm:LayerNorm",
    "slm": "slm:SLM",
    "replay": "replay:Replay",
    "replay_online": "replay_online:ReplayOnline",
    "der": "der:DER",
}
