"""The command `draw`: pictures of shapes with questions and captions, as files of a data root; no network."""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cl_runner.arguments import Parser, unwritable
from cl_runner.data.drawings import DESCRIBE, QUESTIONS, SPLITS, Drawing, Split, drawings
from cl_runner.digests import replace_file
from cl_runner.overrides import COMMAND
from cl_runner.plain import plain, plain_lines

#: Below the data root.
FOLDER = "drawn"
CAPTIONS = "dataset_drawn.json"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} draw",
        description="Pictures of coloured shapes, what is asked about them and five captions of each, below "
        f"DATA_ROOT/{FOLDER}: for task_order=drawn and probe=captioning_drawn. The same seed draws the same.",
        allow_abbrev=False,
    )
    parser.add_argument("data_root", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--train", type=int, default=480, help="pictures to learn from (480)")
    parser.add_argument("--val", type=int, default=48, help="pictures to choose by (48)")
    parser.add_argument("--test", type=int, default=96, help="pictures to be tested on (96)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request."""
    try:
        asked = _parser().parse_args(list(arguments))
        counts: dict[Split, int] = {split: getattr(asked, split) for split in SPLITS}
        for split, count in counts.items():
            if count < 1:
                raise ValueError(f"--{split} {count}: at least one picture. Type: --{split} 48")
        folder = asked.data_root / FOLDER
        try:
            written = write(folder, counts, asked.seed)
        except OSError as error:
            raise unwritable(folder, error) from None
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    line = f"{COMMAND} backbone=tiny_llava task_order=drawn probe=captioning_drawn data_root={asked.data_root}"
    print(f"{plain(folder)}: {written} pictures, questions of {', '.join(QUESTIONS)}, captions. Type: {plain(line)}")
    return 0


def write(folder: Path, counts: dict[Split, int], seed: int) -> int:
    """Pictures, a file of each kind of question and split, and one of all captions; returns the number of pictures.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    for split in SPLITS:
        asked = random.Random(f"{seed}/questions/{split}")
        rows: dict[str, list[dict[str, str]]] = {kind: [] for kind in (*QUESTIONS, "describe")}
        for number, drawing in enumerate(drawings(split, counts[split], seed)):
            # Of this format the bytes are the same whatever library compresses others.
            name = f"{split}_{number:04d}.bmp"
            replace_file(folder / "pictures" / name, _bytes_of(drawing))
            captions = drawing.captions()
            for kind in QUESTIONS:
                row = {"prompt": drawing.question(kind, asked), "answer": drawing.answer(kind), "picture": name}
                rows[kind].append(row)
            rows["describe"].append({"prompt": DESCRIBE, "answer": captions[0], "picture": name})
            images.append({"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions]})
        for kind, of_kind in rows.items():
            (folder / kind).mkdir(exist_ok=True)
            replace_file(folder / kind / f"{split}.json", json.dumps(of_kind, indent=1) + "\n")
    replace_file(folder / CAPTIONS, json.dumps({"images": images, "dataset": FOLDER}, indent=1) + "\n")
    return len(images)


def _bytes_of(drawing: Drawing) -> bytes:
    file = io.BytesIO()
    drawing.picture().save(file, "BMP")
    return file.getvalue()
