"""The built-in parts by name, as plain text: importing most of them imports torch, which composing must not.

A part of your own needs no line here: cl_runner/registry.py knows installed packages and dotted paths as well.
"""

from __future__ import annotations

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
    "gem": "gem:GEM",
    "agem": "agem:AGEM",
    "ogd": "ogd:OGD",
    "l2": "l2:L2",
    "mas": "mas:MAS",
    "si": "si:SI",
    "parts": "parts:Parts",
    "migu": "migu:MIGU",
    "opr": "opr:OPR",
    "lamol": "lamol:LAMOL",
    "lfpt5": "lfpt5:LFPT5",
    "masked_kl": "masked_kl:MaskedKL",
    "icl": "icl:ICL",
    "multi_task": "multi_task:MultiTask",
    "seq_lora": "seq_lora:SeqLoRA",
    "inc_lora": "inc_lora:IncLoRA",
    "o_lora": "o_lora:OLoRA",
    "lora": "lora:LoRA",
    "osf": "osf:OSF",
    "prompt_tuning": "prompt_tuning:PromptTuning",
    "prog_prompt": "prog_prompt:ProgPrompt",
    "l2p": "l2p:L2P",
    "mbpa": "mbpa:MbPA",
    "idbr": "idbr:IDBR",
    "sdft": "sdft:SDFT",
}

#: Node of the configuration -> file:class.
PROBES = {
    "held_text": "held_text:HeldText",
    "humaneval": "humaneval:HumanEval",
    "ifeval": "ifeval:IFEval",
    "lm_eval": "lm_eval:LMEval",
    "task_loss": "task_loss:TaskLoss",
    "oracle": "oracle:Oracle",
    "minimal_pairs": "minimal_pairs:MinimalPairs",
    "captioning": "captioning:Captioning",
    "captioning_coco": "captioning:Captioning",
    "captioning_drawn": "captioning:Captioning",
    "representations": "representations:Representations",
}

#: backbone.family -> file:class. Plain text: importing a family imports torch.
FAMILIES = {
    "classifier": "classifier:Classifier",
    "causal": "causal:Causal",
    "seq2seq": "seq2seq:Seq2Seq",
    "image_text": "image_text:ImageText",
}

#: task.<name>.convert -> file:function.
CONVERTERS = {
    "chats": "chats:chats",
    "messages": "chats:messages",
    "squad": "converters:squad",
    "multiple_choice": "converters:multiple_choice",
    "marked_turns": "converters:marked_turns",
    "vqa_v2": "vqa:vqa_v2",
}

#: name -> file:function, what it computes, and its source. A task's score is the mean over its examples.
DEFINITIONS: dict[str, tuple[str, str]] = {
    "accuracy": ("simple:accuracy", "the answer exactly, white space around it aside"),
    "exact_match": ("simple:exact_match", "the answer in lower case without punctuation and articles (SQuAD)"),
    "f1": ("simple:f1", "F1 of the words that prediction and answer share, normalised as for exact_match (SQuAD)"),
    "first_word": ("simple:first_word", "the first word, punctuation aside, upper and lower case distinct (SLM)"),
    "first_letter": ("simple:first_letter", "the first option letter A to D that stands alone"),
    "number": ("simple:number", "the first number, compared as a number; exact_match where the answer is none"),
    "tool_call": ("tool_calls:tool_call", "the same functions called with arguments that are equal as JSON"),
    "tool_call_parsed": ("tool_calls:tool_call_parsed", "calls that can be read, or none where none is asked"),
    "tool_call_name": ("tool_calls:tool_call_name", "the same functions called, whatever their arguments"),
    "tool_call_arguments": ("tool_calls:tool_call_arguments", "arguments that are equal as JSON, whatever is called"),
    "rouge_l": ("overlap:rouge_l", "ROUGE-L, F1 of the longest common subsequence of words (Lin 2004)"),
    "bleu": ("overlap:bleu", "BLEU-4 of each answer (Papineni et al. 2002) as sacreBLEU's sentence score, 13a words"),
    "bleu_rouge": ("overlap:bleu_rouge", "the mean of bleu and rouge_l"),
    "sari": ("overlap:sari", "SARI (Xu et al. 2016) with the whole prompt as source, as TRACE has it"),
    "edit_similarity": (
        "overlap:edit_similarity",
        "Indel similarity of characters of the first line, literals cleaned as in TRACE (Svyatkovskiy et al. 2020)",
    ),
    "bertscore": ("bertscore:bertscore", "BERTScore F1 (Zhang et al. 2020), neither idf weights nor rescaling"),
    "bertscore_strict": ("bertscore:bertscore_strict", "bertscore, but 0 for an answer in a wrong format (SLM)"),
    "piece_stance": ("released:piece_stance", "a letter A to D among four characters, or the Chinese word (PIECE)"),
    "piece_letter": ("released:piece_letter", "the first letter A to D anywhere, even inside a word (PIECE)"),
    "piece_number": ("released:piece_number", "the first number as text, a full stop behind it included (PIECE)"),
    "piece_bleu_rouge": (
        "released:piece_bleu_rouge",
        "the mean of NLTK's sentence BLEU-4 without smoothing and the package rouge's ROUGE-L (PIECE)",
    ),
    "piece_edit_similarity": (
        "released:piece_edit_similarity",
        "trace_edit_similarity of what follows the last <EOL> (PIECE)",
    ),
    "trace_accuracy": ("released:trace_accuracy", "the answer exactly, white space around it included (TRACE)"),
    "trace_letter": ("released:trace_letter", "the first character (TRACE)"),
    "trace_rouge_l": ("released:trace_rouge_l", "the package rouge's ROUGE-L: sentences, words as sets (TRACE)"),
    "trace_sari": ("released:trace_sari", "sari, but an empty prediction is scored like any other (TRACE)"),
    "trace_edit_similarity": (
        "released:trace_edit_similarity",
        "fuzzywuzzy's ratio over difflib, in whole percent, of all that was generated (TRACE)",
    ),
    "olora_exact_match": ("released:olora_exact_match", "the answer in lower case without punctuation (O-LoRA)"),
}
