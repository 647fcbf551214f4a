"""The passes of each family over tensors without content: the longest examples, their losses, their answers.

They allocate what those of cl_runner/families do. Here all answers have the same length, since no mask of tensors
without content can tell which positions have a target.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from cl_runner.batch import Output
from cl_runner.families.tokens import branched
from cl_runner.planning.setting import Answers, Setting

#: A part of a pass: given the model and what the part before returned.
Stage = Callable[[PreTrainedModel, Any], Any]


def outputs(model: nn.Module, s: Setting, examples: int) -> Output:
    """A forward pass of training over the longest examples: loss, logits [N, V] in fp32, targets [N]."""
    if s.answers is None:
        logits = model(**_texts(examples, s.max_length)).logits.float()
        return _output(logits, _ids(examples))
    length = s.answers.max_length
    if s.family != "seq2seq":
        given = {**_prompts(model, s, examples, s.max_whole), **_positions(model, examples, s.max_whole)}
        logits = model(**given, **_kept(model, length + 1), use_cache=False).logits[:, -length - 1 : -1]
    else:
        decoder = {"decoder_input_ids": _ids(examples, length)}
        logits = model(**_texts(examples, s.max_length), **decoder, use_cache=False).logits
    # As a mask picks the targets' rows: copied in the model's type, then brought to fp32.
    rows = logits[_ids(examples * length), _ids(examples * length)].float()
    return _output(rows, _ids(examples * length))


def _output(logits: Tensor, targets: Tensor) -> Output:
    return Output(functional.cross_entropy(logits, targets), logits, targets, torch.empty_like(targets))


def loss_sum(model: nn.Module, s: Setting, examples: int) -> Tensor:
    """The sum over examples that importance is measured of."""
    output = outputs(model, s, examples)
    return functional.cross_entropy(output.logits, output.targets, reduction="sum")


def answers(s: Setting) -> dict[str, list[Stage]]:
    """How batches of examples are evaluated, each way in stages.

    Returns:
        "forward": one pass of a classifier. "generate": the prompts, room for almost all of the answers, and the pass
        for one more token. "labels": the prompts, and each label after them.
    """
    said = s.answers
    if said is None:
        return {"forward": [lambda model, _: outputs(model, s, s.evaluation_batch).logits]}
    ways: dict[str, list[Stage]] = {}
    decodes = s.family != "seq2seq"
    read = _read_causal if decodes else _read_seq2seq
    before_labels = _read_causal if decodes else _encode
    following = _token_causal if decodes else _token_seq2seq
    of_label = _label_causal if decodes else _label_seq2seq
    length = s.max_length
    if said.generated:

        def grow(model: PreTrainedModel, given: Any) -> Any:
            _grow(given[0], said.generated - 2)
            return given

        ways["generate"] = [
            lambda model, _: read(model, s, s.evaluation_batch, length),
            grow,
            lambda model, given: following(model, s.evaluation_batch, length, said.generated, given),
        ]
    if said.by_label:
        ways["labels"] = [
            lambda model, _: before_labels(model, s, s.evaluation_batch, length),
            *[lambda model, given: of_label(model, s.evaluation_batch, length, said, given)] * said.labels,
        ]
    return ways


def _read_causal(model: PreTrainedModel, s: Setting, examples: int, length: int) -> tuple[Any, Tensor]:
    given = {**_prompts(model, s, examples, length), **_positions(model, examples, length)}
    read = model(**given, **_kept(model, 1), use_cache=True)
    return read.past_key_values, read.logits[:, -1].float()


def _token_causal(model: PreTrainedModel, examples: int, length: int, generated: int, given: Any) -> Any:
    texts = {"input_ids": _ids(examples, 1), "attention_mask": _ids(examples, length + max(1, generated - 1))}
    texts |= _positions(model, examples, 1)
    wrote = model(**texts, **_kept(model, 1), past_key_values=given[0], use_cache=True)
    return given, wrote.logits[:, -1].float()


def _label_causal(model: PreTrainedModel, examples: int, length: int, said: Answers, given: Any) -> Any:
    tokens = max(1, said.label_length - 1)
    texts: dict[str, Any] = {"input_ids": _ids(examples, tokens), "attention_mask": _ids(examples, length + tokens)}
    texts |= {**_positions(model, examples, tokens), "past_key_values": branched(given[0]), "use_cache": True}
    of_tokens = functional.cross_entropy(
        model(**texts).logits.float().flatten(0, 1), _ids(examples * tokens), reduction="none"
    )
    return *given, of_tokens.view(examples, -1).sum(1)


def _encode(model: PreTrainedModel, s: Setting, examples: int, length: int) -> tuple[Any, Tensor]:
    states: Tensor = model.get_encoder()(**_texts(examples, length)).last_hidden_state
    return None, states


def _read_seq2seq(model: PreTrainedModel, s: Setting, examples: int, length: int) -> tuple[Any, Tensor]:
    _, states = _encode(model, s, examples, length)
    wrote = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=_ids(examples, length),
        decoder_input_ids=_ids(examples, 1),
        use_cache=True,
    )
    return wrote.past_key_values, states


def _token_seq2seq(model: PreTrainedModel, examples: int, length: int, generated: int, given: Any) -> Any:
    cache, states = given
    wrote = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=_ids(examples, length),
        decoder_input_ids=_ids(examples, 1),
        past_key_values=cache,
        use_cache=True,
    )
    return given, wrote.logits[:, -1].float()


def _label_seq2seq(model: PreTrainedModel, examples: int, length: int, said: Answers, given: Any) -> Any:
    logits = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=given[1]),
        attention_mask=_ids(examples, length),
        decoder_input_ids=_ids(examples, said.label_length),
        use_cache=False,
    ).logits.float()
    targets = _ids(examples, said.label_length)
    return *given, functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)


def _grow(cache: Any, tokens: int) -> None:
    """Room for further tokens in every layer of a cache of keys and values, by the cache's own rules."""
    own = getattr(cache, "self_attention_cache", cache)
    for number, layer in enumerate(own.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or tokens < 1:  # a layer with another layer's, or with a state instead
            continue
        wider = [t.new_empty(*t.shape[:-2], tokens, t.shape[-1]) for t in (keys, values)]
        del keys, values  # the old ones go when the cache has new ones
        own.update(*wider, number)


def _ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


def _texts(examples: int, tokens: int) -> dict[str, Tensor]:
    """The mask has the type it has in a run, padding included."""
    return {"input_ids": _ids(examples, tokens), "attention_mask": _ids(examples, tokens)}


def _prompts(model: nn.Module, s: Setting, examples: int, tokens: int) -> dict[str, Tensor]:
    """Texts; of models that see with a picture in each, whose features stand at some of its tokens.

    Raises:
        ValueError: the model cuts pictures into grids, whose sizes it reads.
    """
    if s.family != "image_text":
        return _texts(examples, tokens)
    assert isinstance(model, PreTrainedModel)
    eyes: Any = getattr(model.config, "vision_config", None)
    if not hasattr(eyes, "image_size"):
        raise ValueError(
            "plans know pictures of one size, such as LLaVA's, and no grids; the run itself is not concerned"
        )
    pixels = torch.empty(examples, 3, eyes.image_size, eyes.image_size, dtype=model.dtype)
    look: Any = model.get_image_features
    seen = look(pixel_values=pixels, return_dict=True).pooler_output
    read: Tensor = model.get_input_embeddings()(_ids(examples, tokens))
    # No token of a text without content stands for a picture: it is joined as where some do.
    nowhere = torch.zeros(examples, tokens, 1, dtype=torch.bool).expand_as(read)
    joined = read.masked_scatter(nowhere, torch.cat(list(seen)).to(read.dtype))
    return {"inputs_embeds": joined, "attention_mask": _ids(examples, tokens)}


def _positions(model: nn.Module, examples: int, tokens: int) -> dict[str, Tensor]:
    known = "position_ids" in inspect.signature(model.forward).parameters
    return {"position_ids": _ids(examples, tokens)} if known else {}


def _kept(model: nn.Module, positions: int) -> dict[str, int]:
    """Only the logits of the last positions, where the model can do that."""
    known: Sequence[str] = list(inspect.signature(model.forward).parameters)
    return {"logits_to_keep": positions} if "logits_to_keep" in known else {}
