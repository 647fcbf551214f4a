"""What the files of a checkpoint hold, read from their headers, against what the architecture expects."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging

from cl_runner.git_lfs import is_pointer
from cl_runner.pretrained.places import INDEX, WEIGHTS, weight_files

#: What wrappers of a model put before or into the names of its tensors.
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "base_model.model.",
    "_forward_module.",
)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
#: Names in a message.
_SHOWN = 3


# Files ------------------------------------------------------------------------------------------------------


def held(folder: Path, key: str) -> dict[str, torch.Tensor]:
    """Name, shape and type of every tensor of a folder's checkpoint, as tensors on the meta device.

    Args:
        key: of the checkpoint in the configuration.

    Raises:
        ValueError: there are no weights, or a file is missing, damaged, or none of safetensors.
    """
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{key}: {_no_weights(folder)}")
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{key}: {folder / INDEX} names {len(files)} files, and {some(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there. Fetch the folder again, whole"
        )
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                part = file.get_slice(name)
                stored = part.get_dtype()
                if stored not in _DTYPES and name.endswith((".weight", ".bias")):
                    raise ValueError(
                        f"{key}: {name} of {path} is of type {stored}, as quantised weights are, and such weights do "
                        "not train here. Give the checkpoint from before it was quantised"
                    )
                dtype = _DTYPES.get(stored, torch.int64)
                found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return found


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file of safetensors.

    Raises:
        ValueError: it is none, or not whole; the text says what it is.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} {_what_is(path, error)}") from None


def _what_is(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    if is_pointer(path):
        return f"is a pointer of Git LFS ({size} bytes), not the weights. Type: git lfs pull, in that folder"
    reason = " ".join(str(error).split())[:100]
    return f"is no whole file of safetensors ({size:,} bytes; {reason}). Fetch it again"


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    others = sorted(path.name for path in (*folder.glob("*.gguf"), *folder.glob("*.h5"), *folder.glob("*.msgpack")))
    unnamed = sorted(path.name for path in folder.glob("*.safetensors"))
    said = f"{folder} has no {WEIGHTS}"
    if pickled:
        return (
            f"{said}, only {some(pickled)}: such files are pickled and can run code, so that they are never read. "
            "Convert them where you trust them: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER), with the "
            "class of your model, such as AutoModelForCausalLM, in place of AutoModel"
        )
    if unnamed:
        return f"{said} and no {INDEX}, only {some(unnamed)}. Fetch the index, or call a single file {WEIGHTS}"
    return f"{said}{f', only {some(others)}' if others else ''}. Fetch the weights in the format safetensors"


def slices(folder: Path, closing: ExitStack) -> dict[str, Any]:
    """Every tensor of a folder's checkpoint by its name, read when it is asked for.

    Args:
        closing: what closes the files.
    """
    files = [closing.enter_context(opened(path)) for path in weight_files(folder)]
    return {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118


# Comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's tensors fit an architecture.

    Attributes:
        missing: expected ones that the checkpoint lacks, without those of a new head.
        left: of the checkpoint, which nothing of the base model takes.
        unused: all that the checkpoint has beside what is loaded; heads of other tasks are no mistake.
        mismatched: name, shape in the checkpoint, shape expected.
        drawn: expected ones that are no mistake to lack and are drawn from the seed, beside the head: a pooler.
        old_head: names in the checkpoint of a head that is dropped.
        expected: how many tensors the architecture has.
        held: how many the checkpoint has.
    """

    missing: Sequence[str]
    left: Sequence[str]
    unused: Sequence[str]
    mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    drawn: Sequence[str]
    old_head: Sequence[str]
    expected: int
    held: int

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.left or self.mismatched)

    def said(self) -> str:
        """What does not fit, with the first names."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} of {self.expected} tensors are missing ({some(self.missing)})")
        left = self.unused if self.missing else self.left
        if left:
            parts.append(f"{len(left)} of its {self.held} are left over ({some(left)})")
        if self.mismatched:
            shown = [f"{n} is {list(found)}, not {list(wanted)}" for n, found, wanted in self.mismatched]
            parts.append(f"{len(shown)} have another shape ({some(shown)})")
        return "; ".join(parts)


def fit(skeleton: PreTrainedModel, tensors: Mapping[str, torch.Tensor], new_head: bool) -> Fit:
    """Which tensors transformers would load into an architecture: asked of itself, with tensors that hold nothing.

    Args:
        skeleton: the architecture on the meta device.
        tensors: as `held`.
        new_head: whether what lies behind the base model is drawn anew (a classifier's head).
    """
    with _quiet(), torch.random.fork_rng(devices=[]):  # what is missing is drawn, on the meta device as well
        loaded: Any = type(skeleton).from_pretrained(
            None,
            config=copy.deepcopy(skeleton.config),
            state_dict=dict(tensors),
            device_map={"": "meta"},
            dtype=skeleton.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, info = loaded
    return judged(model, info, tensors, new_head)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report: it is asked, not used."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def judged(model: PreTrainedModel, info: Mapping[str, Any], tensors: Collection[str], new_head: bool) -> Fit:
    """What transformers says that it loaded, with a head and a pooler told apart from mistakes.

    Args:
        info: `output_loading_info`.
        tensors: names in the checkpoint, as far as they are known.
        new_head: as `fit`.
    """
    base = f"{model.base_model_prefix}."
    inner = model.base_model is not model  # AutoModel's classes are their own base
    heads = {name for name in model.state_dict() if inner and not name.startswith(base)} if new_head else set()
    parts = {name for name, _ in model.base_model.named_children()}
    missing = sorted(set(info["missing_keys"]) - heads)
    drawn = [name for name in missing if "pooler" in name.split(".")]
    mismatched = sorted((n, tuple(a), tuple(b)) for n, a, b in info["mismatched_keys"] if n not in heads)
    unexpected = sorted(info["unexpected_keys"])
    # Behind the base model there may have been another head; within it nothing may be left over but an unused pooler.
    within = [name for name in unexpected if name.startswith(base) or name.split(".")[0] in parts or not inner]
    left = [name for name in within if "pooler" not in name.split(".")]
    if not inner:  # a checkpoint of a whole model has heads behind the prefix of its base
        behind = any(name.startswith(base) for name in tensors)
        left = [name for name in left if not behind or name.startswith(base)]
    return Fit(
        missing=[name for name in missing if name not in drawn],
        left=left,
        unused=unexpected,
        mismatched=mismatched,
        drawn=drawn,
        old_head=sorted(heads & set(tensors)),
        expected=len(model.state_dict()) - len(heads),
        held=len(tensors),
    )


def refuse(
    found: Fit, skeleton: PreTrainedModel, tensors: Mapping[str, torch.Tensor], new_head: bool, key: str, name: str
) -> None:
    """Say that a checkpoint does not fit its architecture, why that may be, and what to type.

    Args:
        key: of the checkpoint in the configuration.
        name: of the checkpoint.

    Raises:
        ValueError: always.
    """
    said = f"{key}={name} does not hold what its config.json says ({type(skeleton).__name__}): {found.said()}. "
    wrappers, certain = _wrappers(skeleton, tensors, new_head)
    if any(".lora_" in name or ".base_layer." in name for name in tensors):
        said += (
            "It holds an adapter beside the weights it was trained on. Merge them and save the result: "
            "model.merge_and_unload().save_pretrained(FOLDER)"
        )
    elif wrappers and certain and key == "backbone.checkpoint":
        said += (
            f"The names of its tensors hold {' and '.join(wrappers)}, as wrappers of a model write it; without it "
            f"all of them fit. Type: 'backbone.key_prefixes=[{','.join(wrappers)}]'"
        )
    elif wrappers and certain:
        said += (
            f"The names of its tensors hold {' and '.join(wrappers)}, as wrappers of a model write it; without it "
            "all of them fit. Save the model inside the wrapper: model.module.save_pretrained(FOLDER)"
        )
    elif wrappers:
        said += (
            f"The names of its tensors hold {' and '.join(wrappers)}, as wrappers of a model write it, but without it "
            "they do not all fit either. Save the model inside the wrapper by save_pretrained"
        )
    else:
        said += f"Give a whole checkpoint of this architecture, or the config.json that belongs to it: {key}=FOLDER"
    raise ValueError(said)


def unwrapped(names: Collection[str], wrappers: Sequence[str]) -> dict[str, str]:
    """Every name in a checkpoint -> the name without its wrappers' parts, wherever they stand in it.

    Raises:
        ValueError: two names would become one.
    """
    parts = "|".join(re.escape(f"{wrapper.rstrip('.')}.") for wrapper in sorted(wrappers, key=len, reverse=True))
    taken = {name: re.sub(rf"(?:(?<=\.)|^)(?:{parts})+", "", name) if parts else name for name in names}
    if len(set(taken.values())) < len(taken):
        raise ValueError(f"without {' and '.join(wrappers)} two of the checkpoint's tensors would have one name")
    return taken


def renamed(tensors: Mapping[str, torch.Tensor], wrappers: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors by their names without wrappers."""
    names = unwrapped(tensors, wrappers)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _wrappers(
    skeleton: PreTrainedModel, tensors: Mapping[str, torch.Tensor], new_head: bool
) -> tuple[Sequence[str], bool]:
    """The wrappers whose parts the names hold, and whether without them everything fits.

    Where no known one helps, the beginning that all names share is tried.
    """
    there = [wrapper for wrapper in WRAPPERS if any(f".{wrapper}" in f".{name}" for name in tensors)]
    first = {name.partition(".")[0] for name in tensors}
    shared = [f"{next(iter(first))}."] if len(first) == 1 else []
    for wrappers in ([*there], shared, [*shared, *there]):
        try:
            if wrappers and fit(skeleton, renamed(tensors, wrappers), new_head).fits:
                return wrappers, True
        except ValueError:
            continue
    return there, False


def some(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
