"""Where models and tokenizers come from: a hub name, a local folder, an installed package, or sizes and a seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from cl_runner.config import Backbone
from cl_runner.families.encoding import tokenizer_hash
from cl_runner.families.freezing import freeze
from cl_runner.families.own_tokenizers import bytes_tokenizer, words_tokenizer
from cl_runner.parts import family_kind
from cl_runner.pretrained.described import check_attention, check_folder, check_kind, check_sizes, check_tokenizer_files
from cl_runner.pretrained.gguf import Gguf
from cl_runner.pretrained.places import INDEX, WEIGHTS, folder_of, is_folder, locate, weight_files
from cl_runner.pretrained.reading import readable, tokenizer_of
from cl_runner.pretrained.tensors import fit, held, judged, refuse, slices, some, unwrapped
from cl_runner.pretrained.vocabulary import check_tokenizer, check_vocabulary

GENERATION = "generation_config.json"
#: A file of the hub that need not be there.
_OPTIONAL: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
#: What dropout is called in the architectures' configurations.
DROPOUT = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout_rate",
)


class Chosen(NamedTuple):
    """What of a checkpoint is loaded.

    Attributes:
        maker: the class of the model.
        names: of its tensors in the files -> in the model; None = all, as they are.
        said: what is not used of it, or drawn anew, as texts worth saying.
    """

    maker: type[PreTrainedModel]
    names: dict[str, str] | None
    said: Sequence[str]


class Source:
    """A backbone's checkpoint, or its sizes, found once and checked before any weights are loaded.

    Args:
        auto: transformers' class that makes the family's models, such as AutoModelForCausalLM.
        new_head: whether what lies behind the base model is always drawn anew: a classifier's head.

    Raises:
        ValueError: there is nothing to load, other weights than the pinned ones, or what cannot be trained here.
    """

    def __init__(self, backbone: Backbone, auto: Any, new_head: bool = False):
        self.backbone = backbone
        self._auto, self._new_head = auto, new_head
        self._writes = auto is not AutoModelForSequenceClassification
        self._chosen: Chosen | None = None
        self._key = backbone.pretrained_key
        if backbone.pretrained is None and backbone.architecture is None:
            raise ValueError(f"backbone {backbone.name} has neither checkpoint nor architecture: set one of them")
        if backbone.pretrained is None and backbone.key_prefixes:
            raise ValueError(
                f"backbone.key_prefixes={backbone.key_prefixes}: nothing reads it, as {backbone.name} has random "
                "weights and no checkpoint. Type: backbone.key_prefixes=[]"
            )
        check_attention(backbone.attention)
        self._place = locate(backbone)
        self._revision = backbone.revision or "main"
        self._file = None if backbone.gguf is None else Gguf(Path(self._place), self._key)
        folder = folder_of(self._place, self._revision) if self._place and self._file is None else None
        if folder is not None:
            check_folder(folder, self._key)
        if folder is not None or self._file is not None:
            self._read()
        if folder is not None and backbone.tokenizer is None and is_folder(self._place):
            check_tokenizer_files(folder, self._key)
        self.tokenizer = self._load_tokenizer()

    def configuration(self, **named: Any) -> PreTrainedConfig:
        """The architecture's configuration, with the backbone's dropout.

        Args:
            named: values that the family sets, such as the number of labels.

        Raises:
            ValueError: it makes no model of this family, or not one of this tokenizer.
        """
        backbone = self.backbone
        if backbone.pretrained is not None:
            configuration = self._read(**named)
            check_vocabulary(self.tokenizer, configuration, self._key, backbone.pretrained, self._writes)
        else:
            configuration = from_sizes(backbone, vocab_size=len(self.tokenizer), **self._special_ids(), **named)
        if backbone.dropout is not None:
            known = [key for key in DROPOUT if key in configuration.to_dict()]
            if not known:
                raise ValueError(f"backbone.dropout: {backbone.name} has no dropout; use backbone.dropout=null")
            for key in known:
                setattr(configuration, key, backbone.dropout)
        if getattr(configuration, "pad_token_id", None) is None:
            configuration.pad_token_id = self.tokenizer.pad_token_id
        return configuration

    def _read(self, **named: Any) -> PreTrainedConfig:
        """The checkpoint's configuration, of an architecture that the family can use."""
        if self._file is not None:
            read = self._file.configuration(**named)
        else:
            with readable(self.backbone):
                read = AutoConfig.from_pretrained(
                    self._place, revision=self._revision, trust_remote_code=False, **named
                )
        check_kind(read, self._auto, self._key, str(self.backbone.pretrained))
        return read

    def labels(self) -> tuple[str, ...]:
        """Of the classifier's head that the checkpoint has, in the order of its rows; empty without one."""
        if self.backbone.pretrained is None:
            return ()
        read = self._read()
        if not any(name.endswith("ForSequenceClassification") for name in read.architectures or ()):
            return ()
        names: dict[int, str] = read.id2label or {}  # type: ignore[assignment]  # which transformers reads as numbers
        return tuple(names[row] for row in sorted(names))

    def _special_ids(self) -> dict[str, int]:
        ids = {"pad_token_id": self.tokenizer.pad_token_id}
        if self.backbone.tokenizer == "bytes":
            ids |= {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
            ids["decoder_start_token_id"] = self.tokenizer.pad_token_id
        return ids

    def choose(self, skeleton: PreTrainedModel) -> Chosen:
        """Compare what the checkpoint's files hold with the architecture, by their headers; a hub's are fetched first.

        Args:
            skeleton: the architecture on the meta device.

        Raises:
            ValueError: tensors are missing, left over or of another shape; the text names them and what to type.
        """
        if self._chosen is None:
            self._chosen = self._choice(skeleton)
        return self._chosen

    def _choice(self, skeleton: PreTrainedModel) -> Chosen:
        name, wrappers = self.backbone.pretrained, self.backbone.key_prefixes
        if name is None:
            return Chosen(type(skeleton), None, [])
        tensors = held(self._fetched(), self._key) if self._file is None else self._file.held()
        names = unwrapped(tensors, wrappers)
        if wrappers and all(old == new for old, new in names.items()):
            raise ValueError(
                f"backbone.key_prefixes={wrappers}: no tensor of {name} has that in its name. "
                "Type: backbone.key_prefixes=[]"
            )
        given = {names[old]: tensor for old, tensor in tensors.items()}
        found = fit(skeleton, given, self._new_head)
        if not found.fits:
            refuse(found, skeleton, given, self._new_head, self._key, name)
        said = []
        if found.old_head:
            said.append(f"the head it has ({some(found.old_head)}) is dropped, and a new one drawn from the seed")
        if found.drawn:
            said.append(f"{some(found.drawn)} is not in it, and drawn from the seed as the head is")
        whole = self._file is None and not wrappers and not found.old_head
        used = {old: new for old, new in names.items() if new not in found.old_head}
        return Chosen(type(skeleton), None if whole else used, said)

    def _fetched(self) -> Path:
        """The folder with the weights; those of a hub name are fetched if they are not yet.

        Raises:
            ValueError: the hub has none in the format safetensors.
        """
        folder = folder_of(self._place, self._revision)
        files = [] if folder is None else weight_files(folder)
        if folder is not None and (is_folder(self._place) or (files and all(path.is_file() for path in files))):
            return folder
        with readable(self.backbone):
            index = cached_file(self._place, INDEX, revision=self._revision, **_OPTIONAL)
            if index is not None:
                get_checkpoint_shard_files(self._place, index, revision=self._revision)
                return Path(index).parent
            whole = cached_file(self._place, WEIGHTS, revision=self._revision, **_OPTIONAL)
        if whole is None:
            raise ValueError(
                f"{self._key}={self._place}: there is no {WEIGHTS} at revision {self._revision}, and pickled weights, "
                "which can run code, are never read. Often a pull request has it: backbone.revision=refs/pr/NUMBER. Or "
                f"convert it where you trust it, by save_pretrained, and give the folder: {self._key}=FOLDER"
            )
        return Path(whole).parent

    def build(self, configuration: PreTrainedConfig, seed: int) -> PreTrainedModel:
        """The model with the checkpoint's weights; new ones are drawn from `seed`.

        Raises:
            ValueError: the checkpoint does not hold what the architecture expects.
        """
        chosen = self._chosen or self.choose(self.skeleton(configuration))
        torch.manual_seed(seed)
        configuration = copy.deepcopy(configuration)  # transformers writes into the one it is given
        if self.backbone.pretrained is None:
            model = self._made(configuration)
        else:
            with readable(self.backbone):
                model = self._loaded(configuration, chosen)
        freeze(model, self.backbone.frozen)
        return model

    def _loaded(self, configuration: PreTrainedConfig, chosen: Chosen) -> PreTrainedModel:
        """The model with what was chosen of the checkpoint."""
        how: dict[str, Any] = {
            "config": configuration,
            "dtype": getattr(torch, self.backbone.dtype),
            "attn_implementation": self.backbone.attention,
            "ignore_mismatched_sizes": True,  # what does not fit is refused below
            "output_loading_info": True,
        }
        with ExitStack() as closing:
            if chosen.names is None:
                model, info = self._auto.from_pretrained(
                    self._place, revision=self._revision, use_safetensors=True, trust_remote_code=False, **how
                )
            else:
                if self._file is not None:
                    read: Mapping[str, Any] = self._file.tensors()
                else:
                    folder = self._fetched()
                    read = slices(folder, closing)
                    if (folder / GENERATION).is_file():
                        how["generation_config"] = GenerationConfig.from_pretrained(folder)
                given = {new: read[old] for old, new in chosen.names.items()}
                maker: Any = chosen.maker
                model, info = maker.from_pretrained(None, state_dict=given, **how)
                model.config.name_or_path = self._place
        found = judged(model, info, (), self._new_head)
        if not found.fits:  # what was loaded is what the headers promised
            raise ValueError(
                f"{self._key}={self.backbone.pretrained} does not hold what its config.json says: {found.said()}"
            )
        loaded: PreTrainedModel = model
        return loaded

    def _made(self, configuration: PreTrainedConfig) -> PreTrainedModel:
        """The model with random weights, or none.

        Raises:
            ValueError: the architecture lacks what the backbone asks for.
        """
        backbone = self.backbone
        try:
            model: PreTrainedModel = self._auto.from_config(
                configuration,
                attn_implementation=backbone.attention,
                dtype=getattr(torch, backbone.dtype),
                trust_remote_code=False,
            )
        except (ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            if "attention" not in reason:
                raise ValueError(f"backbone {backbone.name} makes no model: {reason[:200]}") from None
            raise ValueError(
                f"backbone.attention={backbone.attention}: {configuration.model_type} has no attention of that kind. "
                "Type: backbone.attention=eager"
            ) from None
        return model

    def skeleton(self, configuration: PreTrainedConfig) -> PreTrainedModel:
        """The architecture on the meta device."""
        with torch.device("meta"):
            model = self._made(copy.deepcopy(configuration))
        freeze(model, self.backbone.frozen)
        return model

    def processor(self) -> Any:
        """The checkpoint's processor of pictures and prompts.

        Raises:
            ValueError: it cannot be loaded, or needs a package that is not installed.
        """
        try:
            with readable(self.backbone):
                return AutoProcessor.from_pretrained(self._place, revision=self._revision, trust_remote_code=False)
        except ImportError as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(
                f"the processor of {self.backbone.name} needs another package ({reason}). "
                "Type: pip install 'cl-runner[pictures]'"
            ) from None

    def identity(self, **named: Any) -> str:
        """JSON of backbone and tokenizer, of what else is `named`, and of the library that puts them together."""
        known = {"backbone": self.backbone.model_dump(), "tokenizer": tokenizer_hash(self.tokenizer), **named}
        return json.dumps({**known, "transformers": transformers.__version__}, sort_keys=True)

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        backbone = self.backbone
        if backbone.tokenizer == "words":
            return words_tokenizer(backbone.max_length)
        if backbone.tokenizer == "bytes":
            return bytes_tokenizer(family_kind(backbone.family))
        if backbone.pretrained is None:
            raise ValueError(
                f"backbone {backbone.name} has random weights and no tokenizer. Type: backbone.tokenizer=bytes"
            )
        file = self._file
        loaded = tokenizer_of(backbone, self._key, self._place) if file is None else file.tokenizer()
        if loaded.pad_token is None:  # as language models have it; padding is masked out
            loaded.pad_token = loaded.eos_token
        check_tokenizer(loaded, self._key, backbone.pretrained, self._writes)
        return loaded


def from_sizes(backbone: Backbone, **named: Any) -> PreTrainedConfig:
    """The configuration of `backbone.architecture`.

    Args:
        named: further values; the architecture's own come first.

    Raises:
        ValueError: the sizes make no model.
    """
    sizes = {**named, **(backbone.architecture or {})}
    check_sizes(backbone.architecture or {})
    try:
        return AutoConfig.for_model(str(sizes.pop("model_type")), **sizes)
    except (ValueError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"backbone.architecture makes no model: {reason}. See: backbone=tiny_bert") from None
