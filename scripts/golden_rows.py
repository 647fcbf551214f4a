"""One tiny run of every method, family and way to train, recorded so that two versions of the code can be compared.

    python scripts/golden_rows.py record old.json --code /path/to/another/checkout
    python scripts/golden_rows.py record new.json
    python scripts/golden_rows.py compare old.json new.json

A record holds every loss to its last digit, the hashes of weights, selections and predictions, and the accuracy
matrix. Last digits depend on the processor and on torch: compare records made on one machine only, and keep them out
of the repository. Of cl_runner this uses the command line and the files of a run's folder alone, so that it measures
any checkout that has the overrides below.

tests/golden holds losses and selections of some rows in a form that any processor can keep (tests/test_golden.py). A
change of behaviour that is wanted is written there anew:

    python scripts/golden_rows.py record new.json --keep tests/golden
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib
import io
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from golden_table import COLOURS, KEPT, METHODS, RETRIEVAL, SEEING, SMALL, SPREAD, VARIANTS

TOP = Path(__file__).resolve().parents[1]

#: Selected positions of a task that tests/golden holds at most.
POSITIONS = 200

#: Of every changed tensor of a task: the hash of its values, and the selected positions (None: the whole tensor).
Changes = dict[str, tuple[str, list[int] | None]]


def rows() -> dict[str, tuple[str, ...]]:
    """The overrides of every row by its name, METHOD-FAMILY or METHOD-FAMILY-VARIANT."""
    plain = ((method, family, "", ()) for method, families in METHODS.items() for family in families)
    found: dict[str, tuple[str, ...]] = {}
    for method, family, variant, different in (*plain, *VARIANTS):
        name = "-".join(part for part in (method.strip("[]").replace(",", "+"), family, variant) if part)
        assert name not in found, f"{name} twice"
        chosen = [f"method={method}", f"backbone=tiny_{family}", *(RETRIEVAL if method.startswith("slm") else ())]
        chosen += [
            *(SPREAD if family in ("bert", "llama", "gpt2") else ()),
            *(SEEING if family == "llava" else ()),
            *different,
        ]
        keys = {override.partition("=")[0] for override in chosen}
        keys |= replaced_rates(name, different)
        found[name] = (*(o for o in SMALL if o.partition("=")[0] not in keys), *chosen)
    return found


def replaced_rates(name: str, different: Sequence[str]) -> set[str]:
    """Keys of learning rates in whose place a row's method has its own: nothing would read them."""
    base, incremental = "training.base.learning_rate", "training.incremental.learning_rate"
    if name.startswith("slm") or "method.pe.first_task=selected" in different:
        return {base, incremental}
    own = any(part.startswith("pe") for part in name.partition("-")[0].split("+"))
    return {incremental} if own or "method.piece.learning_rate=1e-2" in different else set()


def write_encoder(folder: Path) -> None:
    """A random sentence encoder of one layer that reads letters."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    read = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    read.normalizer = normalizers.BertNormalizer(lowercase=True)
    read.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    read.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=read, **named).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    size = BertConfig(
        vocab_size=len(pieces), hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    BertModel(size).save_pretrained(folder / "bert")
    reader = modules.Transformer(str(folder / "bert"), max_seq_length=128)
    parts = [reader, modules.Pooling(48, pooling_mode="mean")]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "whole"))


def write_pictures(folder: Path) -> None:
    """A data root of the task order vqa: what colour is it?"""
    from PIL import Image

    draw = random.Random(0)
    (folder / "coco" / "val2014").mkdir(parents=True)
    for domain in ("action", "count"):
        (folder / "vqa" / domain).mkdir(parents=True)
        for split, number in (("train", 18), ("eval", 2), ("test", 6)):
            asked = []
            for i in range(number):
                colour, place = draw.choice(sorted(COLOURS)), f"val2014/{domain}_{split}_{i}.png"
                size = draw.choice([16, 20, 40]), draw.choice([16, 24])
                Image.new("RGB", size, COLOURS[colour]).save(folder / "coco" / place)
                asked.append({"prompt": f"What colour, {domain}?", "answer": colour, "pic_path": place})
            (folder / "vqa" / domain / f"{split}.json").write_text(json.dumps(asked), encoding="utf-8")


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder, written if it is not there."""
    if not folder.is_dir():
        write(folder)
    return folder


