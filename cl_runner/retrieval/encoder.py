"""Queries: the vectors that a frozen sentence encoder gives texts, computed once per set of texts."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor

from cl_runner.config import Encoder
from cl_runner.pretrained.encoders import checked_encoder
from cl_runner.pretrained.places import locate
from cl_runner.pretrained.reading import readable
from cl_runner.sparse.bits import weights_hash
from cl_runner.tensor_files import read_cached, write_tensors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: Of the kept files; changes when they hold something else.
FORMAT = 3
#: Texts of one pass of the encoder.
AT_ONCE = 64
KEY = "method.slm.encoder.checkpoint"
#: Texts about nothing in particular, whose mean is what most texts' vectors share.
GENERIC = (
    "The weather will change tomorrow.",
    "She went to the market to buy bread and apples.",
    "The committee met on Monday to discuss the plan.",
    "Water boils at one hundred degrees.",
    "He has lived in this town for ten years.",
    "What time does the train leave?",
    "The company reported its results for the year.",
    "They played well but lost the game.",
    "This is how the machine works.",
    "I would like to know more about it.",
    "The old house stands at the end of the street.",
    "Many people read the news in the morning.",
    "The doctor said that rest would help.",
    "A river runs through the valley.",
    "The film was longer than the book.",
    "Please send the letter by Friday.",
    "Prices rose by three percent last month.",
    "The students wrote an essay on history.",
    "It is a good idea to save some money.",
    "The police are looking for a witness.",
    "Birds fly south in winter.",
    "He opened the file and printed the page.",
    "The music was loud and the room was full.",
    "No one knew the answer to the question.",
)


@functools.cache
def check_encoder(options: Encoder) -> int:
    """The width of the encoder's vectors, read from its configuration; no weights are loaded.

    Raises:
        ValueError: the library or the encoder is missing, with what to type.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(
            "method slm encodes texts with sentence-transformers. Type: pip install 'cl-runner[retrieval]'"
        )
    configuration = checked_encoder(options, KEY)
    limit = getattr(configuration, "max_position_embeddings", None)
    if limit is not None and options.max_length is not None and options.max_length > limit:
        raise ValueError(
            f"method.slm.encoder.max_length={options.max_length}: {options.checkpoint} reads {limit} tokens. "
            "Type: method.slm.encoder.max_length=null"
        )
    return int(configuration.hidden_size)


class Queries:
    """Vectors of texts, in memory and, if there is a folder, on disk by content.

    Args:
        cache: a folder that other runs share, or None.
        progress: called with a phase, texts done and texts in all.
        warn: tells the user something.
    """

    def __init__(
        self,
        options: Encoder,
        device: torch.device,
        cache: Path | None,
        progress: Callable[[str, int, int], None],
        warn: Callable[[str], None] = print,
    ):
        self._options, self._device, self._cache = options, device, cache
        self._progress, self._warn = progress, warn
        self._loaded: SentenceTransformer | None = None
        self._hash: str | None = None
        self._width = check_encoder(options)
        self._sets: list[Tensor] = []
        self._seconds: list[float] = []  # of a text of each set
        self._places: dict[str, tuple[int, int]] = {}  # of a text: which set, which row

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[texts, width], fp32 on the CPU; texts that were not remembered are encoded now."""
        self.remember(texts)
        return torch.stack([self._sets[number][row] for number, row in map(self._places.__getitem__, texts)])

    def remember(self, texts: Sequence[str]) -> None:
        """Encode a set of texts at once, unless all of them are known; those that are known keep their vectors.

        In which company a text is encoded enters the last bits: so it is always its whole set.
        """
        whole = list(dict.fromkeys(texts))
        if all(text in self._places for text in whole):
            return
        path = self._cache / f"{self._key(whole)}.safetensors" if self._cache and len(whole) > AT_ONCE else None
        kept = read_cached(path, self._warn) if path is not None else None
        if kept is None:
            started = time.perf_counter()
            vectors, seconds = self._encode(whole), (time.perf_counter() - started) / len(whole)
            if path is not None:
                write_tensors(path, {"queries": vectors}, {"seconds": repr(seconds)})
        else:
            vectors, seconds = kept[0]["queries"], float(kept[1]["seconds"])
        for row, text in enumerate(whole):
            self._places.setdefault(text, (len(self._sets), row))
        self._sets.append(vectors)
        self._seconds.append(seconds)

    def seconds(self, texts: Sequence[str]) -> float:
        """What encoding these texts took, where it was done: in this run, or in one that shares its vectors."""
        return sum(self._seconds[self._places[text][0]] for text in texts)

    def longer(self, texts: Sequence[str]) -> tuple[int, int]:
        """How many of the texts are longer than the encoder reads, which sees their beginning; and how much it reads.

        Returns:
            Texts, and tokens (0: no limit is known).
        """
        encoder = self._encoder()
        limit = encoder.max_seq_length or 0
        # No token is less than a byte, and the ends of a text are two: most texts need not be looked at.
        long = [text for text in texts if limit and len(text.encode()) + 2 > limit]
        if not long:
            return 0, limit
        ids = encoder.tokenizer(long, truncation=False)["input_ids"]
        return sum(len(row) > limit for row in ids), limit

    def encode_again(self, text: str) -> None:
        """Encode a text as if it were not known: for measuring how long that takes."""
        self._vectors([text])

    def _key(self, texts: Sequence[str]) -> str:
        """Everything the bits of the vectors depend on."""
        import sentence_transformers

        known = {
            "format": FORMAT,
            "texts": list(texts),
            "max_length": self._options.max_length,
            "weights": self._weights(),
            "libraries": [transformers.__version__, sentence_transformers.__version__, torch.__version__],
            "device": f"{self._device.type}/{torch.get_num_threads()}",
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]

    def _encode(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
        rows: list[Tensor | None] = [None] * len(texts)
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            for place, row in zip(chosen, self._vectors([texts[i] for i in chosen]), strict=True):
                rows[place] = row
            self._progress("encode texts", start + len(chosen), len(order))
        return torch.stack([row for row in rows if row is not None])

    def _encoder(self) -> SentenceTransformer:
        """The encoder, loaded once."""
        if self._loaded is None:
            from sentence_transformers import SentenceTransformer

            with readable(self._options, KEY):
                place, device = locate(self._options, KEY), str(self._device)
                self._loaded = SentenceTransformer(
                    place, revision=self._options.revision, device=device, trust_remote_code=False
                )
            if self._options.max_length is not None:
                self._loaded.max_seq_length = self._options.max_length
        return self._loaded

    def _weights(self) -> str:
        """Hash of the encoder's weights: a folder, or the newest of a hub, may hold others tomorrow."""
        if self._hash is None:
            self._hash = weights_hash(dict(self._encoder().named_parameters()))
        return self._hash

    @torch.no_grad()
    def _vectors(self, texts: Sequence[str]) -> Tensor:
        """Mean over tokens of the last hidden states, or whatever pooling the encoder was trained with; in fp32."""
        with torch.autocast(self._device.type, enabled=False):
            found = self._encoder().encode(
                list(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
            )
        if found.shape[1] != self._width:
            raise ValueError(
                f"{self._options.checkpoint} gives {found.shape[1]} numbers, but its configuration says {self._width}: "
                "an encoder with a layer behind its pooling is not supported. Choose another: "
                "method.slm.encoder.checkpoint=NAME"
            )
        return found.float().cpu()
