"""Frozen encoders beside a backbone, SLM's of sentences and BERTScore's, checked as a backbone's checkpoint is."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from cl_runner.config import Bertscore, Encoder
from cl_runner.pretrained.described import check_folder, check_tokenizer_files
from cl_runner.pretrained.places import folder_of, locate, transformer_folder
from cl_runner.pretrained.reading import readable, tokenizer_of
from cl_runner.pretrained.tensors import fit, held, refuse
from cl_runner.pretrained.vocabulary import check_tokenizer, check_vocabulary


def checked_encoder(options: Encoder | Bertscore, key: str) -> PreTrainedConfig:
    """The configuration of an encoder whose tokenizer and tensors are its own; no weights are loaded.

    A hub name that is not downloaded yet is asked for its configuration only.

    Args:
        key: of its checkpoint in the configuration.

    Raises:
        ValueError: the checkpoint is missing, or not what it says, with what to do.
    """
    place = locate(options, key)
    revision = getattr(options, "revision", None) or "main"
    folder = folder_of(place, revision)
    inner = None if folder is None else transformer_folder(folder)
    if inner is not None:
        check_folder(inner, key)
        check_tokenizer_files(inner, key)
    with readable(options, key):
        configuration: PreTrainedConfig = AutoConfig.from_pretrained(
            place if inner is None else str(inner), revision=revision, trust_remote_code=False
        )
    if inner is not None:
        _check(inner, configuration, options, key)
    return configuration


def _check(folder: Path, configuration: PreTrainedConfig, options: Encoder | Bertscore, key: str) -> None:
    tokenizer = tokenizer_of(options, key, str(folder))
    check_tokenizer(tokenizer, key, options.checkpoint, writes=False)
    check_vocabulary(tokenizer, configuration, key, options.checkpoint, writes=False)
    with readable(options, key), torch.device("meta"):
        skeleton = AutoModel.from_config(configuration, trust_remote_code=False)
    tensors = held(folder, key)
    found = fit(skeleton, tensors, new_head=False)
    if not found.fits:
        refuse(found, skeleton, tensors, False, key, options.checkpoint)