def run_row(name: str, place: Path) -> Path:
    """Run a row with the cl_runner that is imported first.

    Args:
        place: a folder of this process, where runs and their inputs are written.

    Returns:
        The run's folder.

    Raises:
        KeyboardInterrupt: the run was interrupted.
        RuntimeError: the run did not end well; the text holds its last words.
    """
    import matplotlib.image
    from matplotlib.figure import Figure

    typed = [*rows()[name], f"root={place / name}"]
    if "backbone=tiny_llava" in typed:
        typed.append(f"data_root={once(place / 'pictures', write_pictures)}")
    if RETRIEVAL[0] in typed:
        encoder = once(place / "encoder", write_encoder) / "whole"
        typed = [override.replace("{encoder}", str(encoder)) for override in typed]
    command_line = importlib.import_module("cl_runner.__main__")

    def one_dot(figure: Figure, target: Any, **options: Any) -> None:
        matplotlib.image.imsave(target, [[0.0]])

    said = io.StringIO()
    # Pictures would take most of a row's time, and come after all that is recorded.
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        mock.patch.object(Figure, "savefig", one_dot),
    ):
        status = command_line.main(typed)
    if status == 75:  # the run took the signal that was meant for all rows
        raise KeyboardInterrupt
    if status != 0:
        raise RuntimeError(f"{name} ended with status {status}:\n{said.getvalue()[-2000:]}")
    (folder,) = (path.parent for path in (place / name).rglob("COMPLETED"))
    return folder


def losses_of(folder: Path) -> list[float]:
    """The loss of every step of all tasks."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def changes_of(folder: Path) -> dict[str, Changes]:
    """What every task changed, by the names of its snapshot and of the tensors."""
    import torch
    from safetensors.torch import load_file

    found: dict[str, Changes] = {}
    for path in sorted((folder / "snapshots").glob("*.safetensors")):
        changes = found[path.stem] = {}
        stored = load_file(path)
        for key in sorted(stored):
            kind, _, name = key.partition("/")
            if kind == "gap":
                continue
            values = stored[key].contiguous()
            digest = hashlib.sha256(f"{kind} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
            gaps = stored.get(f"gap/{name}")
            positions = None
            if gaps is not None:
                wide = gaps.long()
                positions = wide.cumsum(0)[wide != 0xFFFF].tolist()  # this gap leads to no entry
            changes[name] = (digest.hexdigest()[:16], positions)
    return found


def record_of(folder: Path) -> dict[str, dict[str, str]]:
    """All that must be equal, in the order in which a difference would arise: part -> place -> value."""
    changes = changes_of(folder)
    whole = {f"{task} {name}": found for task, tensors in changes.items() for name, found in tensors.items()}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    predictions = {}
    for path in sorted((folder / "predictions").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        told = [[line[key] for key in ("task", "index", "answer", "prediction", "score")] for line in lines]
        predictions[path.stem] = short_hash(told)
    with (folder / "accuracy.csv").open(encoding="utf-8", newline="") as file:
        accuracy = {after: " ".join(cells) for after, *cells in csv.reader(file)}
    return {
        "selections": {place: "whole" if p is None else f"{len(p)} {short_hash(p)}" for place, (_, p) in whole.items()},
        "losses": {f"step {step}": repr(loss) for step, loss in enumerate(losses_of(folder), start=1)},
        "weights": {place: digest for place, (digest, _) in whole.items()} | {"at the end": summary["weights_sha256"]},
        "predictions": predictions,
        "accuracy": accuracy,
    }


def short_hash(content: Any) -> str:
    """Of what JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def kept_of(folder: Path) -> dict[str, Any]:
    """What tests/golden holds of a row: losses by task order, and of every task which entries it trained.

    `selected` has a share of the positions that is evenly spread over their order, `entries` the number of all of them.
    """
    tasks = {}
    for task, changes in changes_of(folder).items():
        pairs = [(name, p) for name in sorted(changes) for p in changes[name][1] or ()]
        kept: dict[str, list[int]] = {}
        for name, position in pairs[:: -(-len(pairs) // POSITIONS) or 1]:
            kept.setdefault(name, []).append(position)
        tasks[task] = {
            "entries": len(pairs),
            "selected": {name: " ".join(map(str, positions)) for name, positions in kept.items()},
            "whole": " ".join(name for name in sorted(changes) if changes[name][1] is None),
        }
    return {"losses": " ".join(f"{loss:.6g}" for loss in losses_of(folder)), "tasks": tasks}


def record(output: Path, only: str, code: Path, keep: Path | None) -> int:
    """Run the rows and write what they gave; a row that fails is recorded as such."""
    sys.path.insert(0, str(code.resolve()))
    import torch
    import transformers

    place_of_code = Path(importlib.import_module("cl_runner").__file__ or "").resolve().parents[1]
    if place_of_code != code.resolve():
        sys.exit(f"{code} holds no cl_runner")
    names = [name for name in rows() if only in name]
    if not names:
        sys.exit(f"no row has {only!r} in its name; rows: {', '.join(rows())}")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            began = time.perf_counter()
            try:
                folder = run_row(name, Path(temporary))
                found[name] = record_of(folder)
                if keep is not None and name in KEPT:
                    keep.mkdir(parents=True, exist_ok=True)
                    text = json.dumps(kept_of(folder), indent=1) + "\n"
                    (keep / f"{name}.json").write_text(text, encoding="utf-8")
                said = "done"
            except RuntimeError as error:
                found[name] = {"end": {"failed": str(error)}}
                said = str(error)
            print(f"{name}: {said}, {time.perf_counter() - began:.1f} s", flush=True)
    made_with = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    output.write_text(json.dumps({"made_with": made_with, "rows": found}, indent=1) + "\n", encoding="utf-8")
    failed = [name for name in found if "end" in found[name]]
    print(f"{len(found)} rows in {output}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def differences(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """The first place of each part of a row where two records of it differ."""
    for part in dict.fromkeys([*old, *new]):
        left, right = old.get(part, {}), new.get(part, {})
        places = [place for place in dict.fromkeys([*left, *right]) if left.get(place) != right.get(place)]
        if places:
            values = f"{left.get(places[0], 'nothing')} and {right.get(places[0], 'nothing')}"
            yield f"{part} differ in {len(places)} places, the first is {places[0]}: {values}"


def compare(old: Path, new: Path) -> int:
    """Say where two records differ; rows that only one has are named and not compared."""
    left, right = (json.loads(path.read_text(encoding="utf-8")) for path in (old, new))
    if left["made_with"] != right["made_with"]:
        print(f"Note: last digits may differ, made with {left['made_with']} and {right['made_with']}")
    shared = [name for name in left["rows"] if name in right["rows"]]
    different = 0
    for name in shared:
        found = list(differences(left["rows"][name], right["rows"][name]))
        different += bool(found)
        for line in found:
            print(f"{name}: {line}")
    for path, record, other in ((old, left, right), (new, right, left)):
        alone = [name for name in record["rows"] if name not in other["rows"]]
        if alone:
            print(f"only in {path}: {', '.join(alone)}")
    print(f"{different} of {len(shared)} rows differ")
    return 1 if different or not shared else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the rows")
    recording.add_argument("output", type=Path)
    recording.add_argument("--only", default="", help="rows whose name holds this")
    recording.add_argument("--code", type=Path, default=TOP, help="the checkout to measure")
    recording.add_argument("--keep", type=Path, help="where to write the rows of tests/golden")
    comparing = commands.add_parser("compare", help="say where two records differ; exit status 1 if they do")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        return compare(given.old, given.new)
    # Before torch is imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    try:
        return record(given.output, given.only, given.code, given.keep)
    except KeyboardInterrupt:
        print("Interrupted: nothing is recorded.", file=sys.stderr)
        return 75


if __name__ == "__main__":
    sys.exit(main())
